"""Width pruning: the least important units of every space are removed.

By norm (Li et al. 2017, arXiv:1608.08710; over all weights of a unit, as in DepGraph, Fang et al. 2023,
arXiv:2301.12900): I_u = mean over the labelled axes of |w_u|_2 / mean_v |w_v|_2. By first order, given gradients: see
`edgeopt.pruning.shrink`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import ModelError
from edgeopt.passes.static_sizes import Known
from edgeopt.pruning.rules import READERS, RULES
from edgeopt.pruning.tracker import Tracker
from edgeopt.pruning.units import Shapes, Units, kept_counter

Scores = Mapping[int, float]  # by unit; the lowest are removed first
MULTIPLE = 8  # mobile kernels process channels in blocks of 8
_WIDE = 16  # spaces with at least this many units keep a multiple of 8


def units_of(model: ir.Model, shapes: Shapes, keep: Sequence[ir.Node] = (), known: Known | None = None) -> Units:
    """The units of `model` (simplified); outputs of the nodes `keep` keep their width; `known`: see `Tracker`."""
    tracker = Tracker(model, shapes, RULES, READERS, known or {})
    for node in keep:
        for value in node.outputs:
            for labels in tracker.of(value):
                tracker.units.freeze(labels)
    return tracker.units


def by_norm(model: ir.Model, units: Units) -> dict[int, float]:
    """The norm of the weights of each unit, relative to the mean of the same axis."""
    return _averaged(units, {name: _array(model, name).astype(np.float64) ** 2 for name, _ in units.weights}, root=True)


def by_slices(units: Units, products: Mapping[str, NDArray[np.float64]]) -> dict[int, float]:
    """(sum of the products over the weights of each unit)^2; `products`: w dL/dw by weight."""
    sums: dict[int, float] = {}
    for (name, axis), members in units.members().items():
        if name in products:
            values = products[name].sum(axis=tuple(i for i in range(products[name].ndim) if i != axis))
            for unit, value in zip(members.tolist(), values.tolist(), strict=True):
                sums[unit] = sums.get(unit, 0.0) + value
    return {unit: value**2 for unit, value in sums.items()}


def _averaged(units: Units, squares: Mapping[str, NDArray[np.float64]], *, root: bool) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for (name, axis), members in units.members().items():
        w = squares[name]
        values = w.sum(axis=tuple(i for i in range(w.ndim) if i != axis))
        sums: dict[int, float] = {}
        for unit, value in zip(members.tolist(), values.tolist(), strict=True):
            sums[unit] = sums.get(unit, 0.0) + value
        sizes = {u: math.sqrt(s) if root else s for u, s in sums.items()}
        mean = sum(sizes.values()) / len(sizes) or 1.0
        for unit, size in sizes.items():
            found.setdefault(unit, []).append(size / mean)
    return {unit: sum(values) / len(values) for unit, values in found.items()}


def _array(model: ir.Model, name: str) -> NDArray[np.float32]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def chosen(units: Units, scores: Scores, width: float) -> tuple[set[int], dict[str, tuple[int, int]]]:
    """(the units to remove, units before and after by the layer that created their space), with a share `width` of each
    space kept; a large space keeps a multiple of `MULTIPLE`.
    """
    gone: set[int] = set()
    sizes: dict[str, tuple[int, int]] = {}
    for space, members in units.free().items():
        count = len(members)
        keep = max(1, round(width * count))
        if count >= _WIDE:
            keep = min(count, max(MULTIPLE, MULTIPLE * round(width * count / MULTIPLE)))
        ranked = sorted(members, key=lambda u: (scores.get(u, 0.0), u))
        gone.update(ranked[: count - keep])
        sizes[units.names[space]] = (count, keep)
    for row in units.members().values():  # every layer keeps at least one channel
        if row.size and gone.issuperset(row.tolist()):
            gone.discard(max(row.tolist(), key=lambda u: (scores.get(u, 0.0), u)))
    return gone, sizes


def without(model: ir.Model, units: Units, gone: set[int]) -> ir.Model:
    """A clone of `model` without the units `gone`: weights sliced, sizes in attributes and constants updated.

    Raises:
        ModelError: an edit of an attribute does not give one number.
    """
    copy = model.clone()
    for name in {name for name, _ in units.weights}:
        w = _array(model, name)
        for axis in range(w.ndim):
            row = units.weights.get((name, axis))
            if row is not None:
                w = w.take([i for i, label in enumerate(row) if units.root(label) not in gone], axis)
        _set(copy.graph.initializers[name], w)
    count = kept_counter(units, gone)
    nodes = {str(n.name): n for n in copy.graph}
    for edit in units.edits:
        node, made = nodes[edit.node], edit.made(count)
        if isinstance(edit.where, str):
            if not isinstance(made, int):
                raise ModelError(f"node {edit.node!r}: attribute {edit.where} takes one number")
            node.attributes[edit.where] = ir.AttrInt64(edit.where, made)
            continue
        old = node.inputs[edit.where]
        assert old is not None and old.const_value is not None
        content = np.asarray(made, np.int64).reshape(old.const_value.shape.numpy())
        if np.array_equal(content, old.const_value.numpy()):
            continue
        fresh = ir.Value(name=f"{old.name}/kept/{edit.node}/{edit.where}", type=old.type)
        _set(fresh, content)
        copy.graph.register_initializer(fresh)
        node.replace_input_with(edit.where, fresh)
    for value in [*copy.graph.inputs, *copy.graph.outputs]:
        value.const_value = None if not value.is_initializer() else value.const_value
    outside = {*copy.graph.inputs, *copy.graph.outputs}
    for node in copy.graph:
        for value in node.outputs:
            if value not in outside:
                value.shape = None  # stale: from the wider model
    for name, value in list(copy.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del copy.graph.initializers[name]
    return copy


def _set(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)
    value.dtype = value.const_value.dtype
