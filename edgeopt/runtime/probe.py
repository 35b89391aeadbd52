"""Run the float model on one sample with all values as outputs: real shapes, and values that must not determine a range
(such as attention masks).

Static shape inference fails on many exported models; running a sample does not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.files import temporary_folder
from edgeopt.runtime.session import Feed, Session, open_session, with_outputs
from edgeopt.runtime.trace import ELEMENT_BYTES, kernel_runs, read_events

_RUN_BYTES = 256_000_000  # of values shown in one run
_UNKNOWN_BYTES = _RUN_BYTES // 32  # at least, of a value whose size is not known yet
_LARGER = 16  # times the largest input that such a value may be: channels of the first layers
_LEAST_S = 1e-3
_TRACE_BYTES = 64 << 20  # of a trace that is read: that of a loop may be endless
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


def probe(model: ir.Model, feed: Feed, max_ram: int | None = None) -> Mapping[str, Probe]:
    """Shape and extremes of every float value of the main graph of `model` on `feed`, by name.

    max_ram: most bytes in memory, of which values take a part.
    """
    return probe_and_shapes(model, feed, max_ram=max_ram)[0]


def probe_and_shapes(
    model: ir.Model, feed: Feed, limit_s: float | None = None, max_ram: int | None = None
) -> tuple[dict[str, Probe], dict[str, tuple[int, ...]]]:
    """(shape and extremes of every float value, shape of every value) of the main graph on `feed`, by name.

    limit_s: the most that all runs may take, in seconds; max_ram: most bytes in memory.
    """
    found, all_shapes = dict[str, Probe](), dict[str, tuple[int, ...]]()
    for name, x in _values(model, feed, limit_s, max_ram):
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


def _values(
    model: ir.Model, feed: Feed, limit_s: float | None = None, max_ram: int | None = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every value of `model` on `feed`. As many are shown in one run as fit; a few in the first, whose trace tells the
    sizes of all.
    """
    rest = [str(v.name) for node in model.graph for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
    yield from feed.items()
    shown, sizes, first, begun = model, dict[str, int](), True, time.monotonic()
    most = _RUN_BYTES if max_ram is None else min(_RUN_BYTES, max_ram // 4)
    unknown = max(_UNKNOWN_BYTES, _LARGER * max((x.nbytes for x in feed.values()), default=0))
    while rest:
        count = _fitting((sizes.get(name, unknown) for name in rest), most)
        count = 1 if first and max_ram is not None else count
        shown = with_outputs(shown, rest[:count], copy=shown is model)
        rest = rest[count:]
        left_s = None if limit_s is None else max(limit_s - (time.monotonic() - begun), _LEAST_S)
        with temporary_folder() as folder:
            trace = folder / "trace" if first and rest else None
            session = open_session(shown, level="none", threads=2, patterns=False, profile=trace)
            yield from _run(session, feed, left_s)
            if trace is not None:
                sizes = _sizes(model, Path(session.raw.end_profiling()))
        first, unknown = False, _UNKNOWN_BYTES


def _fitting(sizes: Iterable[int], most_bytes: int) -> int:
    """How many of the first of `sizes` fit into `most_bytes`, at least one."""
    return max(1, sum(total <= most_bytes for total in itertools.accumulate(sizes)))


def _run(session: Session, feed: Feed, limit_s: float | None) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors that `session` gives, each forgotten when the next one is asked for."""
    known = tuple(o.name for o in session.raw.get_outputs() if o.type != "tensor(bfloat16)")  # NumPy has none
    arrays = replace(session, outputs=known).run(feed, limit_s)
    arrays.reverse()
    for name in known:
        x = arrays.pop()
        if isinstance(x, np.ndarray):
            yield name, x


def _sizes(model: ir.Model, trace: Path) -> dict[str, int]:
    """Bytes of the values of the main graph by a trace, by name; of none if it is too long to be read."""
    if trace.stat().st_size > _TRACE_BYTES:
        return {}
    outputs = {node.name: [str(v.name) for v in node.outputs if v.name] for node in model.graph}
    found = dict[str, int]()
    for run in kernel_runs(read_events(trace)):
        values, shapes = outputs.get(run.name, []), run.shapes("output_type_shape")
        if len(values) == len(shapes):  # what is no tensor is missing in the trace
            sizes = (math.prod(shape) * ELEMENT_BYTES.get(kind, 1) for kind, shape in shapes)
            found |= dict(zip(values, sizes, strict=True))
    return found
