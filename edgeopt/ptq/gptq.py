"""GPTQ: round the weights of one input at a time and compensate each error with the weights of the remaining inputs.

Frantar et al. 2022, GPTQ, arXiv:2210.17323. With H = E[x x^T] and U the upper Cholesky factor of H^-1, for i in order
of decreasing H_ii:

    q_i = round(w_i),   e = (w_i - q_i) / U_ii,   w_j -= e U_ij  for j > i

which minimizes the error of w x greedily. An output channel for which the result is worse than rounding to nearest (at
the ends of the grid, where errors cannot be compensated) keeps the nearest integers. H is damped by
lambda mean(diag H). All output channels are processed at once, and so are the groups of a grouped or depthwise
convolution, each with its own H.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.floating]
_HOPELESS = 1e6
_BLOCK = 64  # columns whose updates are collected before they are applied to the remaining columns


def per_weight(scale: Wide) -> Wide:
    """Scales [groups, out] or [groups, out, in] as [groups, out, 1 or in]."""
    return scale if scale.ndim == 3 else scale[:, :, None]


def gptq(w: Wide, h: Wide, scale: Wide, limit: int, low: int | None = None, *, damping: float = 0.01) -> Wide:
    """Round `w` to its grid: values scale * q with low <= q <= limit; low: -limit if None.

    w: [groups, out, in]; h: [groups, in, in], in whose precision is computed; scale: [groups, out], or [groups, out,
    in] where blocks of inputs have scales of their own.
    """
    w, s = w.astype(h.dtype), per_weight(scale).astype(h.dtype).swapaxes(1, 2)  # [groups, 1 or in, out]
    low = -limit if low is None else low
    groups, _, size = w.shape
    diagonal = np.einsum("gii->gi", h)
    dead = diagonal <= 0
    if dead.any():
        h = h + np.where(dead, 1.0, 0.0).astype(h.dtype)[:, :, None] * np.eye(size, dtype=h.dtype)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    rows = np.arange(groups)[:, None]
    damped, u = _factored(h[rows[:, :, None], order[:, :, None], order[:, None, :]], damping)
    wanted = np.take_along_axis(w.swapaxes(1, 2), order[:, :, None], 1)  # [groups, in, out]: one input is contiguous
    s = np.take_along_axis(s, order[:, :, None], 1) if s.shape[1] > 1 else s
    left, done = wanted.copy(), np.empty_like(wanted)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((groups, stop - start, w.shape[1]), h.dtype)
        for i in range(start, stop):
            of_input = s[:, i % s.shape[1]]
            done[:, i] = of_input * np.clip(np.rint(left[:, i] / of_input), low, limit)
            errors[:, i - start] = (left[:, i] - done[:, i]) / u[:, i, i][:, None]
            left[:, i + 1 : stop] -= errors[:, i - start, None] * u[:, i, i + 1 : stop, None]
        if stop < size:
            left[:, stop:] -= u[:, start:stop, stop:].swapaxes(1, 2) @ errors
    nearest = s * np.clip(np.rint(wanted / s), low, limit)
    behind = _errors(wanted - done, damped) > _errors(wanted - nearest, damped)
    found = np.empty_like(done)
    np.put_along_axis(found, np.broadcast_to(order[:, :, None], done.shape), np.where(behind, nearest, done), 1)
    return np.ascontiguousarray(found.swapaxes(1, 2))


def _errors(d: Wide, h: Wide) -> Wide:
    """`error` of d [groups, in, out], as [groups, 1, out]."""
    return np.asarray(((h @ d) * d).sum(1, keepdims=True))


def error(d: Wide, h: Wide) -> Wide:
    """d H d^T for each output channel: [groups, out]."""
    return np.asarray(((d @ h) * d).sum(-1))


def _factored(h: Wide, damping: float) -> tuple[Wide, Wide]:
    """(`h`, damped in place, and the Cholesky factor of its inverse); the damping is increased if rounding errors make
    it indefinite.
    """
    diagonal = np.einsum("gii->gi", h)
    plain, strength = diagonal.copy(), np.maximum(np.abs(diagonal).mean(1), 1e-30)
    while True:
        diagonal[...] = plain + (damping * strength)[:, None]
        try:
            return h, _upper(h)
        except np.linalg.LinAlgError:
            if damping > _HOPELESS:  # `h` contains NaN or infinity
                raise
            damping *= 10


def _upper(h: Wide) -> Wide:
    """The upper Cholesky factor of h^-1, computed from a factor of h.

    With J the reversal of the order, J h J = L L^T gives h^-1 = V^T V with V = J L^-1 J.
    """
    lower = np.linalg.cholesky(h[:, ::-1, ::-1])
    _invert(lower)
    return lower[:, ::-1, ::-1]


def _invert(lower: Wide) -> None:
    """Invert lower triangular matrices [groups, n, n] in place, by halves."""
    size = lower.shape[1]
    if size <= _BLOCK:
        lower[...] = np.linalg.solve(lower, np.broadcast_to(np.eye(size, dtype=lower.dtype), lower.shape))
        return
    half = size // 2
    first, last, below = lower[:, :half, :half], lower[:, half:, half:], lower[:, half:, :half]
    _invert(first)
    _invert(last)
    below[...] = -last @ (below @ first)
