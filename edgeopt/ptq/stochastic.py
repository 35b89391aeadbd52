"""Stochastic rounding: round up with a probability equal to the fraction, so that the expected value is the weight.

    q = floor(w / s) + [u < w / s - floor(w / s)],    u uniform on [0, 1)

(Gupta et al. 2015, arXiv:1502.02551, equation 1).
Its error is larger than that of rounding to nearest; it is provided for comparison.
"""

from __future__ import annotations

import numpy as np

from edgeopt.ptq.gptq import Wide, per_weight


def stochastic(w: Wide, scale: Wide, limit: int, rng: np.random.Generator, least: int | None = None) -> Wide:
    """Round `w` to its grid: values scale * q with least <= q <= limit; least: -limit if None.

    w: [groups, out, in]; scale: [groups, out], or [groups, out, in].
    """
    scale = per_weight(scale)
    unit = w / scale
    low = np.floor(unit)
    q = low + (rng.random(w.shape) < unit - low)
    return np.asarray(scale * np.clip(q, -limit if least is None else least, limit))
