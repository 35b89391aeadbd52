"""Run the float model on one sample with all values as outputs: real shapes, and values that must not determine a range
(such as attention masks).

Static shape inference fails on many exported models; running a sample does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.runtime.session import Feed, open_session, with_outputs

_VALUES_A_RUN = 400  # at first; as many more as fit where they are small
_GROWTH = 8
_RUN_BYTES = 256e6
_SIZES = 16  # largest number of elements of a value that may be a shape
MASK = 5e3  # additive attention masks are -1e4, -65504, -3.4e38 or -inf


@dataclass(frozen=True)
class Probe:
    """Shape and extremes of a float value on one sample."""

    shape: tuple[int, ...]
    lo: float
    hi: float

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def masked(self) -> bool:
        """Whether it contains an attention mask (values far below zero, none as far above) or an infinity."""
        return not (math.isfinite(self.lo) and math.isfinite(self.hi)) or (self.lo <= -MASK and self.hi < -self.lo / 10)


def probe(model: ir.Model, feed: Feed) -> Mapping[str, Probe]:
    """Shape and extremes of every float value of the main graph of `model` on `feed`, by name."""
    return probe_and_shapes(model, feed)[0]


def probe_and_shapes(
    model: ir.Model, feed: Feed, limit_s: float | None = None
) -> tuple[dict[str, Probe], dict[str, tuple[int, ...]]]:
    """(shape and extremes of every float value, shape of every value) of the main graph on `feed`, by name.

    limit_s: the most that one run may take, in seconds.
    """
    found, all_shapes = dict[str, Probe](), dict[str, tuple[int, ...]]()
    for name, x in _values(model, feed, limit_s):
        all_shapes[name] = x.shape
        if x.dtype == np.float32:
            found[name] = _probe(x)
    return found, all_shapes


def _probe(x: np.ndarray) -> Probe:
    lo, hi = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    return Probe(x.shape, lo, hi)


def shapes(model: ir.Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """The shape of every value of the main graph of `model` on `feed`, by name."""
    return {name: x.shape for name, x in _values(model, feed)}


def sizes(model: ir.Model, feed: Feed) -> tuple[dict[str, tuple[int, ...]], dict[str, NDArray[np.int64]]]:
    """(shapes of all values, contents of small integer and boolean values, which may be sizes) on `feed`, by name."""
    found, numbers = dict[str, tuple[int, ...]](), dict[str, NDArray[np.int64]]()
    for name, x in _values(model, feed):
        found[name] = x.shape
        if x.dtype in (np.int64, np.bool_) and x.ndim < 2 and x.size <= _SIZES:
            numbers[name] = x
    return found, numbers


def _values(model: ir.Model, feed: Feed, limit_s: float | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
    values = [str(v.name) for node in model.graph for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
    yield from feed.items()
    start, count, shown = 0, _VALUES_A_RUN, model
    while start < len(values):
        shown = with_outputs(shown, values[start : start + count], copy=shown is model)
        session = open_session(shown, level="none", threads=2)
        known = tuple(o.name for o in session.raw.get_outputs() if o.type != "tensor(bfloat16)")  # NumPy has none
        session = replace(session, outputs=known)
        arrays = [
            (n, x)
            for n, x in zip(session.outputs, session.run(feed, limit_s), strict=True)
            if isinstance(x, np.ndarray)
        ]
        yield from arrays
        fitting = count * _RUN_BYTES / max(1, sum(x.nbytes for _, x in arrays))
        more = max(count, fitting / _GROWTH**2) * _GROWTH  # those that follow may be larger
        start, count = start + count, int(max(_VALUES_A_RUN, min(fitting, more)))
