"""Latency in fresh processes. In each, the arms run interleaved, block by block in random order, for the time of the
preset; no further process is started once the intervals are narrow enough.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import LostError, WorkerError
from edgeopt.numbers.intervals import median_absolute_deviation, median_interval, outliers, percentile, ratio_interval
from edgeopt.profiling.arms import Arm, Preset
from edgeopt.profiling.live import Live, live
from edgeopt.profiling.results import Block, Cold, Latency, Point, Range

_CONTENDED = 0.02  # share of a block's time that its threads waited for a CPU
_FEW_RUNS = 3
_FEW_ROUNDS = 3
_SLOW_NS = 1e9
_RATE_BLOCK_S = 0.2
_ENOUGH_PROCESSES = 3
Progress = Callable[[str, int, int], None]


@dataclass
class Timing:
    """Measurements of one arm."""

    arm: Arm
    feeds: Path
    blocks: list[Block] = field(default_factory=list)
    times: list[NDArray[np.int64]] = field(default_factory=list)
    """Inference times of each block, int64 [runs], ns."""
    starts_s: list[float] = field(default_factory=list)
    """Start of each block."""
    walls_s: list[float] = field(default_factory=list)
    """Duration of each block."""
    cold_ns: list[tuple[int, int, int]] = field(default_factory=list)
    """(session creation, first, second inference) of each process."""
    steady: bool = True
    """Whether every warm-up reached a steady state in time."""
    hello: dict[str, object] = field(default_factory=dict)
    states: list[Mapping[str, Any]] = field(default_factory=list)
    """What the machine told of itself in each stretch of a sustained run."""
    error: str | None = None
    dropped: list[str] = field(default_factory=list)
    """Why its device could not be reached, for each process in which it was lost."""

    def medians(self) -> list[NDArray[np.float64]]:
        """Block medians in ms, one array for each process."""
        return medians(self.blocks)


def medians(blocks: Sequence[Block]) -> list[NDArray[np.float64]]:
    """Block medians in ms, one array for each process."""
    processes = sorted({b.process for b in blocks})
    return [np.array([b.median_ms for b in blocks if b.process == p]) for p in processes]


def measure(
    timings: Sequence[Timing], preset: Preset, *, allow_fallback: bool, progress: Progress, seed: int = 0
) -> None:
    """Fill `timings`; an arm that fails keeps its measurements and its error."""
    rng = np.random.default_rng(seed)
    for process in range(preset.processes):
        for t in timings:
            if t.dropped and t.error is None and not t.arm.place.back():
                t.error = t.dropped[-1]
        alive = [t for t in timings if t.error is None]
        if not alive or (process >= min(_ENOUGH_PROCESSES, preset.processes) and precise(alive, preset)):
            break
        _process(alive, process, preset, rng, allow_fallback)
        progress("measuring", process + 1, preset.processes)
    for t in timings:
        _told_lost(t)
    progress("measuring", preset.processes, preset.processes)


def _told_lost(t: Timing) -> None:
    """A device that was lost before anything was measured there is the arm's error."""
    if t.error is None and t.dropped and not t.blocks:
        t.error = t.dropped[-1]


def _process(
    timings: Sequence[Timing], process: int, preset: Preset, rng: np.random.Generator, allow_fallback: bool
) -> None:
    """One repetition: one process for each arm, all alive, one active at a time."""
    with contextlib.ExitStack() as stack:
        running: dict[int, tuple[Live, int]] = {}
        for i in rng.permutation(len(timings)):
            t = timings[i]
            with failing(t):
                started = stack.enter_context(live(t.arm, allow_fallback=allow_fallback))
                started.first_runs(t.feeds)
                t.hello = started.hello
                t.steady &= started.warm_up(preset.warm_up_s)
                t.cold_ns.append(started.cold_ns)
                running[int(i)] = started, _runs(started, t.arm, preset)
        share = preset.seconds / preset.processes * max(1, len(running))
        start, turn = time.monotonic(), 0
        while running and (turn < _FEW_ROUNDS or time.monotonic() - start < share):
            for i in rng.permutation(sorted(running)):
                t = timings[i]
                lost = len(t.dropped)
                with failing(t):
                    _block(t, *running[int(i)], process, turn)
                if t.error is not None or len(t.dropped) > lost:
                    del running[int(i)]
            turn += 1


@contextlib.contextmanager
def failing(t: Timing) -> Iterator[None]:
    """Store a worker's failure as the arm's error, and continue with the others; a device that is lost may be back for
    the next process.
    """
    try:
        yield
    except LostError as e:
        t.dropped.append(str(e))
    except WorkerError as e:
        t.error = str(e)


def _runs(started: Live, arm: Arm, preset: Preset) -> int:
    """Number of inferences in a block."""
    if arm.rate:
        return max(_FEW_RUNS, math.ceil(arm.rate * max(_RATE_BLOCK_S, preset.block_s)))
    one = 1e9 * started.windows[-1] if started.windows else started.cold_ns[2]
    return max(_FEW_RUNS if one < _SLOW_NS else 1, math.ceil(preset.block_s * 1e9 / max(one, 1.0)))


def _block(t: Timing, started: Live, runs: int, process: int, turn: int) -> None:
    found = started.worker.ask("block", runs=runs, rate=t.arm.rate)
    times = np.maximum(np.array(found["times"], np.int64), 1)  # a coarse clock may not see one
    t.times.append(times)
    t.starts_s.append(found["start"] / 1e9)
    t.walls_s.append((found["end"] - found["start"]) / 1e9)
    t.blocks.append(
        Block(
            process=process,
            round=turn,
            runs=len(times),
            median_ms=float(np.median(times)) / 1e6,
            contended=contended(found.get("wait_ns"), found.get("switches", 0), found["end"] - found["start"]),
        )
    )


def contended(wait_ns: int | None, switches: int, duration_ns: int) -> bool:
    """Whether the system delayed a block; judged by involuntary context switches where the kernel does not report the
    wait.
    """
    return switches > 0 if wait_ns is None else wait_ns > _CONTENDED * duration_ns


def precise(timings: Sequence[Timing], preset: Preset) -> bool:
    """Whether every reported interval is narrow enough: that of each median, and of each ratio to the first arm."""
    if any(not t.blocks or median_interval(t.medians()).half_width > preset.precision for t in timings):
        return False
    pairs = [paired(timings[0], t) for t in timings[1:]]
    return all(p is not None and ratio_interval(*p).half_width <= preset.precision for p in pairs)


def paired(a: Timing, b: Timing) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] | None:
    """Block medians of the rounds that both arms have, by process; None if there are none."""
    ours, theirs = ({(x.process, x.round): x.median_ms for x in t.blocks} for t in (a, b))
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        return None
    processes = sorted({p for p, _ in keys})
    left, right = ([np.array([m[k] for k in keys if k[0] == p]) for p in processes] for m in (ours, theirs))
    return left, right


def sustained(t: Timing, preset: Preset, *, allow_fallback: bool, progress: Progress) -> None:
    """Run one arm for `preset.sustained_s` in one process, without warm-up."""
    with failing(t), live(t.arm, allow_fallback=allow_fallback) as started:
        started.first_runs(t.feeds)
        t.hello = started.hello
        t.cold_ns.append(started.cold_ns)
        runs = _runs(started, t.arm, preset)
        start, turn, width = time.monotonic(), 0, _stretch(preset.sustained_s)
        while (spent := time.monotonic() - start) < preset.sustained_s or turn < _FEW_ROUNDS:
            _block(t, started, runs, 0, turn)
            turn += 1
            if (t.starts_s[-1] - t.starts_s[0]) // width >= len(t.states):
                t.states.append(t.arm.place.state())
            progress(f"sustained {t.arm.label}", round(min(spent, preset.sustained_s)), round(preset.sustained_s))
    if t.dropped and t.error is None:
        t.error = t.dropped[-1]


def _stretch(seconds: float) -> float:
    """Length of the stretches of a sustained run, in seconds."""
    return min(10.0, seconds / 10)


def series(t: Timing, seconds: float) -> tuple[Point, ...]:
    """p50 over time of a sustained run, with what the machine told of itself in each stretch."""
    width = _stretch(seconds)
    found: dict[int, list[NDArray[np.int64]]] = {}
    for at, times in zip(t.starts_s, t.times, strict=True):
        found.setdefault(int((at - t.starts_s[0]) / width), []).append(times)
    joined = {i: np.concatenate(times) for i, times in found.items()}
    return tuple(
        Point(
            at_s=i * width,
            p50_ms=float(np.median(x)) / 1e6,
            runs=len(x),
            **(t.states[i] if i < len(t.states) else {}),
        )
        for i, x in sorted(joined.items())
    )


def summary(t: Timing, preset: Preset) -> Latency | None:
    """The latency figures; None if nothing was measured."""
    if not t.blocks:
        return None
    medians = t.medians()
    p50 = median_interval(medians)
    times = np.concatenate(t.times).astype(np.float64) / 1e6
    calm = [b.median_ms for b in t.blocks if not b.contended]
    points = series(t, preset.sustained_s) if preset.sustained_s else ()
    return Latency(
        p50_ms=Range.of(p50),
        p90_ms=percentile(times, 90),
        p95_ms=percentile(times, 95),
        p99_ms=percentile(times, 99),
        min_ms=float(times.min()),
        mean_ms=float(times.mean()),
        mad_ms=median_absolute_deviation(times),
        throughput_per_s=len(times) / sum(t.walls_s) if t.walls_s else 1e3 / float(times.mean()),
        runs=len(times),
        processes=len(medians),
        outliers=outliers(np.concatenate(medians)),
        contended=sum(b.contended for b in t.blocks),
        p50_uncontended_ms=float(np.median(calm)) if calm else None,
        steady=t.steady,
        precise=p50.half_width <= preset.precision,
        blocks=tuple(t.blocks),
        series=points,
        last_to_first=points[-1].p50_ms / points[0].p50_ms if len(points) > 1 else None,
    )


def cold(t: Timing) -> Cold | None:
    """Medians of cold start times over the processes; None if no process got that far."""
    if not t.cold_ns:
        return None
    create, first, second = np.median(np.array(t.cold_ns, np.float64), axis=0) / 1e6
    return Cold(create_ms=create, first_ms=first, second_ms=second, processes=len(t.cold_ns))


def raw(timings: Mapping[str, Timing]) -> dict[str, NDArray[np.int64]]:
    """Times of single inferences in ns and the block index of each, by label, for the .npz."""
    found = {}
    for label, t in timings.items():
        if t.times:
            found[f"{label}/times_ns"] = np.concatenate(t.times)
            found[f"{label}/block"] = np.repeat(np.arange(len(t.times)), [len(x) for x in t.times])
    return found
