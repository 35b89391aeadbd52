"""Label rules of operators that compute: layers with weights, elementwise operators, reductions."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.pruning.rearranging import same
from edgeopt.pruning.tracker import Axes, Tracker, Untracked, input_of
from edgeopt.pruning.units import Edit


def along(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Softmax and the like: channels along the normalized axes are frozen."""
    axis = node.attributes.get("axis")
    # before opset 13 the default was axis 1, with what follows it
    t.units.freeze(*([t.of(x)[axis.as_int()]] if axis is not None else t.of(x)[1:]))
    same(t, node, x)


def elementwise(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Elementwise operators with broadcasting: channels at the same position are tied."""
    out = node.outputs[0]
    rank, axes = len(t.shape(out)), Axes()
    for axis in range(rank):
        rows, size = [], t.shape(out)[axis]
        constants: list[tuple[ir.Value, int]] = []
        for v in node.inputs:
            at = axis - rank + len(t.shape(v)) if v is not None else -1
            if v is None or at < 0 or (t.shape(v)[at] == 1 and size != 1):
                continue
            if v in t.constants:
                constants.append((v, at))
            else:
                rows.append(t.of(v)[at])
        row = t.units.tie_rows(rows) if rows else None
        for v, at in constants:
            t.units.label(v, at, row)
        axes.append(row)
    t.axes[out] = axes


def conv(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Conv, and ConvTranspose of one group, whose weights are [in, out, ...]."""
    w, b = node.inputs[1], input_of(node, 2)
    group, inside, turned = node.attributes.get_int("group", 1), t.of(x)[1], node.op_type == "ConvTranspose"
    if w is None or (turned and group != 1):
        raise Untracked
    _refuse_computed(t, node)
    t.units.freeze(*t.of(x)[2:])  # spatial axes
    out_axis, name = int(turned), str(node.name)
    out, per_group = t.shape(w)[out_axis], t.shape(w)[1 - out_axis]
    if group == 1:
        t.units.label(w, 1 - out_axis, inside)
        made = t.units.fresh(out, name)
    elif per_group == 1:  # depthwise: an input channel is removed with its output channels
        if inside is None:
            raise Untracked
        made = tuple(i for i in inside for _ in range(out // group))
        t.units.edits.append(Edit(name, "group", lambda count: count(inside)))
    else:  # the j-th channels of all groups are tied, so that groups stay equal
        made = t.units.fresh(out, name)
        for row, width in ((inside, per_group), (made, out // group)):
            for i, label in enumerate(row or ()):
                t.units.tie((row or ())[i % width], label)
        t.units.label(w, 1, None if inside is None else inside[:per_group])
    t.units.label(w, out_axis, made)
    t.units.label(b, 0, made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made, *[None] * (len(t.shape(x)) - 2)]


def _refuse_computed(t: Tracker, node: ir.Node) -> None:
    """Parameters that are computed are followed by no rule."""
    if any(v is not None and v not in t.constants for v in node.inputs[1:]):
        raise Untracked


def gemm(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    w, b = node.inputs[1], input_of(node, 2)
    if (
        w is None
        or node.attributes.get_int("transA", 0) != 0
        or w not in t.constants
        or (b is not None and b not in t.constants)
    ):
        raise Untracked
    out_axis = 0 if node.attributes.get_int("transB", 0) else 1
    made = t.units.fresh(t.shape(w)[out_axis], str(node.name))
    t.units.label(w, 1 - out_axis, t.of(x)[1])
    t.units.label(w, out_axis, made)
    if b is not None and t.shape(b)[-1:] == (len(made),):
        t.units.label(b, len(t.shape(b)) - 1, made)
        if t.shape(b)[:-1] == t.shape(x)[:1]:
            t.units.label(b, 0, t.of(x)[0])
    elif b is not None:
        t.units.freeze(made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made]


def matmul(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    a, b = x, node.inputs[1]
    if b is None or a in t.constants or len(t.shape(a)) < 2 or len(t.shape(b)) < 2:
        raise Untracked
    if b in t.constants:
        if len(t.shape(b)) != 2:
            raise Untracked
        made = t.units.fresh(t.shape(b)[1], str(node.name))
        t.units.label(b, 0, t.of(a)[-1])
        t.units.label(b, 1, made)
        t.axes[node.outputs[0]] = [*t.of(a)[:-1], made]
        return
    t.units.tie_rows([t.of(a)[-1], t.of(b)[-2]])
    rank = len(t.shape(node.outputs[0]))
    batch = Axes()
    for axis in range(rank - 2):
        rows = [t.of(v)[at] for v in (a, b) if (at := axis - rank + len(t.shape(v))) >= 0]
        batch.append(t.units.tie_rows(rows))
    t.axes[node.outputs[0]] = [*batch, t.of(a)[-2], t.of(b)[-1]]


def per_channel(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """BatchNormalization and InstanceNormalization: parameters with one element a channel."""
    _refuse_computed(t, node)
    for v in node.inputs[1:]:
        t.units.label(v, 0, t.of(x)[1])
    same(t, node, x)


def layer_norm(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    axis = node.attributes.get_int("axis", -1) % len(t.shape(x))
    _refuse_computed(t, node)
    for v in node.inputs[1:]:
        if v is not None:
            for i, labels in enumerate(t.of(x)[axis:]):
                t.units.label(v, i, labels)
    same(t, node, x)


def reduce(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Reductions over some axes: mean, sum, maximum and others."""
    rank = len(t.shape(x))
    given = node.attributes.get("axes")
    axes = list(given.as_ints()) if given is not None else t.numbers(input_of(node, 1))
    if axes is None and input_of(node, 1) is not None:
        raise Untracked
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        same(t, node, x)
        return
    gone = {a % rank for a in (axes or range(rank))}
    keep = node.attributes.get_int("keepdims", 1)
    t.axes[node.outputs[0]] = [
        None if i in gone else labels for i, labels in enumerate(t.of(x)) if keep or i not in gone
    ]


def recurrent(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """LSTM, GRU, RNN: input channels can be removed, the state is frozen."""
    w, inside = node.inputs[1], t.of(x)[2]
    if w is None or w not in t.constants:
        raise Untracked
    t.hold(v for v in node.inputs[2:])
    t.units.freeze(*t.of(x)[:2])
    t.units.label(w, 2, inside)
