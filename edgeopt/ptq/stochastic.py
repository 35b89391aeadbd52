"""Stochastic rounding: round up with a probability equal to the fraction, so that the expected value is the weight.

    q = floor(w / s) + [u < w / s - floor(w / s)],    u uniform on [0, 1)

(Gupta et al. 2015, arXiv:1502.02551, equation 1).
Its error is larger than that of rounding to nearest; it is provided for comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.floating]


def stochastic(w: Wide, scale: Wide, limit: int, rng: np.random.Generator) -> Wide:
    """Round `w` to its grid: values scale * q with |q| <= limit. w: [groups, out, in]; scale: [groups, out]."""
    unit = w / scale[:, :, None]
    low = np.floor(unit)
    q = low + (rng.random(w.shape) < unit - low)
    return np.asarray(scale[:, :, None] * np.clip(q, -limit, limit))
