"""Per-channel weight clipping: the scale with the smallest output error, not the one that covers the largest weight.

    s* = argmin over c in (0, 1] of  sum_i H_ii (w_i - Q(w_i; c s))^2

with H_ii = E[x_i^2]: the squared error of the output if the inputs were uncorrelated (the weighted MSE of searches like
OCTAV; Sakr et al. 2022, arXiv:2206.06501, use the unweighted one).
"""

from __future__ import annotations

import numpy as np

from edgeopt.ptq.gptq import Wide

SHARES = tuple(1 - i / 40 for i in range(21))  # down to one half


def clipped_scale(w: Wide, power: Wide, scale: Wide, limit: int, floor: Wide) -> Wide:
    """The best scale [groups, out] between `scale` and half of it, but not below `floor` [groups, out].

    w: [groups, out, in]; power: E[x^2], [groups, in].
    """
    best, found = np.full(scale.shape, np.inf), scale.copy()
    for share in SHARES:
        s = np.maximum(share * scale, np.minimum(floor, scale))
        q = s[:, :, None] * np.clip(np.rint(w / s[:, :, None]), -limit, limit)
        error = np.einsum("goi,gi->go", (w - q) ** 2, power)
        better = error < best
        best, found = np.where(better, error, best), np.where(better, s, found)
    return found
