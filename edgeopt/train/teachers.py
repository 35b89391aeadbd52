"""Fixed teachers: ONNX Runtime sessions whose outputs for unaugmented samples are cached on disk; of several, the mean
(Hinton et al. 2015, arXiv:1503.02531, section 3).
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.data import Feed
from edgeopt.data.arrays import BROKEN_ARRAY
from edgeopt.errors import DataError
from edgeopt.files import temporary_folder
from edgeopt.graph.serialization import load
from edgeopt.runtime.session import Session, open_session
from edgeopt.runtime.spread import Spread
from edgeopt.train.batches import Batch, Examples, batches

_ALIKE = 0.05  # relative to the output's size; quantized values may round differently in another batch
Answers = dict[str, Tensor]
Teacher = Callable[[Batch], Answers]
_File = tuple[str, tuple[int, ...], str]  # output, its shape for one sample, element type


def outputs(session: Session, batch: Batch) -> dict[str, NDArray[Any]]:
    """The session's outputs for a batch by name.

    Raises:
        DataError: see `fed`.
    """
    feed = fed([i.name for i in session.raw.get_inputs()], batch.arrays())
    return dict(zip(session.outputs, session.run(feed), strict=True))


def answers(asked: Session | Panel, examples: Examples, size: int) -> dict[str, list[NDArray[Any]]]:
    """The outputs of a session or of teachers by name, a list over the batches in order."""
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in asked.outputs}
    for batch in batches(examples, size):
        for name, y in (asked(batch) if isinstance(asked, Panel) else outputs(asked, batch)).items():
            found[name].append(y)
    return found


def together(session: Session, examples: Examples) -> bool:
    """Whether samples concatenated along axis 0 give the outputs that each gives alone; not so if axis 0 is time or
    channels.
    """
    first = examples.feeds[0]
    alike = [
        i
        for i, f in enumerate(examples.feeds)
        if {k: v.shape for k, v in f.items()} == {k: v.shape for k, v in first.items()}
    ]
    if len(alike) == 1:
        alike = alike * 2
    one, two = (examples.part([i]) for i in alike[:2])
    try:
        apart = [answers(session, part, 1) for part in (one, two)]
    except DataError:
        return True  # fails even for one sample: reported elsewhere
    try:
        both = answers(session, examples.part(alike[:2]), 2)
    except DataError:
        return False
    for name, values in both.items():
        wanted = [part[name][0] for part in apart]
        y = values[0]
        if not all(w.ndim for w in wanted):
            continue
        want = np.concatenate(wanted)
        if len(values) != 1 or y.shape != want.shape:
            return False
        if np.issubdtype(y.dtype, np.floating):
            size = float(np.abs(want[np.isfinite(want)]).max(initial=0.0)) or 1.0
            if not np.allclose(y, want, rtol=0, atol=_ALIKE * size, equal_nan=True):
                return False
    return True


def fed(names: Sequence[str], feed: Mapping[str, Any]) -> dict[str, Any]:
    """The feed for a network with inputs `names`: by name, or by position if no name is shared.

    Raises:
        DataError: an input that no sample has, or a different number of inputs.
    """
    missing = [n for n in names if n not in feed]
    if not missing:
        return {n: feed[n] for n in names}
    if len(missing) < len(names):
        raise DataError(f"input {missing[0]!r} of another network is in no sample; they have {', '.join(feed)}")
    if len(names) != len(feed):
        raise DataError(f"a network's inputs are {', '.join(names)}, the samples have {', '.join(feed)}")
    return dict(zip(names, feed.values(), strict=True))


@dataclass(frozen=True)
class Panel:
    """One or several sessions that answer as one."""

    sessions: Sequence[Session]
    names: Sequence[Mapping[str, str]] = ()
    """For each session but the first: its output for outputs of the first, which are averaged."""

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the answers: the outputs of the first."""
        return self.sessions[0].outputs

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """The answers to a batch by name."""
        first, *others = (outputs(session, batch) for session in self.sessions)
        if not others:
            return first
        means = {
            name: np.mean([y, *(o[names[name]] for o, names in zip(others, self.names, strict=True))], 0, y.dtype)
            for name, y in first.items()
            if all(name in names for names in self.names)
        }
        return {**first, **means}


@dataclass(frozen=True)
class PortablePanel:
    """Teachers as bytes, which are opened once, on one thread."""

    protos: Sequence[bytes]
    names: Sequence[Mapping[str, str]]

    @cached_property
    def panel(self) -> Panel:
        """The teachers, opened."""
        return Panel([open_session(load(p)) for p in self.protos], self.names)


def _answered(asked: PortablePanel, batch: Batch) -> dict[str, NDArray[Any]]:
    return asked.panel(batch)


class KeptAnswers:
    """Cached outputs by sample, in a memory-mapped file for each output and shape."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._files: dict[_File, tuple[NDArray[Any], NDArray[np.bool_]] | None] = {}
        self._of: dict[tuple[tuple[Any, ...], str], _File] = {}

    def get(self, batch: Batch, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        """The cached outputs for all samples of `batch`, or None."""
        found = {}
        for name in names:
            file = self._of.get((_shapes(batch), name))
            if file is None:
                return None
            kept_here = self._files[file]
            if kept_here is None or not kept_here[1][batch.indices].all():
                return None
            found[name] = kept_here[0][batch.indices]
        return found

    def put(self, batch: Batch, answers: Mapping[str, NDArray[Any]]) -> None:
        """Cache outputs [batch, ...]; on a full disk they are not cached."""
        for name, y in answers.items():
            file = (name, y.shape[1:], str(y.dtype))
            if file not in self._files:
                self._files[file] = self._open(file)
            self._of[(_shapes(batch), name)] = file
            kept_here = self._files[file]
            if kept_here is not None:
                kept_here[0][batch.indices] = y
                kept_here[1][batch.indices] = True

    def _open(self, file: _File) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """(outputs, bool mask of the samples present), or None if there is no disk space; files of an earlier run are
        reused if both are complete and fit.
        """
        stem = hashlib.sha256(repr(file).encode()).hexdigest()[:24]
        parts = [
            (self.folder / f"{stem}.values.npy", (self.count, *file[1]), file[2]),
            (self.folder / f"{stem}.there.npy", (self.count,), "bool"),
        ]
        arrays = [_mapped(*part) for part in parts]
        if any(array is None for array in arrays):
            try:
                arrays = [_new(*part) for part in parts]
            except OSError:
                return None
        return arrays[0], arrays[1]  # type: ignore[return-value]


def _mapped(path: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any] | None:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a truncated file, which r+ would extend
        found: NDArray[Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
    except BROKEN_ARRAY:
        return None
    return found if found.shape == shape and str(found.dtype) == kind else None


def _new(path: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """A memory-mapped file with preallocated blocks: a disk that fills up later would kill the process."""
    found: NDArray[Any] = np.lib.format.open_memmap(path, "w+", kind, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return found


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple(sorted((k, tuple(v.shape[1:])) for k, v in batch.feed.items()))


@contextmanager
def kept(cache: Path | None, teacher: bytes, feeds: Sequence[Feed], rank: int) -> Iterator[KeptAnswers]:
    """A cache of outputs for `feeds`, whichever of them are held out: in a temporary folder, or in a folder inside
    `cache` named after a digest of teacher and samples.

    Raises:
        DataError: the folder cannot be made.
    """
    if cache is None:
        with temporary_folder() as folder:
            yield KeptAnswers(folder, len(feeds))
        return
    digest = hashlib.sha256(teacher)
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name}{feed[name].shape}{feed[name].dtype}".encode())
            digest.update(np.ascontiguousarray(feed[name]).data)
    folder = cache / f"{digest.hexdigest()[:32]}.{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"--cache {cache}: cannot be used ({e.strerror or e})") from e
    yield KeptAnswers(folder, len(feeds))


def fixed(panel: Panel, store: KeptAnswers | None, device: str) -> Teacher:
    """Teachers with fixed weights; `store` None: no caching, as every augmented sample is different.

    Outputs are cached by sample if there is one row for each.
    """

    def teach(batch: Batch) -> Answers:
        found = store.get(batch, panel.outputs) if store is not None else None
        if found is None:
            found = panel(batch)
            if store is not None:
                key = _shapes(batch)
                if key not in separate:
                    separate[key] = _by_sample(panel, batch, found)
                if separate[key]:
                    store.put(batch, found)
        return {name: widened(torch.from_numpy(np.ascontiguousarray(y))).to(device) for name, y in found.items()}

    separate: dict[tuple[Any, ...], bool] = {}
    return teach


def ask(
    asked: PortablePanel, panel: Panel, store: KeptAnswers, examples: Examples, size: int, by: Spread
) -> Iterator[int]:
    """Have all samples that `store` lacks answered by the workers of `by` before training; yields how many are. Samples
    that do not go together, or on a full disk, are asked again while training.
    """
    waiting, separate = deque[Batch](), dict[tuple[Any, ...], bool]()

    def missing() -> Iterator[Batch]:
        for batch in batches(examples, size):
            if (key := _shapes(batch)) not in separate:  # the first is asked here: it opens what is kept
                answers = panel(batch)
                separate[key] = _by_sample(panel, batch, answers)
                if separate[key]:
                    store.put(batch, answers)
            elif separate[key] and store.get(batch, panel.outputs) is None:
                waiting.append(batch)
                yield batch

    done = 0
    for answers in by.map(_answered, by.shared(asked), missing()):
        batch = waiting.popleft()
        store.put(batch, answers)
        done += len(batch.indices)
        yield done


def widened(y: Tensor) -> Tensor:
    """Float16 values as float32, in which losses are computed."""
    return y.float() if y.dtype == torch.float16 else y


def _by_sample(panel: Panel, batch: Batch, found: Mapping[str, NDArray[Any]]) -> bool:
    """Whether axis 0 of every output is that of the samples: one sample less makes it one shorter."""
    count = len(batch.indices)
    if not all(y.ndim and len(y) == count for y in found.values()):
        return False
    if count == 1:
        return all(i.shape[:1] == [1] for i in panel.sessions[0].raw.get_inputs())
    fewer = Batch(batch.indices[1:], {k: v[1:] if v.ndim else v for k, v in batch.feed.items()}, None)
    return all(len(y) == count - 1 for y in panel(fewer).values())
