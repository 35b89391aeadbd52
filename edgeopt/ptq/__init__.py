"""Post-training quantization: steps that need data or statistics."""
