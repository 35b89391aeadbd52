"""Choose the weights and biases of integer layers for the smallest output error, given the layers' inputs.

GPTQ rounds the weights using H = E[x x^T], centred if the layer has a bias, since the bias corrects the mean:

    b' = b + (W - W_q) E[x]          bias correction, Nagel et al. 2019, arXiv:1906.04721, section 4.2

Each layer compensates only its own rounding, not errors in its inputs: all layers are processed at once, and if each of
them corrected the same shift of the mean, it would be corrected several times. `refit` goes layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.ops import channel_axis, cost_class, weight_of
from edgeopt.hardware.host import cores, threads
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import QParams, dequantize, quantize
from edgeopt.ptq.adaround import adaround
from edgeopt.ptq.clipping import clipped_scale
from edgeopt.ptq.gptq import Wide, error, gptq, per_weight
from edgeopt.ptq.grids import bias_grids, by_weight, channel_bias, scale_floor, within_pairs
from edgeopt.ptq.moments import Layer, LayerMoments, name, rows, size_bytes, unrows
from edgeopt.ptq.stochastic import stochastic

_LARGE = 32 << 20  # bytes of moments
Rounder = Callable[..., Wide]  # (w, h, scale, largest integer, smallest integer), as `gptq`


def _nearest(w: Wide, h: Wide, scale: Wide, limit: int, low: int | None = None) -> Wide:
    s = per_weight(scale)
    return np.asarray(s * np.clip(np.rint(w / s), -limit if low is None else low, limit))


def _by_chance(w: Wide, h: Wide, scale: Wide, limit: int, low: int | None = None) -> Wide:
    return stochastic(w, scale, limit, np.random.default_rng(0), low)


def _best(w: Wide, h: Wide, scale: Wide, limit: int, low: int | None = None) -> Wide:
    """For each output channel the result of GPTQ, or of AdaRound if its error is smaller."""
    found, other = gptq(w, h, scale, limit, low), adaround(w, h, scale, limit, low)
    behind = error(w - found, h) > error(w - other, h)
    return np.where(behind[..., None], other, found)


ROUNDERS: Mapping[str, Rounder] = {
    "nearest": _nearest,
    "gptq": gptq,
    "adaround": adaround,
    "best": _best,
    "stochastic": _by_chance,
}


def reconstructed(
    model: ir.Model,
    params: Mapping[str, QParams],
    moments: Mapping[str, LayerMoments],
    target: Target,
    rounding: str = "gptq",
    stored: frozenset[str] = frozenset(),
) -> ir.Model:
    """A clone of `model` (untied) whose layers with `moments` have weights on their grids and corrected biases.

    rounding: a name in `ROUNDERS`; stored: nodes that compute in floats, whose sums cannot saturate.
    """
    copy = model.clone()
    found = [layer for layer in by_weight(copy.graph).values() if name(layer) in moments]

    def work(some: list[Layer]) -> None:
        for layer in some:
            saturates = target.grid.saturates and layer[0].name not in stored
            rounded(layer, partial(_own, moments[name(layer)]), params, rounding, saturates=saturates)

    large = [layer for layer in found if size_bytes(layer) > _LARGE]  # one at a time, beside the others
    with threads(cores()) as pool:
        list(pool.map(work, [large, *([x] for x in found if x not in large)]))
    return copy


@dataclass(frozen=True)
class Aim:
    """The target of rounding a layer. w: weights [groups, out, in]; h: second moments [groups, in, in], or their blocks
    on the diagonal [groups * blocks, in / blocks, in / blocks]; before, after: means [groups, in] of what each reader
    gets in the float model and in the quantized model.
    """

    w: Wide
    h: Wide
    before: Sequence[Wide]
    after: Sequence[Wide]


def _own(m: LayerMoments, w: Wide, centred: Sequence[bool]) -> Aim:
    means = [m.mean(i) for i in range(len(m.counts))]
    return Aim(w, m.covariance(centred), means, means)


def rounded(
    layer: Layer,
    aim_of: Callable[[Wide, Sequence[bool]], Aim],
    params: Mapping[str, QParams],
    rounding: str,
    *,
    saturates: bool,
) -> None:
    """Round the weight of one layer to its grid and correct the biases of its readers.

    aim_of: function of the weights, and for each reader of whether it has a bias (then its moments are centred);
    saturates: whether pairs of products must fit into 16 bits.
    """
    node = layer[0]
    weight = weight_of(node)
    assert weight is not None
    w, grid = rows(node).astype(np.float64), params[str(weight.name)]
    aim = aim_of(w, [channel_bias(n) is not None for n in layer])
    blocks = len(aim.h) // len(w)
    scale = _scale(grid, w, blocks)
    q = _joined(ROUNDERS[rounding](_divided(aim.w, blocks), aim.h, scale, grid.qtype.qmax, grid.qtype.qmin), blocks)
    if saturates and cost_class(node) != "Conv.depthwise":
        fixed = within_pairs(quantize(unrows(node, q), grid), node.op_type, channel_axis(node))
        q = rows(node, dequantize(fixed, grid)).astype(np.float64)
    weight.const_value = ir.tensor(unrows(node, q), name=weight.name)
    for reader, before, after in zip(layer, aim.before, aim.after, strict=True):
        bias = channel_bias(reader)
        if bias is None or bias.const_value is None:
            continue
        b = bias.const_value.numpy()
        moved = np.einsum("goi,gi->go", w, before) - np.einsum("goi,gi->go", q, after)
        bias.const_value = ir.tensor((b + moved.reshape(b.shape)).astype(np.float32), name=bias.name)


def _scale(grid: QParams, w: Wide, blocks: int) -> Wide:
    """The scales of `w` [groups, out, in], whose inputs are divided into `blocks`: [groups * blocks, out], or with an
    axis for inputs where the grid has a scale for every few of them.
    """
    if grid.block is None:
        return np.repeat(_by_output(grid.scale, w), blocks, axis=0)
    of_input = np.repeat(grid.scale.astype(np.float64).T[None], grid.block, axis=2)  # of a matrix [in / block, out]
    return _divided(of_input, blocks)


def _divided(w: Wide, blocks: int) -> Wide:
    """[groups, out, in] as [groups * blocks, out, in / blocks]."""
    groups, out, _ = w.shape
    return w.reshape(groups, out, blocks, -1).swapaxes(1, 2).reshape(groups * blocks, out, -1)


def _joined(w: Wide, blocks: int) -> Wide:
    """The inverse of `_divided`."""
    return w.reshape(len(w) // blocks, blocks, *w.shape[1:]).swapaxes(1, 2).reshape(len(w) // blocks, w.shape[1], -1)


def _by_output(scale: NDArray[np.floating], w: Wide) -> Wide:
    """`scale` (a single one, or [channels]) as [groups, out]."""
    return np.broadcast_to(scale.astype(np.float64).reshape(-1), w.shape[0] * w.shape[1]).reshape(w.shape[:2])


def clipped(
    model: ir.Model, params: Mapping[str, QParams], moments: Mapping[str, LayerMoments], target: Target
) -> dict[str, QParams]:
    """`params` with the weight scales that minimize the output error of the layers of `model` (untied), and matching
    bias grids.
    """
    found = dict(params)
    for key, layer in by_weight(model.graph).items():
        if key not in moments:
            continue
        grid, m, w = params[key], moments[key], rows(layer[0]).astype(np.float64)
        if grid.scale.size == 1 or grid.block is not None:
            continue
        floor = scale_floor(layer, params, target)
        power = np.einsum("gii->gi", m.h).reshape(w.shape[0], -1) / m.count
        scale = clipped_scale(w, power, _by_output(grid.scale, w), grid.qtype.qmax, _by_output(floor, w))
        found[key] = replace(grid, scale=scale.reshape(grid.scale.shape).astype(np.float32))
        found |= bias_grids(layer, found, target)
    return found
