"""Rescale channels: divide the channels of an intermediate value by positive factors and multiply the weights that read
them by the same factors. The function of the model does not change, its ranges do.

    f(x / s) = f(x) / s        for s > 0 and f homogeneous (Relu, pooling ...), so
    W2 f(W1 x + b1) = (W2 diag(s)) f(diag(1/s) (W1 x + b1))

A `Boundary` is a producer whose channels can be divided by changing constants only (a layer with weights, or the scale
of a normalization), with all its readers, which must be layers with constant weights. Clip(0, m) is homogeneous only
below m, so a channel that reaches m keeps its scale (`allowed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.ops import PRODUCTS, array, channel_axis, constant, scalar, scaled, weight_of

Wide = NDArray[np.float64]
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity"})
_POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
)  # they pool over the axes after the channels
_NORMALIZATIONS = frozenset({"LayerNormalization", "BatchNormalization"})
_BY_CHANNEL = {"Add": 1, "Mul": 0}  # operators with a constant along the channels; 1: the constant is divided too


@dataclass(frozen=True)
class Boundary:
    """A producer and the layers that read its channels.

    value: the producer's output, [n, channels, ...] or [..., channels]; axis: its channel axis; shifts: constants added
    between producer and readers; clips: (input value, upper bound) of each Clip in between; readers: the layers at the
    end.
    """

    producer: ir.Node
    channels: int
    axis: int
    shifts: tuple[ir.Value, ...]
    clips: tuple[tuple[str, float], ...]
    readers: tuple[ir.Node, ...]

    @property
    def value(self) -> str:
        """Name of the producer's output."""
        return str(self.producer.outputs[0].name)


def boundaries(model: ir.Model) -> list[Boundary]:
    """All boundaries of `model`, in the order of their producers."""
    return [b for node in model.graph if (b := _boundary(node)) is not None]


def _boundary(producer: ir.Node) -> Boundary | None:
    found = _divided(producer)
    if found is None:
        return None
    channels = found[0].const_value.shape.numpy()[found[1]]  # type: ignore[union-attr]
    axis = 1 if producer.op_type in ("Conv", "BatchNormalization") else -1
    walk = _Walk(producer, channels, axis)
    if not walk.follow(producer.outputs[0]) or not walk.readers:
        return None
    return Boundary(producer, channels, axis, tuple(walk.shifts), tuple(walk.clips), tuple(walk.readers))


def _divided(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(constant, its channel axis) such that dividing the constant divides the channels of `node`; None without one."""
    if node.op_type in PRODUCTS:
        weight = weight_of(node)
        if not _own(weight) or not all(v is None or _own(v) for v in node.inputs[2:]) or not _plain(node):
            return None
        if weight is None or weight.const_value is None or len(weight.const_value.shape) < 2:
            return None
        return weight, channel_axis(node)
    if node.op_type in _NORMALIZATIONS:
        ours = [v for v in node.inputs[1:3] if v is not None]
        plain = all(_own(v) and v.const_value is not None and len(v.const_value.shape) == 1 for v in ours)
        return (ours[0], 0) if ours and plain and len(node.outputs) == 1 else None
    if node.op_type == "Mul":
        return next(((v, 0) for v in node.inputs if v is not None and _own(v) and _vector(v)), None)
    return None


def _own(value: ir.Value | None) -> bool:
    """Whether `value` is a float constant with only one reader."""
    return (
        value is not None
        and constant(value)
        and value.dtype == ir.DataType.FLOAT
        and len(tuple(value.uses())) == 1
        and not value.is_graph_output()
    )


def _vector(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 1 and value.const_value.size > 1


def _plain(node: ir.Node) -> bool:
    """Whether a layer computes just x W + b."""
    return not scaled(node) and not node.attributes.get_int("transA", 0)


@dataclass
class _Walk:
    """Walks from a producer to the layers that read it."""

    producer: ir.Node
    channels: int
    axis: int
    shifts: list[ir.Value] = field(default_factory=list)
    clips: list[tuple[str, float]] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)

    def follow(self, value: ir.Value) -> bool:
        """Whether the division can be compensated in all readers of `value`."""
        uses = tuple(value.uses())
        return bool(uses) and not value.is_graph_output() and all(self._use(u.node, u.idx) for u in uses)

    def _use(self, node: ir.Node, position: int) -> bool:
        if node.graph is not self.producer.graph or len(node.outputs) != 1:
            return False
        if node.op_type in PRODUCTS:
            return self._read(node, position)
        if node.op_type in _HOMOGENEOUS or (node.op_type in _POOLS and self.axis == 1):
            return self.follow(node.outputs[0])
        if node.op_type == "Clip":
            low, high = (*node.inputs[1:3], None, None)[:2]
            top = math.inf if high is None else scalar(high) or 0.0
            if scalar(low) != 0.0 or not top > 0.0:
                return False
            self.clips.append((str(node.inputs[0].name), top))  # type: ignore[union-attr]
            return self.follow(node.outputs[0])
        if node.op_type in _BY_CHANNEL:
            other = node.inputs[1 - position]
            if other is None or not _own(other) or not _vector(other) or self.axis != -1:
                return False
            if other.const_value is None or other.const_value.size != self.channels:
                return False
            if _BY_CHANNEL[node.op_type]:
                self.shifts.append(other)
            return self.follow(node.outputs[0])
        return False

    def _read(self, node: ir.Node, position: int) -> bool:
        weight = weight_of(node)
        if position != 0 or not _own(weight) or not _plain(node):
            return False
        if (self.axis == 1) != (node.op_type == "Conv"):
            return False
        shape, group = array(weight).shape, node.attributes.get_int("group", 1)
        size = shape[1] * group if node.op_type == "Conv" else shape[len(shape) - 1 - channel_axis(node)]
        if size != self.channels or (node.op_type != "Conv" and len(shape) != 2):
            return False
        self.readers.append(node)
        return True


def written(node: ir.Node) -> Wide:
    """Largest |w| of each output channel of a producer: [channels]."""
    found = _divided(node)
    assert found is not None
    w = np.abs(array(found[0]).astype(np.float64))
    return np.asarray(np.moveaxis(w, found[1], 0).reshape(w.shape[found[1]], -1).max(1))


def by_input(node: ir.Node, w: NDArray[np.floating]) -> NDArray[np.floating]:
    """`w`, the weight of `node`, as a view [groups, out, in, positions] with groups * in input channels."""
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        return w.reshape(group, w.shape[0] // group, w.shape[1], -1)
    return (w if channel_axis(node) == 0 else w.T)[None, :, :, None]


def read(node: ir.Node) -> Wide:
    """Largest |w| of each input channel of a reader: [channels]."""
    w = np.abs(array(weight_of(node)).astype(np.float64))
    return np.asarray(by_input(node, w).max((1, 3)).reshape(-1))


def allowed(s: Wide, boundary: Boundary, highest: Mapping[str, Wide]) -> Wide:
    """`s` [channels] limited so that no channel is clipped differently.

    highest: the largest value of each channel before a Clip, over samples.
    """
    for value, bound in boundary.clips:
        top = highest[value]
        s = np.where(top > bound, 1.0, np.maximum(s, top / bound))
    return s


def rescaled(model: ir.Model, factors: Mapping[str, Wide]) -> ir.Model:
    """A clone of `model` in which the channels of each value in `factors` are divided.

    factors: name of a boundary's value -> positive factors [channels].
    """
    copy = model.clone()
    for b in boundaries(copy):
        if b.value not in factors:
            continue
        s = factors[b.value]
        found = _divided(b.producer)
        assert found is not None
        _multiply(found[0], 1 / s, found[1], weight=True)
        others = b.producer.inputs[2:3] if b.producer.op_type != "Mul" else ()
        for value in (*(v for v in others if v is not None), *b.shifts):
            _multiply(value, 1 / s, -1)
        for reader in b.readers:
            weight = weight_of(reader)
            assert weight is not None
            w = array(weight).astype(np.float64, order="C")  # so that by_input is a view
            groups = by_input(reader, w).shape[0]
            by_input(reader, w)[...] *= s.reshape(groups, 1, -1, 1)
            weight.const_value = ir.tensor(w.astype(np.float32), name=weight.name)
    return copy


def _multiply(value: ir.Value, s: Wide, axis: int, *, weight: bool = False) -> None:
    x = array(value)
    if not weight and x.ndim == 0:  # a scalar bias for all channels
        x = x.reshape(1)
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    found = np.ascontiguousarray(x * s.reshape(shape), np.float32)
    value.const_value, value.shape = ir.tensor(found, name=value.name), ir.Shape(found.shape)
