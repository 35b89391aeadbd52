"""Samples as batches of tensors: decoded once, bucketed by shape, shuffled and augmented by a seed.

Augmented views are the same for teacher and student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data import Feed, InputSpec, Sample
from edgeopt.errors import DataError
from edgeopt.runtime.session import Feed as AnyFeed

_LABEL = "label"
_SHIFT = 8  # a random crop moves the picture by up to an eighth of its side


@dataclass(frozen=True)
class Examples:
    """feeds: one sample each; labels: class indices or None; classes: names of the classes, where folders gave them."""

    feeds: tuple[Feed, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.feeds)

    def part(self, indices: Sequence[int]) -> Examples:
        """Some of them."""
        labels = None if self.labels is None else self.labels[list(indices)]
        return Examples(tuple(self.feeds[i] for i in indices), labels, self.classes)


def read(samples: Sequence[Sample], wanted: bool | None) -> tuple[Examples, dict[str, str]]:
    """(the readable samples, why others are not). Labels are the entry `label` of a feed, or the name of the folder that
    an image lies in; wanted: None takes them when every sample has one.

    Raises:
        DataError: nothing is readable, or labels are wanted and missing.
    """
    feeds: list[Feed] = []
    names: list[str | None] = []
    problems: dict[str, str] = {}
    for name, reader in samples:
        try:
            feed = dict(reader())
        except DataError as e:
            problems[name] = str(e)
            continue
        given = feed.pop(_LABEL, None)
        feeds.append(feed)
        names.append(str(int(np.asarray(given).reshape(-1)[0])) if given is not None else _folder(name))
    if not feeds:
        raise DataError(f"no sample can be read: {next(iter(problems.values()), 'the folder is empty')}")
    labels, classes = _labels(names) if wanted is not False else (None, ())
    if wanted and labels is None:
        raise DataError(
            "labels are wanted, and there are none: a folder for each class, or an entry 'label' in every .npz"
        )
    return Examples(tuple(feeds), labels, classes), problems


def _folder(name: str) -> str | None:
    path = Path(name)
    return path.parent.name if path.is_file() else None


def _labels(names: Sequence[str | None]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Numbers are class indices; other names are numbered in sorted order. One name for all is no label."""
    found = sorted({n for n in names if n is not None})
    if None in names or len(found) < 2:
        return None, ()
    if all(n.isdecimal() for n in found):
        return np.array([int(str(n)) for n in names], np.int64), ()
    return np.array([found.index(str(n)) for n in names], np.int64), tuple(found)


def divide(count: int, seed: int) -> tuple[list[int], list[int]]:
    """(to train with, held out): a fifth is held out, 1,000 at most; one at least."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held = min(1000, max(1, count // 5)) if count > 1 else 0
    return order[held:], order[:held] or order


@dataclass(frozen=True)
class Batch:
    """indices: of the samples in their Examples; feed: float and integer tensors [batch, ...] by input; labels: [batch]."""

    indices: NDArray[np.intp]
    feed: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None

    def arrays(self) -> AnyFeed:
        """The feed for ONNX Runtime."""
        return {k: v.cpu().numpy() for k, v in self.feed.items()}


def batches(
    examples: Examples, size: int, rng: np.random.Generator | None, augment: Sequence[str] = ()
) -> Iterator[Batch]:
    """Every sample once, in batches of one shape; shuffled and augmented by `rng`, or in order without it."""
    order = np.arange(len(examples)) if rng is None else rng.permutation(len(examples))
    waiting: dict[Any, list[int]] = {}
    for i in order:
        key = tuple((k, v.shape) for k, v in sorted(examples.feeds[i].items()))
        waiting.setdefault(key, []).append(int(i))
        if len(waiting[key]) == size:
            yield _batch(examples, waiting.pop(key), rng, augment)
    for indices in waiting.values():
        yield _batch(examples, indices, rng, augment)


def _batch(examples: Examples, indices: list[int], rng: np.random.Generator | None, augment: Sequence[str]) -> Batch:
    chosen = [examples.feeds[i] for i in indices]
    feed = {
        k: np.concatenate([np.atleast_1d(f[k]) for f in chosen]) if chosen[0][k].ndim else chosen[0][k]
        for k in chosen[0]
    }
    if rng is not None and augment:
        feed = {k: _augmented(x, rng, augment) if x.ndim == 4 else x for k, x in feed.items()}
    labels = None if examples.labels is None else torch.from_numpy(examples.labels[indices])
    return Batch(np.array(indices), {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in feed.items()}, labels)


def _augmented(x: NDArray[Any], rng: np.random.Generator, augment: Sequence[str]) -> NDArray[Any]:
    """Images [batch, channels, height, width], each flipped and shifted by chance, then mixed in pairs."""
    x = x.copy()
    for image in x:
        if "flip" in augment and rng.random() < 0.5:
            image[...] = image[..., ::-1].copy()
        if "crop" in augment:
            down, right = (int(rng.integers(-(side // _SHIFT), side // _SHIFT + 1)) for side in image.shape[1:])
            image[...] = _shifted(image, down, right)
    if "mixup" in augment:
        share = rng.beta(0.8, 0.8, (len(x), 1, 1, 1)).astype(x.dtype)
        x = share * x + (1 - share) * x[rng.permutation(len(x))]
    return x


def _shifted(image: NDArray[Any], down: int, right: int) -> NDArray[Any]:
    height, width = image.shape[1:]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[:, rows][:, :, columns]


def batch_limit(inputs: Sequence[InputSpec]) -> int | None:
    """The batch that a model fixes, or None."""
    fixed = {spec.fixed(0) for spec in inputs if spec.shape}
    return max((f for f in fixed if f is not None), default=None) if None not in fixed else None
