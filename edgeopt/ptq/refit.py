"""Refit the weights of one layer after another to inputs computed by the already quantized layers before it.

The float layer computes W x, and the quantized model gives it the input x' = x - d. The weights that best reproduce W x
from x' are those of a ridge regression around W,

    W' = W + W E[d x'^T] (E[x' x'^T] + lambda m I)^-1         m: mean of the diagonal of E[x' x'^T]

with lambda chosen by cross-validation between two halves of the samples, where keeping W is one of the choices: few
samples would overfit. W' is then rounded using E[x' x'^T], and the bias corrects the mean, including its shift between
x and x'. Using the outputs of the float model as targets is the asymmetric calibration of GPTAQ (Li et al. 2025,
arXiv:2504.02692), which has no ridge term and solves column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import itemgetter

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.errors import DataError
from edgeopt.graph.ops import activations
from edgeopt.graph.plan import Plan
from edgeopt.hardware.host import cores, threads
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import QParams
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.passes.shield import shield
from edgeopt.ptq.grids import by_weight
from edgeopt.ptq.moments import Layer, Sample, Wide, columns, name
from edgeopt.ptq.reconstruct import Aim, rounded
from edgeopt.runtime.session import Feed, open_session, with_outputs

_RIDGES = tuple(4.0**k for k in range(6, -4, -1))
_TINY = 1e-30
_TOGETHER = 8  # samples whose columns are multiplied at once


@dataclass(frozen=True)
class Joint:
    """Sums over `count` columns x' of a layer's quantized inputs and their errors d = x - x' (x: the float inputs).

    h: sum of x' x'^T, g: sum of d x'^T, both [groups, in, in]; x: sum of x', d: sum of d, both [groups, in].
    """

    count: int
    h: Wide
    g: Wide
    x: Wide
    d: Wide

    @staticmethod
    def of(reads: NDArray[np.float32], wanted: NDArray[np.float32]) -> Joint:
        """The sums for quantized columns `reads` and float columns `wanted`, both [n, groups, in]."""
        x = np.ascontiguousarray(reads.transpose(1, 0, 2))
        d = np.ascontiguousarray(wanted.transpose(1, 0, 2)) - x
        h, g = x.transpose(0, 2, 1) @ x, d.transpose(0, 2, 1) @ x
        found = (a.astype(np.float64) for a in (h, g, x.sum(1), d.sum(1)))
        return Joint(len(reads), *found)

    def merge(self, other: Joint) -> Joint:
        """The sums over the columns of both."""
        return Joint(self.count + other.count, self.h + other.h, self.g + other.g, self.x + other.x, self.d + other.d)

    def means(self, centred: bool) -> tuple[Wide, Wide]:
        """(E[x' x'^T], E[d x'^T]), with the means subtracted if `centred`."""
        h, g, x, d = self.h / self.count, self.g / self.count, self.x / self.count, self.d / self.count
        return (h - x[:, :, None] * x[:, None, :], g - d[:, :, None] * x[:, None, :]) if centred else (h, g)


def fitted(w: Wide, halves: tuple[Joint, Joint], centred: bool) -> Wide:
    """W' for `w` [groups, out, in]; `w` itself if fitting on one half of the samples does not help on the other."""
    means = [half.means(centred) for half in halves]
    gains = np.zeros(len(_RIDGES))
    for (h, g), other in (means, means[::-1]):
        for i, change in enumerate(_changes(w, h, g, _RIDGES)):
            gains[i] += _gain(w, change, *other)
    best = int(gains.argmax())
    if not gains[best] > 0:
        return w
    (change,) = _changes(w, *halves[0].merge(halves[1]).means(centred), _RIDGES[best : best + 1])
    return w + change


def _changes(w: Wide, h: Wide, g: Wide, ridges: Sequence[float]) -> Iterator[Wide]:
    """W' - W for each ridge."""
    values, vectors = np.linalg.eigh(h)
    along = (w @ g) @ vectors
    unit = np.maximum(np.einsum("gii->gi", h).mean(1), _TINY)
    for ridge in ridges:
        shrunk = along / (np.maximum(values, 0.0) + ridge * unit[:, None])[:, None, :]
        yield shrunk @ vectors.transpose(0, 2, 1)


def _gain(w: Wide, change: Wide, h: Wide, g: Wide) -> float:
    """The decrease of E|W d - change x'|^2 compared with no change."""
    return float(2 * np.sum((w @ g) * change) - np.sum((change @ h) * change))


def refitted(
    model: ir.Model,
    layers: Sequence[Layer],
    plan: Plan,
    params: Mapping[str, QParams],
    samples: Sequence[Sample],
    target: Target,
    rounding: str = "gptq",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ir.Model:
    """A clone of `model` (untied) whose integer `layers` have weights on their grids, each fitted to its inputs in the
    quantized model.

    rounding: a name in `reconstruct.ROUNDERS`.
    """
    made = model.clone()
    names = {name(layer) for layer in layers}
    todo = [layer for key, layer in by_weight(made.graph).items() if key in names]
    for done, layer in enumerate(todo, 1):
        integer = shield(fold_weights(insert_qdq(made, plan, params)))
        halves = [found for node in layer if (found := _halves(node, model, integer, samples)) is not None]
        if len(halves) == len(layer):
            rounded(layer, partial(_aim, halves), params, rounding, saturates=target.grid.saturates)
        progress(done, len(todo))
    return made


def _aim(halves: Sequence[tuple[Joint, Joint]], w: Wide, centred: Sequence[bool]) -> Aim:
    """The aim for a weight whose readers saw `halves`."""
    first, second = (reduce(Joint.merge, half) for half in zip(*halves, strict=True))
    h, _ = first.merge(second).means(all(centred))
    before, after = [], []
    for both in (a.merge(b) for a, b in halves):
        x, d = both.x / both.count, both.d / both.count
        before.append(x + d)
        after.append(x)
    return Aim(fitted(w, (first, second), all(centred)), h, before, after)


def _halves(node: ir.Node, model: ir.Model, integer: ir.Model, samples: Sequence[Sample]) -> tuple[Joint, Joint] | None:
    """Moments of the inputs of `node` in the model `integer` for two halves of the samples; None if a half is empty."""
    position, value = activations(node)[0]
    twin = next(n for n in integer.graph if n.name == node.name).inputs[position]
    assert twin is not None
    of_float, of_integer = _reader(model, str(value.name)), _reader(integer, str(twin.name))

    def read(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        try:
            feed = samples[seed][1]()
        except DataError:
            return None
        reads, wanted = (columns(node, x(feed), np.random.default_rng(seed)) for x in (of_integer, of_float))
        return (reads, wanted) if np.isfinite(reads).all() and np.isfinite(wanted).all() else None

    def work(seeds: range) -> Joint | None:
        seen = [x for seed in seeds if (x := read(seed)) is not None]
        return Joint.of(*(np.concatenate(x) for x in zip(*seen, strict=True))) if seen else None

    size = min(_TOGETHER, -(-len(samples) // 4))
    groups = [range(i, min(i + size, len(samples))) for i in range(0, len(samples), size)] if samples else []
    halves: list[Joint | None] = [None, None]
    with threads(cores()) as pool:
        for i, new in enumerate(pool.map(work, groups)):
            half = halves[i % 2]
            halves[i % 2] = half.merge(new) if half is not None and new is not None else half or new
    first, second = halves
    return None if first is None or second is None else (first, second)


def _reader(model: ir.Model, name: str) -> Callable[[Feed], NDArray[np.float32]]:
    """A function that computes one value of a model for a feed."""
    if any(v.name == name for v in model.graph.inputs):
        return itemgetter(name)
    session = open_session(RemoveUnusedNodesPass()(with_outputs(model, [name])).model)
    return lambda feed: session.run(feed)[0]
