"""Label rules of operators that move data: channels keep their labels, and sizes in constants follow the number of kept
channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.pruning.tracker import Axes, Tracker, input_of
from edgeopt.pruning.units import Count, Edit, Labels

_RESIZE_SIZES = 3


def same(t: Tracker, node: ir.Node) -> None:
    """Every output of the same rank has the labels of the first input."""
    x = node.inputs[0]
    assert x is not None
    for out in node.outputs:
        if len(t.shapes.get(str(out.name), ())) == len(t.shape(x)):
            t.axes[out] = t.of(x)


def spatial(t: Tracker, node: ir.Node) -> None:
    """Pooling and resizing: batch and channels keep their labels."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    if t.shape(x)[:2] != t.shape(out)[:2] or node.attributes.get("axes") is not None:
        return t.stop(node)
    for labels in t.of(x)[2:]:
        t.units.freeze(labels)
    t.axes[out] = [*t.of(x)[:2], *[None] * (len(t.shape(x)) - 2)]
    if input_of(node, _RESIZE_SIZES) is not None:
        sizes(t, node, t.axes[out], _RESIZE_SIZES)
    return None


def transpose(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    given = node.attributes.get("perm")
    order = list(given.as_ints()) if given is not None else list(range(len(t.shape(x))))[::-1]
    t.axes[node.outputs[0]] = [t.of(x)[i] for i in order]


def concat(t: Tracker, node: ir.Node) -> None:
    out = node.outputs[0]
    rank = len(t.shape(out))
    joined = node.attributes.get_int("axis", 0) % rank
    axes = Axes()
    for axis in range(rank):
        rows = [None if v in t.constants else t.of(v)[axis] for v in node.inputs if v is not None]
        if axis != joined:
            axes.append(t.units.tie_rows(rows))
        elif any(row is None for row in rows):  # an untracked part: the other parts are frozen
            for row in rows:
                t.units.freeze(row)
            axes.append(None)
        else:
            axes.append(tuple(label for row in rows for label in row or ()))
    for v in node.inputs:
        if v in t.constants and v is not None:
            t.units.unlabelled(v)
    t.axes[out] = axes


def split(t: Tracker, node: ir.Node) -> None:
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
    if t.numbers(input_of(node, 1)) is None:  # equal parts could become unequal
        for row in parts:
            t.units.freeze(row)
        return
    t.units.edits.append(Edit(str(node.name), 1, lambda count: [count(row or ()) for row in parts]))


def slice_(t: Tracker, node: ir.Node) -> None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    starts, ends, axes, steps = (t.numbers(input_of(node, i)) for i in range(1, 5))
    if (
        any(input_of(node, i) is not None and n is None for i, n in ((3, axes), (4, steps)))
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


def gather(t: Tracker, node: ir.Node) -> None:
    x, indices = node.inputs[:2]
    assert x is not None and indices is not None
    axis = node.attributes.get_int("axis", 0) % len(t.shape(x))
    middle: Axes = [None] * len(t.shape(indices))
    for labels in t.of(indices):
        t.units.freeze(labels)
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


def pad(t: Tracker, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    pads, rank = t.numbers(input_of(node, 1)), len(t.shape(x))
    if pads is None or len(pads) != 2 * rank:
        return t.stop(node)
    grown = [not before and not behind for before, behind in zip(pads[:rank], pads[rank:], strict=True)]
    for labels, same in zip(t.of(x), grown, strict=True):
        if not same:
            t.units.freeze(labels)
    t.axes[node.outputs[0]] = [labels if same else None for labels, same in zip(t.of(x), grown, strict=True)]
    return None


def reshape(t: Tracker, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are matched by runs with the same number of elements.

    If a run of axes becomes one, its labels are repeated. If one axis becomes several (attention heads), the axis of
    the heads has the labels, with all channels of a head tied. Everything else is frozen.
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
        if not theirs:  # a removed axis of size 1
            for i in tracked:
                t.units.freeze(t.of(x)[i])
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
            for i in tracked:
                t.units.freeze(t.of(x)[i])
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
    value = node.inputs[at]
    given, size = t.numbers(value), t.shape(node.outputs[0])
    if given is not None:
        first = len(axes) - len(given)  # Expand may have only the last sizes
        axes, size = axes[first:], size[first:]
        if any(labels is not None and given[i] == size[i] for i, labels in enumerate(axes)):
            t.units.edits.append(Edit(str(node.name), at, _counted(given, axes, size)))
        return
    maker = value.producer() if value is not None else None
    parts = [v for v in maker.inputs if v is not None] if maker is not None and maker.op_type == "Concat" else []
    places = [(k, at) for k, part in enumerate(parts) for at in range(t.shape(part)[0])]
    if maker is None or len(places) != len(axes):
        _computed(t, value, axes, size)
        return
    for k, part in enumerate(parts):
        given = t.numbers(part)  # None: sizes computed at run time
        if given is None:
            continue
        first = places.index((k, 0))
        ours = axes[first : first + len(given)]
        if any(
            labels is not None and n == size[first + i] for i, (n, labels) in enumerate(zip(given, ours, strict=True))
        ):
            t.units.edits.append(Edit(str(maker.name), k, _counted(given, ours, size[first:])))


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


def expand(t: Tracker, node: ir.Node) -> None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
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


def shape(t: Tracker, node: ir.Node) -> None:
    """Shape: correct at run time; an axis whose size enters further computation is frozen."""
    x = node.inputs[0]
    assert x is not None
    first = node.attributes.get_int("start", 0) % max(1, len(t.shape(x)))
    for reader, _ in node.outputs[0].uses():
        index = t.numbers(input_of(reader, 1)) if reader.op_type == "Gather" else None
        if _computed_with(node.outputs[0] if index is None else reader.outputs[0]):
            chosen = range(len(t.shape(x))) if index is None else [(first + i) % len(t.shape(x)) for i in index]
            for axis in chosen:
                t.units.freeze(t.of(x)[axis])


def _computed_with(value: ir.Value) -> bool:
    """Whether `value`, a size, is used for anything but as the size of something else."""
    return any(
        reader.op_type not in _SIZED and (reader.op_type not in _HANDS_ON or any(map(_computed_with, reader.outputs)))
        for reader, _ in value.uses()
    )


_HANDS_ON = frozenset({"Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Cast", "Identity"})
_SIZED = frozenset({"Reshape", "Expand", "Resize", "ConstantOfShape", "Tile"})


def nothing(t: Tracker, node: ir.Node) -> None:
    """Size: correct at run time, nothing to do."""
