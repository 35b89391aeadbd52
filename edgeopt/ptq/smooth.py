"""SmoothQuant: move large activation ranges into the weights that read the activations.

Xiao et al. 2022, arXiv:2211.10438, equation 4. For input channel j of the layers that read a value,

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),    X' = X / s,   W' = W s

with 1 / s folded into the constants of the node that produces the value: a normalization, a product or a convolution.
alpha = 1 gives all channels of X the same range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.passes.rescale import Boundary, Wide, allowed, boundaries, read, rescaled
from edgeopt.ptq.equalize import clipped
from edgeopt.ptq.peaks import Sample, peaks

_MOST = 1e4


def factors(x: Wide, w: Wide, alpha: float) -> Wide:
    """Factors s [channels] for peaks |X_j| and |W_j| [channels], with geometric mean 1; 1 where either peak is 0."""
    live = (x > 0) & (w > 0)
    s = np.where(live, x, 1.0) ** alpha / np.where(live, w, 1.0) ** (1 - alpha)
    if live.any():
        s = s / np.exp(np.log(s[live]).mean())
    return np.where(live, np.clip(s, 1 / _MOST, _MOST), 1.0)


def _apart(found: Sequence[Boundary]) -> list[Boundary]:
    """The boundaries in `found` without those that share a reader with an earlier one (nested producers)."""
    taken: set[str | None] = set()
    kept = []
    for b in found:
        if not taken & {n.name for n in b.readers}:
            kept.append(b)
            taken |= {n.name for n in b.readers}
    return kept


def smoothed(model: ir.Model, samples: Sequence[Sample], alpha: float = 0.5) -> ir.Model:
    """A clone of `model` with smoothed layer inputs, or `model` itself if there is nothing to smooth.

    samples: give the peaks of the activations.
    """
    found = _apart(boundaries(model))
    if not found:
        return model
    inputs = {str(n.inputs[0].name): b.axis for b in found for n in b.readers if n.inputs[0] is not None}
    seen = peaks(model, inputs | clipped(found), samples)
    highest = {name: p.highest for name, p in seen.items()}
    total = {}
    for b in found:
        x = np.max([seen[str(n.inputs[0].name)].absolute for n in b.readers if n.inputs[0] is not None], axis=0)
        total[b.value] = allowed(factors(x, np.max([read(n) for n in b.readers], axis=0), alpha), b, highest)
    return rescaled(model, total)
