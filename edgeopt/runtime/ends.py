"""Inputs and outputs of a file that are integers on a grid, which its metadata tell: who has floats quantizes them, and
reads answers back, as QuantizeLinear and DequantizeLinear in the file would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.grid import STORAGE, QParams, QType, dequantize, quantize

INPUT, OUTPUT = "edgeopt.grid.input.", "edgeopt.grid.output."  # keys: scale and zero point follow, as text


@dataclass(frozen=True)
class Ends:
    """The grids of inputs and outputs, by name; empty for a file that takes and gives floats."""

    inputs: Mapping[str, QParams] = field(default_factory=dict)
    outputs: Mapping[str, QParams] = field(default_factory=dict)

    def feed(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`feed` with floats in integers where the file takes those."""
        return {k: quantize(x, self.inputs[k]) if k in self.inputs and _floats(x) else x for k, x in feed.items()}

    def floats(self, names: Sequence[str], outputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs called `names` in floats."""
        given = zip(names, outputs, strict=True)
        return [dequantize(y, self.outputs[name]) if name in self.outputs else y for name, y in given]

    def metadata(self) -> dict[str, str]:
        """The entries that tell the grids."""
        return {
            f"{prefix}{name}": f"{p.qtype.dtype} {float(p.scale)!r} {int(p.zero_point)}"
            for prefix, grids in ((INPUT, self.inputs), (OUTPUT, self.outputs))
            for name, p in grids.items()
        }


def ends_of(metadata: Mapping[str, str]) -> Ends:
    """The grids that the metadata of a file tell; entries that are broken count for none."""
    return Ends(dict(_told(metadata, INPUT)), dict(_told(metadata, OUTPUT)))


def _told(metadata: Mapping[str, str], prefix: str) -> Iterator[tuple[str, QParams]]:
    for key, text in metadata.items():
        words = text.split()
        if key.startswith(prefix) and len(words) == 3 and words[0] in STORAGE:
            try:
                scale, zero = np.float32(words[1]), np.dtype(words[0]).type(int(words[2]))
            except (ValueError, TypeError, OverflowError):
                continue
            low, high = STORAGE[words[0]]
            yield (
                key.removeprefix(prefix),
                QParams(np.asarray(scale), np.asarray(zero), QType(words[0], low, high, False)),
            )


def _floats(x: NDArray[Any]) -> bool:
    return bool(np.issubdtype(x.dtype, np.floating))
