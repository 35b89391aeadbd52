"""Label rules of operators that move data: channels keep their labels, and sizes in constants follow the number of kept
channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.pruning.tracker import Axes, Tracker, Untracked, input_of
from edgeopt.pruning.units import Count, Edit, Labels

_RESIZE_SIZES = 3


def same(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Every output of the same rank has the labels of the first input."""
    for out in node.outputs:
        if len(t.shapes.get(str(out.name), ())) == len(t.shape(x)):
            t.axes[out] = t.of(x)


def spatial(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Pooling and resizing: batch and channels keep their labels."""
    out = node.outputs[0]
    if t.shape(x)[:2] != t.shape(out)[:2] or node.attributes.get("axes") is not None:
        raise Untracked
    t.units.freeze(*t.of(x)[2:])
    t.axes[out] = [*t.of(x)[:2], *[None] * (len(t.shape(x)) - 2)]
    if input_of(node, _RESIZE_SIZES) is not None:
        sizes(t, node, t.axes[out], _RESIZE_SIZES)


def transpose(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    given = node.attributes.get("perm")
    order = list(given.as_ints()) if given is not None else list(range(len(t.shape(x))))[::-1]
    t.axes[node.outputs[0]] = [t.of(x)[i] for i in order]


def concat(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    out = node.outputs[0]
    rank = len(t.shape(out))
    joined = node.attributes.get_int("axis", 0) % rank
    axes = Axes()
    for axis in range(rank):
        rows = [None if v in t.constants else t.of(v)[axis] for v in node.inputs if v is not None]
        if axis != joined:
            axes.append(t.units.tie_rows(rows))
        elif any(row is None for row in rows):  # an untracked part: the other parts are frozen
            t.units.freeze(*rows)
            axes.append(None)
        else:
            axes.append(tuple(label for row in rows for label in row or ()))
    for v in node.inputs:
        if v in t.constants and v is not None:
            t.units.unlabelled(v)
    t.axes[out] = axes


def split(t: Tracker, node: ir.Node, x: ir.Value) -> None:
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
    if t.numbers(input_of(node, 1)) is None:  # equal parts could become unequal
        t.units.freeze(*parts)
        return
    t.units.edits.append(Edit(str(node.name), 1, lambda count: [count(row or ()) for row in parts]))


def slice_(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    out = node.outputs[0]
    starts, ends, axes, steps = (t.numbers(input_of(node, i)) for i in range(1, 5))
    if (
        any(input_of(node, i) is not None and n is None for i, n in ((3, axes), (4, steps)))
        or starts is None
        or ends is None
    ):
        raise Untracked
    axes = [a % len(t.shape(x)) for a in (axes if axes is not None else range(len(starts)))]
    found = list(t.of(x))
    before, until = Axes(), Axes()
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        first, last, _ = slice(start, end, step).indices(t.shape(x)[axis])
        labels = found[axis] if step == 1 else None
        if labels is None:
            t.units.freeze(found[axis])
        found[axis] = None if labels is None else labels[first:last]
        before.append(None if labels is None else labels[:first])
        until.append(None if labels is None else labels[:last])
    for at, given, rows in ((1, starts, before), (2, ends, until)):
        t.units.edits.append(Edit(str(node.name), at, _counted(given, rows, given)))
    t.axes[out] = found


def gather(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    indices = node.inputs[1]
    assert indices is not None
    axis = node.attributes.get_int("axis", 0) % len(t.shape(x))
    middle: Axes = [None] * len(t.shape(indices))
    t.units.freeze(*t.of(indices))
    if x in t.constants:
        if len(t.shape(x)) != 2 or axis != 0:
            raise Untracked
        t.units.label(x, 0, None)
        made = t.units.weights.get((str(x.name), 1)) or t.units.fresh(t.shape(x)[1], str(node.name))
        t.units.label(x, 1, made)
        t.axes[node.outputs[0]] = [*middle, made]
        return
    t.units.freeze(t.of(x)[axis])
    t.axes[node.outputs[0]] = [*t.of(x)[:axis], *middle, *t.of(x)[axis + 1 :]]


def pad(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    pads, rank = t.numbers(input_of(node, 1)), len(t.shape(x))
    if pads is None or len(pads) != 2 * rank:
        raise Untracked
    grown = [not before and not behind for before, behind in zip(pads[:rank], pads[rank:], strict=True)]
    for labels, same in zip(t.of(x), grown, strict=True):
        if not same:
            t.units.freeze(labels)
    t.axes[node.outputs[0]] = [labels if same else None for labels, same in zip(t.of(x), grown, strict=True)]


def reshape(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are matched by runs with the same number of elements.

    If a run of axes becomes one, its labels are repeated. If one axis becomes several (attention heads), the axis of
    the heads has the labels, with all channels of a head tied. Everything else is frozen.
    """
    out = node.outputs[0]
    before, after = t.shape(x), t.shape(out)
    axes: Axes = [None] * len(after)
    for ours, theirs in _runs(before, after):
        tracked = [i for i in ours if t.of(x)[i] is not None]
        wide = [i for i in theirs if after[i] > 1]
        if not tracked:
            continue
        if not theirs:  # a removed axis of size 1
            t.units.freeze(*(t.of(x)[i] for i in tracked))
            continue
        labels = t.of(x)[tracked[0]] or ()
        if len(tracked) == 1 and len(wide) <= 1:
            inner = math.prod(before[i] for i in ours if i > tracked[0])
            outer = math.prod(before[i] for i in ours if i < tracked[0])
            axes[(wide or theirs)[0]] = tuple(i for _ in range(outer) for i in labels for _ in range(inner))
        elif len(tracked) == 1 and before[tracked[0]] == math.prod(before[i] for i in ours):
            at = _heads([after[i] for i in wide])
            blocks = np.moveaxis(np.array(labels).reshape([after[i] for i in wide]), at, 0).reshape(after[wide[at]], -1)
            for block in blocks.tolist():
                for label in block:
                    t.units.tie(block[0], label)
            axes[wide[at]] = tuple(blocks[:, 0].tolist())
        else:
            t.units.freeze(*(t.of(x)[i] for i in tracked))
    t.axes[out] = axes
    if node.op_type == "Reshape":
        sizes(t, node, axes)


def _heads(sizes: Sequence[int]) -> int:
    """Index of the axis that counts heads: the first, or the second if the first separates queries, keys and values."""
    return 1 if len(sizes) > len(("heads", "width")) and sizes[0] <= len("qkv") else 0


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of both shapes with the same number of elements."""
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


def sizes(t: Tracker, node: ir.Node, axes: Axes, at: int = 1) -> None:
    """Make the sizes given as input `at` of a Reshape, Expand or Resize follow the kept channels, or freeze the
    channels.
    """
    value, size = node.inputs[at], t.shape(node.outputs[0])
    maker = value.producer() if value is not None else None
    joined = maker is not None and maker.op_type == "Concat"
    owner = maker if maker is not None and joined else node
    parts = list(enumerate(owner.inputs)) if joined else [(at, value)]
    first = len(axes) - sum(t.shape(part)[0] for _, part in parts if part is not None)
    if first if joined else t.numbers(value) is None:  # Expand may have only the last sizes
        _computed(t, value, axes, size)
        return
    for k, part in parts:
        given = t.numbers(part)  # None: sizes computed at run time
        if given is not None:
            end = first + len(given)
            changed = _counted(given, axes[first:end], size[first:end])
            t.units.edits.append(Edit(str(owner.name), k, changed))
        first += 0 if part is None else t.shape(part)[0]


def _computed(t: Tracker, value: ir.Value | None, axes: Axes, size: Sequence[int]) -> None:
    """Freeze channels whose count may be part of a size computed at run time."""
    known = t.known.get(str(value.name), []) if value is not None else []
    known = [*[None] * (len(axes) - len(known)), *known]
    for labels, n, before in zip(axes, known, size, strict=False):
        if n is None or n == before:
            t.units.freeze(labels)


def _counted(given: Sequence[int], axes: Axes, size: Sequence[int]) -> Callable[[Count], list[int]]:
    """A function from the count of kept labels to the sizes `given`: sizes equal to those before in `size` become
    counts of the labels in `axes`.
    """
    return lambda count: [
        n if labels is None or n != before else count(labels)
        for n, labels, before in zip(given, axes, size, strict=False)
    ]


def expand(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    out = node.outputs[0]
    shift = len(t.shape(out)) - len(t.shape(x))
    axes: Axes = [None] * shift
    rows = t.of(x)
    if x in t.constants and x.dtype != ir.DataType.FLOAT:
        t.hold([x])
    if x in t.constants and x.dtype == ir.DataType.FLOAT:  # a learned token repeated for every sample
        rows = [_own(t, x, i, str(node.name)) for i in range(len(rows))]
    for i, labels in enumerate(rows):
        same = t.shape(x)[i] == t.shape(out)[i + shift]
        if not same:
            t.units.freeze(labels)
        axes.append(labels if same else None)
    t.axes[out] = axes
    sizes(t, node, axes)


def _own(t: Tracker, value: ir.Value, axis: int, node: str) -> Labels:
    """The labels of a weight's axis, new ones if it has none; an axis of size 1 is broadcast and has none."""
    size = t.shape(value)[axis]
    if size == 1:
        return None
    labels = t.units.weights.get((str(value.name), axis)) or t.units.fresh(size, node)
    t.units.label(value, axis, labels)
    return labels


def shape(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Shape: correct at run time; an axis whose size enters further computation is frozen."""
    first = node.attributes.get_int("start", 0) % max(1, len(t.shape(x)))
    for reader, _ in node.outputs[0].uses():
        index = t.numbers(input_of(reader, 1)) if reader.op_type == "Gather" else None
        if _computed_with(node.outputs[0] if index is None else reader.outputs[0]):
            chosen = range(len(t.shape(x))) if index is None else [(first + i) % len(t.shape(x)) for i in index]
            t.units.freeze(*(t.of(x)[axis] for axis in chosen))


def _computed_with(value: ir.Value) -> bool:
    """Whether `value`, a size, is used for anything but as the size of something else."""
    return any(
        reader.op_type not in _SIZED and (reader.op_type not in _HANDS_ON or any(map(_computed_with, reader.outputs)))
        for reader, _ in value.uses()
    )


_HANDS_ON = frozenset({"Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Cast", "Identity"})
_SIZED = frozenset({"Reshape", "Expand", "Resize", "ConstantOfShape", "Tile"})


def nothing(t: Tracker, node: ir.Node, x: ir.Value) -> None:
    """Size: correct at run time, nothing to do."""
