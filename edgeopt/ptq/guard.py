"""Integer weights of a finished QDQ model kept to the pairs that do not saturate on CPUs without VNNI: what training moved beyond
the guard of `ptq.quantize` comes back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.ptq.quantize import within_pairs

_PRODUCTS = ("Conv", "Gemm", "MatMul")


def guarded(model: ir.Model) -> ir.Model:
    """A clone whose weights keep to the pairs that do not saturate."""
    copy = model.clone()
    for node in copy.graph:
        value = node.inputs[1] if node.op_type in _PRODUCTS else None
        dequantize = value.producer() if value is not None else None
        weight = dequantize.inputs[0] if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
        if dequantize is None or weight is None or weight.const_value is None:
            continue
        q, axis = weight.const_value.numpy(), dequantize.attributes.get_int("axis", 1)
        if q.dtype != np.int8 or (node.op_type == "Conv" and _depthwise(node, q)):
            continue
        weight.const_value = ir.tensor(within_pairs(q, node.op_type, axis % q.ndim), name=weight.name)
    return copy


def _depthwise(node: ir.Node, q: np.ndarray) -> bool:
    return bool(node.attributes.get_int("group", 1) > 1 and q.shape[1] == 1)
