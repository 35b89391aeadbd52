"""Sizes of the weights of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

PROTOBUF_LIMIT = 2_000_000_000  # bytes


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """The contents of all initializers."""
    return [v.const_value for v in initializers(model) if v.const_value is not None]


def size_bytes(model: ir.Model) -> int:
    """Size of all initializers in bytes."""
    return sum(t.nbytes for t in tensors(model))


def bytes_by_dtype(model: ir.Model) -> dict[str, int]:
    """Size of the initializers in bytes by element type, largest first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors(model):
        sizes[tensor.dtype.name.lower()] += tensor.nbytes
    return dict(sizes.most_common())


def fixed(model: ir.Model) -> bool:
    """Whether every dimension of every input has a known size."""
    return all(v.shape is not None and all(isinstance(d, int) for d in v.shape) for v in model.graph.inputs)


def above_protobuf(model: ir.Model) -> bool:
    """Whether the weights alone exceed the size limit of one protobuf message."""
    return size_bytes(model) > PROTOBUF_LIMIT
