"""Quantize embedding tables to int8 with one scale for each row; rows are converted to float after the Gather, so that
only the requested rows are read:

Gather(T, ids) = Cast(Gather(T_q, ids)) * Gather(s, ids)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant
from edgeopt.numbers.grid import INT8_WEIGHT, quantize, weight_params

_SMALLEST = 32768  # elements; for a smaller table three additional nodes do not pay off


def embeddings(model: ir.Model) -> frozenset[str]:
    """The names of the nodes that read rows of a large table."""
    return frozenset(str(n.name) for n in model.graph.all_nodes() if _embedding(n))


def quantize_embeddings(model: ir.Model, only: frozenset[str] | None = None) -> ir.Model:
    """A clone whose large float32 tables [rows, width] read by a Gather on axis 0 are int8 per row; the model itself if
    it has none.

    only: names of the nodes to change, None for all.
    """
    large = embeddings(model) if only is None else embeddings(model) & only
    if not large:
        return model
    copy = model.clone()
    names, known = Names(copy), dict[str, list[ir.Value]]()
    for node in tuple(copy.graph.all_nodes()):
        if node.name in large:
            _replace(copy, names, known, node)
    drop_unused(copy)
    return copy


def _embedding(node: ir.Node) -> bool:
    if (
        node.op_type != "Gather"
        or node.domain
        or node.attributes.get_int("axis", 0) != 0
        or not constant(node.inputs[0])
    ):
        return False
    table = array(node.inputs[0])
    large = table.dtype == np.float32 and table.ndim == 2 and table.size >= _SMALLEST
    return bool(large and np.isfinite(table).all())


def _replace(model: ir.Model, names: Names, known: dict[str, list[ir.Value]], node: ir.Node) -> None:
    (table, ids), name = node.inputs, str(node.name)
    assert table is not None and node.graph is not None
    key = f"{table.name}_rows"
    if key not in known:
        w = array(table)
        p = weight_params(w, 0, INT8_WEIGHT)
        arrays = {"int8": quantize(w, p), "scale": p.scale[:, None]}
        known[key] = [initializer(model, names, f"{key}_{part}", x) for part, x in arrays.items()]
    integers, scales = known[key]
    to_float = [ir.AttrInt64("to", ir.DataType.FLOAT.value)]
    rows = make(names, "Gather", [integers, ids], f"{name}_rows")
    scale = make(names, "Gather", [scales, ids], f"{name}_scale")
    cast = make(names, "Cast", [rows.outputs[0]], f"{name}_cast", to_float)
    result = make(names, "Mul", [cast.outputs[0], scale.outputs[0]], f"{name}_scaled")
    node.graph.insert_before(node, [rows, scale, cast, result])
    take_over(node.graph, node, result.outputs[0])
