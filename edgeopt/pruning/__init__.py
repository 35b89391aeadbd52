"""Structured pruning of an ONNX graph: which channels belong together, and the graph without some of them."""
