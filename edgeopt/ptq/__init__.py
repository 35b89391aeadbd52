"""Post-training quantization: algorithms that need data or statistics."""
