"""95 % confidence intervals of proportions of samples.

Wilson 1927: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n), valid for few samples and for
proportions near 0 and 1. Differences of paired proportions, of which b samples changed for the worse and c for the
better: Agresti and Min 2005 (doi 10.1002/sim.1781), (b - c) / m +- z sqrt(b + c + 1 - (b - c)^2 / m) / m with m = n +
2.
"""

from __future__ import annotations

import math

from edgeopt.profiling.results import Range

_Z = 1.959964


def fall(worse: int, better: int, n: int) -> Range:
    """Drop of a proportion of `n` paired samples, of which `worse` changed for the worse and `better` for the
    better.
    """
    value, m = (worse - better) / n, n + 2
    centre = (worse - better) / m
    half = _Z * math.sqrt(worse + better + 1 - (worse - better) ** 2 / m) / m
    return Range(value=value, low=min(value, centre - half), high=max(value, centre + half))
