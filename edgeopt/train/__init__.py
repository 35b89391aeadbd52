"""Training on ONNX graphs: the only importer of torch."""
