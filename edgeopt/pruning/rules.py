"""What each operator does to the labels of its inputs, as one table; an operator that is not in it freezes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from edgeopt.pruning.units import Count, Edit, Labels, Shapes, Units

Axes = list[Labels]
_RESIZE_SIZES = 3


class Tracker:
    """Labels of every axis of every value of one graph."""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        """shapes: of every value of `model` on one feed."""
        self.units = Units()
        self.axes: dict[ir.Value, Axes] = {}
        self.shapes = dict(shapes)
        self.constants = {v for v in model.graph.initializers.values() if v.const_value is not None}
        for v in self.constants:
            assert v.const_value is not None
            self.shapes[str(v.name)] = tuple(v.const_value.shape.numpy())
        for node in model.graph:
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            known = all(str(v.name) in self.shapes for v in (*node.inputs, *node.outputs) if v is not None and v.name)
            if rule is None or not known:
                self.stop(node)
            else:
                rule(self, node)
                if rule not in _READERS:
                    self.hold(v for v in node.inputs if v in self.constants)
        self.hold(model.graph.outputs)

    def hold(self, values: Iterable[ir.Value | None]) -> None:
        """They stay as they are."""
        for v in values:
            if v is not None:
                for labels in self.of(v):
                    self.units.freeze(labels)
                self.units.unlabelled(v)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Its sizes."""
        return self.shapes[str(value.name)]

    def of(self, value: ir.Value) -> Axes:
        """The labels of its axes; weights have none until a rule gives them some."""
        return self.axes.get(value) or [None] * len(self.shapes.get(str(value.name), ()))

    def stop(self, node: ir.Node) -> None:
        """Everything that enters stays as it is; nothing is known of what leaves."""
        inside = (
            n for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH for n in a.as_graph().all_nodes()
        )
        self.hold([*node.inputs, *(v for n in inside for v in n.inputs)])

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """The content of a constant of whole numbers, or None."""
        if value is None or value not in self.constants or value.const_value is None:
            return None
        return [int(i) for i in value.const_value.numpy().reshape(-1)]


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if len(node.inputs) > i else None


def _same(t: Tracker, node: ir.Node) -> None:
    """The output has the channels of the first input."""
    x = node.inputs[0]
    assert x is not None
    for out in node.outputs:
        if len(t.shapes.get(str(out.name), ())) == len(t.shape(x)):
            t.axes[out] = t.of(x)


def _spatial(t: Tracker, node: ir.Node) -> None:
    """Pooling and resizing: batch and channels stay."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    if t.shape(x)[:2] != t.shape(out)[:2] or node.attributes.get("axes") is not None:
        return t.stop(node)
    t.axes[out] = [*t.of(x)[:2], *[None] * (len(t.shape(x)) - 2)]
    if _input(node, _RESIZE_SIZES) is not None:
        _sizes(t, node, t.axes[out], _RESIZE_SIZES)
    return None


def _along(t: Tracker, node: ir.Node) -> None:
    """Softmax: sums over an axis, whose channels stay."""
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get("axis")
    # before opset 13 the default was axis 1, with what follows it
    for labels in [t.of(x)[axis.as_int()]] if axis is not None else t.of(x)[1:]:
        t.units.freeze(labels)
    _same(t, node)


def _elementwise(t: Tracker, node: ir.Node) -> None:
    """Operands are broadcast; channels that meet are tied."""
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
            if row is None:
                t.units.unlabelled(v)
            t.units.label(v, at, row)
        axes.append(row)
    t.axes[out] = axes


def _conv(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], _input(node, 2)
    assert x is not None and w is not None
    group, inside = node.attributes.get_int("group", 1), t.of(x)[1]
    if w not in t.constants:
        return t.stop(node)
    out, per_group = t.shape(w)[:2]
    name = str(node.name)
    if group == 1:
        t.units.label(w, 1, inside)
        made = t.units.fresh(out, name)
    elif per_group == 1:  # depthwise: a channel goes with its outputs
        if inside is None:
            return t.stop(node)
        made = tuple(i for i in inside for _ in range(out // group))
        t.units.edits.append(Edit(name, "group", lambda count: count(inside)))
    else:  # the j-th channels of all groups go together, so that the groups stay equal
        made = t.units.fresh(out, name)
        for row, width in ((inside, per_group), (made, out // group)):
            for i, label in enumerate(row or ()):
                t.units.tie((row or ())[i % width], label)
        t.units.label(w, 1, None if inside is None else inside[:per_group])
    t.units.label(w, 0, made)
    t.units.label(b, 0, made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made, *[None] * (len(t.shape(x)) - 2)]
    return None


def _conv_transpose(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], _input(node, 2)
    assert x is not None and w is not None
    if node.attributes.get_int("group", 1) != 1 or w not in t.constants:
        return t.stop(node)
    made = t.units.fresh(t.shape(w)[1], str(node.name))
    t.units.label(w, 0, t.of(x)[1])
    t.units.label(w, 1, made)
    t.units.label(b, 0, made)
    t.axes[node.outputs[0]] = [t.of(x)[0], made, *[None] * (len(t.shape(x)) - 2)]
    return None


def _gemm(t: Tracker, node: ir.Node) -> None:
    x, w, b = node.inputs[0], node.inputs[1], _input(node, 2)
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


def _matmul(t: Tracker, node: ir.Node) -> None:
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


def _per_channel(t: Tracker, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: a parameter for each channel."""
    x = node.inputs[0]
    assert x is not None
    for v in node.inputs[1:]:
        t.units.label(v, 0, t.of(x)[1])
    _same(t, node)


def _layer_norm(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get_int("axis", -1) % len(t.shape(x))
    for v in node.inputs[1:]:
        if v is not None:
            for i, labels in enumerate(t.of(x)[axis:]):
                t.units.label(v, i, labels)
    _same(t, node)


def _reduce(t: Tracker, node: ir.Node) -> None:
    """Mean, sum or largest over some axes."""
    x = node.inputs[0]
    assert x is not None
    rank = len(t.shape(x))
    given = node.attributes.get("axes")
    axes = list(given.as_ints()) if given is not None else t.numbers(_input(node, 1))
    if axes is None and _input(node, 1) is not None:
        return t.stop(node)
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return _same(t, node)
    gone = {a % rank for a in (axes or range(rank))}
    keep = node.attributes.get_int("keepdims", 1)
    t.axes[node.outputs[0]] = [
        None if i in gone else labels for i, labels in enumerate(t.of(x)) if keep or i not in gone
    ]
    return None


def _transpose(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    given = node.attributes.get("perm")
    order = list(given.as_ints()) if given is not None else list(range(len(t.shape(x))))[::-1]
    t.axes[node.outputs[0]] = [t.of(x)[i] for i in order]


def _concat(t: Tracker, node: ir.Node) -> None:
    out = node.outputs[0]
    rank = len(t.shape(out))
    joined = node.attributes.get_int("axis", 0) % rank
    axes = Axes()
    for axis in range(rank):
        rows = [None if v in t.constants else t.of(v)[axis] for v in node.inputs if v is not None]
        if axis != joined:
            axes.append(t.units.tie_rows(rows))
        elif any(row is None for row in rows):  # a part that is not tracked: the others stay beside it
            for row in rows:
                t.units.freeze(row)
            axes.append(None)
        else:
            axes.append(tuple(label for row in rows for label in row or ()))
    for v in node.inputs:
        if v in t.constants and v is not None:
            t.units.unlabelled(v)
    t.axes[out] = axes


def _split(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    axis = node.attributes.get_int("axis", 0) % len(t.shape(x))
    labels, start, parts = t.of(x)[axis], 0, []
    for out in node.outputs:
        size = t.shape(out)[axis]
        row = None if labels is None else labels[start : start + size]
        parts.append(row)
        t.axes[out] = [row if i == axis else other for i, other in enumerate(t.of(x))]
        start += size
    if labels is None:
        return
    if t.numbers(_input(node, 1)) is None:  # parts of equal size need not stay equal
        for row in parts:
            t.units.freeze(row)
        return
    t.units.edits.append(Edit(str(node.name), 1, lambda count: [count(row or ()) for row in parts]))


def _slice(t: Tracker, node: ir.Node) -> None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    starts, ends, axes, steps = (t.numbers(_input(node, i)) for i in range(1, 5))
    if (
        any(_input(node, i) is not None and n is None for i, n in ((3, axes), (4, steps)))
        or starts is None
        or ends is None
    ):
        return t.stop(node)
    axes = [a % len(t.shape(x)) for a in (axes if axes is not None else range(len(starts)))]
    found = list(t.of(x))
    steps = steps or [1] * len(axes)
    bounds: list[tuple[Labels, Labels, int, int]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        labels = t.of(x)[axis]
        chosen = slice(start, end, step).indices(t.shape(x)[axis])
        if labels is None or step != 1:
            t.units.freeze(labels)
            found[axis] = None
            bounds.append((None, None, start, end))
        else:
            found[axis] = labels[chosen[0] : chosen[1]]
            bounds.append((labels[: chosen[0]], labels[: chosen[1]], start, end))
    if any(before is not None for before, _, _, _ in bounds):

        def first(count: Count) -> list[int]:
            return [s if before is None else count(before) for before, _, s, _ in bounds]

        def last(count: Count) -> list[int]:
            return [e if until is None else count(until) for _, until, _, e in bounds]

        t.units.edits += [Edit(str(node.name), 1, first), Edit(str(node.name), 2, last)]
    t.axes[out] = found
    return None


def _gather(t: Tracker, node: ir.Node) -> None:
    x, indices = node.inputs[:2]
    assert x is not None and indices is not None
    axis = node.attributes.get_int("axis", 0) % len(t.shape(x))
    middle: Axes = [None] * len(t.shape(indices))
    if x in t.constants:
        if len(t.shape(x)) != 2 or axis != 0:
            return t.stop(node)
        t.units.label(x, 0, None)
        made = t.units.weights.get((str(x.name), 1)) or t.units.fresh(t.shape(x)[1], str(node.name))
        t.units.label(x, 1, made)
        t.axes[node.outputs[0]] = [*middle, made]
        return None
    t.units.freeze(t.of(x)[axis])
    t.axes[node.outputs[0]] = [*t.of(x)[:axis], *middle, *t.of(x)[axis + 1 :]]
    return None


def _pad(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    pads, rank = t.numbers(_input(node, 1)), len(t.shape(x))
    if pads is None or len(pads) != 2 * rank:
        return t.stop(node)
    grown = [not before and not behind for before, behind in zip(pads[:rank], pads[rank:], strict=True)]
    for labels, same in zip(t.of(x), grown, strict=True):
        if not same:
            t.units.freeze(labels)
    t.axes[node.outputs[0]] = [labels if same else None for labels, same in zip(t.of(x), grown, strict=True)]
    return None


def _recurrent(t: Tracker, node: ir.Node) -> None:
    """LSTM, GRU, RNN: their input's channels may go, their state stays."""
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


def _reshape(t: Tracker, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are matched by runs of the same size.

    A run of axes that becomes one: its labels are repeated. One that becomes several (heads of attention): the first of
    them takes the labels, those of a block tied. Others stay.
    """
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    before, after = t.shape(x), t.shape(out)
    axes: Axes = [None] * len(after)
    for ours, theirs in _runs(before, after):
        tracked = [i for i in ours if t.of(x)[i] is not None]
        wide = [i for i in theirs if after[i] > 1]
        if not tracked:
            continue
        if not theirs:  # an axis of 1 that goes
            for i in tracked:
                t.units.freeze(t.of(x)[i])
            continue
        labels = t.of(x)[tracked[0]] or ()
        if len(tracked) == 1 and len(wide) <= 1:
            inner = math.prod(before[i] for i in ours if i > tracked[0])
            outer = math.prod(before[i] for i in ours if i < tracked[0])
            axes[(wide or theirs)[0]] = tuple(i for _ in range(outer) for i in labels for _ in range(inner))
        elif len(tracked) == 1 and before[tracked[0]] == math.prod(before[i] for i in ours):
            width = len(labels) // after[wide[0]]
            blocks = [labels[i : i + width] for i in range(0, len(labels), width)]
            for block in blocks:
                for label in block:
                    t.units.tie(block[0], label)
            axes[wide[0]] = tuple(block[0] for block in blocks)
        else:
            for i in tracked:
                t.units.freeze(t.of(x)[i])
    t.axes[out] = axes
    if node.op_type == "Reshape":
        _sizes(t, node, axes)


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of both shapes that hold the same number of elements."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        ours, theirs = [], []
        a = b = 1
        if i < len(before):
            ours, a, i = [i], before[i], i + 1
        if j < len(after):
            theirs, b, j = [j], after[j], j + 1
        while a != b:
            if a < b and i < len(before):
                ours, a, i = [*ours, i], a * before[i], i + 1
            elif j < len(after):
                theirs, b, j = [*theirs, j], b * after[j], j + 1
            else:
                break
        runs.append((ours, theirs))
    return runs


def _sizes(t: Tracker, node: ir.Node, axes: Axes, at: int = 1) -> None:
    """The sizes that a Reshape, Expand or Resize was given as input `at` follow the channels, or the channels stay."""
    value = node.inputs[at]
    given, size = t.numbers(value), t.shape(node.outputs[0])
    if given is not None:
        first = len(axes) - len(given)  # Expand is given the last sizes
        axes, size = axes[first:], size[first:]
        if any(labels is not None and given[i] == size[i] for i, labels in enumerate(axes)):

            def made(count: Count) -> list[int]:
                return [
                    n if labels is None or n != size[i] else count(labels)
                    for i, (n, labels) in enumerate(zip(given, axes, strict=True))
                ]

            t.units.edits.append(Edit(str(node.name), at, made))
        return
    maker = value.producer() if value is not None else None
    for i, labels in enumerate(axes):
        if labels is None:
            continue
        part = (
            maker.inputs[i]
            if maker is not None and maker.op_type == "Concat" and len(maker.inputs) == len(axes)
            else None
        )
        number = t.numbers(part)
        if maker is None or part is None:
            t.units.freeze(labels)
        elif number is not None and number[0] == size[i]:
            t.units.edits.append(Edit(str(maker.name), i, _counted(labels)))


def _counted(labels: tuple[int, ...]) -> Callable[[Count], list[int]]:
    return lambda count: [count(labels)]


def _expand(t: Tracker, node: ir.Node) -> None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    shift = len(t.shape(out)) - len(t.shape(x))
    axes: Axes = [None] * shift
    for i, labels in enumerate(t.of(x)):
        same = t.shape(x)[i] == t.shape(out)[i + shift]
        if not same:
            t.units.freeze(labels)
        axes.append(labels if same else None)
    t.axes[out] = axes
    _sizes(t, node, axes)


def _nothing(t: Tracker, node: ir.Node) -> None:
    """Shape and Size: right by themselves when the model runs."""


_GROUPS: dict[Callable[[Tracker, ir.Node], None], str] = {
    _same: "Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Erf Gelu Softplus Softsign Elu Selu Celu Exp Log Sqrt Neg Abs Floor Ceil Round Reciprocal "
    "Sign Not Identity Cast Clip Dropout Mish Swish IsNaN IsInf Sin Cos ThresholdedRelu QuickGelu",
    _spatial: "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool Resize Upsample",
    _along: "Softmax LogSoftmax Hardmax LpNormalization",
    _elementwise: "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Mod",
    _conv: "Conv",
    _conv_transpose: "ConvTranspose",
    _gemm: "Gemm",
    _matmul: "MatMul",
    _per_channel: "BatchNormalization InstanceNormalization",
    _layer_norm: "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
    _reduce: "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceSumSquare ReduceProd",
    _transpose: "Transpose",
    _concat: "Concat",
    _split: "Split",
    _slice: "Slice",
    _gather: "Gather",
    _pad: "Pad",
    _recurrent: "LSTM GRU RNN",
    _reshape: "Reshape Flatten Squeeze Unsqueeze",
    _expand: "Expand",
    _nothing: "Shape Size",
}
# what labels its weights itself; weights that others read stay
_READERS = {_elementwise, _conv, _conv_transpose, _gemm, _matmul, _per_channel, _layer_norm, _gather, _recurrent}
RULES = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
