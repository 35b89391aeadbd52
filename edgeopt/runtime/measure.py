"""A short latency comparison in which machine noise affects all models equally: blocks of runs of each model are
interleaved in random order and paired by round.

The log-ratio is estimated by the median over rounds of log(a / b) of block medians; its 95 % interval comes from a
bootstrap over rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeopt.numbers.intervals import median_interval
from edgeopt.runtime.session import Feed, Session

Block = Callable[[int], float]  # runs a model so often and returns the median time in seconds

_BLOCK_S = 0.02
_WARM_UP_S = 0.1
_QUIET_S, _SETTLE_S, _FASTER = 1.0, 10.0, 0.95
_LONGER = 4  # times `seconds`, until an interval decides
_NARROW = 1.03  # width of an interval that need not be narrower


@dataclass(frozen=True)
class PairedLatency:
    """Latency of one model in milliseconds; speed-up over the reference with its 95 % interval."""

    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def reference_ms(self) -> float:
        """Latency of the reference in the same rounds."""
        return self.latency_ms * self.speedup


def _block(session: Session, feed: Feed, runs: int) -> float:
    times = np.empty(runs)
    for i in range(runs):
        start = time.perf_counter()
        session.run(feed)
        times[i] = time.perf_counter() - start
    return float(np.median(times))


def settled(block: Block) -> None:
    """Run single inferences until none has been faster by 5 % for a second, ten seconds at the most: WebAssembly is
    compiled once more while it runs, and is three times as fast then.
    """
    best, start = math.inf, time.monotonic()
    last = start
    while (now := time.monotonic()) - last < _QUIET_S and now - start < _SETTLE_S:
        took = block(1)
        if took < _FASTER * best:
            best, last = took, time.monotonic()


def _runs(block: Block) -> int:
    """The number of runs in a block, found during a warm-up."""
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < _WARM_UP_S:
        block(1)
        count += 1
        if time.perf_counter() - start > 1.0:
            break
    return max(1, round(_BLOCK_S * count / (time.perf_counter() - start)))


def interleaved(
    sessions: Mapping[str, Session],
    reference: str,
    feeds: Mapping[str, Feed],
    *,
    seconds: float = 2.0,
    levels: Sequence[float] = (),
) -> dict[str, PairedLatency]:
    """Latency of each session on its feed and its speed-up over the session called `reference`; see `paired`."""
    return paired({n: partial(_block, s, feeds[n]) for n, s in sessions.items()}, reference, seconds, levels)


def paired(
    models: Mapping[str, Block], reference: str, seconds: float, levels: Sequence[float] = ()
) -> dict[str, PairedLatency]:
    """Latency of each model and its speed-up over the one called `reference`.

    It takes about `seconds` for each model after the warm-up, and usually at least 7 rounds; up to four times as long
    while an interval wider than 3 % contains one of `levels`, so that a busy machine does not change what they decide.
    """
    rng = np.random.default_rng(0)
    names = list(models)
    runs = {name: _runs(models[name]) for name in names}
    blocks: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    limit = seconds * len(names)
    while len(blocks[reference]) < 7 or time.perf_counter() - start < limit:
        for i in rng.permutation(len(names)):
            blocks[names[i]].append(models[names[i]](runs[names[i]]))
        spent = time.perf_counter() - start
        if len(blocks[reference]) >= 3 and spent > _LONGER * seconds * len(names):
            break
        if spent >= limit and any(_open(level, blocks, reference) for level in levels):
            limit += seconds * len(names)
    return {name: _latency(blocks[name], blocks[reference]) for name in names}


def _open(level: float, blocks: Mapping[str, Sequence[float]], reference: str) -> bool:
    """Whether the interval of any speed-up contains `level` and is not narrow."""
    found = [_latency(b, blocks[reference]) for name, b in blocks.items() if name != reference]
    return any(x.speedup_low < level <= x.speedup_high > _NARROW * x.speedup_low for x in found)


def _latency(blocks: Sequence[float], reference: Sequence[float]) -> PairedLatency:
    ratios = np.log(np.asarray(reference) / np.asarray(blocks))
    found = median_interval([ratios]).exp()
    # the pair has the ratio of the rounds: medians of each side alone may be of rounds with different load
    level = math.sqrt(float(np.median(blocks)) * float(np.median(reference)))
    return PairedLatency(1e3 * level / math.sqrt(found.value), found.value, found.low, found.high)
