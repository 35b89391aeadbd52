"""ONNX models as graphs: files, canonical form, operator table, edits, and the plan of a quantized model."""

from edgeopt.graph.facts import above_protobuf, bytes_by_dtype, fixed, size_bytes
from edgeopt.graph.form import at_shapes, canonical, free_sizes, lower_opset, raise_opset, typed
from edgeopt.graph.serialization import (
    Source,
    check_valid,
    embedded,
    external_files,
    load,
    proto_bytes,
    write,
    write_valid,
)

__all__ = [
    "Source",
    "above_protobuf",
    "at_shapes",
    "bytes_by_dtype",
    "canonical",
    "check_valid",
    "embedded",
    "external_files",
    "fixed",
    "free_sizes",
    "load",
    "lower_opset",
    "proto_bytes",
    "raise_opset",
    "size_bytes",
    "typed",
    "write",
    "write_valid",
]
