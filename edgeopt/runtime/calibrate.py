"""Calibration: collect statistics of activations over samples; only the observers are kept in memory.

Several samples run in parallel, each on one thread, which is faster than one sample on many threads for the small
operators of mobile models. Each worker has its own statistics; the merged result does not depend on which worker
processed which sample. Values are observed in groups that fit into the memory limit, with one pass over the samples for
each group.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from edgeopt.data.spec import refuse_many
from edgeopt.errors import CalibrationError, DataError
from edgeopt.graph.facts import above_protobuf, size_bytes
from edgeopt.graph.serialization import load, proto_bytes
from edgeopt.hardware.host import cores, threads
from edgeopt.numbers.observers import Statistics
from edgeopt.runtime.probe import Probe
from edgeopt.runtime.session import Feed, reading
from edgeopt.runtime.spread import Spread

_TOGETHER = 4  # samples of a task elsewhere
SUBSAMPLE = 1024  # elements of each tensor that enter the histogram, for each sample
Sample = tuple[str, Callable[[], Feed]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Observation:
    """Statistics of each value, and the reasons for samples that could not be read."""

    statistics: dict[str, Statistics]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Forecast:
    """Expected cost of a calibration: passes over the samples and memory in bytes."""

    passes: int
    ram_bytes: int


def groups(values: Sequence[str], probes: Mapping[str, Probe], room: int) -> list[list[str]]:
    """Split `values` into groups such that the observed values of one worker fit into its share of `room` (bytes);
    each group has at least one value.
    """
    share = room / cores()
    parts: list[list[str]] = []
    used = math.inf
    for name in values:
        need = 4 * probes[name].size if name in probes else 0
        if used + need > share:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += need
    return parts


def forecast(model: ir.Model, values: Sequence[str], probes: Mapping[str, Probe], room: int) -> Forecast:
    """The expected cost of `observe`: passes over the samples, and peak memory in addition to the interpreter's own."""
    parts = groups(values, probes, room)
    largest = max((sum(4 * probes[v].size for v in part if v in probes) for part in parts), default=0)
    return Forecast(len(parts), 2 * size_bytes(model) + cores() * largest)


def observe(
    model: ir.Model,
    values: Sequence[str],
    samples: Sequence[Sample],
    *,
    probes: Mapping[str, Probe],
    room: int,
    progress: Progress = lambda done, total: None,
    by: Spread | None = None,
) -> Observation:
    """Statistics of the values called `values` over `samples`; bit-identical for every order of the samples, number
    of threads and number of workers of `by`. room: bytes of values that may be in memory at once.

    Raises:
        CalibrationError: a value contains NaN or infinity (the message names it and the sample), or there are no
          samples.
        DataError: more than 5 % of the samples cannot be read, or the model fails on a sample.
    """
    if not samples:
        raise CalibrationError("no samples to calibrate with")
    parts = groups(values, probes, room)
    found: dict[str, Statistics] = {}
    skipped: dict[str, str] = {}
    total = len(parts) * len(samples)
    for i, part in enumerate(parts):
        tell = partial(_tell, progress, i * len(samples), total)
        if by is not None and not above_protobuf(model):
            found |= _spread_group(model, part, samples, skipped, tell, by)
        else:
            found |= _observe_group(model, part, samples, skipped, tell)
    refuse_many(skipped, len(samples))
    return Observation(found, dict(sorted(skipped.items())))


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _observe_group(
    model: ir.Model,
    values: Sequence[str],
    samples: Sequence[Sample],
    skipped: dict[str, str],
    progress: Callable[[int], None],
) -> dict[str, Statistics]:
    run = reading(model, values)
    done = 0
    workers = min(cores(), len(samples))
    stop = threading.Event()
    turn = threading.Lock()  # updates are many small NumPy calls, which are slower in several threads at once

    def work(worker: int) -> dict[str, Statistics]:
        nonlocal done
        found = {name: Statistics() for name in values}
        for name, read in samples[worker::workers]:
            if stop.is_set():
                break
            done += 1
            try:
                feed = read()
            except DataError as e:
                skipped[name] = str(e)
                continue
            seen = dict(run(feed))
            with turn:
                for value in values:
                    found[value] = _update(found[value], seen.pop(value), value, name)
            progress(done)
        return found

    with threads(workers) as pool:
        try:
            futures = [pool.submit(work, i) for i in range(workers)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # after an error or Ctrl-C the other workers stop at their next sample
            stop.set()
    return merge([f.result() for f in futures])


@dataclass(frozen=True)
class Shard:
    """What a worker needs to observe samples: a model and the values of it, bytes that are opened once."""

    proto: bytes
    values: tuple[str, ...]

    @cached_property
    def run(self) -> Callable[[Feed], Feed]:
        """Gives the values for a feed."""
        return reading(load(self.proto), self.values)


def observed(shard: Shard, feeds: Sequence[tuple[str, Feed]]) -> dict[str, Statistics]:
    """Statistics over some samples, on one thread."""
    found = {name: Statistics() for name in shard.values}
    for name, feed in feeds:
        seen = dict(shard.run(feed))
        for value in shard.values:
            found[value] = _update(found[value], seen.pop(value), value, name)
    return found


def _spread_group(
    model: ir.Model,
    values: Sequence[str],
    samples: Sequence[Sample],
    skipped: dict[str, str],
    progress: Callable[[int], None],
    by: Spread,
) -> dict[str, Statistics]:
    """`_observe_group` by workers elsewhere; samples are read here."""

    def read_some() -> Iterator[list[tuple[str, Feed]]]:
        for start in range(0, len(samples), _TOGETHER):
            feeds = []
            for name, read in samples[start : start + _TOGETHER]:
                try:
                    feeds.append((name, read()))
                except DataError as e:
                    skipped[name] = str(e)
            yield feeds

    shared = by.shared(Shard(proto_bytes(model), tuple(values)))
    shards = []
    for i, shard in enumerate(by.map(observed, shared, read_some())):
        shards.append(shard)
        progress(min(len(samples), (i + 1) * _TOGETHER))
    return merge(shards)


def _update(statistics: Statistics, x: np.ndarray, value: str, sample: str) -> Statistics:
    updated = statistics.update(x, SUBSAMPLE)
    if x.size and not (np.isfinite(updated.minmax.lo) and np.isfinite(updated.minmax.hi)):
        raise CalibrationError(
            f"value {value!r} is not finite on sample {sample}; check the sample, "
            "or keep the node in float with --exclude"
        )
    return updated


def merge(shards: Sequence[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """Merge the statistics of all shards."""
    total = dict(shards[0])
    for shard in shards[1:]:
        for name, statistics in shard.items():
            total[name] = total[name].merge(statistics) if name in total else statistics
    return total
