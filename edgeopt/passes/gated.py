"""Recognize activations that are x times a gate of x written as several operators, the factors in any order and
grouping.

    HardSwish(x) = x clip(x + 3, 0, 6) / 6 = x HardSigmoid(x; 1/6, 1/2)
    Gelu(x) = x (1 + erf(x / sqrt(2))) / 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.graph import raise_opset
from edgeopt.graph.edit import Names, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant, scalar

Gate = Callable[[ir.Value | None], tuple[ir.Value, float] | None]
"""(x, c) if a value is c times the gate of x."""
OPSET, GELU_OPSET = 14, 20
MICROSOFT = "com.microsoft"
_ROUGH = 1e-3  # float16 has no nearer one


def fuse_hardswish(model: ir.Model) -> ir.Model:
    """A clone with the patterns replaced by HardSwish nodes; the model itself if there are none, or below opset 14,
    which lacks HardSwish.
    """
    return _fused(model, "HardSwish", _gate) if model.opset_imports[""] >= OPSET else model


def fuse_gelu(model: ir.Model) -> ir.Model:
    """A clone at opset 20 or later with the patterns replaced by Gelu nodes; the model itself if there are none.

    Raises:
        ModelError: ONNX's converter cannot raise the opset of the model.
    """
    if not any(_input_of(n, _error_gate) is not None for n in model.graph):
        return model
    return _fused(raise_opset(model, GELU_OPSET), "Gelu", _error_gate)


def fuse_gelu_here(model: ir.Model, named: Collection[str] = ()) -> ir.Model:
    """A clone with the patterns replaced by ONNX Runtime's own Gelu, but for those with a node in `named`; the model
    itself if there are none. ONNX Runtime fuses them too, but not behind integers: there it gives each of the two
    readers of x a DequantizeLinear of its own, and x is no longer one value. It knows fewer orders of the factors.
    """
    fused = _fused(model, "Gelu", _error_gate, MICROSOFT, named)
    if fused is not model:
        fused.opset_imports.setdefault(MICROSOFT, 1)
    return fused


def _fused(model: ir.Model, op_type: str, gate: Gate, domain: str = "", named: Collection[str] = ()) -> ir.Model:
    if not any(_input_of(n, gate) is not None for n in model.graph):
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        x = _input_of(node, gate)
        if x is None or (named and not set(behind(node, x)).isdisjoint(named)):
            continue
        fused = make(names, op_type, [x], f"{node.name}_{op_type}", domain=domain)
        copy.graph.insert_before(node, fused)
        take_over(copy.graph, node, fused.outputs[0])
    RemoveUnusedNodesPass()(copy)
    return copy


def behind(node: ir.Node, x: ir.Value) -> Iterator[str]:
    """The names of the nodes that make the output of `node` of `x`."""
    yield str(node.name)
    for value in node.inputs:
        producer = value.producer() if value is not None and value is not x else None
        if producer is not None:
            yield from behind(producer, x)


def _split(node: ir.Node | None, op_type: str) -> tuple[ir.Value, float] | None:
    """(x, c) of `node` = op(x, c) with a constant number c."""
    if node is None or node.op_type != op_type or node.domain or len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, reversed(tuple(node.inputs))):
        number = scalar(c) if constant(c) and array(c).ndim <= 1 else None  # more axes would be those of the result
        if number is not None and x is not None and (op_type != "Div" or c is node.inputs[1]):
            return x, number
    return None


def _scaled(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """(x, c) of `node` = x c or x / (1 / c) with a constant number c."""
    divided = _split(node, "Div")
    if divided is not None:
        return (divided[0], 1 / divided[1]) if divided[1] else None
    return _split(node, "Mul")


def _gate(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, c) if `value` is c times HardSigmoid(x; 1/6, 1/2).

    c is 1 for the operator itself and 6 for clip(x + 3, 0, 6), multiplied by constant factors.
    """
    node = value.producer() if value is not None else None
    if node is None or node.domain or not _private(node):
        return None
    if node.op_type == "HardSigmoid" and node.inputs[0] is not None:
        slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return (node.inputs[0], 1.0) if math.isclose(slope, 1 / 6, rel_tol=1e-5) and offset == 0.5 else None
    scaled = _scaled(node)
    if scaled is not None:
        inner = _gate(scaled[0])
        return (inner[0], inner[1] * scaled[1]) if inner is not None else None
    bounds = (scalar(node.inputs[1]), scalar(node.inputs[2])) if len(node.inputs) == 3 else None
    if node.op_type != "Clip" or bounds != (0.0, 6.0) or node.inputs[0] is None:
        return None
    shifted = node.inputs[0].producer()
    found = _split(shifted, "Add")
    plain = shifted is not None and _private(shifted) and found is not None and found[1] == 3.0
    return (found[0], 6.0) if plain and found is not None else None


def _error_gate(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, c) if `value` is 2 c times (1 + erf(x / sqrt(2))) / 2."""
    node = value.producer() if value is not None else None
    if node is None or node.domain or not _private(node):
        return None
    scaled = _scaled(node)
    if scaled is not None:
        inner = _error_gate(scaled[0])
        return (inner[0], inner[1] * scaled[1]) if inner is not None else None
    found = _split(node, "Add")
    error = found[0].producer() if found is not None and found[1] == 1.0 else None
    if error is None or error.op_type != "Erf" or not _private(error) or error.inputs[0] is None:
        return None
    inside = _scaled(error.inputs[0].producer())
    if inside is None or not math.isclose(inside[1], math.sqrt(0.5), rel_tol=_ROUGH):
        return None
    return inside[0], 2.0


def _private(node: ir.Node) -> bool:
    return len(tuple(node.outputs[0].uses())) == 1 and not node.outputs[0].is_graph_output()


def _product(node: ir.Node | None, gate: Gate) -> tuple[ir.Value, float] | None:
    """(x, c) if `node` is x times c gates of x."""
    if node is None or node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    for x, g in (node.inputs, reversed(tuple(node.inputs))):
        found = gate(g)
        scaled = _scaled(x.producer()) if found is not None and x is not None and found[0] is not x else None
        if found is not None and found[0] is x:
            return found
        if found is not None and scaled is not None and scaled[0] is found[0]:
            return found[0], found[1] * scaled[1]
    return None


def _input_of(node: ir.Node, gate: Gate) -> ir.Value | None:
    """x if the output of `node` is x times the gate of x, else None."""
    found = _product(node, gate)
    if found is None:
        outer = _scaled(node)
        inner = outer[0].producer() if outer is not None else None
        product = _product(inner, gate) if inner is not None and _private(inner) else None
        found = (product[0], product[1] * outer[1]) if product is not None and outer is not None else None
    return found[0] if found is not None and math.isclose(found[1], 1.0, rel_tol=1e-6) else None
