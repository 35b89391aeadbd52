"""Decoded samples that do not fit into memory, in one memory-mapped file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.data import Feed
from edgeopt.errors import UsageError

_Place = tuple[int, tuple[int, ...], Any]  # offset in bytes, shape, dtype
_ALIGNED = 64


@dataclass(frozen=True)
class Spilled(Sequence[Feed]):
    """Feeds stored in a memory-mapped file."""

    content: NDArray[np.uint8]
    """The file, uint8 [bytes]."""
    places: tuple[Mapping[str, _Place], ...]
    """Where the arrays of each feed are in it, by input."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: Any) -> Any:
        return {name: self._array(*place) for name, place in self.places[i].items()}

    def _array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self.content[offset : offset + size].view(dtype).reshape(shape)

    def part(self, indices: Sequence[int]) -> Spilled:
        """The feeds at `indices`; the file is shared."""
        return Spilled(self.content, tuple(self.places[i] for i in indices))


class Spill:
    """Collects feeds: in memory up to `limit` bytes, beyond that all of them in a temporary file."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._held: list[Feed] = []
        self._places: list[Mapping[str, _Place]] = []
        self._file: IO[bytes] | None = None

    def add(self, feed: Feed) -> None:
        """Store `feed`.

        Raises:
            UsageError: the disk for temporary files is full.
        """
        self._used += sum(x.nbytes for x in feed.values())
        if self._file is None and self._used <= self._limit:
            self._held.append(feed)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="edgeopt.")  # noqa: SIM115 - closed in `feeds`
                for held in self._held:
                    self._write(held)
                self._held = []
            self._write(feed)
        except OSError as e:
            if self._file is not None:
                self._file.close()
            raise UsageError(
                f"the samples fit neither into memory nor on the disk for temporary files ({e.strerror or e}); set"
                " TMPDIR to one with space, or read fewer with --samples"
            ) from e

    def _write(self, feed: Feed) -> None:
        assert self._file is not None
        places = {}
        for name, x in feed.items():
            offset = self._file.tell()
            places[name] = (offset, x.shape, x.dtype)
            self._file.write(np.ascontiguousarray(x).tobytes())
            self._file.write(bytes(-self._file.tell() % _ALIGNED))
        self._places.append(places)

    def __len__(self) -> int:
        return len(self._held) or len(self._places)

    def feeds(self) -> Sequence[Feed]:
        """All feeds, in the order in which they were added."""
        if self._file is None:
            return tuple(self._held)
        with self._file:
            self._file.flush()
            content = np.memmap(self._file, np.uint8, "c")  # outlives the file object; copy-on-write
        return Spilled(content, tuple(self._places))
