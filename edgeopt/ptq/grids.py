"""Compute the grids (scales and zero points) of activations, weights and biases from statistics and a plan.

Weights are symmetric int8 with one scale for each output channel. A bias is int32 on the scale s_x s_w, because integer
kernels add it directly to the sum of products; so a channel whose bias would overflow gets a larger s_w. On targets
whose u8*s8 pair sums saturate at 16 bits (vpmaddubsw adds two products before widening), the scale of a channel is
raised until no pair can saturate: with x <= 255 and q_k, q_{k+1} neighbours along the reduction,

    255 (max(q_k, 0) + max(q_{k+1}, 0)) <= 32767    and the same for the negative parts, i.e. every pair sums to at most
      128,

which keeps 8 bits in most channels, while "reduced range" would leave 7 bits in all of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.edit import Names, initializer
from edgeopt.graph.ops import (
    activations,
    array,
    bias_of,
    channel_axis,
    constants,
    cost_class,
    pixels,
    rule,
    scaled,
    weight_of,
)
from edgeopt.graph.plan import Plan
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import BIAS, Array, QParams, QType, choose, largest_pair, weight_params
from edgeopt.numbers.observers import MinMax, Statistics
from edgeopt.numbers.ranges import RANGES

PAIR = 32767 // 255  # largest sum of two weights of equal sign whose products with uint8 inputs fit into 16 bits
_BIAS_LIMIT = float(2**30)


def reduction_rows(w: Array, op_type: str, axis: int) -> Array:
    """`w` as [channels, reduction] in the order in which ONNX Runtime's integer kernels sum; for a Conv the input
    channels vary fastest.
    """
    if op_type == "Conv":
        return np.moveaxis(w, 1, -1).reshape(w.shape[0], -1)
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def within_pairs(q: NDArray[np.integer], op_type: str, axis: int) -> NDArray[np.integer]:
    """Reduce integers `q` so that no pair of neighbours sums to more than 128 in magnitude; the larger one of a pair
    is reduced. This corrects weights that rounding or training moved beyond the limit of `saturation_floor`.
    """
    moved = np.moveaxis(q, 1, -1) if op_type == "Conv" else np.moveaxis(q, axis, 0)
    rows = moved.reshape(moved.shape[0], -1).astype(np.int32)
    odd = rows.shape[1] % 2
    pairs = np.pad(rows, ((0, 0), (0, odd))).reshape(rows.shape[0], -1, 2)
    excess = np.maximum(np.abs(pairs.sum(-1)) - PAIR, 0) * (np.sign(pairs).prod(-1) > 0)
    first = np.abs(pairs[..., 0]) >= np.abs(pairs[..., 1])
    cut = np.stack([excess * first, excess * ~first], -1) * np.sign(pairs)
    fixed = (pairs - cut).reshape(rows.shape[0], -1)[:, : rows.shape[1]].reshape(moved.shape).astype(q.dtype)
    return np.ascontiguousarray(np.moveaxis(fixed, -1, 1) if op_type == "Conv" else np.moveaxis(fixed, 0, axis))


def bias_params(scale_x: Array, weight: QParams) -> QParams:
    """The grid of a bias: int32 with the scale s_x s_w, computed in float32 as in the kernels."""
    scale = (scale_x.astype(np.float32) * weight.scale).astype(np.float32)
    return QParams(scale, np.zeros(scale.shape, np.int32), BIAS, 0)


def scale_floor(readers: Sequence[ir.Node], params: Mapping[str, QParams], target: Target) -> Array:
    """The smallest scales [channels] of a weight that neither saturate on `target` nor overflow the bias of one of its
    `readers`, whose inputs have grids in `params`.
    """
    node = readers[0]
    w, axis = array(weight_of(node)), channel_axis(node)
    floor = np.zeros(w.shape[axis], np.float64)
    for reader in readers:
        bias = bias_of(reader)
        if bias is not None and bias.const_value is not None:
            b = np.abs(bias.const_value.numpy().reshape(-1).astype(np.float64))
            floor = np.maximum(floor, b / (float(_input_scale(reader, params)) * _BIAS_LIMIT))
    if target.grid.saturates and cost_class(node) != "Conv.depthwise":
        floor = np.maximum(floor, saturation_floor(w, node.op_type, axis))
    return floor.astype(np.float32)


def saturation_floor(w: Array, op_type: str, axis: int) -> Array:
    """The smallest scales [channels] for which no pair of products of `w` saturates, given that rounding can move each
    weight by half a step.
    """
    return np.asarray(largest_pair(reduction_rows(w, op_type, axis)) / (PAIR - 1), dtype=np.float32)


def dynamic_params(nodes: Sequence[ir.Node], target: Target) -> tuple[dict[str, QParams], frozenset[str]]:
    """(grids of the weights of the products `nodes`, by weight name; names of the nodes that can use them).

    If a matrix is read both as it is and transposed, the first reader decides the axis of its grid.
    """
    params: dict[str, QParams] = {}
    names = {str(n.name) for n in nodes}
    for node in nodes:
        weight = weight_of(node) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.const_value is None:
            continue
        if str(weight.name) in params and params[str(weight.name)].axis != channel_axis(node):
            names.discard(str(node.name))
            continue
        w, axis = weight.const_value.numpy(), channel_axis(node)
        floor = saturation_floor(w, node.op_type, axis) if target.grid.saturates else 0.0
        params[str(weight.name)] = weight_params(w, axis, target.weight_type, floor, target.grid.per_channel)
    return params, frozenset(names)


def activation_params(
    plan: Plan,
    statistics: Mapping[str, Statistics],
    target: Target,
    rule: str,
    rules: Mapping[str, str] | None = None,
    fixed: Mapping[str, QParams] | None = None,
    wide: Container[str] = (),
) -> dict[str, QParams]:
    """The grid of every value in the plan by the range rule `rule`; rules: exceptions, by the value that determines the
    grid; fixed: grids that are known; wide: values that determine a grid of the target's wider type.
    """
    own, known, of_source = rules or {}, fixed or {}, {}
    for source in set(plan.grids.values()):
        kind = activation_type(source, target, wide)
        of_source[source] = choose(*RANGES[own.get(source, rule)](statistics[source], kind), kind)
    return {value: known.get(source, of_source[source]) for value, source in plan.grids.items()}


def activation_type(source: str, target: Target, wide: Container[str]) -> QType:
    """The type of the grid that the value `source` determines."""
    return (target.wide_type if source in wide else None) or target.activation_type


def fixed_grids(model: ir.Model, plan: Plan, target: Target, wide: Container[str] = ()) -> dict[str, QParams]:
    """The grids that `target` demands for outputs of some operators, by value: a Sigmoid gives 0 to 1; and that of the
    pixels of an image, which are integers already.
    """
    found = {}
    for node in model.graph:
        qtype = activation_type(str(node.outputs[0].name), target, wide)
        scale, zero_point = target.grid.fixed.get(node.op_type, {}).get(qtype.dtype, (0.0, 0))  # type: ignore[call-overload]
        if node.name in plan.integer and scale:
            zero = np.asarray(zero_point, qtype.numpy_dtype)
            found[str(node.outputs[0].name)] = QParams(np.asarray(scale, np.float32), zero, qtype)
        if pixels(node) and not qtype.symmetric and qtype.dtype == "uint8":
            found[str(node.outputs[0].name)] = QParams(np.asarray(1, np.float32), np.asarray(0, np.uint8), qtype)
    return found


def by_weight(nodes: Iterable[ir.Node]) -> dict[str, tuple[ir.Node, ...]]:
    """The readers of each constant weight among `nodes`, by the name of the weight."""
    found: dict[str, list[ir.Node]] = {}
    for node in nodes:
        weight = weight_of(node)
        if weight is not None:
            found.setdefault(str(weight.name), []).append(node)
    return {name: tuple(readers) for name, readers in found.items()}


def channel_bias(node: ir.Node) -> ir.Value | None:
    """The constant bias of a layer if it adds one number to each output channel, else None: that of a Gemm may vary
    over the rows or be scaled.
    """
    bias = bias_of(node)
    if bias is None or bias.const_value is None or node.op_type != "Gemm":
        return bias
    shape = array(bias).shape
    return bias if not scaled(node) and (len(shape) < 2 or shape[0] == 1) else None


def untie(model: ir.Model, plan: Plan) -> ir.Model:
    """A clone in which constants of nodes with integer weights have no other readers and every bias is [channels].

    Layers of one kind and form that read the same weight go on sharing it. A bias cannot be shared because its integers
    depend on the scales (s_x, s_w) of its node.
    """
    copy = model.clone()
    rounded = ("int8 static", "int8 stored", "int4 stored")
    names, forms = Names(copy), {n: f for n, f in plan.forms.items() if f in rounded}
    shared: dict[tuple[object, ...], ir.Value] = {}
    for node in copy.graph:
        if node.name not in forms:
            continue
        weight, bias = weight_of(node), channel_bias(node)
        for _, value in constants(node):
            if value.const_value is not None and len(tuple(value.uses())) > 1:
                _own(copy, names, node, value, value.const_value.numpy())
        if weight is not None and weight.const_value is not None:
            form = forms[str(node.name)]
            key = (weight.name, form, *_kind(node))
            if key in shared:
                _replace(node, weight, shared[key])
            elif all(forms.get(str(u.name)) == form and _reads(u, i, weight, node) for u, i in weight.uses()):
                shared[key] = weight
            else:
                shared[key] = _own(copy, names, node, weight, weight.const_value.numpy())
            weight = shared[key]
        if weight is not None and weight.const_value is not None and bias is not None and bias.const_value is not None:
            b = bias.const_value.numpy()
            channels = (int(weight.const_value.shape.numpy()[channel_axis(node)]),)
            if b.shape != channels or len(tuple(bias.uses())) > 1:
                _own(copy, names, node, bias, np.broadcast_to(b.reshape(-1), channels))
    return copy


def _kind(node: ir.Node) -> tuple[object, ...]:
    """What layers must have in common to share a weight: the order in which kernels sum, and the axis of its grid."""
    attributes = node.attributes
    return node.op_type, channel_axis(node), attributes.get_int("group", 1), attributes.get_int("transA", 0)


def _reads(reader: ir.Node, position: int, weight: ir.Value, like: ir.Node) -> bool:
    """Whether `reader` has `weight` at `position` as a layer of the same kind as `like`."""
    return weight_of(reader) is weight and position == rule(reader).weight and _kind(reader) == _kind(like)


def _own(model: ir.Model, names: Names, node: ir.Node, value: ir.Value, array: Array) -> ir.Value:
    """Replace the input `value` of `node` by a new initializer with the content `array`."""
    own = initializer(model, names, f"{value.name}_{node.name}", np.ascontiguousarray(array))
    _replace(node, value, own)
    return own


def _replace(node: ir.Node, value: ir.Value, other: ir.Value) -> None:
    for i, v in enumerate(node.inputs):
        if v is value:
            node.replace_input_with(i, other)


def quantization_params(
    model: ir.Model, plan: Plan, activation: Mapping[str, QParams], target: Target
) -> dict[str, QParams]:
    """The grids of `activation`, and those of weights, biases and constant operands of integer nodes in `model`
    (untied).
    """
    params = dict(activation)
    layers = by_weight(n for n in model.graph if n.name in plan.integer)
    for node in model.graph:
        if node.name not in plan.integer:
            continue
        others = [params[str(v.name)].qtype for _, v in activations(node) if str(v.name) in params]
        for _, value in constants(node):  # of the type that the node computes in
            extremes = MinMax().update(array(value))
            params[str(value.name)] = choose(extremes.lo, extremes.hi, (others or [target.activation_type])[0])
        weight = weight_of(node)
        readers = layers[str(weight.name)] if weight is not None else ()
        if weight is not None and readers[0] is node:
            floor = scale_floor(readers, params, target)
            params[str(weight.name)] = weight_params(
                array(weight_of(node)), channel_axis(node), target.weight_type, floor, target.grid.per_channel
            )
            params |= bias_grids(readers, params, target)
    return params


def bias_grids(readers: Sequence[ir.Node], params: Mapping[str, QParams], target: Target) -> dict[str, QParams]:
    """The grids of the biases of the `readers` of one weight, whose grid is in `params`; none where `target` has
    biases in floats.
    """
    found = {}
    for node in readers if target.grid.bias == "int32" else ():
        weight, bias = weight_of(node), bias_of(node)
        if weight is not None and bias is not None and bias.const_value is not None:
            found[str(bias.name)] = bias_params(_input_scale(node, params), params[str(weight.name)])
    return found


def _input_scale(node: ir.Node, params: Mapping[str, QParams]) -> Array:
    return params[str(activations(node)[0][1].name)].scale
