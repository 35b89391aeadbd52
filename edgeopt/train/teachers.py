"""A fixed teacher: an ONNX Runtime session whose answers to views that do not change are kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.errors import DataError
from edgeopt.graph import temporary_folder
from edgeopt.runtime.session import Session
from edgeopt.train.batches import Batch, Examples

Answers = dict[str, Tensor]
Teacher = Callable[[Batch], Answers]


def outputs(session: Session, batch: Batch) -> dict[str, NDArray[Any]]:
    """The session's outputs for a batch by name.

    Raises:
        DataError: see `fed`.
    """
    feed = fed([i.name for i in session.raw.get_inputs()], batch.arrays())
    return dict(zip(session.outputs, session.run(feed), strict=True))


def fed(names: Sequence[str], feed: Mapping[str, Any]) -> dict[str, Any]:
    """What of a feed goes to a network with inputs `names`: by name, or by position where no name is shared.

    Raises:
        DataError: an input that is in no sample, or another number of inputs.
    """
    missing = [n for n in names if n not in feed]
    if not missing:
        return {n: feed[n] for n in names}
    if len(missing) < len(names):
        raise DataError(f"input {missing[0]!r} of another network is in no sample; they have {', '.join(feed)}")
    if len(names) != len(feed):
        raise DataError(f"a network's inputs are {', '.join(names)}, the samples have {', '.join(feed)}")
    return dict(zip(names, feed.values(), strict=True))


class Kept:
    """Answers by sample, in a memory-mapped file for each output and shape; the system decides what stays in memory."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._files: dict[tuple[str, tuple[int, ...], str], tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        self._of: dict[tuple[tuple[Any, ...], str], tuple[str, tuple[int, ...], str]] = {}

    def get(self, batch: Batch, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        """The answers to all samples of `batch`, or None."""
        found = {}
        for name in names:
            file = self._of.get((_shapes(batch), name))
            if file is None:
                return None
            values, there = self._files[file]
            if not there[batch.indices].all():
                return None
            found[name] = values[batch.indices]
        return found

    def put(self, batch: Batch, answers: Mapping[str, NDArray[Any]]) -> None:
        """Keep answers [batch, ...]."""
        for name, y in answers.items():
            file = (name, y.shape[1:], str(y.dtype))
            if file not in self._files:
                self._files[file] = self._open(file)
            self._of[(_shapes(batch), name)] = file
            values, there = self._files[file]
            values[batch.indices] = y
            there[batch.indices] = True

    def _open(self, file: tuple[str, tuple[int, ...], str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The answers and which of them are there; files of an earlier run go on, unless they do not fit."""
        stem = hashlib.sha256(repr(file).encode()).hexdigest()[:24]
        arrays = []
        for suffix, shape, kind in (("values", (self.count, *file[1]), file[2]), ("there", (self.count,), "bool")):
            path = self.folder / f"{stem}.{suffix}.npy"
            array = _mapped(path, shape, kind)
            if array is None:
                array = np.lib.format.open_memmap(path, "w+", kind, shape)
            arrays.append(array)
        return arrays[0], arrays[1]


def _mapped(path: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any] | None:
    try:
        found = np.load(path, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and str(found.dtype) == kind else None


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple(sorted((k, tuple(v.shape[1:])) for k, v in batch.feed.items()))


@contextmanager
def kept(cache: Path | None, teacher: bytes, examples: Examples, rank: int) -> Iterator[Kept]:
    """A store of answers to `examples`: in a temporary folder, or in one inside `cache` that is named for the teacher and
    the samples, so that other teachers and samples never meet its files.

    Raises:
        DataError: the folder cannot be made.
    """
    if cache is None:
        with temporary_folder() as folder:
            yield Kept(folder, len(examples))
        return
    digest = hashlib.sha256(teacher)
    for feed in examples.feeds:
        for name in sorted(feed):
            digest.update(f"{name}{feed[name].shape}{feed[name].dtype}".encode())
            digest.update(np.ascontiguousarray(feed[name]).data)
    folder = cache / f"{digest.hexdigest()[:32]}.{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"--cache {cache}: cannot be used ({e.strerror or e})") from e
    yield Kept(folder, len(examples))


def fixed(session: Session, store: Kept | None, device: str) -> Teacher:
    """A teacher that stays as it is; store: None where every view is another one.

    An answer is kept by sample where the teacher gives as many rows as it gets samples.
    """

    def teach(batch: Batch) -> Answers:
        found = store.get(batch, session.outputs) if store is not None else None
        if found is None:
            found = outputs(session, batch)
            if store is not None:
                key = _shapes(batch)
                if key not in separate:
                    separate[key] = _by_sample(session, batch, found)
                if separate[key]:
                    store.put(batch, found)
        return {name: torch.from_numpy(np.ascontiguousarray(y)).to(device) for name, y in found.items()}

    separate: dict[tuple[Any, ...], bool] = {}
    return teach


def _by_sample(session: Session, batch: Batch, found: Mapping[str, NDArray[Any]]) -> bool:
    """Whether axis 0 of every output counts samples: with one sample less it is one shorter."""
    count = len(batch.indices)
    if not all(y.ndim and len(y) == count for y in found.values()):
        return False
    if count == 1:
        return all(i.shape[:1] == [1] for i in session.raw.get_inputs())
    fewer = Batch(batch.indices[1:], {k: v[1:] if v.ndim else v for k, v in batch.feed.items()}, None)
    return all(len(y) == count - 1 for y in outputs(session, fewer).values())
