"""Samples as batches of tensors: decoded once, grouped by shape, shuffled and augmented with a seed.

Teacher and student see the same augmented samples.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data import Feed, InputSpec, Sample
from edgeopt.data.spec import LABEL
from edgeopt.errors import DataError, suggestion
from edgeopt.hardware.host import free_bytes
from edgeopt.runtime.session import Feed as AnyFeed
from edgeopt.runtime.session import finite
from edgeopt.train import views
from edgeopt.train.losses import NO_LABEL
from edgeopt.train.spill import Spill, Spilled

_SHARE = 4  # 1/4 of the free memory holds decoded samples; more go to disk


@dataclass(frozen=True)
class Examples:
    """Decoded samples with labels."""

    feeds: Sequence[Feed]
    """One sample each."""
    labels: NDArray[np.int64] | None
    """Class indices, int64 [samples]; `NO_LABEL` for a sample that has none beside others that have."""
    classes: tuple[str, ...] = ()
    """Class names, if they come from folders or a file."""
    extra: int = 0
    """How many at the end are to learn from only, and never held out."""
    places: NDArray[np.intp] | None = None
    """Of a part: the indices of its samples in the whole."""

    @property
    def rows(self) -> int:
        """Size of axis 0 of a sample's arrays; above 1 if a model has a fixed batch."""
        return max((len(x) for x in self.feeds[0].values() if x.ndim), default=1) if self.feeds else 1

    def __len__(self) -> int:
        return len(self.feeds)

    def labelled(self) -> Examples:
        """The examples with labels; all, if none has."""
        if self.labels is None or (self.labels != NO_LABEL).all():
            return self
        return self.part(np.flatnonzero(self.labels != NO_LABEL).tolist())

    def part(self, indices: Sequence[int]) -> Examples:
        """The examples at `indices`."""
        labels = None if self.labels is None else self.labels[list(indices)]
        feeds = self.feeds.part(indices) if isinstance(self.feeds, Spilled) else tuple(self.feeds[i] for i in indices)
        at = np.asarray(indices, np.intp)
        return Examples(feeds, labels, self.classes, places=at if self.places is None else self.places[at])


def read(
    samples: Sequence[Sample],
    wanted: bool | Path | None,
    classes: Sequence[str] = (),
    unlabelled: Sequence[Sample] = (),
) -> tuple[Examples, dict[str, str]]:
    """(the readable samples with labels, why others are not readable). `wanted`: False ignores labels, None uses them
    if every sample has one, True requires them, a path is a CSV file of sample and label. Without a CSV file, a label
    is the entry `label` of a feed, or the name of the image's folder. `classes`: class names in order, if known.
    `unlabelled`: more samples, which come last; what their folders are called is no label.

    Raises:
        DataError: nothing is readable, or labels are wanted and missing.
    """
    listed = _listed(wanted) if isinstance(wanted, Path) else None
    feeds = Spill(free_bytes() // _SHARE)
    names: list[str | None] = []
    entries: set[str | None] = set()
    problems: dict[str, str] = {}
    for i, (name, reader) in enumerate((*samples, *unlabelled)):
        try:
            feed = dict(reader())
        except DataError as e:
            problems[name] = str(e)
            continue
        given = _index(feed.pop(LABEL, None), name)
        if not finite(feed.values()):
            problems[name] = f"{name}: holds NaN or infinity"
            continue
        feeds.add(feed)
        if i >= len(samples):
            continue
        if listed is not None:
            names.append(_found(listed, name))
        else:
            names.append(given if given is not None else _folder(name))
            entries |= {given} - {None}
    if not names:
        raise DataError(f"no sample can be read: {next(iter(problems.values()), 'the folder is empty')}")
    labels, classes = _labels(names, classes) if wanted is not False else (None, ())
    if wanted is None and labels is None and entries == set(names) and len(entries) == 1:
        raise DataError(
            f"every entry 'label' is {names[0]}: one class teaches nothing. --no-labels learns from the teacher alone"
        )
    if wanted and labels is None:
        raise DataError(
            f"{wanted}: one label for all samples, which teaches nothing"
            if isinstance(wanted, Path)
            else "labels are wanted, and there are none: a folder for each class, or an entry 'label' in every .npz"
        )
    extra = len(feeds) - len(names)
    if labels is not None:
        labels = np.concatenate([labels, np.full(extra, NO_LABEL, np.int64)])
    return Examples(feeds.feeds(), labels, classes, extra), problems


_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


def _index(given: Any, sample: str) -> str | None:
    """The label in a feed as text: one integer, or a name.

    Raises:
        DataError: it is something else.
    """
    if given is None:
        return None
    label = np.asarray(given)
    if label.size == 1 and label.dtype.kind == "U":
        return str(label.reshape(-1)[0])
    if label.size != 1 or label.dtype.kind not in "iufb" or float(label.reshape(-1)[0]) % 1 != 0:
        raise DataError(f"{sample}: entry 'label' {label.dtype}{list(label.shape)} is not the index of one class")
    return str(int(label.reshape(-1)[0]))


def _listed(path: Path) -> dict[str, str]:
    """Labels by sample name, from a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"--labels {path}: cannot be read ({e})") from e
    wrong = next((i for i, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong is not None or not rows:
        raise DataError(f"--labels {path}: line {wrong or 1} has not two columns, the sample's file name and its label")
    found: dict[str, str] = {}
    for name, label in ((a.strip(), b.strip()) for a, b in rows):
        if not label or found.get(name, label) != label:
            raise DataError(f"--labels {path}: {name!r} has {'two labels' if label else 'no label'}")
        found[name] = label
    return found


def _found(listed: Mapping[str, str], sample: str) -> str:
    """The label of a sample, matched by the end of its path."""
    parts = Path(sample).parts
    for i in range(len(parts)):
        label = listed.get("/".join(parts[i:]))
        if label is not None:
            return label
    raise DataError(f"{sample}: no line of --labels names it")


def _folder(name: str) -> str | None:
    path = Path(name)
    return path.parent.name if path.is_file() else None


def _labels(names: Sequence[str | None], classes: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Class indices: positions in `classes` if all names are there; otherwise numbers are indices, and other names are
    numbered in sorted order. A single name for all samples is no label.
    """
    found = sorted({n for n in names if n is not None})
    if None in names or len(found) < 2:
        return None, ()
    if set(found) <= set(classes):
        return np.array([list(classes).index(str(n)) for n in names], np.int64), tuple(classes)
    odd = [n for n in found if _NUMBER.fullmatch(n) and not n.isdecimal()]
    if odd:
        raise DataError(f"label {odd[0]} is no index of a class (0, 1, 2 ...)")
    if classes and not all(n.isdecimal() for n in found):
        name = next(n for n in found if n not in classes)
        raise DataError(f"label {name!r} is not in --student-classes{suggestion(name, classes)}")
    if all(n.isdecimal() for n in found):
        return np.array([int(str(n)) for n in names], np.int64), ()
    return np.array([found.index(str(n)) for n in names], np.int64), tuple(found)


def divide(examples: Examples, seed: int) -> tuple[list[int], list[int]]:
    """(training, held-out) indices; a fifth of the samples but the extra ones is held out, at least 1 and at most
    1,000. A single sample is in both.
    """
    count = len(examples) - examples.extra
    order = np.random.default_rng(seed).permutation(count).tolist()
    held = min(1000, max(1, count // 5)) if count > 1 else 0
    return order[held:] + list(range(count, len(examples))), order[:held] or order


@dataclass(frozen=True)
class Batch:
    """Samples of one shape, side by side along axis 0."""

    indices: NDArray[np.intp]
    """Indices of the samples in the whole of which their Examples are a part."""
    feed: Mapping[str, torch.Tensor]
    """Float or integer tensors [batch, ...] by input."""
    labels: torch.Tensor | None
    """Class indices, [batch]."""

    def arrays(self) -> AnyFeed:
        """The feed as NumPy arrays, for ONNX Runtime."""
        return {k: v.cpu().numpy() for k, v in self.feed.items()}


def batches(examples: Examples, size: int) -> Iterator[Batch]:
    """All samples in batches of one shape each, in the order of `groups`."""
    for indices in groups(examples, size, np.arange(len(examples))):
        yield _batch(examples, indices, None, ())


def shuffled(
    examples: Examples, size: int, seed: tuple[int, ...], augment: Sequence[str] = (), share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All samples in batches of one shape each, shuffled and augmented with `seed`; `share` (i, n): only batches i, i +
    n, ... Every batch has its own generator, so it is the same in whichever process it is made.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    for i, indices in enumerate(groups(examples, size, order)):
        if i % share[1] == share[0]:
            yield _batch(examples, indices, np.random.default_rng((*seed, i)), augment)


def groups(examples: Examples, size: int, order: Sequence[int] | NDArray[Any]) -> Iterator[list[int]]:
    """Indices of samples of one shape, up to `size` rows together, in the order in which groups are complete;
    incomplete groups come last.
    """
    waiting: dict[Any, list[int]] = {}
    size = max(1, size // examples.rows)
    for i in order:
        key = tuple((k, v.shape) for k, v in sorted(examples.feeds[i].items()))
        waiting.setdefault(key, []).append(int(i))
        if len(waiting[key]) == size:
            yield waiting.pop(key)
    yield from waiting.values()


def _batch(examples: Examples, indices: list[int], rng: np.random.Generator | None, augment: Sequence[str]) -> Batch:
    chosen = [examples.feeds[i] for i in indices]
    feed = {
        k: np.concatenate([np.atleast_1d(f[k]) for f in chosen]) if chosen[0][k].ndim else chosen[0][k]
        for k in chosen[0]
    }
    if rng is not None and augment:
        feed = views.augmented(feed, augment, rng)
    labels = None if examples.labels is None else torch.from_numpy(examples.labels[indices])
    places = np.array(indices) if examples.places is None else examples.places[indices]
    return Batch(places, {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in feed.items()}, labels)


def batch_limit(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that the inputs fix, or None."""
    fixed = {spec.fixed(0) for spec in inputs if spec.shape}
    return max((f for f in fixed if f is not None), default=None) if None not in fixed else None
