"""The extremes of each channel of inner values over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed, readable
from edgeopt.errors import DataError
from edgeopt.runtime.session import open_session, with_outputs

_ANY = 1 << 40  # single samples may be bad; calibration judges all of them together
Sample = tuple[str, Callable[[], Feed]]


@dataclass(frozen=True)
class Peaks:
    """highest: the largest value, absolute: the largest magnitude, of each channel [channels]."""

    highest: NDArray[np.float64]
    absolute: NDArray[np.float64]

    @staticmethod
    def of(x: NDArray[np.floating], axis: int) -> Peaks:
        """Of one array."""
        rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
        top, bottom = rows.max(1, initial=-np.inf), rows.min(1, initial=np.inf)
        return Peaks(top, np.maximum(np.maximum(top, -bottom), 0.0))

    def merge(self, other: Peaks) -> Peaks:
        """Of the values of both."""
        return Peaks(np.maximum(self.highest, other.highest), np.maximum(self.absolute, other.absolute))


def peaks(model: ir.Model, values: Mapping[str, int], samples: Sequence[Sample]) -> dict[str, Peaks]:
    """Peaks of `values` (name -> axis of channels) over `samples`, of which those that cannot be read are left out.

    Raises:
        DataError: none can.
    """
    if not values:
        return {}
    inputs = {str(v.name) for v in model.graph.inputs}
    inner = [v for v in values if v not in inputs]
    session = open_session(with_outputs(model, inner)) if inner else None
    found: dict[str, Peaks] = {}
    problems: dict[str, str] = {}
    for sample in samples:
        feeds, unreadable = readable([sample], total=_ANY)
        problems |= unreadable
        for _, feed in feeds:
            seen = dict(feed) | (dict(zip(session.outputs, session.run(feed), strict=True)) if session else {})
            for name, axis in values.items():
                new = Peaks.of(seen[name], axis)
                found[name] = found[name].merge(new) if name in found else new
    if not found:
        raise DataError(f"no sample can be read: {next(iter(problems.values()), 'there is none')}")
    return found
