"""Compare a model's outputs with those of the float model: SQNR, cosine similarity, and top-1 agreement for outputs
that look like class scores.

SQNR = 10 log10( sum r^2 / sum (r - y)^2 ) dB over all samples, r the float output
centred SQNR = 10 log10( sum (r - m)^2 / sum (r - y)^2 ), m the mean of r over the samples, element by element

An output that is large and hardly varies, as a quality score does, has a high SQNR even if the error is as large as
the differences between samples; the centred one shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import ValidityError

_MIN_CLASSES = 2
_CONSTANT = 1e-5  # of the power of its mean: an output that varies by less is constant
_MIN_CENTRED = 4  # samples; the mean of fewer is too near to each of them
Outputs = list[NDArray[Any]]


def are_probabilities(x: NDArray[Any]) -> bool:
    """Whether `x` [..., classes] is non-negative and sums to 1 over the last axis."""
    return bool(x.size and x.min() >= 0 and np.allclose(x.sum(-1), 1, atol=1e-3))


def as_probabilities(x: NDArray[Any]) -> NDArray[np.float64]:
    """The softmax of `x` [..., classes] over the last axis; probabilities are returned unchanged."""
    wide = x.astype(np.float64)
    if are_probabilities(wide):
        return wide
    e = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def class_scores(outputs: Sequence[NDArray[Any]]) -> bool:
    """Whether the samples of one output look like class scores: floats [n, classes], or probabilities over the last
    axis at every position of a sequence.
    """
    first = outputs[0]
    if not np.issubdtype(first.dtype, np.floating) or first.ndim < 2 or first.shape[-1] < _MIN_CLASSES:
        return False
    return first.ndim == 2 or (first.ndim == 3 and are_probabilities(first))


def compare(names: Sequence[str], reference: Sequence[Outputs], result: Sequence[Outputs]) -> list[OutputReport]:
    """The error of every float output over all samples.

    Raises:
        ValidityError: a shape differs from the float model's, or a value is not finite where the reference is finite.
    """
    found = []
    for i, name in enumerate(names):
        pairs = [(r[i], y[i]) for r, y in zip(reference, result, strict=True)]
        for r, y in pairs:
            if r.shape != y.shape:
                raise ValidityError(f"output {name!r} has shape {list(y.shape)}, the reference gives {list(r.shape)}")
            if np.issubdtype(y.dtype, np.floating) and not np.isfinite(y[np.isfinite(r)]).all():
                raise ValidityError(f"output {name!r} is not finite where the reference's is")
        if pairs and np.issubdtype(pairs[0][0].dtype, np.floating):
            found.append(_error(name, pairs))
    return found


def _error(name: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> OutputReport:
    signal = noise = dot = power = peak = 0.0
    same = total = 0
    scores = class_scores([r for r, _ in pairs])
    for r, y in pairs:
        mask = np.isfinite(r)
        a, b = r[mask].astype(np.float64), y[mask].astype(np.float64)
        signal += float(a @ a)
        power += float(b @ b)
        dot += float(a @ b)
        noise += float((a - b) @ (a - b))
        peak = max(peak, float(np.abs(a - b).max(initial=0.0)))
        if scores:
            same += int((r.argmax(-1) == y.argmax(-1)).sum())
            total += r.argmax(-1).size
    sqnr_db = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    cosine = dot / math.sqrt(signal * power) if signal > 0 and power > 0 else float(signal == power)
    agreement = same / total if scores and total else None
    return OutputReport(name, sqnr_db, cosine, peak, agreement, _centred_db([r for r, _ in pairs], noise))


def _centred_db(outputs: Sequence[NDArray[Any]], noise: float) -> float | None:
    """The centred SQNR; None without a mean to tell of: few samples, several shapes, infinities, a constant."""
    alike = len(outputs) >= _MIN_CENTRED and len({r.shape for r in outputs}) == 1
    if not alike or not all(np.isfinite(r).all() for r in outputs):
        return None
    mean = sum((r.astype(np.float64) for r in outputs), np.zeros(outputs[0].shape)) / len(outputs)
    varies = sum(float(np.sum((r - mean) ** 2)) for r in outputs)
    if varies <= _CONSTANT * len(outputs) * float(np.sum(mean**2)):
        return None
    return math.inf if noise == 0 else 10 * math.log10(varies / noise)


@dataclass(frozen=True)
class OutputReport:
    """One output compared with the float model on held-out samples.

    agreement: top-1 agreement over the last axis, None if the output does not look like class scores.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs: float
    agreement: float | None
    centred_db: float | None = None
    """SQNR of what varies between the samples; None where nothing can be said."""


def lowest_centred_db(outputs: Sequence[OutputReport]) -> float | None:
    """The lowest centred SQNR in dB, None if no output has one."""
    return min((o.centred_db for o in outputs if o.centred_db is not None), default=None)


def lowest_sqnr_db(outputs: Sequence[OutputReport]) -> float:
    """The lowest SQNR in dB; infinite when every output is exact."""
    return min((o.sqnr_db for o in outputs), default=math.inf)


def lowest_agreement(outputs: Sequence[OutputReport]) -> float | None:
    """The lowest top-1 agreement over the outputs that look like class scores, None if there are none."""
    return min((o.agreement for o in outputs if o.agreement is not None), default=None)
