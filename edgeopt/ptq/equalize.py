"""Cross-layer equalization: balance the weight ranges of neighbouring layers for each channel.

Nagel et al. 2019, arXiv:1906.04721, equations 9-11. With r1_i the range of the weights that produce channel i and r2_i
of those that read it,

    s_i = sqrt(r1_i r2_i) / r2_i,    W1' = W1 / s,   W2' = W2 s

makes both ranges sqrt(r1_i r2_i); this is repeated over all pairs until it converges. Clip is treated differently from
the paper: ReLU6 does not become Relu, but a channel that reaches the bound on the samples keeps its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.passes.rescale import Boundary, Wide, allowed, boundaries, read, rescaled, written
from edgeopt.ptq.peaks import Sample, peaks

_SWEEPS = 30
_STILL = 0.01  # converged when no natural logarithm of a factor changes by more
_MOST = 1e3  # largest total factor of a channel


def factors(r1: Wide, r2: Wide) -> Wide:
    """Factors s [channels] for the ranges r1, r2 [channels]; 1 where either range is 0."""
    live = (r1 > 0) & (r2 > 0)
    return np.where(live, np.sqrt(np.where(live, r1, 1.0) / np.where(live, r2, 1.0)), 1.0)


def equalized(model: ir.Model, samples: Sequence[Sample]) -> ir.Model:
    """A clone of `model` with equalized layers, or `model` itself if it has no pair of layers to equalize.

    samples: show which channels reach the bound of a Clip.
    """
    found = [b for b in boundaries(model) if b.producer.op_type in ("Conv", "Gemm", "MatMul")]
    if not found:
        return model
    highest = {name: p.highest for name, p in peaks(model, clipped(found), samples).items()}
    total = {b.value: np.ones(b.channels) for b in found}
    result = model
    for _ in range(_SWEEPS):
        moved = 0.0
        for b in (b for b in boundaries(result) if b.value in total):
            s = factors(written(b.producer), np.max([read(n) for n in b.readers], axis=0)) * total[b.value]
            s = allowed(np.clip(s, 1 / _MOST, _MOST), b, highest)
            moved = max(moved, float(np.abs(np.log(s / total[b.value])).max()))
            total[b.value] = s
        result = rescaled(model, total)
        if moved < _STILL:
            break
    return result


def clipped(found: Sequence[Boundary]) -> dict[str, int]:
    """The inputs of the Clips in `found`, with the axis of their channels."""
    return {value: b.axis for b in found for value, _ in b.clips}
