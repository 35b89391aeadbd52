"""Statistics of activations over samples, streamed: nothing is kept but the observers.

Several samples run at once, each on one thread, which beats one sample on many threads with the small operators of mobile
models; each worker owns its statistics; the merge does not depend on who saw what. Values are observed in groups that fit
under the memory cap, one pass of the model a group.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeopt.data.source import refuse_many
from edgeopt.errors import CalibrationError, DataError
from edgeopt.graph.facts import size_bytes
from edgeopt.hardware.host import cores
from edgeopt.numbers.observers import Statistics
from edgeopt.runtime.probe import Probe
from edgeopt.runtime.session import Feed, Session, open_session, with_outputs

SUBSAMPLE = 1024  # elements of a tensor and sample that enter the histogram
Sample = tuple[str, Callable[[], Feed]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Observation:
    """Statistics by value, and the samples that could not be read with the reason."""

    statistics: dict[str, Statistics]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Forecast:
    """What a calibration will need, before it runs."""

    passes: int
    ram_bytes: int


def groups(values: Sequence[str], probes: Mapping[str, Probe], max_ram: int, fixed: int = 0) -> list[list[str]]:
    """`values` in as few groups as keep one worker's observed bytes below its share of `max_ram` (bytes); at least one
    value a group.
    """
    share = max(max_ram - fixed, max_ram // 4) / cores()
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


def forecast(model: ir.Model, values: Sequence[str], probes: Mapping[str, Probe], max_ram: int) -> Forecast:
    """Passes over the samples and peak bytes of `observe` beyond the interpreter's own."""
    parts = groups(values, probes, max_ram, size_bytes(model))
    largest = max((sum(4 * probes[v].size for v in part if v in probes) for part in parts), default=0)
    return Forecast(len(parts), 2 * size_bytes(model) + cores() * largest)


def observe(
    model: ir.Model,
    values: Sequence[str],
    samples: Sequence[Sample],
    *,
    probes: Mapping[str, Probe],
    max_ram: int,
    progress: Progress = lambda done, total: None,
) -> Observation:
    """Statistics of the values called `values` over `samples`; the same bytes for every order, split and number of
    threads.

    Raises:
        CalibrationError: NaN or infinity in a value (names it and the sample), or no sample at all.
        DataError: more than 5 % of the samples cannot be read, or the model fails on one.
    """
    if not samples:
        raise CalibrationError("no samples to calibrate with")
    parts = groups(values, probes, max_ram, size_bytes(model))
    found: dict[str, Statistics] = {}
    skipped: dict[str, str] = {}
    total = len(parts) * len(samples)
    for i, part in enumerate(parts):
        found |= _observe_group(model, part, samples, skipped, partial(_tell, progress, i * len(samples), total))
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
    inputs = {str(v.name) for v in model.graph.inputs}
    inner = [v for v in values if v not in inputs]
    session = open_session(with_outputs(model, inner)) if inner else None
    done = 0
    workers = min(cores(), len(samples))
    stop = threading.Event()
    turn = threading.Lock()  # updates are many small NumPy calls, which two threads at once only slow down

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
            seen = _values(session, feed, values)
            with turn:
                for value, x in seen:
                    found[value] = _update(found[value], x, value, name)
            progress(done)
        return found

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(work, i) for i in range(workers)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # an error or Ctrl-C ends the other workers at their next sample
            stop.set()
    return merge([f.result() for f in futures])


def _values(session: Session | None, feed: Feed, values: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    found = [(v, feed[v]) for v in values if v in feed]
    if session is not None:
        found += zip(session.outputs, session.run(feed), strict=True)
    return found


def _update(statistics: Statistics, x: np.ndarray, value: str, sample: str) -> Statistics:
    updated = statistics.update(x, SUBSAMPLE)
    if x.size and not (np.isfinite(updated.minmax.lo) and np.isfinite(updated.minmax.hi)):
        raise CalibrationError(
            f"value {value!r} is not finite on sample {sample}; check the sample, or keep the node in float with --exclude"
        )
    return updated


def merge(shards: Sequence[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """The statistics of all shards together."""
    total = dict(shards[0])
    for shard in shards[1:]:
        for name, statistics in shard.items():
            total[name] = total[name].merge(statistics) if name in total else statistics
    return total
