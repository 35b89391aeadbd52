"""The extremes of each channel of intermediate values over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed, readable
from edgeopt.errors import DataError
from edgeopt.runtime.session import reading

_ANY = 1 << 40  # single samples may be unreadable here; calibration checks all of them together
Sample = tuple[str, Callable[[], Feed]]


@dataclass(frozen=True)
class Peaks:
    """Extremes of each channel [channels]. highest: the largest value; absolute: the largest magnitude."""

    highest: NDArray[np.float64]
    absolute: NDArray[np.float64]

    @staticmethod
    def of(x: NDArray[np.floating], axis: int) -> Peaks:
        """The extremes of one array, with channels on `axis`."""
        rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
        top, bottom = rows.max(1, initial=-np.inf), rows.min(1, initial=np.inf)
        return Peaks(top, np.maximum(np.maximum(top, -bottom), 0.0))

    def merge(self, other: Peaks) -> Peaks:
        """The extremes over both."""
        return Peaks(np.maximum(self.highest, other.highest), np.maximum(self.absolute, other.absolute))


def peaks(model: ir.Model, values: Mapping[str, int], samples: Sequence[Sample]) -> dict[str, Peaks]:
    """Peaks of `values` (name -> channel axis) over `samples`; samples that cannot be read are skipped.

    Raises:
        DataError: no sample can be read.
    """
    if not values:
        return {}
    read = reading(model, values)
    found: dict[str, Peaks] = {}
    problems: dict[str, str] = {}
    for sample in samples:
        feeds, unreadable = readable([sample], total=_ANY)
        problems |= unreadable
        for _, feed in feeds:
            seen = read(feed)
            for name, axis in values.items():
                new = Peaks.of(seen[name], axis)
                found[name] = found[name].merge(new) if name in found else new
    if not found:
        raise DataError(f"no sample can be read: {next(iter(problems.values()), 'there is none')}")
    return found
