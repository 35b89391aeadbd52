"""A short latency comparison that noise of the machine hits evenly: blocks of runs of each model, interleaved in random
order, paired by round.

The ratio's estimate is the median over rounds of log(a / b) of block medians; its 95 % interval a bootstrap over
rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.numbers.intervals import median_interval
from edgeopt.runtime.session import Feed, Session

_BLOCK_S = 0.02
_WARM_UP_S = 0.1


@dataclass(frozen=True)
class PairedLatency:
    """Of one model: median of block medians in milliseconds; the speed-up over the reference with its 95 % interval."""

    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float


def _block(session: Session, feed: Feed, runs: int) -> float:
    times = np.empty(runs)
    for i in range(runs):
        start = time.perf_counter()
        session.run(feed)
        times[i] = time.perf_counter() - start
    return float(np.median(times))


def _runs(session: Session, feed: Feed) -> int:
    """Runs a block, after a warm-up."""
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < _WARM_UP_S:
        session.run(feed)
        count += 1
        if time.perf_counter() - start > 1.0:
            break
    return max(1, round(_BLOCK_S * count / (time.perf_counter() - start)))


def interleaved(
    sessions: Mapping[str, Session], reference: str, feeds: Mapping[str, Feed], *, seconds: float = 2.0
) -> dict[str, PairedLatency]:
    """Latency of each session on its feed and its speed-up over the one called `reference`, in about `seconds` a model
    after warm-up; >= 7 rounds.
    """
    rng = np.random.default_rng(0)
    names = list(sessions)
    runs = {name: _runs(sessions[name], feeds[name]) for name in names}
    blocks: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    while len(blocks[reference]) < 7 or time.perf_counter() - start < seconds * len(names):
        for i in rng.permutation(len(names)):
            blocks[names[i]].append(_block(sessions[names[i]], feeds[names[i]], runs[names[i]]))
        if len(blocks[reference]) >= 3 and time.perf_counter() - start > 4 * seconds * len(names):
            break
    return {name: _latency(blocks[name], blocks[reference]) for name in names}


def _latency(blocks: Sequence[float], reference: Sequence[float]) -> PairedLatency:
    ratios = np.log(np.asarray(reference) / np.asarray(blocks))
    found = median_interval([ratios]).exp()
    return PairedLatency(1e3 * float(np.median(blocks)), found.value, found.low, found.high)
