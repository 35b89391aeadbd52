"""Units: channels of a network that can only be removed together.

Every axis of every value has a row of labels, one for each index, or is not tracked (None). Operators label their
outputs and tie labels that must be kept or removed together (a residual add ties the channels of its operands index by
index). Tied labels form a unit; units created by the same layer, and those tied to them, form a space, within which
they are ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

Labels = tuple[int, ...] | None
Count = Callable[[Sequence[int]], int]  # number of kept labels among some


@dataclass(frozen=True)
class Edit:
    """A number in the graph that depends on the number of kept channels."""

    node: str
    where: str | int
    """An attribute (name), or the constant at an input (position)."""
    made: Callable[[Count], int | Sequence[int]]
    """The new content, given the counter of kept labels."""


@dataclass
class Units:
    """A union-find over labels and over spaces, the labels of the weights' axes, and the edits that they need."""

    parents: list[int] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    weights: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # space -> the node that created it
    fixed: set[tuple[str, int]] = field(default_factory=set)  # axes of weights that a reader freezes
    _space_parents: list[int] = field(default_factory=list)

    def fresh(self, count: int, node: str) -> tuple[int, ...]:
        """`count` new labels in a new space."""
        first, space = len(self.parents), len(self._space_parents)
        self.parents.extend(range(first, first + count))
        self.spaces.extend([space] * count)
        self._space_parents.append(space)
        self.names[space] = node
        return tuple(range(first, first + count))

    def root(self, label: int) -> int:
        """The unit of a label."""
        return _root(self.parents, label)

    def space(self, label: int) -> int:
        """The space of a label."""
        return _root(self._space_parents, self.spaces[self.root(label)])

    def tie(self, a: int, b: int) -> None:
        """Merge the units of two labels, and their spaces."""
        a, b = sorted((self.root(a), self.root(b)))
        spaces = sorted((self.space(a), self.space(b)))
        if a != b:
            self.parents[b] = a
            if b in self.frozen:
                self.frozen.add(a)
        self._space_parents[spaces[1]] = spaces[0]

    def tie_rows(self, rows: Iterable[Labels]) -> Labels:
        """Tie several rows of the same length index by index, and return one of them; if one is not tracked, freeze all
        and return None.
        """
        found = list(rows)
        if any(row is None for row in found) or len({len(row) for row in found if row is not None}) != 1:
            self.freeze(*found)
            return None
        first, *others = [row for row in found if row is not None]
        for other in others:
            for a, b in zip(first, other, strict=True):
                self.tie(a, b)
        return first

    def freeze(self, *rows: Labels) -> None:
        """Mark these channels as not removable."""
        self.frozen.update(self.root(i) for labels in rows for i in set(labels or ()))

    def label(self, value: ir.Value | None, axis: int, labels: Labels) -> None:
        """Label an axis of a weight; reading a weight twice ties its readers."""
        if value is None:
            return
        key = (str(value.name), axis)
        if labels is None:
            self.fixed.add(key)
            return
        if key in self.weights:
            self.tie_rows([self.weights[key], labels])
        self.weights[key] = labels

    def unlabelled(self, value: ir.Value) -> None:
        """Freeze all axes of a weight that is read by an operator without a label rule, also for labels it gets
        later.
        """
        rank = len(value.const_value.shape) if value.const_value is not None else 0
        self.fixed.update((str(value.name), axis) for axis in range(rank))

    def free(self) -> dict[int, list[int]]:
        """The removable units, by space."""
        held = (label for key in self.fixed for label in self.weights.get(key, ()))
        frozen = {self.root(i) for i in (*self.frozen, *held)}
        found: dict[int, list[int]] = {}
        for label in range(len(self.parents)):
            if self.parents[label] == label and label not in frozen:
                found.setdefault(self.space(label), []).append(label)
        return found

    def members(self) -> dict[tuple[str, int], np.ndarray]:
        """The unit of every index of every labelled axis of the weights: int [size]."""
        return {key: np.array([self.root(i) for i in row]) for key, row in self.weights.items()}


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


Shapes = Mapping[str, tuple[int, ...]]
