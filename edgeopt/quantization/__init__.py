"""Post-training quantization of a float model into a checked file: state, steps, recipes, acceptance and search."""
