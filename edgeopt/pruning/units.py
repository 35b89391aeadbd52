"""Units: the channels of a network that can only go together.

Every axis of every value is a row of labels, one for each index, or is not tracked (None). Operators give their outputs
labels and tie labels that must live or die together (a residual add ties the channels of its operands index by index).
Labels that are tied form a unit; units that were born in the same layer, and what is tied to them, form a space, in
which they compete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

Labels = tuple[int, ...] | None
Count = Callable[[Sequence[int]], int]  # how many of some labels are kept


@dataclass(frozen=True)
class Edit:
    """A number in the graph that follows from how many channels are kept: of an attribute (name) or of the constant at
    an input (position); made: the new content from the count.
    """

    node: str
    where: str | int
    made: Callable[[Count], int | Sequence[int]]


@dataclass
class Units:
    """A union-find over labels and over spaces, what the weights' axes are labelled with, and what must be edited."""

    parents: list[int] = field(default_factory=list)
    spaces: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    weights: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # of spaces: the node that bore them
    fixed: set[tuple[str, int]] = field(default_factory=set)  # axes of weights that a reader needs as they are
    _space_parents: list[int] = field(default_factory=list)

    def fresh(self, count: int, node: str) -> tuple[int, ...]:
        """New labels of a new space."""
        first, space = len(self.parents), len(self._space_parents)
        self.parents.extend(range(first, first + count))
        self.spaces.extend([space] * count)
        self._space_parents.append(space)
        self.names[space] = node
        return tuple(range(first, first + count))

    def root(self, label: int) -> int:
        """The unit of a label."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def space(self, label: int) -> int:
        """The space of a label."""
        return self._space_root(self.spaces[self.root(label)])

    def _space_root(self, space: int) -> int:
        while self._space_parents[space] != space:
            self._space_parents[space] = self._space_parents[self._space_parents[space]]
            space = self._space_parents[space]
        return space

    def tie(self, a: int, b: int) -> None:
        """One unit of two."""
        a, b = sorted((self.root(a), self.root(b)))
        spaces = sorted((self.space(a), self.space(b)))
        if a != b:
            self.parents[b] = a
            if b in self.frozen:
                self.frozen.add(a)
        self._space_parents[spaces[1]] = spaces[0]

    def tie_rows(self, rows: Iterable[Labels]) -> Labels:
        """One row of several of one length, tied index by index; not tracked where one of them is not."""
        found = list(rows)
        if any(row is None for row in found) or len({len(row) for row in found if row is not None}) != 1:
            for row in found:
                self.freeze(row)
            return None
        first, *others = [row for row in found if row is not None]
        for other in others:
            for a, b in zip(first, other, strict=True):
                self.tie(a, b)
        return first

    def freeze(self, labels: Labels) -> None:
        """These channels stay."""
        self.frozen.update(self.root(i) for i in set(labels or ()))

    def label(self, value: ir.Value | None, axis: int, labels: Labels) -> None:
        """Label an axis of a weight; a weight that is read twice ties what reads it."""
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
        """A weight is read by an operator that knows nothing of channels: its labels stay, also those it gets later."""
        rank = len(value.const_value.shape) if value.const_value is not None else 0
        self.fixed.update((str(value.name), axis) for axis in range(rank))

    def free(self) -> dict[int, list[int]]:
        """The units that may go, by space."""
        held = (label for key in self.fixed for label in self.weights.get(key, ()))
        frozen = {self.root(i) for i in (*self.frozen, *held)}
        found: dict[int, list[int]] = {}
        for label in range(len(self.parents)):
            if self.parents[label] == label and label not in frozen:
                found.setdefault(self.space(label), []).append(label)
        return found

    def members(self) -> dict[tuple[str, int], np.ndarray]:
        """The unit of every index of every labelled axis of a weight: int [size]."""
        return {key: np.array([self.root(i) for i in row]) for key, row in self.weights.items()}


def kept_counter(units: Units, gone: set[int]) -> Count:
    """Counts labels whose unit is not in `gone`."""
    return lambda labels: sum(units.root(i) not in gone for i in labels)


Shapes = Mapping[str, tuple[int, ...]]
