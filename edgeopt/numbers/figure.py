"""A figure of nearness of one output to that of the float model, and what all kinds of outputs share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Sequence[NDArray[Any]]
TINY = 1e-12
_DIGITS = 6
_KEPT = 0.98  # of the accuracy of the largest one
_PART_KEPT = 0.9


@dataclass(frozen=True)
class Figure:
    """A figure of nearness; higher is nearer. unit: "dB", or "" for shares, of which 1 means the same."""

    name: str
    value: float
    bar: float
    unit: str = ""

    @property
    def close(self) -> bool:
        """Whether the figure reaches its bar."""
        return self.value >= self.bar

    @property
    def short_db(self) -> float:
        """How far it is below its bar in dB, of shares by what they lack to 1; 0 if it is close."""
        if self.close:
            return 0.0
        if self.unit == "dB":
            return max(self.bar - self.value, 0.0)
        return 10 * math.log10(max(1 - self.value, TINY) / max(1 - self.bar, TINY))

    def __str__(self) -> str:
        digits = 1 if self.unit == "dB" else 3
        while not self.close and round(self.value, digits) == round(self.bar, digits) and digits < _DIGITS:
            digits += 1
        value, bar = (f"{x:.{n}f}{' dB' * (self.unit == 'dB')}" for x, n in ((self.value, digits), (self.bar, digits)))
        return f"{self.name} {value} (bar {bar})"


def as_probabilities(x: NDArray[Any]) -> NDArray[np.float64]:
    """The softmax of `x` [..., classes] over the last axis; probabilities are returned unchanged."""
    wide = x.astype(np.float64)
    if are_probabilities(wide):
        return wide
    e = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def are_probabilities(x: NDArray[Any]) -> bool:
    """Whether `x` [..., classes] is non-negative and sums to 1 over the last axis."""
    return bool(x.size and x.min() >= 0 and np.allclose(x.sum(-1), 1, atol=1e-3))


def classes(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """What is left of the accuracy: a change of the largest one costs what float itself gave the old one more than the
    new one. If float's probabilities are true that is the expected change of top-1. Where they are so low that any
    answer would lose little, it also counts what part is left of how far they are above chance.
    """
    lost, sure, count = 0.0, 0.0, 0
    for r, y in zip(reference, result, strict=True):
        p = as_probabilities(r).reshape(-1, r.shape[-1])
        before, after = p.argmax(-1), y.reshape(-1, y.shape[-1]).argmax(-1)
        rows = np.arange(len(p))
        sure += float((p[rows, before] - 1 / p.shape[-1]).sum())
        lost += float((p[rows, before] - p[rows, after]).sum())
        count += len(p)
    if count:
        yield Figure("top-1 expected to stay", 1 - lost / count, _KEPT)
        if sure * (1 - _PART_KEPT) < count * (1 - _KEPT):
            yield Figure("above chance", 1 - lost / max(sure, TINY), _PART_KEPT)
