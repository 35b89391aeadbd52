"""What a model must be to be quantized: with types that ONNX Runtime computes, in floats still, and whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.ops import constant

_COMPUTES = {
    "DynamicQuantizeLinear": "dynamic int8",
    "DynamicQuantizeLSTM": "dynamic int8",
    "MatMulInteger": "dynamic int8",
    "ConvInteger": "dynamic int8",
    "MatMulNBits": "weights of a few bits",
}
_QUANTIZED = frozenset({"QuantizeLinear", *_COMPUTES})


def runs(model: ir.Model) -> bool:
    """Whether ONNX Runtime has kernels for the float types of the model: it has few for bfloat16."""
    return not any(
        v.dtype == ir.DataType.BFLOAT16 for n in model.graph.all_nodes() for v in (*n.inputs, *n.outputs) if v
    )


def check(model: ir.Model) -> None:
    """Refuse a model that cannot be quantized, or that is already.

    Raises:
        ModelError: says which node or value, and what takes the model.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.BFLOAT16:
            raise ModelError(
                f"{value.name!r} is bfloat16, which ONNX Runtime cannot exchange with Python: put a Cast from or to "
                "float32 there"
            )
    computing = [how for n in model.graph.all_nodes() if (how := _COMPUTES.get(n.op_type))]
    for node in model.graph.all_nodes():
        computed = node.op_type == "DequantizeLinear" and not constant(node.inputs[0])
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") or computed:
            how = next(iter(computing), "static int8")  # Q/DQ of an embedding may stand before what is dynamic
            raise ModelError(
                f"node {node.name!r} is a {node.op_type}: the model is quantized already ({how}), and its floats "
                "are lost; quantize the float model it was made of. edgeopt profile, compare and inspect "
                "take it as it is"
            )
    for g in model.graphs():
        for value in g.initializers.values():
            if _holds_nan(value) and not _fills(value):
                raise ModelError(
                    f"weight {value.name!r} holds NaN; the model is broken before quantization: "
                    "train or export it again"
                )


def _holds_nan(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and bool(np.isnan(tensor.numpy()).any())


def _fills(value: ir.Value) -> bool:
    """Whether a constant is only put by Where in place of values that are missing, for which NaN is a usual sign."""
    return bool(value.uses()) and all(node.op_type == "Where" and i > 0 for node, i in value.uses())
