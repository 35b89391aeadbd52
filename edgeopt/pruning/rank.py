"""Low rank: a matrix becomes the product of two narrower ones, a convolution one of fewer outputs and a 1x1 behind it.

Of W [out, in] and columns x with E[x x^T] = S S^T, the nearest product of rank r by E |W x - W' x|^2 comes from the
singular values of W S (data whitening, Wang et al. 2024, SVD-LLM, arXiv:2403.07378); without data, S = 1:

    W S = U s V^T,   W' = (U_r sqrt(s_r)) (sqrt(s_r) V_r^T S^-1)

A component is worth its share of s^2 in its layer per parameter, out + in; those of the greatest worth stay, over all
layers. A layer whose product would not be smaller stays whole.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed
from edgeopt.errors import ModelError, UsageError
from edgeopt.graph.edit import Names, drop_unused, initializer, node
from edgeopt.graph.ops import channel_axis, weight_of
from edgeopt.pruning.width import MULTIPLE
from edgeopt.ptq.moments import Layer, LayerMoments, Sample, gather, layers, name, parts, rows

Wide = NDArray[np.float64]
_RAM = 1 << 30  # bytes of moments at a time; of a layer that needs more, nothing is known


@dataclass(frozen=True)
class _Factors:
    """b [out, n] and a [n, in], components in order of their singular values `s` [n]."""

    node: ir.Node
    b: Wide
    a: Wide
    s: Wide

    @property
    def sizes(self) -> tuple[int, int]:
        """(out + in, out in): parameters a component, and of the whole."""
        out, n = len(self.b), self.a.shape[1]
        return out + n, out * n

    @cached_property
    def worth(self) -> Wide:
        """Of each component, the share of s^2 per parameter."""
        return np.asarray(self.s**2 / max(float((self.s**2).sum()), 1e-30) / self.sizes[0])

    def rank(self, least: float) -> int:
        """How many components are worth at least `least`, up to a multiple of `MULTIPLE`."""
        return max(1, math.ceil(int((self.worth >= least).sum()) / MULTIPLE)) * MULTIPLE

    def left(self, least: float) -> int:
        """The parameters that are left at the rank of `least`."""
        one, whole = self.sizes
        return min(one * self.rank(least), whole)


def low_rank(
    model: ir.Model, share: float, feeds: Sequence[Feed], kept: frozenset[str]
) -> tuple[ir.Model, dict[str, tuple[int, int]]]:
    """(`model` with a share `share` of the parameters of its matrices and convolutions, ranks before and after by
    layer); feeds: samples to whiten by, maybe none.

    Raises:
        ModelError: no layer could be a product. UsageError: no ranks are so few.
    """
    copy = model.clone()
    free = [n for n in copy.graph if n.name not in kept and n.attributes.get_int("group", 1) == 1]
    found = [x for x in layers(copy, frozenset(str(n.name) for n in free)) if len(x) == 1 and _fits(x)]
    factors = [f for f in _all_factors(copy, found, feeds) if f.left(np.inf) < f.sizes[1]]
    if not factors:
        raise ModelError(
            "--rank: no matrix or convolution could be the product of two smaller ones (tied and grouped weights stay)"
        )
    least = _least(factors, share)
    names, ranks = Names(copy), dict[str, tuple[int, int]]()
    for f in factors:
        rank = f.rank(least)
        if f.left(least) < f.sizes[1]:
            ranks[str(f.node.name)] = len(f.s), rank
            _split(copy, names, f, rank)
    copy.graph.sort()
    drop_unused(copy)
    return copy, ranks


def _fits(layer: Layer) -> bool:
    """Whether the weight is float32, and nothing but the one node reads it."""
    weight = weight_of(layer[0])
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return False
    return len(weight.uses()) == 1 and not weight.is_graph_output()


def _all_factors(model: ir.Model, found: Sequence[Layer], feeds: Sequence[Feed]) -> list[_Factors]:
    """The factors of each layer, whitened by what it reads of `feeds`, if there are any."""
    samples: list[Sample] = [(str(i), partial(dict, feed)) for i, feed in enumerate(feeds)]
    some, large = parts(found, _RAM, _RAM, {}) if feeds else ([], list(found))
    factors = [_factors(layer, None) for layer in large]
    for part in some:
        seen = gather(model, part, samples)
        factors += [_factors(layer, seen.get(name(layer))) for layer in part]
    return factors


def _factors(layer: Layer, moments: LayerMoments | None) -> _Factors:
    w = rows(layer[0])[0].astype(np.float64)
    h = None if moments is None else _shrunk(moments)
    if h is None:
        u, s, v = np.linalg.svd(w, full_matrices=False)
    else:
        values, q = np.linalg.eigh(h)
        root = np.sqrt(np.maximum(values, 0))
        u, s, v = np.linalg.svd(_blockwise(w, q * root[:, None, :]), full_matrices=False)
        v = _blockwise(v, (q / root[:, None, :]).transpose(0, 2, 1))
    return _Factors(layer[0], u * np.sqrt(s), np.sqrt(s)[:, None] * v, s)


def _shrunk(moments: LayerMoments) -> Wide | None:
    """E[x x^T], in blocks, moved towards a multiple of the identity by how few columns tell it (as by a prior worth as
    many columns as there are inputs); None where a block was always zero, so that nothing is told.
    """
    h = moments.covariance([False]).astype(np.float64)
    size = h.shape[-1]
    level = np.trace(h, axis1=1, axis2=2)[:, None, None] / size
    if not level.all():
        return None
    prior = size / (size + moments.count)
    return np.asarray((1 - prior) * h + prior * level * np.eye(size))


def _blockwise(w: Wide, m: Wide) -> Wide:
    """`w` [n, in] times the matrix with the blocks `m` on its diagonal."""
    pieces = np.split(w, len(m), axis=1)
    return np.concatenate([piece @ block for piece, block in zip(pieces, m, strict=True)], axis=1)


def _least(factors: Sequence[_Factors], share: float) -> float:
    """The smallest worth at which a share `share` of the parameters stays."""
    whole = sum(f.sizes[1] for f in factors)
    levels = np.append(np.unique(np.concatenate([f.worth for f in factors])), np.inf)

    def left(level: float) -> float:
        return sum(f.left(level) for f in factors) / whole

    if left(np.inf) > share:
        raise UsageError(f"--rank {share:g}: no ranks are so few; the least is {math.ceil(100 * left(np.inf)) / 100:g}")
    return float(levels[bisect_left(levels, -share, key=lambda level: -left(level))])


def _split(model: ir.Model, names: Names, f: _Factors, rank: int) -> None:
    """Put the first factor before the layer, which keeps its name, its bias and the second."""
    layer, weight = f.node, weight_of(f.node)
    assert weight is not None
    a, b = f.a[:rank].astype(np.float32), f.b[:, :rank].astype(np.float32)
    shape = weight.const_value.shape.numpy() if weight.const_value is not None else ()
    first, second = f"{weight.name}_in", f"{weight.name}_out"
    if layer.op_type == "Conv":
        moved = [v for k, v in layer.attributes.items() if k != "group"]
        inner = initializer(model, names, first, a.reshape(rank, *shape[1:]))
        made = node(names, "Conv", [layer.inputs[0], inner], f"{layer.name}_in", moved)
        layer.attributes.clear()
        outer = initializer(model, names, second, b.reshape(len(b), rank, *(1 for _ in shape[2:])))
    else:
        inner = initializer(model, names, first, np.ascontiguousarray(a.T))
        made = node(names, "MatMul", [layer.inputs[0], inner], f"{layer.name}_in")
        turned = b if channel_axis(layer) == 0 else np.ascontiguousarray(b.T)
        outer = initializer(model, names, second, turned)
    model.graph.append(made)
    layer.replace_input_with(0, made.outputs[0])
    layer.replace_input_with(1, outer)
