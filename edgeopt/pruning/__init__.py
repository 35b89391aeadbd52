"""Structured pruning of an ONNX graph: finds coupled channels and removes channels or residual blocks."""
