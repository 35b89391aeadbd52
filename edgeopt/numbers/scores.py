"""Compare a model's outputs with those of the float model: SQNR, cosine similarity, and top-1 agreement for outputs
that look like class scores.

SQNR = 10 log10( sum r^2 / sum (r - y)^2 ) dB over all samples, r the float output
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import ValidityError
from edgeopt.numbers.channels import BLOCK
from edgeopt.numbers.figure import Figure, are_probabilities
from edgeopt.numbers.intervals import Interval, wilson
from edgeopt.numbers.kinds import Kind, figures, vectors

GOOD_SQNR_DB = 10.0  # of an output whose kind has no figures
_MIN_CLASSES = 2
_CLASSES = ("classes", "probabilities", "tokens")
_PERHAPS = (None, "regression", "signal")  # may be class scores all the same: a user who asks for agreement knows
Outputs = list[NDArray[Any]]


def class_scores(outputs: Sequence[NDArray[Any]]) -> bool:
    """Whether the samples of one output look like class scores: floats [n, classes], or probabilities over the last
    axis at every position of a sequence.
    """
    first = outputs[0]
    if not np.issubdtype(first.dtype, np.floating) or first.ndim < 2 or first.shape[-1] < _MIN_CLASSES:
        return False
    if any(holds_nan(x) for x in outputs):
        return False
    return first.ndim == 2 or (first.ndim == 3 and are_probabilities(first))


def compare(
    names: Sequence[str],
    reference: Sequence[Outputs],
    result: Sequence[Outputs],
    kinds: Mapping[str, Kind] | None = None,
) -> list[OutputReport]:
    """The error of every float output over all samples; of an output whose kind is known, the figures of it too, also
    if it is not float. One that float leaves open in places (NaN) is judged as a signal by the rest.

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
        kind = None if kinds is None else kinds.get(name)
        if any(holds_nan(r) for r, _ in pairs):
            pairs, kind = _there(pairs), "state" if kind == "state" else None if kind is None else "signal"
        if pairs and (kind is not None or np.issubdtype(pairs[0][0].dtype, np.floating)):
            found.append(_error(name, pairs, kind))
    return found


def holds_nan(x: NDArray[Any]) -> bool:
    """Whether an output is left open in places."""
    return bool(np.issubdtype(x.dtype, np.floating) and np.isnan(x).any())


def _there(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """What there is of an output that float leaves open in places, in rows: these are no rows of classes any more."""
    return [(r[np.isfinite(r)], y[np.isfinite(r)]) for r, y in pairs if np.isfinite(r).any()]


def _error(name: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], kind: Kind | None) -> OutputReport:
    if pairs[0][0].dtype.kind not in "fiub":  # texts
        equal = all(np.array_equal(r, y) for r, y in pairs)
        made = figures("exact", [r for r, _ in pairs], [y for _, y in pairs])
        return OutputReport(name, math.inf if equal else -math.inf, float(equal), 0.0, None, None, "exact", made)
    if kind is not None:
        pairs = [(vectors(kind, r), vectors(kind, y)) for r, y in pairs]
    signal = noise = dot = power = peak = 0.0
    same = total = 0
    scores = kind in _CLASSES or (kind in _PERHAPS and class_scores([r for r, _ in pairs]))
    for r, y in pairs:
        for a, b in _parts(r, y):
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
    agreement, interval = (same / total, wilson(same / total, total)) if scores and total else (None, None)
    made = () if kind is None else figures(kind, *zip(*(_finite(r, y, kind) for r, y in pairs), strict=True))
    return OutputReport(name, sqnr_db, cosine, peak, agreement, interval, kind, made)


def _parts(r: NDArray[Any], y: NDArray[Any]) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Both where the reference is finite, in rows of float64, a part at a time, since outputs may be large."""
    for start in range(0, r.size, BLOCK):
        a, b = (x.reshape(-1)[start : start + BLOCK] for x in (r, y))
        there = np.isfinite(a)
        yield a[there].astype(np.float64), b[there].astype(np.float64)


def _finite(r: NDArray[Any], y: NDArray[Any], kind: Kind) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both with the same finite numbers where the reference has none: the lowest for masked classes, else 0."""
    if not np.issubdtype(r.dtype, np.floating) or np.isfinite(r).all():
        return r, y
    known = np.nan_to_num(r) if kind in _CLASSES else np.where(np.isfinite(r), r, np.zeros_like(r))
    return known, np.where(np.isfinite(r), y, known)


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
    agreement_interval: Interval | None = None
    """The 95 % interval of the agreement, as if the samples were drawn from the users' data."""
    kind: Kind | None = None
    """What the output is; None where that was not looked for."""
    figures: tuple[Figure, ...] = ()
    """How near it is in what counts of its kind."""


def lowest_sqnr_db(outputs: Sequence[OutputReport]) -> float:
    """The lowest SQNR in dB; infinite when every output is exact. Numbers that are names of something have none."""
    return min((o.sqnr_db for o in outputs if o.kind != "exact"), default=math.inf)


def short_db(outputs: Sequence[OutputReport]) -> float:
    """How far the worst figure of all outputs is below its bar, in dB; 0 if every one is close."""
    plain = (max(GOOD_SQNR_DB - o.sqnr_db, 0.0) for o in outputs if not o.figures and o.kind != "exact")
    return max((*(f.short_db for o in outputs for f in o.figures), *plain), default=0.0)


def lowest_agreement(outputs: Sequence[OutputReport]) -> float | None:
    """The lowest top-1 agreement over the outputs that are class scores, else over those that look like them; None if
    there are none.
    """
    found = interval_of_agreement(outputs)
    return None if found is None else found.value


def interval_of_agreement(outputs: Sequence[OutputReport]) -> Interval | None:
    """The lowest agreement with its 95 % interval; see `lowest_agreement`."""
    known = [o for o in outputs if o.kind in _CLASSES] or outputs
    found = [o for o in known if o.agreement is not None]
    if not found:
        return None
    worst = min(found, key=lambda o: o.agreement or 0.0)
    assert worst.agreement is not None
    return worst.agreement_interval or Interval(worst.agreement, worst.agreement, worst.agreement)
