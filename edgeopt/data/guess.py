"""Guess the preprocessing that a classifier was trained with: run the float model with each preset and compare the
information in its outputs.

The score of a preset is the mutual information between the samples and the model's predictions, in nats,

    I = H(mean_n p_n) - mean_n H(p_n),        p_n = softmax of the output on sample n,

which is high if predictions are confident and differ between samples. Confidence alone is misleading: with saturated
inputs a network is often confident of the same class for all samples.

If the file still holds the batch normalization that follows the first layer, its running statistics are better
evidence: under the preset of the training the layer's values have their mean and variance. That holds for models
without class scores too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.figure import as_probabilities

_CLEAR = 0.1  # required difference between the best and the second preset, in nats
_NEARER = 0.25  # nats by which a preset must fit a normalization better than the second
_FAR = 3.0  # nats, beyond which no preset fits it


@dataclass(frozen=True)
class Guess:
    """The chosen preset."""

    preset: str
    clear: bool
    """Whether the scores are different enough to decide."""
    scores: Mapping[str, tuple[float, float]]
    """(information in nats, mean confidence) of each preset."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """Distance in nats from what the first normalization was trained with, of each preset."""

    def describe(self) -> str:
        """A one-line description."""
        if self.distances:
            table = ", ".join(f"{k} {d:.2f} nats" for k, d in self.distances.items())
            return (
                f"preprocessing: took '{self.preset}', nearest to what the first batch normalization was trained with:"
                f" {table} away"
            )
        # a mean of entropies may be a rounding error below 0
        table = ", ".join(f"{k} {max(i, 0.0):.2f} nats (confidence {c:.2f})" for k, (i, c) in self.scores.items())
        if not self.clear:
            why = "no output looks like class scores, and no batch normalization is left"
            if table:
                why = f"what its answers tell of the classes of these images is about the same under each: {table}"
            return f"preprocessing: the model does not tell how its images were prepared ({why})"
        return f"preprocessing: took '{self.preset}', under which the float model knows most of the samples: {table}"


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-12))).sum(-1))


def information(logits: NDArray[Any]) -> tuple[float, float]:
    """(I in nats, mean confidence) of `logits` [n, classes]; I is minus infinity if a value is not finite."""
    if not np.isfinite(logits).all():
        return -np.inf, 0.0
    p = as_probabilities(logits)
    return float(_entropy(p.mean(0)) - _entropy(p).mean()), float(p.max(-1).mean())


def guess(
    outputs: Mapping[str, NDArray[Any] | None], fallback: str, distances: Mapping[str, float] | None = None
) -> Guess:
    """Choose the preset nearest to a normalization if that is clear, else that whose outputs contain most information.

    outputs: class scores [n, classes] for each preset, None if the model gives none; fallback: the preset to use if the
    scores do not decide; distances: from what a normalization was trained with, in nats, if there is one.
    """
    nearest = sorted(distances or {}, key=lambda name: (distances or {})[name])
    if distances and distances[nearest[0]] < min(_FAR, distances[nearest[1]] - _NEARER):
        return Guess(nearest[0], True, {}, distances)
    scores = {name: information(x) for name, x in outputs.items() if x is not None}
    if not scores:
        return Guess(fallback, False, {})
    ranked = sorted(scores, key=lambda name: scores[name][0], reverse=True)
    clear = len(ranked) == 1 or scores[ranked[0]][0] - scores[ranked[1]][0] >= _CLEAR
    return Guess(ranked[0] if clear else fallback, clear, scores)
