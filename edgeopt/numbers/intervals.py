"""Statistics of latencies measured on noisy machines, with confidence intervals.

The unit is a block: the median of inferences that ran back to back in one process. Blocks of one process are not
independent (they share its memory layout), so an interval comes from a two-level bootstrap with a fixed seed: processes
are resampled, then blocks within them (Kalibera and Jones 2013; Barrett et al. 2017, arXiv:1602.00602). Single
inferences are never resampled, since consecutive ones are not independent. With only one process the interval is valid
for that process only.

Two models are compared by the log-ratio of their blocks of the same round, which see the same drift and load:

    ratio = exp(median over rounds of log(b / a))        > 1: b takes longer
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Verdict = Literal["improved", "equivalent", "regressed", "inconclusive"]
# smallest number of samples of which at least one lies beyond the percentile with 95 % probability: 1 - q^n >= .95
NEEDED = {90: 29, 95: 59, 99: 299}
BOOTSTRAP = 1000
_STEADY = 0.02
_WINDOWS = 3
_TUKEY = 1.5


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, in the unit of the estimated quantity."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the estimate."""
        return (self.high - self.low) / 2 / self.value if self.value else math.inf

    def exp(self) -> Interval:
        """The interval of e^x."""
        return Interval(math.exp(self.value), math.exp(self.low), math.exp(self.high))


def bootstrap_medians(processes: Sequence[Floats], seed: int = 0, draws: int = BOOTSTRAP) -> Floats:
    """Medians of `draws` two-level resamples of `processes`, each float64 [blocks]; float64 [draws]."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(p) for p in processes])
    padded = np.full((len(processes), lengths.max()), np.nan)
    for row, p in zip(padded, processes, strict=True):
        row[: len(p)] = p
    chosen = rng.integers(0, len(processes), (draws, len(processes)))
    index = (rng.random((draws, len(processes), lengths.max())) * lengths[chosen][..., None]).astype(np.intp)
    drawn = padded[chosen[..., None], index]
    drawn[np.arange(lengths.max()) >= lengths[chosen][..., None]] = np.nan
    drawn = np.sort(drawn.reshape(draws, -1), axis=1)  # NaN last
    count = lengths[chosen].sum(1)
    rows = np.arange(draws)
    return np.asarray((drawn[rows, (count - 1) // 2] + drawn[rows, count // 2]) / 2, np.float64)


def median_interval(processes: Sequence[Floats], seed: int = 0) -> Interval:
    """Median of all blocks with its interval; processes: float64 [blocks] for each process."""
    low, high = np.quantile(bootstrap_medians(processes, seed), (0.025, 0.975))
    return Interval(float(np.median(np.concatenate(list(processes)))), float(low), float(high))


def ratio_interval(reference: Sequence[Floats], other: Sequence[Floats], seed: int = 0) -> Interval:
    """Ratio of the time of `other` to that of `reference`; blocks of the same process and round are paired."""
    return median_interval([np.log(b / a) for a, b in zip(reference, other, strict=True)], seed).exp()


def unpaired_ratio_interval(reference: Sequence[Floats], other: Sequence[Floats], seed: int = 0) -> Interval:
    """The same ratio for blocks that were not measured together.

    It is weaker evidence: the interval does not include drift between the measurements.
    """
    a, b = bootstrap_medians(reference, seed), bootstrap_medians(other, seed + 1)
    low, high = np.quantile(b / a, (0.025, 0.975))
    value = float(np.median(np.concatenate(list(other))) / np.median(np.concatenate(list(reference))))
    return Interval(value, float(low), float(high))


def needed(share: float, level: float) -> int | None:
    """About how many samples, of which `share` are right, show by their 95 % interval that `level` are; None: none."""
    if share <= level:
        return None
    return next((n for n in (round(4 * 1.05**k) for k in range(400)) if wilson(share, n).low >= level), None)


def wilson(share: float, count: int) -> Interval:
    """The 95 % interval of a share of `count` (Wilson 1927)."""
    z = 1.959964
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = (min(1.0, max(0.0, (centre + s * spread) / (1 + z * z / count))) for s in (-1, 1))
    return Interval(share, min(low, share), max(high, share))  # rounding may leave the ends 2e-16 inside


def verdict(ratio: Interval, margin: float) -> Verdict:
    """The verdict on a latency ratio, given a practical margin (0.03 = 3 %).

    regressed or improved: the interval excludes 1 and the estimate is beyond the margin. equivalent: the whole interval
    is within the margin. Otherwise inconclusive.
    """
    if ratio.low > 1 and ratio.value > 1 + margin:
        return "regressed"
    if ratio.high < 1 and ratio.value < 1 / (1 + margin):
        return "improved"
    return "equivalent" if ratio.low >= 1 / (1 + margin) and ratio.high <= 1 + margin else "inconclusive"


def percentile(times: Floats, q: int) -> float | None:
    """The q-th percentile of single inferences; None if there are too few of them (see `NEEDED`)."""
    return float(np.percentile(times, q)) if len(times) >= NEEDED[q] else None


def median_absolute_deviation(times: Floats) -> float:
    """Median of |x - median|, in the unit of `times`."""
    return float(np.median(np.abs(times - np.median(times))))


def outliers(blocks: Floats) -> int:
    """Number of blocks beyond Tukey's fences; they are only counted, not removed."""
    low, high = np.quantile(blocks, (0.25, 0.75))
    fence = _TUKEY * (high - low)
    return int(((blocks < low - fence) | (blocks > high + fence)).sum())


def steady(windows: Sequence[float]) -> bool:
    """Whether the last three window medians lie within 2 % of each other (1 % if they keep falling or rising)."""
    last = windows[-_WINDOWS:]
    if len(last) < _WINDOWS:
        return False
    if min(last) <= 0:  # the clock is too coarse
        return False
    spread = max(last) / min(last) - 1
    trend = last[0] < last[1] < last[2] or last[0] > last[1] > last[2]
    return spread <= (_STEADY / 2 if trend else _STEADY)
