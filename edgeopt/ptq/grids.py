"""From statistics to a quantization plan's numbers: grids of activations, weights and biases.

Weights: symmetric int8, one scale an output channel. A bias is int32 on the scale s_x s_w, because integer kernels add
it to the sum of products as it is; so a channel whose bias would overflow gets a larger s_w. On targets whose u8*s8
pair sums saturate at 16 bits (vpmaddubsw: two products are added before they are widened) a channel's scale is raised
until no pair can: with x <= 255 and q_k, q_{k+1} neighbours along the reduction,

    255 (max(q_k, 0) + max(q_{k+1}, 0)) <= 32767    and the same for the negative parts, i.e. every pair sums to 128 at
      the most,

which keeps 8 bits in most channels where "reduced range" would give all of them 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, initializer
from edgeopt.graph.ops import activations, bias_of, channel_axis, constants, cost_class, weight_of
from edgeopt.graph.plan import Plan
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import BIAS, Array, QParams, QType, choose
from edgeopt.numbers.observers import MinMax, Statistics
from edgeopt.numbers.ranges import RANGES

PAIR = 32767 // 255  # the largest sum of two weights of one sign whose products with bytes 16 bits hold
_BIAS_LIMIT = float(2**30)


def reduction_rows(w: Array, op_type: str, axis: int) -> Array:
    """`w` as [channels, reduction] in the order in which ONNX Runtime's integer kernels sum: a Conv kernel position by
    position, channels inmost.
    """
    if op_type == "Conv":
        return np.moveaxis(w, 1, -1).reshape(w.shape[0], -1)
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def largest_pair(rows: Array) -> Array:
    """The largest |a + b| over neighbours (0, 1), (2, 3) ... of equal sign in each row, [channels]; a lone last element
    pairs with 0.
    """
    odd = rows.shape[1] % 2
    pairs = np.pad(rows, ((0, 0), (0, odd))).reshape(rows.shape[0], -1, 2)
    positive = np.maximum(pairs, 0).sum(-1).max(-1)
    return np.asarray(np.maximum(positive, np.maximum(-pairs, 0).sum(-1).max(-1)), dtype=np.float32)


def within_pairs(q: Array, op_type: str, axis: int) -> Array:
    """Integers `q` with every pair of neighbours at most 128 apart from 0: the larger one of a pair that sums to more
    gives way. What learning moves beyond the guard of `saturation_floor` comes back by it.
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


def weight_params(w: Array, axis: int, qtype: QType, *, floor: Array | float = 0.0) -> QParams:
    """Symmetric per-channel grid of `w` along `axis`; no scale is below `floor` [channels].

    Dead channels get scale 1, or `floor` if that is larger than 0.
    """
    peak = (
        np.abs(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).max(axis=1)
        if w.size
        else np.zeros(w.shape[axis], np.float32)
    )
    return choose(0.0, np.maximum(peak, np.asarray(floor, np.float64) * qtype.qmax), qtype, axis)


def bias_params(scale_x: Array, weight: QParams) -> QParams:
    """The grid of a bias: int32, scale s_x s_w in float32 as the kernels compute it."""
    scale = (scale_x.astype(np.float32) * weight.scale).astype(np.float32)
    return QParams(scale, np.zeros(scale.shape, np.int32), BIAS, 0)


def scale_floor(node: ir.Node, w: Array, axis: int, scale_x: Array, target: Target) -> Array:
    """The smallest scales [channels] that neither saturate on `target` nor overflow the bias of `node`."""
    floor = np.zeros(w.shape[axis], np.float64)
    bias = bias_of(node)
    if bias is not None and bias.const_value is not None:
        floor = np.abs(bias.const_value.numpy().reshape(-1).astype(np.float64)) / (float(scale_x) * _BIAS_LIMIT)
        floor = np.broadcast_to(floor, w.shape[axis]).copy()
    if target.saturates and cost_class(node) != "Conv.depthwise":
        floor = np.maximum(floor, saturation_floor(w, node.op_type, axis))
    return floor.astype(np.float32)


def saturation_floor(w: Array, op_type: str, axis: int) -> Array:
    """The smallest scales [channels] under which no pair of products of `w` saturates; rounding can move each of the
    two by half a step.
    """
    return np.asarray(largest_pair(reduction_rows(w, op_type, axis)) / (PAIR - 1), dtype=np.float32)


def dynamic_params(nodes: Sequence[ir.Node], target: Target) -> tuple[dict[str, QParams], frozenset[str]]:
    """(grids of the weights of products `nodes` by the weight's name, the names of the nodes that can read them): of one matrix
    that is read both ways the first reader decides.
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
        floor = saturation_floor(w, node.op_type, axis) if target.saturates else 0.0
        params[str(weight.name)] = weight_params(w, axis, target.weight_type, floor=floor)
    return params, frozenset(names)


def activation_params(
    plan: Plan, statistics: Mapping[str, Statistics], target: Target, rule: str, rules: Mapping[str, str] | None = None
) -> dict[str, QParams]:
    """The grid of every value in the plan, by the range rule called `rule`; rules: those of single sources of grids."""
    own = rules or {}
    of_source = {
        source: choose(
            *RANGES[own.get(source, rule)](statistics[source], target.activation_type), target.activation_type
        )
        for source in set(plan.grids.values())
    }
    return {value: of_source[source] for value, source in plan.grids.items()}


def untie(model: ir.Model, plan: Plan) -> ir.Model:
    """A clone in which no two integer nodes share a constant, since each (s_x, s_w) needs integers of its own, and every
    bias is [channels].
    """
    copy = model.clone()
    names = Names(copy)
    for node in copy.graph:
        if node.name not in plan.integer:
            continue
        weight, bias = weight_of(node), bias_of(node)
        for value in (weight, *(v for _, v in constants(node))):
            if value is not None and value.const_value is not None and len(tuple(value.uses())) > 1:
                _own(copy, names, node, value, value.const_value.numpy())
        if weight is not None and weight.const_value is not None and bias is not None and bias.const_value is not None:
            b = bias.const_value.numpy()
            channels = (int(weight.const_value.shape.numpy()[channel_axis(node)]),)
            if b.shape != channels or len(tuple(bias.uses())) > 1:
                _own(copy, names, node, bias, np.broadcast_to(b.reshape(-1), channels))
    return copy


def _own(model: ir.Model, names: Names, node: ir.Node, value: ir.Value, array: Array) -> None:
    """Let `node` read `array` from an initializer of its own in place of `value`."""
    own = initializer(model, names, f"{value.name}_{node.name}", np.ascontiguousarray(array))
    for i, v in enumerate(node.inputs):
        if v is value:
            node.replace_input_with(i, own)


def quantization_params(
    model: ir.Model, plan: Plan, activation: Mapping[str, QParams], target: Target
) -> dict[str, QParams]:
    """`activation` with the grids of weights, biases and constant operands of the integer nodes of `model` (untied)."""
    params = dict(activation)
    for node in model.graph:
        if node.name not in plan.integer:
            continue
        for _, value in constants(node):
            assert value.const_value is not None
            extremes = MinMax().update(value.const_value.numpy())
            params[str(value.name)] = choose(extremes.lo, extremes.hi, target.activation_type)
        weight = weight_of(node)
        if weight is None or weight.const_value is None:
            continue
        w, axis = weight.const_value.numpy(), channel_axis(node)
        scale_x = params[str(activations(node)[0][1].name)].scale
        params[str(weight.name)] = weight_params(
            w, axis, target.weight_type, floor=scale_floor(node, w, axis, scale_x, target)
        )
        bias = bias_of(node)
        if bias is not None and bias.const_value is not None:
            params[str(bias.name)] = bias_params(scale_x, params[str(weight.name)])
    return params
