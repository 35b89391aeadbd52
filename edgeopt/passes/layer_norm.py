"""Recognize a layer normalization written as several operators, as exporters do below opset 17.

    LayerNormalization(x) = (x - mean) / sqrt(mean((x - mean)^2) + epsilon) scale + bias

ONNX Runtime fuses it too, but not where parts of it compute in integers or read a value of integers: there it gives
each of the readers of x a DequantizeLinear of its own, and x is no longer one value.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.graph import raise_opset
from edgeopt.graph.edit import Names, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant, scalar
from edgeopt.passes.gated import behind

OPSET = 17


@dataclass(frozen=True)
class _Norm:
    """What a normalization is made of."""

    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    axis: int
    epsilon: float


def fuse_layer_norm(model: ir.Model, named: Collection[str] = ()) -> ir.Model:
    """A clone at opset 17 or later with LayerNormalization in place of the patterns; the model itself if it has none,
    or if one has a node in `named` (from that opset on ONNX Runtime fuses them whoever is named).

    Raises:
        ModelError: ONNX's converter cannot raise the opset of the model.
    """
    patterns = {n: found for n in model.graph if (found := _norm(n)) is not None}
    inside = (name for n, found in patterns.items() for name in behind(n, found.x))
    if not patterns or not set(inside).isdisjoint(named):
        return model
    copy = raise_opset(model, OPSET).clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        found = _norm(node)
        if found is None:
            continue
        attributes = [ir.AttrInt64("axis", found.axis), ir.AttrFloat32("epsilon", found.epsilon)]
        inputs = [found.x, found.scale, found.bias]
        fused = make(names, "LayerNormalization", inputs, f"{node.name}_LayerNormalization", attributes)
        copy.graph.insert_before(node, fused)
        take_over(copy.graph, node, fused.outputs[0])
    RemoveUnusedNodesPass()(copy)
    return copy


def _norm(node: ir.Node) -> _Norm | None:
    """The normalization that the Add `node` ends."""
    added = _of_constant(node, "Add")
    scaled = _of_constant(_only(added[0]), "Mul") if added is not None else None
    divided = _only(scaled[0]) if scaled is not None else None
    if added is None or scaled is None or divided is None or divided.op_type != "Div":
        return None
    above, below = (v.producer() if v is not None else None for v in divided.inputs)
    x, mean = _centred(above)
    added_to = _of_constant(_before(below, "Sqrt"), "Add")
    epsilon = None if added_to is None else _number(added_to[1])
    variance = None if added_to is None else added_to[0].producer()
    if x is None or mean is None or variance is None or epsilon is None or variance.op_type != "ReduceMean":
        return None
    square = variance.inputs[0].producer() if variance.inputs[0] is not None else None
    axes = _axes(variance)
    if _squared(square) != (x, mean) or axes is None or axes != _axes(mean) or mean.inputs[0] is not x:
        return None
    axis = _first(axes, x)
    shape = array(scaled[1]).shape
    if axis is None or shape != array(added[1]).shape or len(shape) != -axis:
        return None
    known = [d if isinstance(d, int) else None for d in list(x.shape)[axis:]] if x.shape is not None else [None] * -axis
    if any(size != d and not (d is None and size > 1) for size, d in zip(shape, known, strict=True)):
        return None
    return _Norm(x, scaled[1], added[1], axis, epsilon)


def _number(value: ir.Value | None) -> float | None:
    """A constant number without axes of its own."""
    return scalar(value) if constant(value) and array(value).ndim <= 1 else None


def _only(value: ir.Value) -> ir.Node | None:
    """What makes a value that one node reads."""
    return value.producer() if len(tuple(value.uses())) == 1 and not value.is_graph_output() else None


def _before(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """What makes the input of `node`, which is of that type."""
    if node is None or node.op_type != op_type or node.inputs[0] is None:
        return None
    return node.inputs[0].producer()


def _of_constant(node: ir.Node | None, op_type: str) -> tuple[ir.Value, ir.Value] | None:
    """(x, c) of `node` = op(x, c) with a constant c."""
    if node is None or node.op_type != op_type or node.domain or len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, reversed(tuple(node.inputs))):
        if constant(c) and x is not None and c is not None and not constant(x):
            return x, c
    return None


def _centred(node: ir.Node | None) -> tuple[ir.Value | None, ir.Node | None]:
    """(x, the node of its mean) of `node` = x - mean(x)."""
    if node is None or node.op_type != "Sub" or node.domain or node.inputs[1] is None:
        return None, None
    mean = node.inputs[1].producer()
    return (node.inputs[0], mean) if mean is not None and mean.op_type == "ReduceMean" else (None, None)


def _squared(node: ir.Node | None) -> tuple[ir.Value | None, ir.Node | None]:
    """What `_centred` gives for the base of a square."""
    if node is None or node.inputs[0] is None:
        return None, None
    alone = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    if not alone and not (node.op_type == "Pow" and _number(node.inputs[1]) == 2):
        return None, None
    return _centred(node.inputs[0].producer())


def _axes(mean: ir.Node) -> tuple[int, ...] | None:
    """The axes of a mean that keeps them."""
    if not mean.attributes.get_int("keepdims", 1):
        return None
    given = mean.attributes.get_ints("axes", None)
    if given is None and len(mean.inputs) > 1 and constant(mean.inputs[1]):
        given = [int(a) for a in array(mean.inputs[1]).reshape(-1)]
    return None if not given else tuple(sorted(given))


def _first(axes: tuple[int, ...], x: ir.Value) -> int | None:
    """The first of the last axes as a negative number, None if `axes` are others."""
    rank = None if x.shape is None else len(x.shape)
    if any(a >= 0 for a in axes) and rank is None:
        return None
    last = sorted(a if a < 0 else a - (rank or 0) for a in axes)
    return -len(last) if last == list(range(-len(last), 0)) else None
