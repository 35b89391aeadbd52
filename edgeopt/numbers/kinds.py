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
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "classes", "probabilities", "embedding", "tokens", "mask", "detections", "regression", "signal", "state", "exact"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Outputs = Sequence[NDArray[Any]]
_KEPT = 0.98  # of the accuracy of the largest one
_PART_KEPT = 0.9
_DECODED = 0.93
_NEIGHBOURS = 0.9
_EMBEDDED_DB = 10.0
_FEWEST = 4  # samples, below which their order says nothing
_MOST_ROWS = 512
_OVERLAP = 0.8
_PEAK = 0.85
_LEVELS = (0.25, 0.5, 0.75)
_PLANE = 8  # smallest longer side of a map of pixels
_MOST_CLASSES = 256  # of pixels
_SHOWN_MAPS = 8  # samples whose maps are looked at
_SURE, _ALIKE = 0.7, 0.9  # mean of the largest probability of a pixel; share of neighbours of the same class
_RARE, _OF_RARE = 0.01, 0.5  # of all pixels; least overlap of all classes that are rarer, whose borders are long
_SEVERAL = 32  # pixels of rare classes, below which they say nothing
_VARIES_DB = 8.0
_CORRELATION = 0.9
_CHANNEL_DB = 10.0
_SIGNAL_DB = 10.0
_FILLED, _TURN_ERROR = 0.98, 1e-3  # share of a turn that angles fill; radians that rounding goes beyond pi
_TURN_ERROR_OF_RESULT = 0.2
_SAME = 0.99
_GAP = 16.0  # between the scales of channels that are read apart: boxes in pixels, and scores
_SIDES = 4  # the first channels of boxes
_SHOWN = 0.25  # smallest score of a class that the samples show
_FAINT = 1e-5  # of the largest channel: below, a channel is not read at all
_MOST_CHANNELS = 512
_CONSTANT = 1e-5  # of the power of its mean: what varies by less is constant
_TINY = 1e-12
_DIGITS = 6


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
        return 10 * math.log10(max(1 - self.value, _TINY) / max(1 - self.bar, _TINY))

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


def _classes(reference: Outputs, result: Outputs) -> Iterator[Figure]:
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
            yield Figure("above chance", 1 - lost / max(sure, _TINY), _PART_KEPT)


def _tokens(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The classes at all positions, and the edit distance after greedy decoding (repeats are one)."""
    yield from _classes(reference, result)
    errors = length = 0
    for r, y in zip(reference, result, strict=True):
        for before, after in zip(_sequences(r), _sequences(y), strict=True):
            errors += edit_distance(before, after)
            length += len(before)
    if length:
        yield Figure("decoded alike", 1 - errors / length, _DECODED)


def _sequences(x: NDArray[Any]) -> Iterator[list[int]]:
    """Greedy decoding of [..., positions, classes]: runs of one class become one."""
    for row in x.argmax(-1).reshape(-1, x.shape[-2]):
        yield [int(v) for i, v in enumerate(row) if i == 0 or v != row[i - 1]]


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
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), _TINY))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    least = _TINY * math.sqrt(float(a @ a) * float(b @ b))
    a, b = a - a.mean(), b - b.mean()
    power = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / power if power > least else float(np.array_equal(a, b))


def class_axis(outputs: Outputs) -> int | None:
    """The axis of the classes where outputs [N, C, H, W] or [N, H, W, C] give each pixel a class: its probability is
    high, pixels beside each other mostly have the same one, and there are several. None if they do not.
    """
    shape = outputs[0].shape
    if len(shape) != 4 or min(shape[1:]) < 2 or max(shape[1:]) < _PLANE:
        return None
    return next((axis for axis in (1, 3) if shape[axis] <= _MOST_CLASSES and _classes_along(outputs, axis)), None)


def _classes_along(outputs: Outputs, axis: int) -> bool:
    sure, alike, seen = [], [], set[int]()
    for x in outputs[:_SHOWN_MAPS]:
        p = as_probabilities(np.moveaxis(x, axis, -1))
        best = p.argmax(-1)
        sure.append(p.max(-1).mean())
        alike += [(best[:, 1:] == best[:, :-1]).mean(), (best[:, :, 1:] == best[:, :, :-1]).mean()]
        seen |= set(np.unique(best).tolist())
    return bool(np.mean(sure) >= _SURE and np.mean(alike) >= _ALIKE and len(seen) > 1)


def _mask(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The overlap (IoU) of what lies above levels between float's extremes, the best level counting, since a reader
    chooses one; and how high float itself is where the result has its peak. Of classes of pixels, how many are expected
    to stay, the mean overlap of those that are not rare, and that of all others together.
    """
    axis = class_axis(reference)
    if axis is not None:
        maps = ([np.moveaxis(x, axis, -1) for x in xs] for xs in (reference, result))
        yield from _segments(*maps)
        return
    low, high = min(float(x.min()) for x in reference), max(float(x.max()) for x in reference)
    if high <= low:
        return
    overlap = []
    for level in (low + s * (high - low) for s in _LEVELS):
        both = sum(int(((r > level) & (y > level)).sum()) for r, y in zip(reference, result, strict=True))
        either = sum(int(((r > level) | (y > level)).sum()) for r, y in zip(reference, result, strict=True))
        if either:
            overlap.append(both / either)
    if overlap:
        yield Figure("overlap above a level", float(np.median(overlap)), _OVERLAP)
    at = [
        (r.reshape(-1)[int(y.argmax())] - r.min()) / max(float(r.max() - r.min()), _TINY)
        for r, y in zip(reference, result, strict=True)
    ]
    yield Figure("height at the peak", float(np.mean(at)), _PEAK)


def _segments(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """Of [..., classes] at each pixel."""
    yield from _classes(reference, result)
    before, after = (np.concatenate([x.argmax(-1).reshape(-1) for x in xs]) for xs in (reference, result))
    size = reference[0].shape[-1]
    both = np.bincount(before[before == after], minlength=size)
    ours, theirs = (np.bincount(x, minlength=size) for x in (before, after))
    common = ours >= _RARE * len(before)
    if common.any():
        yield Figure("mean overlap of classes", float((both / (ours + theirs - both))[common].mean()), _OVERLAP)
    rare = (ours > 0) & ~common
    if ours[rare].sum() >= _SEVERAL:
        overlap = both[rare].sum() / (ours + theirs - both)[rare].sum()
        yield Figure("overlap of rare classes", float(overlap), _OF_RARE)


def _detections(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The channel (along the shorter of the last two axes) that is furthest from float in what varies of it. Scores of
    classes that no sample shows are one channel, as near as all of them together and as half of them: alone, each is
    noise, but not all may be dead.
    """
    axis = -1 if reference[0].shape[-1] <= reference[0].shape[-2] else -2
    varies, noise = _by_channel(reference, result, axis)
    low, high = _extremes(reference, axis)
    unseen = (low >= 0) & (high < _SHOWN)
    if (high[:2] >= _SHOWN).any():  # where a box is: of normalized boxes the sides are as small as unseen scores
        unseen[:_SIDES] = False
    unseen &= varies > 0
    powers = (np.append(x[~unseen], x[unseen].sum()) for x in (varies, noise))
    with np.errstate(divide="ignore"):
        found = [10 * np.log10(s / n) for s, n in zip(*powers, strict=True) if s > 0]
        if unseen.any():
            found.append(np.median(10 * np.log10(varies[unseen] / noise[unseen])))
    if found:
        yield Figure("weakest channel", float(min(found)), _CHANNEL_DB, "dB")


def _extremes(outputs: Outputs, axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and the largest value of each channel along `axis`."""
    rows = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in outputs]
    return np.min([r.min(0) for r in rows], axis=0), np.max([r.max(0) for r in rows], axis=0)


def _by_channel(reference: Outputs, result: Outputs, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each channel along `axis`: the power of what varies of it, and that of its errors; 0 if it is constant."""
    count, first, second, noise = 0, 0.0, 0.0, 0.0
    for r, y in zip(reference, result, strict=True):
        a, b = (np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(np.float64) for x in (r, y))
        count += len(a)
        first, second, noise = first + a.sum(0), second + (a**2).sum(0), noise + ((a - b) ** 2).sum(0)
    mean = np.asarray(first) / count
    varies = np.asarray(second - count * mean**2)
    there = varies > _CONSTANT * count * mean**2
    return np.where(there, varies, 0.0), np.where(there, noise, 0.0)


def _varying_db(r: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """SQNR of what varies over the first axis; None if nothing does."""
    noise, varies = float(((r - y) ** 2).sum()), float(((r - r.mean(0)) ** 2).sum())
    if varies <= _CONSTANT * float((r.mean(0) ** 2).sum()) * len(r) or varies == 0:
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


def _signal(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """SI-SNR over all samples, which no gain of the result changes; what float's mean has of the power is no signal,
    nor are silence and the opposite. Angles may be whole turns apart.
    """
    result = _turned(reference, result)
    pairs = [(r.reshape(-1).astype(np.float64), y.reshape(-1)) for r, y in zip(reference, result, strict=True)]
    power, count = sum(float(r @ r) for r, _ in pairs), sum(r.size for r, _ in pairs)
    varies = power - sum(float(r.sum()) for r, _ in pairs) ** 2 / count
    if varies <= _CONSTANT * power:
        return
    gain = sum(float(r @ y) for r, y in pairs) / power
    noise = sum(float(((y - gain * r) ** 2).sum()) for r, y in pairs)
    db = -math.inf if gain <= 0 else math.inf if noise == 0 else 10 * math.log10(gain**2 * varies / noise)
    yield Figure("SI-SNR", db, _SIGNAL_DB, "dB")
    yield from _groups(reference, [y / gain for y in result] if gain > 0 else result)


def _turned(reference: Outputs, result: Outputs) -> Outputs:
    """`result` by as many whole turns as bring it nearest to the reference where they are angles: an output, or some of
    its channels, fill -pi ... pi and do not leave it.
    """
    shape = reference[0].shape
    if len({x.shape[1:] for x in reference}) > 1 or len(shape) < 2:
        return result
    for axis in sorted({*_channel_axes(shape), len(shape) - 1}):
        low, high = _extremes(reference, axis)
        angles = _fill_a_turn(low, high) | _fill_a_turn(low.min(), high.max())
        if angles.any():
            where = angles.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            turns = (
                np.rint((y - r) / math.tau) * (np.abs(y) <= math.pi + _TURN_ERROR_OF_RESULT)
                for r, y in zip(reference, result, strict=True)
            )
            return [np.where(where, y - math.tau * n, y) for n, y in zip(turns, result, strict=True)]
    return result


def _fill_a_turn(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (low >= -math.pi - _TURN_ERROR) & (high <= math.pi + _TURN_ERROR)
    return np.asarray(inside & (low < -_FILLED * math.pi) & (high > _FILLED * math.pi))


def _groups(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """Of channels whose scales lie far apart along an axis, as those of boxes and scores do, the group of one scale
    that is furthest from float: the SQNR of the whole is that of the largest.
    """
    if len({x.shape[1:] for x in reference}) > 1:
        return
    widest, db = _GAP, math.inf
    for axis in _channel_axes(reference[0].shape):
        power, noise = _by_channel(reference, result, axis)
        low, high = _extremes(reference, axis)
        unseen = (high < _SHOWN) & (low.min() >= 0) & (high.max() <= 1) & (high.max() >= _SHOWN)
        if power[unseen].sum() > 0:  # each alone is noise, but they may not be dead
            with np.errstate(divide="ignore"):
                together = 10 * np.log10(power[unseen].sum() / noise[unseen].sum())
            yield Figure("classes that no sample shows", float(together), 0.0, "dB")
        power = np.where(unseen, 0.0, power)
        order = [i for i in power.argsort() if power[i] > power.max() * _FAINT**2 > 0]
        steps = np.sqrt(power[order][1:] / power[order][:-1])
        if steps.max(initial=1.0) > widest:
            widest, groups = steps.max(), np.split(order, 1 + np.flatnonzero(steps > _GAP))
            with np.errstate(divide="ignore"):
                db = min(10 * np.log10(power[g].sum() / noise[g].sum()) for g in groups)
    if widest > _GAP:
        yield Figure("weakest group of channels", float(db), _SIGNAL_DB, "dB")


def _channel_axes(shape: Sequence[int]) -> list[int]:
    """The axis that may be that of channels and not time or place: the second of images, the shorter one of rows."""
    if len(shape) < 3:
        return []
    axis = 1 if len(shape) > 3 or shape[1] <= shape[2] else 2
    return [axis] if 1 < shape[axis] <= _MOST_CHANNELS else []


def _exact(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """The share of elements that are equal."""
    total = sum(x.size for x in reference)
    if total:
        same = sum(int((r == y).sum()) for r, y in zip(reference, result, strict=True))
        yield Figure("equal", same / total, _SAME)


_FIGURES: Mapping[Kind, Callable[[Outputs, Outputs], Iterator[Figure]]] = {
    "classes": _classes,
    "probabilities": _classes,
    "embedding": _embedding,
    "tokens": _tokens,
    "mask": _mask,
    "detections": _detections,
    "regression": _regression,
    "signal": _signal,
    "exact": _exact,
}
