"""Outputs whose channels are read apart: boxes with scores, and signals with channels of other scales or of angles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.figure import Figure, Outputs

_CHANNEL_DB = 10.0
_SIGNAL_DB = 10.0
_CHANGE_DB = 6.0
_UNSEEN_DB = 0.0  # of classes that no sample shows: dead ones have less
_FILLED, _TURN_ERROR = 0.98, 1e-3  # share of a turn that angles fill; radians that rounding goes beyond pi
_RESULT_ERROR = 0.2  # radians that a result's angles go beyond pi
_GAP = 16.0  # between the scales of channels that are read apart: boxes in pixels, and scores
_SIDES = 4  # the first channels of boxes
_SHOWN = 0.25  # smallest score of a class that the samples show
_FAINT = 1e-5  # of the largest channel: below, a channel is not read at all
_MOST_CHANNELS = 512
BLOCK = 1 << 22  # elements that are computed with at once
CONSTANT = 1e-5  # of the power of its mean: what varies by less is constant


def detections(reference: Outputs, result: Outputs) -> Iterator[Figure]:
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


def _by_channel(
    reference: Outputs, result: Outputs, axis: int, gain: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each channel along `axis`: the power of what varies of it, and that of its errors; 0 if it is constant.
    `gain`: of the result.
    """
    count, first, second, noise = 0, 0.0, 0.0, 0.0
    for r, y in _rows(reference, result, axis):
        a, b = r.astype(np.float64), y.astype(np.float64)
        count += len(a)
        b /= gain
        b -= a
        squares, errors = (np.einsum("ij,ij->j", x, x) for x in (a, b))
        first, second, noise = first + a.sum(0), second + squares, noise + errors
    mean = np.asarray(first) / count
    varies = np.asarray(second - count * mean**2)
    there = varies > CONSTANT * count * mean**2
    return np.where(there, varies, 0.0), np.where(there, noise, 0.0)


def _rows(reference: Outputs, result: Outputs, axis: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Both as [places, channels], a part of a sample at a time."""
    for r, y in zip(reference, result, strict=True):
        longest = max((i for i in range(r.ndim) if i != axis % r.ndim), key=lambda i: r.shape[i])
        step = max(1, BLOCK * r.shape[longest] // max(1, r.size))
        for start in range(0, r.shape[longest], step):
            part = tuple(slice(start, start + step) if i == longest else slice(None) for i in range(r.ndim))
            yield tuple(np.moveaxis(x[part], axis, -1).reshape(-1, x.shape[axis]) for x in (r, y))  # type: ignore[misc]


def signal(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """SI-SNR over all samples, which no gain of the result changes; what float's mean has of the power is no signal,
    nor are silence and the opposite. Angles may be whole turns apart.
    """
    result = _turned(reference, result)
    power = total = both = noise = 0.0
    for r, y in _flat(reference, result):
        power, total, both = power + float(r @ r), total + float(r.sum()), both + float(r @ y)
    varies = power - total**2 / sum(r.size for r in reference)
    if varies <= CONSTANT * power:
        return
    gain = both / power
    for r, y in _flat(reference, result):
        noise += float(((y - gain * r) ** 2).sum())
    db = -math.inf if gain <= 0 else math.inf if noise == 0 else 10 * math.log10(gain**2 * varies / noise)
    yield Figure("SI-SNR", db, _SIGNAL_DB, "dB")
    yield from _groups(reference, result, gain if gain > 0 else 1.0)


def _flat(reference: Outputs, result: Outputs) -> Iterator[tuple[NDArray[np.float64], NDArray[Any]]]:
    """Both in rows, a part of a sample at a time, since outputs may be large."""
    for r, y in zip(reference, result, strict=True):
        for start in range(0, r.size, BLOCK):
            part = slice(start, start + BLOCK)
            yield r.reshape(-1)[part].astype(np.float64), y.reshape(-1)[part]


def change(reference: Outputs, result: Outputs, inputs: Outputs) -> Iterator[Figure]:
    """SI-SNR of what float changes of an input, for an output that is that input but for little: the input itself would
    be near to the whole. `inputs`: that input of each sample, at the gain that is nearest to the output.
    """
    power = noise = 0.0
    for r, y, x in zip(reference, result, inputs, strict=True):
        a, b = (r - x).astype(np.float64), y - x
        power, noise = power + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
    if power > 0:
        db = math.inf if noise == 0 else 10 * math.log10(power / noise)
        yield Figure("of what changes of the input", db, _CHANGE_DB, "dB")


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
                np.rint((y - r) / math.tau) * (np.abs(y) <= math.pi + _RESULT_ERROR)
                for r, y in zip(reference, result, strict=True)
            )
            return [np.where(where, y - math.tau * n, y) for n, y in zip(turns, result, strict=True)]
    return result


def _fill_a_turn(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (low >= -math.pi - _TURN_ERROR) & (high <= math.pi + _TURN_ERROR)
    return np.asarray(inside & (low < -_FILLED * math.pi) & (high > _FILLED * math.pi))


def _groups(reference: Outputs, result: Outputs, gain: float) -> Iterator[Figure]:
    """Of channels whose scales lie far apart along an axis, as those of boxes and scores do, the group of one scale
    that is furthest from float: the SQNR of the whole is that of the largest. `gain`: of the result.
    """
    if len({x.shape[1:] for x in reference}) > 1:
        return
    widest, db = _GAP, math.inf
    for axis in _channel_axes(reference[0].shape):
        power, noise = _by_channel(reference, result, axis, gain)
        low, high = _extremes(reference, axis)
        unseen = (high < _SHOWN) & (low.min() >= 0) & (high.max() <= 1) & (high.max() >= _SHOWN)
        if power[unseen].sum() > 0:  # each alone is noise, but they may not be dead
            with np.errstate(divide="ignore"):
                together = 10 * np.log10(power[unseen].sum() / noise[unseen].sum())
            yield Figure("classes that no sample shows", float(together), _UNSEEN_DB, "dB")
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
