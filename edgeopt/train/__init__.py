"""Training on ONNX graphs; the only package that imports torch."""
