"""Observers: statistics of a tensor over samples. Each is a commutative monoid: a frozen value with `update` and
`merge`, and the empty statistics as unit.

    update(update(unit, a), b) == merge(update(unit, a), update(unit, b))        and merge is associative and
      commutative, to the last bit

so that one process, several threads and shards give the same numbers. Histograms have bins of width 2^(e - HALF_BITS)
with e the exponent of the largest magnitude seen: a coarser histogram is an exact sum of pairs of bins of a finer one.
Sums of floats are kept as integers, which add exactly. Observers do not depend on bit widths and grids; `ranges`
chooses the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.grid import Array

HALF_BITS = 11
HALF = 1 << HALF_BITS  # bins on each side of zero
_FINEST = -2000  # exponent for samples of zeros only: finer than any other, so that merging makes no histogram coarser


@dataclass(frozen=True)
class MinMax:
    """The smallest and the largest element; (inf, -inf) before the first element, NaN if any element is NaN."""

    lo: float = math.inf
    hi: float = -math.inf

    def update(self, x: Array) -> Self:
        """The statistics with the elements of `x` (any shape) added."""
        if x.size == 0:
            return self
        return self.merge(type(self)(float(x.min()) + 0.0, float(x.max()) + 0.0))  # -0.0 becomes 0.0

    def merge(self, other: Self) -> Self:
        """The statistics of both sets of samples."""
        if math.isnan(self.lo) or math.isnan(other.lo):
            return type(self)(math.nan, math.nan)
        return type(self)(min(self.lo, other.lo), max(self.hi, other.hi))


def _fold(counts: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """`counts` [2 HALF] converted to bins that are 2^steps times as wide."""
    if steps <= 0 or counts.size == 0:
        return counts
    centres = np.arange(-HALF, HALF) >> min(steps, HALF_BITS + 1)
    return np.bincount(centres + HALF, weights=counts, minlength=2 * HALF).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts [2 HALF] of bins [i, i + 1) 2^(exponent - HALF_BITS), i = -HALF ... HALF - 1; exact zeros are also counted
    separately.
    """

    exponent: int = -(1 << 30)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    zeros: int = 0

    def update(self, x: Array) -> Self:
        """The histogram with the finite elements of `x` (any shape) added."""
        if x.size == 0:
            return self
        x = x.reshape(-1)
        peak = max(float(x.max()), -float(x.min()))
        e = math.frexp(peak)[1] if peak > 0 else _FINEST
        # scaling by a power of two is exact except for denormals, for which float64 is used
        shift = HALF_BITS - e
        scaled = x * np.float32(2.0**shift) if -100 < shift < 100 else np.ldexp(x.astype(np.float64), shift)
        index = np.floor(scaled, out=scaled).astype(np.intp)
        index += HALF  # -2^e itself falls into the first bin
        counts = np.bincount(index, minlength=2 * HALF)
        return self.merge(type(self)(e, counts, x.size - int(np.count_nonzero(x))))

    def merge(self, other: Self) -> Self:
        """The histogram of both sets of samples, with the wider bins of the two."""
        if self.counts.size == 0 or other.counts.size == 0:
            return other if self.counts.size == 0 else self
        e = max(self.exponent, other.exponent)
        counts = _fold(self.counts, e - self.exponent) + _fold(other.counts, e - other.exponent)
        return type(self)(e, counts, self.zeros + other.zeros)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        same = self.exponent == other.exponent and self.zeros == other.zeros
        return same and np.array_equal(self.counts, other.counts)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent - HALF_BITS)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of the bins, float64 [2 HALF]."""
        return np.asarray((np.arange(-HALF, HALF) + 0.5) * self.width, np.float64)


@dataclass(frozen=True)
class Statistics:
    """Calibration statistics of one value: exact extremes over all elements; histogram and moments of a fixed subsample
    of large tensors.
    """

    minmax: MinMax = field(default_factory=MinMax)
    histogram: Histogram = field(default_factory=Histogram)

    def update(self, x: Array, subsample: int) -> Self:
        """The statistics with one sample's tensor added; histogram and moments use about `subsample` evenly spaced
        elements.
        """
        flat = x.reshape(-1)
        seen = MinMax().update(flat)
        minmax = self.minmax.merge(seen)
        if flat.size and not (math.isfinite(seen.lo) and math.isfinite(seen.hi)):
            return type(self)(minmax, self.histogram)
        # an odd step avoids sampling the same columns or channels, whose numbers are mostly even
        thin = flat[:: max(1, flat.size // subsample) | 1]
        return type(self)(minmax, self.histogram.update(thin))

    def merge(self, other: Self) -> Self:
        """The statistics of both sets of samples."""
        return type(self)(self.minmax.merge(other.minmax), self.histogram.merge(other.histogram))
