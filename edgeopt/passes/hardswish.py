"""Recognise HardSwish where exporters wrote it out: x clip(x + 3, 0, 6) / 6 in any order of its factors, or x
HardSigmoid(x; 1/6, 1/2).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.graph.ops import constant
from edgeopt.passes.qdq import drop_unused

OPSET = 14


def fuse_hardswish(model: ir.Model) -> ir.Model:
    """A clone with HardSwish nodes for the patterns; the model itself below opset 14, which has no HardSwish."""
    if model.opset_imports[""] < OPSET:
        return model
    copy = model.clone()
    for node in tuple(copy.graph):
        x = _input_of(node) if node.graph is not None else None
        if x is None:
            continue
        fused = ir.Node("", "HardSwish", [x], name=f"{node.name}_HardSwish")
        out, old = fused.outputs[0], node.outputs[0]
        name, out.type, out.shape = old.name, old.type, old.shape
        copy.graph.insert_after(node, fused)
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        _remove(copy.graph, node)
        out.name = name
    drop_unused(copy)
    return copy


def _number(value: ir.Value | None) -> float | None:
    if value is None or not constant(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _split(node: ir.Node | None, op_type: str) -> tuple[ir.Value, float] | None:
    """(x, c) of `node` = op(x, c) with a constant number c."""
    if node is None or node.op_type != op_type or node.domain or len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, reversed(tuple(node.inputs))):
        number = _number(c)
        if number is not None and x is not None and (op_type != "Div" or c is node.inputs[1]):
            return x, number
    return None


def _gate(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, c) if `value` is c times HardSigmoid(x; 1/6, 1/2) for c = 6 (a clip) or 1."""
    node = value.producer() if value is not None else None
    if node is None or node.domain or not _private(node):
        return None
    if node.op_type == "HardSigmoid" and node.inputs[0] is not None:
        slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return (node.inputs[0], 1.0) if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5 else None
    if (
        node.op_type != "Clip"
        or len(node.inputs) != 3
        or (_number(node.inputs[1]), _number(node.inputs[2])) != (0.0, 6.0)
    ):
        return None
    shifted = node.inputs[0].producer() if node.inputs[0] is not None else None
    found = _split(shifted, "Add")
    return (
        (found[0], 6.0) if shifted is not None and _private(shifted) and found is not None and found[1] == 3.0 else None
    )


def _private(node: ir.Node) -> bool:
    return len(tuple(node.outputs[0].uses())) == 1 and not node.outputs[0].is_graph_output()


def _product(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """(x, c) if `node` is x times c HardSigmoid(x)."""
    if node is None or node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    for x, g in (node.inputs, reversed(tuple(node.inputs))):
        found = _gate(g)
        if found is not None and found[0] is x:
            return found
    return None


def _input_of(node: ir.Node) -> ir.Value | None:
    """x if `node` gives HardSwish(x)."""
    found = _product(node)
    if found is not None:
        return found[0] if found[1] == 1.0 else None
    for op_type, factor in (("Div", 6.0), ("Mul", 1 / 6)):
        outer = _split(node, op_type)
        inner = outer[0].producer() if outer is not None else None
        if outer is None or inner is None or not math.isclose(outer[1], factor, rel_tol=1e-6) or not _private(inner):
            continue
        found = _product(inner)
        if found is not None and found[1] == 6.0:
            return found[0]
    return None


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Remove `node` and what only it read."""
    inputs = [v.producer() for v in node.inputs if v is not None]
    graph.remove(node, safe=True)
    for producer in inputs:
        if (
            producer is not None
            and producer.graph is graph
            and not any(v.uses() or v.is_graph_output() for v in producer.outputs)
        ):
            _remove(graph, producer)
