"""What a file's metadata tell of its ends: inputs and outputs that are integers on a grid, which who has floats
quantizes and reads back as QuantizeLinear and DequantizeLinear in the file would; and images whose pixels it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.grid import STORAGE, QParams, QType, dequantize, quantize

# keys, with the name behind: type, scale and zero point follow as text; rgb or gray
INPUT, OUTPUT, IMAGE = "edgeopt.grid.input.", "edgeopt.grid.output.", "edgeopt.image."

_TYPES = ("uint8", "int8", "uint16", "int16")
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Ends:
    """The grids of inputs and outputs, by name; empty for a file that takes and gives floats."""

    inputs: Mapping[str, QParams] = field(default_factory=dict)
    outputs: Mapping[str, QParams] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    """Inputs that are pixels [N, H, W, C] -> "rgb" or "gray"."""

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
            f"{prefix}{name}": f"{p.qtype.dtype} {p.scale.item()!r} {p.zero_point.item()}"
            for prefix, grids in ((INPUT, self.inputs), (OUTPUT, self.outputs))
            for name, p in grids.items()
        }


def ends_of(metadata: Mapping[str, str], types: Mapping[str, str]) -> Ends:
    """What the metadata of a file tell, whose inputs and outputs have `types` by name ("uint8"); what is broken, or is
    of another type, counts for nothing.
    """
    images = {key.removeprefix(IMAGE): color for key, color in metadata.items() if key.startswith(IMAGE)}
    pixels = {n: color for n, color in images.items() if types.get(n) == "uint8" and color in ("rgb", "gray")}
    return Ends(dict(_told(metadata, INPUT, types)), dict(_told(metadata, OUTPUT, types)), pixels)


def _told(metadata: Mapping[str, str], prefix: str, types: Mapping[str, str]) -> Iterator[tuple[str, QParams]]:
    for key, text in metadata.items():
        name, words = key.removeprefix(prefix), text.split()
        if not key.startswith(prefix) or len(words) != 3 or words[0] not in _TYPES or types.get(name) != words[0]:
            continue
        low, high = STORAGE[words[0]]
        try:
            scale, zero = float(words[1]), int(words[2])
        except ValueError:
            continue
        if _LEAST <= scale <= _MOST and low <= zero <= high:
            grid = QType(words[0], low, high, symmetric=False)
            yield name, QParams(np.asarray(scale, np.float32), np.asarray(zero, grid.numpy_dtype), grid)


def _floats(x: NDArray[Any]) -> bool:
    return bool(np.issubdtype(x.dtype, np.floating))
