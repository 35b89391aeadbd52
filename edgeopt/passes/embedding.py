"""Embedding tables as int8 with a scale a row, gathered before they are widened, so that only the rows asked for are touched:

Gather(T, ids) = Cast(Gather(T_q, ids)) * Gather(s, ids)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import constant
from edgeopt.numbers.grid import INT8_WEIGHT, choose, quantize
from edgeopt.passes.dynamic import own, take_over
from edgeopt.passes.qdq import drop_unused

_SMALLEST = 65536  # elements; a smaller table is not worth three more nodes


def quantize_embeddings(model: ir.Model, exclude: frozenset[str] = frozenset()) -> ir.Model:
    """A clone whose large float32 tables [rows, width] behind a Gather on axis 0 are int8 per row; nodes in `exclude` keep theirs."""
    copy = model.clone()
    for node in tuple(copy.graph.all_nodes()):
        if node.name not in exclude and _embedding(node):
            _replace(copy, node)
    drop_unused(copy)
    return copy


def _embedding(node: ir.Node) -> bool:
    table = (
        node.inputs[0]
        if node.op_type == "Gather" and not node.domain and node.attributes.get_int("axis", 0) == 0
        else None
    )
    if table is None or not constant(table) or table.const_value is None or table.dtype != ir.DataType.FLOAT:
        return False
    if len(table.const_value.shape) != 2 or table.const_value.size < _SMALLEST:
        return False
    return bool(np.isfinite(table.const_value.numpy()).all())


def _replace(model: ir.Model, node: ir.Node) -> None:
    (table, ids), name = node.inputs, str(node.name)
    assert table is not None and table.const_value is not None and node.graph is not None
    w = table.const_value.numpy()
    key = f"{table.name}_rows"
    if f"{key}_int8" not in model.graph.initializers:
        p = choose(0.0, np.abs(w).max(axis=1), INT8_WEIGHT, 0)
        own(model, f"{key}_int8", quantize(w, p))
        own(model, f"{key}_scale", p.scale[:, None])
    rows = ir.Node("", "Gather", [model.graph.initializers[f"{key}_int8"], ids], name=f"{name}_rows")
    scale = ir.Node("", "Gather", [model.graph.initializers[f"{key}_scale"], ids], name=f"{name}_scale")
    cast = ir.Node("", "Cast", [rows.outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT.value)], name=f"{name}_cast")
    result = ir.Node("", "Mul", [cast.outputs[0], scale.outputs[0]], name=f"{name}_scaled")
    for made in (rows, scale, cast, result):
        made.outputs[0].name = f"{made.name}_0"
    node.graph.insert_before(node, [rows, scale, cast, result])
    take_over(node.graph, node, result.outputs[0])
