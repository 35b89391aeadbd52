"""Range rules: choose the interval [lo, hi] that a grid covers, from calibration statistics.

`mse` minimizes the expected squared error E(lo, hi) = clipped(lo, hi) + rounded(lo, hi) with s = (hi - lo) / levels:
values outside are clipped to the edge; inside, a value within s / 2 of zero becomes zero and its error is its square,
the error of other values is s^2 / 12 on average, and that of exact zeros is 0. With prefix sums of the histogram every
candidate costs O(1). `entropy` minimizes KL(P || Q) between the clipped distribution and its quantized form (Migacz,
8-bit inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.numbers.grid import QType
from edgeopt.numbers.observers import HALF, Histogram, Statistics

Range = tuple[float, float]
_CANDIDATES = 100
_PERCENTILE = 99.999


def minmax(statistics: Statistics, qtype: QType) -> Range:
    """The range of all elements seen."""
    return statistics.minmax.lo, statistics.minmax.hi


def percentile(statistics: Statistics, qtype: QType) -> Range:
    """The range without the outermost 0.001 % of the elements at each end."""
    lo, hi = minmax(statistics, qtype)
    share = np.cumsum(statistics.histogram.counts) / max(1, statistics.histogram.counts.sum())
    edges = (np.arange(-HALF, HALF + 1)) * statistics.histogram.width
    tail = 1 - _PERCENTILE / 100
    first, last = int(np.searchsorted(share, tail, side="right")), int(np.searchsorted(share, 1 - tail))
    return max(lo, float(edges[first])), min(hi, float(edges[last + 1]))


def _candidates(lo: float, hi: float, symmetric: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Candidate (lo, hi) pairs [n]: each end shrunk towards zero independently, or both together for a symmetric grid;
    the widest pair first.
    """
    shrink = np.linspace(1.0, 0.2, _CANDIDATES)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if symmetric:
        top = max(-lo, hi) * shrink
        return -top, top
    los = lo * shrink if lo < 0 else np.zeros(1)
    his = hi * shrink if hi > 0 else np.zeros(1)
    return np.repeat(los, his.size), np.tile(his, los.size)


def mse(statistics: Statistics, qtype: QType) -> Range:
    """The interval with the smallest expected squared error; of 16 bits the range of all elements seen."""
    if qtype.levels > 2 * HALF:  # the histogram is coarser than the grid, and of a part of the elements
        return minmax(statistics, qtype)
    h = statistics.histogram
    los, his = _candidates(*minmax(statistics, qtype), qtype.symmetric)
    x, c = h.centres, h.counts.astype(np.float64)
    if c.size == 0:
        return float(los[0]), float(his[0])
    c[HALF] -= h.zeros
    s0, s1, s2 = (np.concatenate([[0.0], np.cumsum(c * x**k)]) for k in range(3))

    def index(at: NDArray[np.float64]) -> NDArray[np.intp]:
        return np.searchsorted(x, at)

    step = (his - los) / qtype.levels
    below, above, left, right = index(los), index(his), index(-step / 2), index(step / 2)
    clipped = s2[below] - 2 * los * s1[below] + los**2 * s0[below]
    clipped += (s2[-1] - s2[above]) - 2 * his * (s1[-1] - s1[above]) + his**2 * (s0[-1] - s0[above])
    left, right = np.maximum(left, below), np.minimum(right, above)
    rounded = (s0[above] - s0[below] - (s0[right] - s0[left])) * step**2 / 12 + s2[right] - s2[left]
    best = int(np.argmin(clipped + rounded))
    return float(los[best]), float(his[best])


def _divergence(h: Histogram, lo: float, hi: float, levels: int) -> float:
    """KL(P || Q) of the histogram clipped to [lo, hi] and its quantized form with `levels` + 1 integers."""
    x = h.centres
    inside = np.flatnonzero((x >= lo) & (x <= hi))
    if inside.size < 2:
        return np.inf
    p = h.counts[inside].astype(np.float64)
    kept = p.copy()
    p[0] += h.counts[: inside[0]].sum()
    p[-1] += h.counts[inside[-1] + 1 :].sum()
    level = np.rint((x[inside] - lo) / (hi - lo) * levels).astype(np.int64)
    mass = np.bincount(level, weights=kept, minlength=levels + 1)
    filled = np.bincount(level, weights=p > 0, minlength=levels + 1)
    q = np.where(p > 0, (mass / np.maximum(filled, 1))[level], 0.0)
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


def entropy(statistics: Statistics, qtype: QType) -> Range:
    """The interval whose quantized distribution is closest to the real one; both ends are shrunk together."""
    lo, hi = (min(statistics.minmax.lo, 0.0), max(statistics.minmax.hi, 0.0))
    if lo == hi:
        return lo, hi
    shrink = np.linspace(1.0, 0.2, _CANDIDATES)
    divergence = [_divergence(statistics.histogram, lo * s, hi * s, qtype.levels) for s in shrink]
    best = float(shrink[int(np.argmin(divergence))])
    return lo * best, hi * best


RANGES: dict[str, Callable[[Statistics, QType], Range]] = {
    "mse": mse,
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}
