"""Width pruning: the least important units of every space are removed.

By norm (Li et al. 2017, arXiv:1608.08710; over all weights of a unit, as in DepGraph, Fang et al. 2023,
arXiv:2301.12900): I_u = mean over the labelled axes of |w_u|_2 / mean_v |w_v|_2. By first order, given gradients: see
`edgeopt.pruning.shrink`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.edit import Names, drop_unused, initializer
from edgeopt.passes.static_sizes import Known
from edgeopt.pruning.rules import READERS, RULES
from edgeopt.pruning.tracker import Tracker
from edgeopt.pruning.units import Shapes, Units

Wide = NDArray[np.float64]
MULTIPLE = 8  # mobile kernels process channels in blocks of 8
WIDE = 16  # spaces with at least this many units keep a multiple of 8


def units_of(model: ir.Model, shapes: Shapes, keep: Sequence[ir.Node] = (), known: Known | None = None) -> Units:
    """The units of `model` (simplified); outputs of the nodes `keep` keep their width; `known`: see `Tracker`."""
    tracker = Tracker(model, shapes, RULES, READERS, known or {})
    for node in keep:
        for value in node.outputs:
            tracker.units.freeze(*tracker.of(value))
    return tracker.units


def by_norm(model: ir.Model, units: Units) -> Wide:
    """The norm of the weights of each unit, relative to the mean of the same axis."""
    total, count = np.zeros((2, len(units.parents)))
    for unit, squares in _sums(units, {name: _array(model, name).astype(np.float64) ** 2 for name, _ in units.weights}):
        norms = np.sqrt(squares)
        total[unit] += norms / (norms.mean() or 1.0)
        count[unit] += 1
    return total / np.maximum(count, 1)


def by_slices(units: Units, products: Mapping[str, Wide]) -> Wide:
    """(sum of the products over the weights of each unit)^2; `products`: w dL/dw by weight."""
    total = np.zeros(len(units.parents))
    for unit, sums in _sums(units, products):
        total[unit] += sums
    return total**2


def _sums(units: Units, arrays: Mapping[str, Wide]) -> Iterator[tuple[NDArray[np.intp], Wide]]:
    """(units, the sum of the elements of each) of every labelled axis of the weights in `arrays`."""
    for (name, axis), members in units.members().items():
        if name in arrays:
            x = arrays[name]
            found, at = np.unique(members, return_inverse=True)
            yield found, np.bincount(at, x.sum(axis=tuple(i for i in range(x.ndim) if i != axis))).astype(np.float64)


def _array(model: ir.Model, name: str) -> NDArray[np.float32]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def chosen(units: Units, scores: Wide, width: float) -> tuple[set[int], dict[str, tuple[int, int]]]:
    """(the units to remove, units before and after by the layer that created their space), with a share `width` of each
    space kept; a large space keeps a multiple of `MULTIPLE`.
    """
    gone: set[int] = set()
    sizes: dict[str, tuple[int, int]] = {}
    for space, members in units.free().items():
        count = len(members)
        keep = max(1, round(width * count))
        if count >= WIDE:
            keep = min(count, max(MULTIPLE, MULTIPLE * round(width * count / MULTIPLE)))
        ranked = sorted(members, key=lambda u: (scores[u], u))
        gone.update(ranked[: count - keep])
        sizes[units.names[space]] = (count, keep)
    spared(units, scores, gone)
    return gone, sizes


def spared(units: Units, scores: Wide, gone: set[int]) -> None:
    """Take out of `gone` what a layer needs to keep one channel at least: its most important."""
    for row in units.members().values():
        if row.size and gone.issuperset(row.tolist()):
            gone.discard(max(row.tolist(), key=lambda u: (scores[u], u)))


def without(model: ir.Model, units: Units, gone: set[int]) -> ir.Model:
    """A clone of `model` without the units `gone`: weights sliced, sizes in attributes and constants updated."""
    copy = model.clone()
    for name in {name for name, _ in units.weights}:
        w = _array(model, name)
        for axis in range(w.ndim):
            row = units.weights.get((name, axis))
            if row is not None:
                w = w.take([i for i, label in enumerate(row) if units.root(label) not in gone], axis)
        _set(copy.graph.initializers[name], w)
    nodes, names = {str(n.name): n for n in copy.graph}, Names(copy)
    for edit in units.edits:
        node, made = nodes[edit.node], edit.made(lambda labels: sum(units.root(i) not in gone for i in labels))
        if isinstance(edit.where, str):
            assert isinstance(made, int)
            node.attributes[edit.where] = ir.AttrInt64(edit.where, made)
            continue
        old = node.inputs[edit.where]
        assert old is not None and old.const_value is not None
        content = np.asarray(made, np.int64).reshape(old.const_value.shape.numpy())
        if np.array_equal(content, old.const_value.numpy()):
            continue
        name = f"{old.name}/kept/{edit.node}/{edit.where}"
        node.replace_input_with(edit.where, initializer(copy, names, name, content))
    for value in [*copy.graph.inputs, *copy.graph.outputs]:
        value.const_value = None if not value.is_initializer() else value.const_value
    outside = {*copy.graph.inputs, *copy.graph.outputs}
    for node in copy.graph:
        for value in node.outputs:
            if value not in outside:
                value.shape = None  # stale: from the wider model
    drop_unused(copy)
    return copy


def _set(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)
    value.dtype = value.const_value.dtype
