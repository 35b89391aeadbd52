"""Second moments of the inputs of integer layers in the float model, used to round the weights.

    H = E[x x^T]   and the mean of x

over columns x: the inputs of one output element of a MatMul, Gemm or Conv (a patch). Of a layer with thousands of
inputs only blocks on the diagonal of H are kept: its memory grows with the square of their number, the time to factor
it with the cube. Some positions of each sample are
chosen at random with a fixed seed. Moments are stored as sums, so that they can be added; they are added in the order
of the samples, so that the results are reproducible to the last bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.graph.facts import above_protobuf
from edgeopt.graph.ops import activations, array, channel_axis, weight_of
from edgeopt.graph.serialization import load, proto_bytes
from edgeopt.hardware.host import cores, threads
from edgeopt.ptq.grids import by_weight
from edgeopt.runtime.session import Feed, reading
from edgeopt.runtime.spread import Spread

POSITIONS = 128
BLOCK = 512  # largest number of inputs that compensate each other's rounding, computed with in float64
_FEW = 16  # positions for a depthwise convolution, whose H is small (about ten inputs for each channel)
_BESIDE = 3  # times the moments of a part are in memory: sums, those of new samples, and one in the making
_ROUNDING = 4  # memory for rounding a layer relative to its moments: damped H, its factor and the inverse of that
_FEW_BLOCKS = 16
_TOGETHER = 2  # samples whose columns are multiplied at once
Sample = tuple[str, Callable[[], Feed]]
Wide = NDArray[np.floating]
Layer = tuple[ir.Node, ...]
"""The integer nodes that read one weight."""


@dataclass(frozen=True)
class LayerMoments:
    """Moments of the columns that the readers of one weight get.

    h: the sum of x x^T over the columns of all readers, float32 [groups, in, in], or in blocks along the diagonal
    [groups * blocks, in / blocks, in / blocks]; counts: columns of each reader; x: the sum of the columns of each
    reader, [readers, groups, in].
    """

    counts: tuple[int, ...]
    h: NDArray[np.float32]
    x: Wide

    @staticmethod
    def of(x: NDArray[np.float32], reader: int = 0, readers: int = 1) -> LayerMoments:
        """The moments of columns [n, groups, in] of one of the readers."""
        blocks = x.shape[1] * blocks_of(x.shape[2])
        a = x.reshape(len(x), blocks, -1).transpose(1, 0, 2)
        h = np.empty((blocks, *a.shape[2:] * 2), np.float32)
        if blocks <= _FEW_BLOCKS:
            for b, into in zip(a, h, strict=True):
                np.matmul(b.T, b, out=into)  # of the product of one matrix with itself numpy computes one half only
        else:
            a = np.ascontiguousarray(a)
            np.matmul(a.transpose(0, 2, 1), a, out=h)
        ones = np.ones(len(x), np.float32)
        sums = np.zeros((readers, *x.shape[1:]))
        sums[reader] = (ones @ x.reshape(len(x), -1)).reshape(x.shape[1:])
        counts = tuple(len(x) if i == reader else 0 for i in range(readers))
        return LayerMoments(counts, h, sums)

    def merge(self, other: LayerMoments) -> LayerMoments:
        """The moments of the columns of both; they take the memory of this one, which is used up."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return LayerMoments(counts, np.add(self.h, other.h, out=self.h), self.x + other.x)

    @property
    def count(self) -> int:
        """The number of columns."""
        return sum(self.counts)

    def mean(self, reader: int) -> Wide:
        """The mean of the columns of one reader, [groups, in]."""
        return np.asarray(self.x[reader] / max(self.counts[reader], 1))

    def covariance(self, centred: Sequence[bool]) -> Wide:
        """E[x x^T] over all columns, where the readers that are `centred` count by their deviations from their own
        mean: shaped as `h`.
        """
        h: Wide = self.h.astype(np.float64) if self.h.shape[-1] <= BLOCK else self.h.copy()
        h /= self.count
        for i, alone in enumerate(centred):
            if alone:
                x = self.mean(i).reshape(len(h), -1)
                h -= self.counts[i] / self.count * (x[:, :, None] * x[:, None, :])
        return h


def blocks_of(size: int) -> int:
    """The number of equal blocks of at most `BLOCK` inputs into which `size` inputs are divided; 1 if none are large
    enough to be worth it.
    """
    fewest = math.ceil(size / BLOCK)
    return next((n for n in range(fewest, 4 * fewest) if size % n == 0), 1)


def layers(model: ir.Model, integer: frozenset[str]) -> list[Layer]:
    """The layers of `model` (untied) whose input columns can be extracted."""
    nodes = [n for n in model.graph if n.name in integer and weight_of(n) is not None]
    return list(by_weight(n for n in nodes if _plain(n)).values())


def name(layer: Layer) -> str:
    """The name of the weight of a layer."""
    weight = weight_of(layer[0])
    assert weight is not None
    return str(weight.name)


def _plain(node: ir.Node) -> bool:
    rank = array(weight_of(node)).ndim
    if node.op_type == "Conv":
        return rank > 2
    return rank == 2 and not node.attributes.get_int("transA", 0)


def size_bytes(layer: Layer) -> int:
    """Size in bytes of the moments of `layer`: the sum and the part of one sample."""
    w = rows(layer[0])
    return int(8 * w.shape[0] * w.shape[2] ** 2 / blocks_of(w.shape[2]))


def parts(
    found: Sequence[Layer], room: int, largest: int, read_bytes: Mapping[str, int]
) -> tuple[list[list[Layer]], list[Layer]]:
    """(layers in parts that can be looked at within `room` bytes, layers that are too large to be rounded).

    A layer is too large if rounding it needs more than `largest` bytes. This limit changes the result, so it must not
    depend on the machine. read_bytes: the size of each value of a sample that layers read, by name.
    """
    parts: list[list[Layer]] = []
    large: list[Layer] = []
    used = 0
    for layer in found:
        moments = size_bytes(layer)
        if moments * (1 + _ROUNDING) > largest:
            large.append(layer)
            continue
        need = _BESIDE * moments + cores() * sum(read_bytes.get(_read_by(n), 0) for n in layer)
        if not parts or used + need > room:
            parts.append([])
            used = 0
        parts[-1].append(layer)
        used += need
    return parts, large


def rows(node: ir.Node, w: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The weight of `node`, or another of its shape, as [groups, out, in]."""
    w = array(weight_of(node)) if w is None else w
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        return w.reshape(group, w.shape[0] // group, -1)
    return (w if channel_axis(node) == 0 else w.T)[None]


def unrows(node: ir.Node, found: NDArray[np.floating]) -> NDArray[np.float32]:
    """`found` [groups, out, in] reshaped to the shape of the weight of `node`."""
    shape = array(weight_of(node)).shape
    if node.op_type != "Conv" and channel_axis(node) != 0:
        return np.ascontiguousarray(found[0].T.astype(np.float32))
    return np.ascontiguousarray(found.reshape(shape).astype(np.float32))


def columns(
    node: ir.Node, x: NDArray[np.float32], rng: np.random.Generator, count: int = POSITIONS
) -> NDArray[np.float32]:
    """Up to `count` columns [n, groups, in] of the input `x` of `node`, at random positions."""
    if node.op_type != "Conv":
        flat = x.reshape(-1, x.shape[-1])
        chosen = rng.permutation(len(flat))[:count] if len(flat) > count else np.arange(len(flat))
        return flat[chosen][:, None, :]
    kernel, group = array(weight_of(node)).shape[2:], node.attributes.get_int("group", 1)
    ones, spatial = (1,) * len(kernel), range(2, x.ndim)
    strides, dilations = (node.attributes.get_ints(name, ones) for name in ("strides", "dilations"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, x.shape[2:], reach, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *pads]) if any(map(any, pads)) else x
    every = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    patches = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(spatial))[every]
    places = (len(x), *patches.shape[2 : x.ndim])
    total = math.prod(places)
    count = min(count, _FEW) if group == x.shape[1] and count == POSITIONS else count
    chosen = rng.integers(0, total, count) if total > count else np.arange(total)
    image, *at = np.unravel_index(chosen, places)
    index: tuple[Any, ...] = (image, slice(None), *at)
    return np.ascontiguousarray(patches[index]).reshape(len(chosen), group, -1)


def _pads(node: ir.Node, size: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Padding (before, after) on each spatial axis, by `pads` or `auto_pad`."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        none = (0,) * 2 * len(size)
        given = node.attributes.get_ints("pads", none) if automatic == "NOTSET" else none
        return list(zip(given[: len(size)], given[len(size) :], strict=True))
    found = []
    for n, r, s in zip(size, reach, strides, strict=True):
        all_of_it = max(0, (math.ceil(n / s) - 1) * s + r - n)
        half = all_of_it // 2
        found.append((half, all_of_it - half) if automatic == "SAME_UPPER" else (all_of_it - half, half))
    return found


def gather(
    model: ir.Model,
    wanted: Sequence[Layer],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda done, total: None,
    by: Spread | None = None,
) -> dict[str, LayerMoments]:
    """Moments of layers (of `model`) by the names of their weights, in one pass over the samples; the same whoever
    takes the columns (`by`).
    """
    found: dict[str, LayerMoments] = {}
    waiting: list[Mapping[str, NDArray[np.float32]]] = []
    nodes = [n for layer in wanted for n in layer]
    elsewhere = by is not None and not above_protobuf(model)
    taken = _taken_by(by, model, nodes, samples) if by and elsewhere else _taken(model, nodes, samples)
    for done, columns_of in enumerate(taken, 1):
        waiting.append(columns_of)
        if len(waiting) == _TOGETHER or done == len(samples):
            for layer in wanted:
                for i, node in enumerate(layer):
                    seen = [c[str(node.name)] for c in waiting if node.name in c]
                    if seen:
                        with np.errstate(over="ignore", invalid="ignore"):
                            new, key = LayerMoments.of(np.concatenate(seen), i, len(layer)), name(layer)
                            found[key] = found[key].merge(new) if key in found else new
            waiting = []
        progress(done, len(samples))
    # after overflow only "nearest" is possible
    return {key: m for key, m in found.items() if m.count and np.isfinite(m.h).all()}


@dataclass(frozen=True)
class _Taking:
    """A model and the nodes whose columns are taken, in bytes that are opened once."""

    proto: bytes
    names: frozenset[str]

    @cached_property
    def columns(self) -> Callable[[int, Feed], Mapping[str, NDArray[np.float32]]]:
        """Gives the columns of a sample by its number."""
        model = load(self.proto)
        return _columns(model, [n for n in model.graph if n.name in self.names])


def _of_sample(taking: _Taking, item: tuple[int, Feed | None]) -> Mapping[str, NDArray[np.float32]]:
    number, feed = item
    return {} if feed is None else taking.columns(number, feed)


def _taken_by(
    by: Spread, model: ir.Model, nodes: Sequence[ir.Node], samples: Sequence[Sample]
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """`_taken` by workers elsewhere; samples are read here."""
    shared = by.shared(_Taking(proto_bytes(model), frozenset(str(n.name) for n in nodes)))
    return by.map(_of_sample, shared, ((i, _read(read)) for i, (_, read) in enumerate(samples)))


def _taken(
    model: ir.Model, nodes: Sequence[ir.Node], samples: Sequence[Sample]
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """Columns of each node, one mapping for each sample, in order; empty for samples that cannot be read."""
    columns_of = _columns(model, nodes)

    def work(number: int) -> Mapping[str, NDArray[np.float32]]:
        feed = _read(samples[number][1])
        return {} if feed is None else columns_of(number, feed)

    with threads(cores()) as pool:
        ahead: deque[Future[Mapping[str, NDArray[np.float32]]]] = deque()
        for number in range(len(samples)):
            ahead.append(pool.submit(work, number))
            if len(ahead) > cores():  # limits the number of results waiting in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read(read: Callable[[], Feed]) -> Feed | None:
    try:
        return read()
    except DataError:
        return None


def _read_by(node: ir.Node) -> str:
    return str(activations(node)[0][1].name)


def _columns(model: ir.Model, nodes: Sequence[ir.Node]) -> Callable[[int, Feed], Mapping[str, NDArray[np.float32]]]:
    """A function that gives the columns of `nodes` by name for a sample, whose number is the seed of their places."""
    read = {str(n.name): _read_by(n) for n in nodes}
    run = reading(model, read.values())

    def columns_of(number: int, feed: Feed) -> Mapping[str, NDArray[np.float32]]:
        values = run(feed)
        there = [n for n in nodes if values[read[str(n.name)]].size]
        return {str(n.name): columns(n, values[read[str(n.name)]], np.random.default_rng(number)) for n in there}

    return columns_of
