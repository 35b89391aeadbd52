"""Low rank: a matrix becomes the product of two narrower ones, a convolution one of fewer outputs and a 1x1 behind it.

Of W [out, in] and columns x with E[x x^T] = S S^T, the nearest product of rank r by E |W x - W' x|^2 comes from the
singular values of W S (data whitening, Wang et al. 2024, SVD-LLM, arXiv:2403.07378); without data, S = 1:

    W S = U s V^T,   W' = (U_r sqrt(s_r)) (sqrt(s_r) V_r^T S^-1)

A component is worth its share of s^2 in its layer per parameter, out + in; those of the greatest worth stay, over all
layers. A layer whose product would not be smaller stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed
from edgeopt.errors import ModelError, UsageError
from edgeopt.graph.edit import Names, drop_unused, initializer, node
from edgeopt.graph.ops import channel_axis, weight_of
from edgeopt.pruning.width import MULTIPLE
from edgeopt.ptq.moments import Layer, LayerMoments, gather, layers, name, rows

Wide = NDArray[np.float64]
Ranks = Mapping[str, tuple[int, int]]


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

    def rank(self, least: float) -> int:
        """How many components are worth at least `least`, up to a multiple of `MULTIPLE`."""
        worth = self.s**2 / max(float((self.s**2).sum()), 1e-30) / self.sizes[0]
        return max(1, -(-int((worth >= least).sum()) // MULTIPLE)) * MULTIPLE

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
    seen = gather(copy, found, [(str(i), lambda f=f: f) for i, f in enumerate(feeds)]) if feeds else {}  # type: ignore[misc]
    factors = [_factors(layer, seen.get(name(layer))) for layer in found]
    factors = [f for f in factors if f.left(np.inf) < f.sizes[1]]
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
    alone = weight is not None and len(weight.uses()) == 1 and not weight.is_graph_output()
    return alone and weight is not None and weight.dtype == ir.DataType.FLOAT


def _factors(layer: Layer, moments: LayerMoments | None) -> _Factors:
    w = rows(layer[0])[0].astype(np.float64)
    h = None if moments is None else _shrunk(moments)
    if h is None:
        forth = back = np.ones((1, 1, 1))
    else:
        values, q = np.linalg.eigh(h)
        root = np.sqrt(np.maximum(values, 0))
        forth, back = q * root[:, None, :], (q / root[:, None, :]).transpose(0, 2, 1)
    u, s, v = np.linalg.svd(_blockwise(w, forth), full_matrices=False)
    root = np.sqrt(s)
    return _Factors(layer[0], u * root, _blockwise(root[:, None] * v, back), s)


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
    """`w` [n, in] times the matrix with the blocks `m` on its diagonal; a block of one element is the identity."""
    if m.shape[-1] == 1:
        return w
    parts = np.split(w, len(m), axis=1)
    return np.concatenate([part @ block for part, block in zip(parts, m, strict=True)], axis=1)


def _least(factors: Sequence[_Factors], share: float) -> float:
    """The smallest worth at which a share `share` of the parameters stays."""
    whole = sum(f.sizes[1] for f in factors)
    worths = np.unique(np.concatenate([f.s**2 / max((f.s**2).sum(), 1e-30) / f.sizes[0] for f in factors]))
    low, high = 0, len(worths)  # of the largest worth above all, each layer keeps the fewest
    levels = np.append(worths, np.inf)
    if sum(f.left(np.inf) for f in factors) > share * whole:
        few = math.ceil(100 * sum(f.left(np.inf) for f in factors) / whole) / 100
        raise UsageError(f"--rank {share:g}: no ranks are so few; the least is {few:g}")
    while low < high:
        middle = (low + high) // 2
        if sum(f.left(levels[middle]) for f in factors) <= share * whole:
            high = middle
        else:
            low = middle + 1
    return float(levels[low])


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
