"""Masks and heat maps: what lies above a level, the peak, or the class of each pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeopt.numbers.figure import TINY, Figure, Outputs, as_probabilities, classes

_OVERLAP = 0.8
_PEAK = 0.85
_LEVELS = (0.25, 0.5, 0.75)
_PLANE = 8  # smallest longer side of a map of pixels
_MOST_CLASSES = 256  # of pixels
_SHOWN_MAPS = 8  # samples whose maps are looked at
_SURE, _ALIKE = 0.7, 0.9  # mean of the largest probability of a pixel; share of neighbours of the same class
_RARE, _OF_RARE = 0.01, 0.5  # of all pixels; least overlap of all classes that are rarer, whose borders are long
_SEVERAL = 32  # pixels of rare classes, below which they say nothing


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


def mask(reference: Outputs, result: Outputs) -> Iterator[Figure]:
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
        (r.reshape(-1)[int(y.argmax())] - r.min()) / max(float(r.max() - r.min()), TINY)
        for r, y in zip(reference, result, strict=True)
    ]
    yield Figure("height at the peak", float(np.mean(at)), _PEAK)


def _segments(reference: Outputs, result: Outputs) -> Iterator[Figure]:
    """Of [..., classes] at each pixel."""
    yield from classes(reference, result)
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
