"""Label rules of operators that compute: layers with weights, elementwise operators, reductions."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.pruning.rearranging import same
from edgeopt.pruning.tracker import Axes, Tracker, input_of
from edgeopt.pruning.units import Edit


def along(t: Tracker, node: ir.Node) -> None:
    """Softmax and the like: channels along the normalized axes are frozen."""
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get("axis")
    # before opset 13 the default was axis 1, with what follows it
    for labels in [t.of(x)[axis.as_int()]] if axis is not None else t.of(x)[1:]:
        t.units.freeze(labels)
    same(t, node)


def elementwise(t: Tracker, node: ir.Node) -> None:
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


def conv(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], input_of(node, 2)
    assert x is not None and w is not None
    group, inside = node.attributes.get_int("group", 1), t.of(x)[1]
    if w not in t.constants:
        return t.stop(node)
    for labels in t.of(x)[2:]:
        t.units.freeze(labels)  # spatial axes are frozen
    out, per_group = t.shape(w)[:2]
    name = str(node.name)
    if group == 1:
        t.units.label(w, 1, inside)
        made = t.units.fresh(out, name)
    elif per_group == 1:  # depthwise: an input channel is removed with its output channels
        if inside is None:
            return t.stop(node)
        made = tuple(i for i in inside for _ in range(out // group))
        t.units.edits.append(Edit(name, "group", lambda count: count(inside)))
    else:  # the j-th channels of all groups are tied, so that groups stay equal
        made = t.units.fresh(out, name)
        for row, width in ((inside, per_group), (made, out // group)):
            for i, label in enumerate(row or ()):
                t.units.tie((row or ())[i % width], label)
        t.units.label(w, 1, None if inside is None else inside[:per_group])
    t.units.label(w, 0, made)
    t.units.label(b, 0, made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made, *[None] * (len(t.shape(x)) - 2)]
    return None


def conv_transpose(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], input_of(node, 2)
    assert x is not None and w is not None
    if node.attributes.get_int("group", 1) != 1 or w not in t.constants:
        return t.stop(node)
    for labels in t.of(x)[2:]:
        t.units.freeze(labels)
    made = t.units.fresh(t.shape(w)[1], str(node.name))
    t.units.label(w, 0, t.of(x)[1])
    t.units.label(w, 1, made)
    t.units.label(b, 0, made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made, *[None] * (len(t.shape(x)) - 2)]
    return None


def gemm(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], input_of(node, 2)
    assert x is not None and w is not None
    if node.attributes.get_int("transA", 0) or w not in t.constants or (b is not None and b not in t.constants):
        return t.stop(node)
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
    return None


def matmul(t: Tracker, node: ir.Node) -> None:
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    if a in t.constants or len(t.shape(a)) < 2 or len(t.shape(b)) < 2:
        return t.stop(node)
    if b in t.constants:
        if len(t.shape(b)) != 2:
            return t.stop(node)
        made = t.units.fresh(t.shape(b)[1], str(node.name))
        t.units.label(b, 0, t.of(a)[-1])
        t.units.label(b, 1, made)
        t.axes[node.outputs[0]] = [*t.of(a)[:-1], made]
        return None
    t.units.tie_rows([t.of(a)[-1], t.of(b)[-2]])
    rank = len(t.shape(node.outputs[0]))
    batch = Axes()
    for axis in range(rank - 2):
        rows = [t.of(v)[at] for v in (a, b) if (at := axis - rank + len(t.shape(v))) >= 0]
        batch.append(t.units.tie_rows(rows))
    t.axes[node.outputs[0]] = [*batch, t.of(a)[-2], t.of(b)[-1]]
    return None


def per_channel(t: Tracker, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters with one element a channel."""
    x = node.inputs[0]
    assert x is not None
    for v in node.inputs[1:]:
        t.units.label(v, 0, t.of(x)[1])
    same(t, node)


def layer_norm(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get_int("axis", -1) % len(t.shape(x))
    for v in node.inputs[1:]:
        if v is not None:
            for i, labels in enumerate(t.of(x)[axis:]):
                t.units.label(v, i, labels)
    same(t, node)


def reduce(t: Tracker, node: ir.Node) -> None:
    """Reductions over some axes: mean, sum, maximum and others."""
    x = node.inputs[0]
    assert x is not None
    rank = len(t.shape(x))
    given = node.attributes.get("axes")
    axes = list(given.as_ints()) if given is not None else t.numbers(input_of(node, 1))
    if axes is None and input_of(node, 1) is not None:
        return t.stop(node)
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return same(t, node)
    gone = {a % rank for a in (axes or range(rank))}
    keep = node.attributes.get_int("keepdims", 1)
    t.axes[node.outputs[0]] = [
        None if i in gone else labels for i, labels in enumerate(t.of(x)) if keep or i not in gone
    ]
    return None


def recurrent(t: Tracker, node: ir.Node) -> None:
    """LSTM, GRU, RNN: input channels can be removed, the state is frozen."""
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    inside = t.of(x)[2]
    if w not in t.constants:
        return t.stop(node)
    t.hold(v for v in node.inputs[2:])
    for labels in t.of(x)[:2]:
        t.units.freeze(labels)
    t.units.label(w, 2, inside)
    return None
