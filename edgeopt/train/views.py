"""Augmentations: random views of a batch, the same for teacher and student, in the values that the model takes.

What a name does depends on what the input holds; see `VIEWS`. Function matching (Beyer et al. 2022, arXiv:2106.05237)
wants them strong and the training long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError

Array = NDArray[Any]
View = Callable[[Array, np.random.Generator], Array]
Kind = Literal["pictures", "sound", "text"]
_COLOURS = (1, 3, 4)  # channel counts of an image
_SHIFT = 8  # moved by up to 1/8 of a side
_SMALLEST = 0.25  # share of the area that a random part has at least
_CONTRAST, _LIGHT = 0.4, 0.4  # relative; in standard deviations of the batch
_GAIN_DB, _NOISE_DB = 6.0, (20.0, 40.0)
_MASKED = 0.15  # share of the tokens that are replaced
_KEPT = 0.75  # share of a text that a window keeps at least
_MIX = 0.8  # Beta(.8, .8)


def kind_of(x: Array) -> Kind | None:
    """What a batch holds: pictures [batch, channels, height, width] or channels-last, sound and features of it
    [batch, (channels,) time], token ids int [batch, tokens]; None: something else.
    """
    if x.ndim == 4 and x.dtype.kind in "fu":
        return "pictures"
    if x.ndim in (2, 3) and x.dtype.kind == "f":
        return "sound"
    return "text" if x.ndim == 2 and x.dtype.kind == "i" else None


def check(names: Sequence[str], feed: Mapping[str, Array], fixed: Collection[str] = ()) -> None:
    """Refuse a view that fits no input; `fixed`: inputs whose second axis has one size only.

    Raises:
        UsageError: names it, and what fits.
    """
    texts = [k for k, x in feed.items() if kind_of(np.atleast_1d(x)) == "text"]
    if "crop" in names and texts and not set(texts).isdisjoint(fixed):
        raise UsageError("--augment crop makes texts shorter, and the model's have one length")
    kinds = {name: kind_of(np.atleast_1d(x)) for name, x in feed.items()}
    for name in names:
        if not any((name, kind) in VIEWS for kind in kinds.values()):
            inputs = ", ".join(f"{k} {x.dtype}{list(x.shape)}" for k, x in feed.items())
            fitting = [n for n, kind in VIEWS if kind in kinds.values()]
            raise UsageError(
                f"--augment {name} fits {' and '.join(kind for n, kind in VIEWS if n == name)}, and the samples are"
                f" {inputs}; what fits: {', '.join(fitting) or 'nothing'}"
            )


def augmented(feed: Mapping[str, Array], names: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
    """The batch with the views `names`, in the order of `VIEWS`. Of several inputs of a kind, pictures are changed
    each, of sound the largest (others are states), texts all together.
    """
    made = dict(feed)
    ids = [k for k, x in made.items() if kind_of(x) == "text"]
    ids = ids and [max(ids, key=lambda k: (made[k].size, made[k].max()))]  # masks and segments have small numbers
    texts = ids + [k for k, x in made.items() if ids and k not in ids and x.shape == made[ids[0]].shape]
    sound = [k for k, x in made.items() if kind_of(x) == "sound" and k not in texts]
    inputs = [k for k, x in made.items() if kind_of(x) == "pictures"]
    inputs += [max(sound, key=lambda k: made[k].size)] if sound else []
    for (name, kind), view in VIEWS.items():
        if name in names:
            for k in inputs:
                if kind_of(made[k]) == kind:
                    made[k] = _applied(view, made[k], rng)
            if kind == "text" and texts:
                changed = view(np.stack([made[k].astype(np.float64) for k in texts], -1), rng)
                made |= {k: changed[..., i].astype(made[k].dtype) for i, k in enumerate(texts)}
    return made


def _applied(view: View, x: Array, rng: np.random.Generator) -> Array:
    """`view` of a float copy with channels first, in the type and the order of the axes of `x`."""
    last = x.ndim == 4 and x.shape[1] not in _COLOURS and x.shape[-1] in _COLOURS
    made = view(np.moveaxis(x, -1, 1).astype(np.float32) if last else x.astype(np.float32), rng)
    if x.dtype.kind == "u":
        made = np.clip(np.rint(made), 0, np.iinfo(x.dtype).max)
    return (np.moveaxis(made, 1, -1) if last else made).astype(x.dtype)


def _flipped(x: Array, rng: np.random.Generator) -> Array:
    mirrored = rng.random(len(x)) < 0.5
    x[mirrored] = x[mirrored, ..., ::-1]
    return x


def _moved(x: Array, rng: np.random.Generator) -> Array:
    """Each sample moved along its positions; what is uncovered repeats the edge."""
    axes = range(1, x.ndim - 1) if x.ndim == 4 else range(x.ndim - 2, x.ndim - 1)  # of one sample
    made = np.empty_like(x)
    for i, sample in enumerate(x):
        for axis in axes:
            side = sample.shape[axis]
            by = int(rng.integers(-(side // _SHIFT), side // _SHIFT + 1))
            sample = sample.take(np.clip(np.arange(side) - by, 0, side - 1), axis)
        made[i] = sample
    return made


def _enlarged(x: Array, rng: np.random.Generator) -> Array:
    """A random part of each picture, of `_SMALLEST` to all of its area, in its size (bilinear)."""
    made = np.empty_like(x)
    for i, image in enumerate(x):
        share = np.sqrt(rng.uniform(_SMALLEST, 1.0))
        for axis in (1, 2):
            side = image.shape[axis]
            at = rng.uniform(0, (1 - share) * (side - 1)) + share * np.arange(side)
            low = np.minimum(at.astype(np.intp), max(0, side - 2))
            part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            image = (1 - part) * image.take(low, axis) + part * image.take(np.minimum(low + 1, side - 1), axis)
        made[i] = image
    return made


def _recoloured(x: Array, rng: np.random.Generator) -> Array:
    """Other contrast, light and balance of the channels."""
    shape = (len(x), 1, 1, 1)
    mean, unit = x.mean((1, 2, 3), keepdims=True), float(x.std()) or 1.0
    contrast = rng.uniform(1 - _CONTRAST, 1 + _CONTRAST, shape)
    light = rng.uniform(-_LIGHT, _LIGHT, shape) + rng.uniform(-_LIGHT / 2, _LIGHT / 2, (*x.shape[:2], 1, 1))
    return np.asarray((x - mean) * contrast + mean + unit * light, np.float32)


def _louder(x: Array, rng: np.random.Generator) -> Array:
    gain = 10 ** (rng.uniform(-_GAIN_DB, _GAIN_DB, (len(x),) + (1,) * (x.ndim - 1)) / 20)
    return np.asarray(x * gain, np.float32)


def _noisy(x: Array, rng: np.random.Generator) -> Array:
    """White noise of a random part of each sample's power."""
    shape = (len(x),) + (1,) * (x.ndim - 1)
    size = np.sqrt(np.mean(np.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))
    below = 10 ** (-rng.uniform(*_NOISE_DB, shape) / 20)
    return np.asarray(x + size * below * rng.standard_normal(x.shape), np.float32)


def _erased(x: Array, rng: np.random.Generator) -> Array:
    """A random span of the last axis, of pictures a rectangle, has each sample's mean."""
    for sample in x:
        sides = [slice(None)] * (sample.ndim - (2 if x.ndim == 4 else 1))
        for side in sample.shape[len(sides) :]:
            length = int(rng.integers(0, max(1, side // (2 if x.ndim == 4 else 4)) + 1))
            start = int(rng.integers(0, side - length + 1))
            sides.append(slice(start, start + length))
        sample[tuple(sides)] = sample.mean()
    return x


def _mixed(x: Array, rng: np.random.Generator) -> Array:
    """Mixup: weighted sums of random pairs."""
    share = rng.beta(_MIX, _MIX, (len(x),) + (1,) * (x.ndim - 1))
    return np.asarray(share * x + (1 - share) * x[rng.permutation(len(x))], np.float32)


def _window(x: Array, rng: np.random.Generator) -> Array:
    """A window of the tokens [batch, tokens, inputs] of each text, ids first, the same length for all; the first and
    the last stay, which mark its ends.
    """
    inner = x.shape[1] - 2
    kept = int(rng.integers(int(np.ceil(_KEPT * inner)), inner + 1)) if inner > 1 else max(0, inner)
    if x.shape[1] < 2:
        return x
    starts = rng.integers(0, inner - kept + 1, len(x))
    return np.stack([np.concatenate([t[:1], t[1 + s : 1 + s + kept], t[-1:]]) for t, s in zip(x, starts, strict=True)])


def _replaced(x: Array, rng: np.random.Generator) -> Array:
    """Some ids of [batch, tokens, inputs], ids first, but those of the first and the last token replaced by another
    text's, at the same place, where masks and segments of both are the same.
    """
    others = x[rng.permutation(len(x))]
    chosen = (rng.random(x.shape[:2]) < _MASKED) & (x[..., 1:] == others[..., 1:]).all(-1)
    chosen[:, [0, -1]] = False
    return np.concatenate([np.where(chosen, others[..., 0], x[..., 0])[..., None], x[..., 1:]], -1)


VIEWS: Mapping[tuple[str, Kind], View] = {
    ("flip", "pictures"): _flipped,
    ("scale", "pictures"): _enlarged,
    ("crop", "pictures"): _moved,
    ("crop", "sound"): _moved,
    ("crop", "text"): _window,
    ("color", "pictures"): _recoloured,
    ("gain", "sound"): _louder,
    ("noise", "pictures"): _noisy,
    ("noise", "sound"): _noisy,
    ("mask", "pictures"): _erased,
    ("mask", "sound"): _erased,
    ("mask", "text"): _replaced,
    ("mixup", "pictures"): _mixed,
    ("mixup", "sound"): _mixed,
}
