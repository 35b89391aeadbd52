"""How near an output of one model is to that of another, in what counts of its kind.

A kind says what an output is read for, and so which errors matter:

    classes, probabilities   the largest one of the last axis        tokens      the largest one at each position
    embedding                which samples are neighbours            mask        what lies above a level, and the peak,
                                                                                 or the class of each pixel
    detections               each channel of the boxes by itself,    regression  how the samples differ
                             classes that nothing shows together
    signal                   the waveform or spectrum, at any gain,  exact       every element
                             and groups of channels of one scale
    state                    what comes out when it is fed back, so it has no figure of its own

Every figure has a bar; what is at least at the bar is close. The bars are those of `scripts/bench_judge`: 126 files and
more whose loss is known, docs/judge.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.channels import CONSTANT, detections, signal
from edgeopt.numbers.figure import TINY, Figure, Outputs, as_probabilities, classes
from edgeopt.numbers.pixels import mask

Kind = Literal[
    "classes", "probabilities", "embedding", "tokens", "mask", "detections", "regression", "signal", "state", "exact"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DECODED = 0.93
_TIE = 0.05  # difference of the two largest probabilities
_NEIGHBOURS = 0.9
_EMBEDDED_DB = 10.0
_FEWEST = 4  # samples, below which their order says nothing
_MOST_ROWS = 512
_VARIES_DB = 8.0
_CORRELATION = 0.9
_SAME = 0.99
_UNSEEN_DB = 3.0  # of classes that no position shows; dead ones have 0


def figures(kind: Kind, reference: Outputs, result: Outputs) -> tuple[Figure, ...]:
    """The figures of an output of this kind, of which there is one array per sample in both lists; none where the
    samples do not suffice for the kind.
    """
    make = _FIGURES.get(kind)
    pairs = [(vectors(kind, r), vectors(kind, y)) for r, y in zip(reference, result, strict=True) if r.size]
    return () if make is None or not pairs else tuple(make(*zip(*pairs, strict=True)))


def vectors(kind: Kind, x: NDArray[Any]) -> NDArray[Any]:
    """`x` as [batch, columns] where the kind is one of vectors and all axes but one are of size 1: [1, 1000, 1, 1]."""
    if kind not in ("classes", "probabilities", "embedding", "regression"):
        return x
    if x.ndim < 2:
        return x.reshape(1, -1)
    return x.reshape(len(x), -1) if x.ndim > 3 and x.shape[-1] == 1 and x.size == len(x) * max(x.shape[1:]) else x


def _tokens(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The classes at all positions, and the edit distance after greedy decoding (repeats are one) of those where float
    is no tie, which either may win. Where all positions have one class, any other may be dead: their probabilities are
    compared.
    """
    yield from classes(reference, result)
    seen = np.unique(np.concatenate([r.argmax(-1).reshape(-1) for r in reference]))
    if len(seen) == 1:
        others = ([np.delete(as_probabilities(x), seen[0], -1) for x in xs] for xs in (reference, result))
        r, y = (np.concatenate([x.reshape(-1) for x in xs]) for xs in others)
        noise, power = float(((r - y) ** 2).sum()), float((r**2).sum())
        if power > 0:
            db = math.inf if noise == 0 else 10 * math.log10(power / noise)
            yield Figure("classes that no sample shows", db, _UNSEEN_DB, "dB")
    errors = length = 0
    for r, y in zip(reference, result, strict=True):
        sure = _sure(r)
        for before, after in zip(_sequences(r, sure), _sequences(y, sure), strict=True):
            errors += edit_distance(before, after)
            length += len(before)
    if length:
        yield Figure("decoded alike", 1 - errors / length, _DECODED)


def _sure(x: NDArray[Any]) -> NDArray[np.bool_]:
    """The positions [rows, positions] of [..., positions, classes] whose two largest classes are no tie."""
    p = as_probabilities(x).reshape(-1, *x.shape[-2:])
    if p.shape[-1] < 2:
        return np.ones(p.shape[:-1], bool)
    second, first = np.moveaxis(np.partition(p, -2, axis=-1)[..., -2:], -1, 0)
    return np.asarray(first - second >= _TIE)


def _sequences(x: NDArray[Any], sure: NDArray[np.bool_]) -> Iterator[list[int]]:
    """Greedy decoding of the positions `sure` of [..., positions, classes]: runs of one class become one."""
    for row, there in zip(x.argmax(-1).reshape(-1, x.shape[-2]), sure, strict=True):
        seen = row[there]
        yield [int(v) for i, v in enumerate(seen) if i == 0 or v != seen[i - 1]]


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The Levenshtein distance of two sequences."""
    above = np.arange(len(b) + 1)
    other = np.asarray(b)
    for i, x in enumerate(a, 1):
        row = np.minimum(above[1:] + 1, above[:-1] + (other != x))
        offset = np.arange(1, len(b) + 1)
        left = np.minimum.accumulate(np.concatenate([[i], row - offset]))  # insertions cost one for each place
        above = np.concatenate([[i], left[1:] + offset])
    return int(above[-1])


def _embedding(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The correlation of the similarities (cosine) of all pairs of samples, and SQNR of what varies between them: what
    all samples have in common tells none from another.
    """
    if len({x.shape[-1] for x in reference}) > 1:
        return
    a, b = (_vectors(x) for x in (reference, result))
    if len(a) < _FEWEST:
        return
    i, j = np.triu_indices(len(a), 1)
    yield Figure("order of neighbours", _correlation((a @ a.T)[i, j], (b @ b.T)[i, j]), _NEIGHBOURS)
    if (db := _varying_db(a, b)) is not None:
        yield Figure("of what varies", db, _EMBEDDED_DB, "dB")


def _vectors(outputs: Outputs) -> NDArray[np.float64]:
    """One vector of length 1 for each sample: the mean over the positions of a sequence."""
    rows = [x.reshape(len(x), -1, x.shape[-1]).mean(1) if x.ndim > 1 else x[None] for x in outputs]
    found = np.concatenate(rows).astype(np.float64)[:_MOST_ROWS]
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), TINY))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    least = TINY * math.sqrt(float(a @ a) * float(b @ b))
    a, b = a - a.mean(), b - b.mean()
    power = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / power if power > least else float(np.array_equal(a, b))


def _varying_db(r: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """SQNR of what varies over the first axis; None if nothing does."""
    noise, varies = float(((r - y) ** 2).sum()), float(((r - r.mean(0)) ** 2).sum())
    if varies <= CONSTANT * float((r.mean(0) ** 2).sum()) * len(r) or varies == 0:
        return None
    return math.inf if noise == 0 else 10 * math.log10(varies / noise)


def _regression(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The correlation over the samples, and SQNR of what varies between them: a large mean must not hide an error."""
    if len({x.shape[1:] for x in reference}) != 1 or len({x.ndim for x in reference}) != 1:
        return
    a, b = (
        np.concatenate([x.reshape(len(x) if x.ndim > 1 else 1, -1) for x in xs]).astype(np.float64)
        for xs in (reference, result)
    )
    if len(a) < _FEWEST:
        return
    found = [
        (_correlation(a[:, i], b[:, i]), db)
        for i in range(a.shape[1])
        if (db := _varying_db(a[:, i], b[:, i])) is not None
    ]
    if found:
        yield Figure("correlation over the samples", min(c for c, _ in found), _CORRELATION)
        yield Figure("of what varies", min(db for _, db in found), _VARIES_DB, "dB")


def _exact(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The share of elements that are equal."""
    total = sum(x.size for x in reference)
    if total:
        same = sum(int((r == y).sum()) for r, y in zip(reference, result, strict=True))
        yield Figure("equal", same / total, _SAME)


_FIGURES: Mapping[Kind, Callable[[Outputs, Outputs], Iterator[Figure]]] = {
    "classes": classes,
    "probabilities": classes,
    "embedding": _embedding,
    "tokens": _tokens,
    "mask": mask,
    "detections": detections,
    "regression": _regression,
    "signal": signal,
    "exact": _exact,
}
