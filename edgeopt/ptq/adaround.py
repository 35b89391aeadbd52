"""AdaRound: learn for each weight whether to round up or down, given the inputs of its layer.

Nagel et al. 2020, AdaRound, arXiv:2004.10568, equations 21-25. With w / s = floor + V and h(V) the rectified sigmoid,

    min over V of   (w - q)^T H (w - q) + lambda sum (1 - |2 h(V) - 1|^beta),    q = s (floor(w / s) + h(V))

beta falls from 20 to 2, which drives every h to 0 or 1. The data enter only through H = E[x x^T]: the first term is the
mean squared error of the output of the layer's linear part. It is minimized by Adam for all groups and output channels
at once. An output channel for which the result is worse than rounding to nearest keeps the nearest integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.ptq.gptq import Wide, error, per_weight

Single = NDArray[np.float32]
_LOW, _HIGH = -0.1, 1.1  # gamma and zeta: the sigmoid is stretched to reach 0 and 1
_WARM = 0.2  # share of the steps without the regularizer
_BETA = (20.0, 2.0)
_ADAM = (0.9, 0.999, 1e-8)
_RATE = 0.03


def adaround(w: Wide, h: Wide, scale: Wide, limit: int, least: int | None = None, *, steps: int = 600) -> Wide:
    """Round `w` to its grid: values scale * q with least <= q <= limit; least: -limit if None.

    w: [groups, out, in]; h: [groups, in, in]; scale: [groups, out], or [groups, out, in].
    """
    scale, least = per_weight(scale), -limit if least is None else least
    unit = (w / scale).astype(np.float32)
    low = np.clip(np.floor(unit), least, limit - 1)
    level = np.einsum("gii->gi", h).mean(1)[:, None, None]
    m = (h / np.where(level > 0, level, 1.0)).astype(np.float32)
    v = _inverse(np.clip(unit - low, 0.0, 1.0))
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(steps):
        soft = _soft(v)
        gradient = 2 * ((low + soft - unit) @ m)
        done = step / steps
        if done >= _WARM:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * 0.5 * (1 + np.cos(np.pi * (done - _WARM) / (1 - _WARM)))
            gradient += _pull(soft, np.float32(beta))
        s = (soft - _LOW) / (_HIGH - _LOW)
        gradient *= (_HIGH - _LOW) * s * (1 - s) * ((soft > 0) & (soft < 1))
        first += (1 - _ADAM[0]) * (gradient - first)
        second += (1 - _ADAM[1]) * (gradient**2 - second)
        size = _RATE * np.sqrt(1 - _ADAM[1] ** (step + 1)) / (1 - _ADAM[0] ** (step + 1))
        v -= (size * first / (np.sqrt(second) + _ADAM[2])).astype(np.float32)
    found = low + (_soft(v) >= 0.5)
    nearest = np.clip(np.rint(unit), least, limit)
    behind = error(found - unit, m) > error(nearest - unit, m)
    return np.asarray(scale * np.where(behind[..., None], nearest, found).astype(np.float64))


def _soft(v: Single) -> Single:
    return np.clip((_HIGH - _LOW) / (1 + np.exp(-v)) + _LOW, 0.0, 1.0)


def _inverse(share: Single) -> Single:
    """V with h(V) = share."""
    s = (share - _LOW) / (_HIGH - _LOW)
    return np.log(s / (1 - s))


def _pull(soft: Single, beta: np.float32) -> Single:
    """The derivative of the regularizer with respect to h."""
    x = 2 * soft - 1
    return np.asarray(-2 * beta * np.sign(x) * np.abs(x) ** (beta - 1), np.float32)
