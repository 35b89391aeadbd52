"""Second moments of the inputs of integer layers in the float model, used to round the weights.

    H = E[x x^T]   and the mean of x

over columns x: the inputs of one output element of a MatMul, Gemm or Conv (a patch). Some positions of each sample are
chosen at random with a fixed seed. Moments are stored as sums, so that they can be added; they are added in the order
of the samples, so that the results are reproducible to the last bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.graph.ops import activations, channel_axis, weight_of
from edgeopt.hardware.host import cores
from edgeopt.runtime.session import Feed, open_session, with_outputs

POSITIONS = 128
_FEW = 32  # positions for a depthwise convolution, whose H is small (about ten inputs for each channel)
_ROUNDING = 4  # memory for rounding a layer relative to its moments: damped H, its factor and the inverse of that
_TOGETHER = 8  # samples whose columns are multiplied at once
Sample = tuple[str, Callable[[], Feed]]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class LayerMoments:
    """Moments of `count` columns; h: [groups, in, in] and x: [groups, in] are sums."""

    count: int
    h: Wide
    x: Wide

    @staticmethod
    def of(x: NDArray[np.float32]) -> LayerMoments:
        """The moments of columns [n, groups, in]."""
        a = np.ascontiguousarray(x.transpose(1, 0, 2))
        h, sums = a.transpose(0, 2, 1) @ a, np.ones(len(x), np.float32) @ x.reshape(len(x), -1)
        return LayerMoments(len(x), h.astype(np.float64), sums.reshape(x.shape[1:]).astype(np.float64))

    def merge(self, other: LayerMoments) -> LayerMoments:
        """The moments of the columns of both."""
        return LayerMoments(self.count + other.count, self.h + other.h, self.x + other.x)


def layers(model: ir.Model, integer: frozenset[str]) -> list[ir.Node]:
    """The integer nodes of `model` with constant weights whose input columns can be extracted."""
    return [
        n
        for n in model.graph
        if n.name in integer and n.op_type in ("Conv", "Gemm", "MatMul") and weight_of(n) is not None and _plain(n)
    ]


def _plain(node: ir.Node) -> bool:
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    rank = len(weight.const_value.shape)
    if node.op_type == "Conv":
        return rank > 2
    return rank == 2 and not node.attributes.get_int("transA", 0)


def size_bytes(node: ir.Node) -> int:
    """Size in bytes of the moments of `node`: the sum and the part of one sample."""
    w = rows(node)
    return int(16 * w.shape[0] * w.shape[2] ** 2)


def parts(nodes: Sequence[ir.Node], max_ram: int, largest: int) -> tuple[list[list[ir.Node]], list[ir.Node]]:
    """(`nodes` in parts whose moments fit into `max_ram` bytes, nodes that are too large to be rounded).

    A node is too large if rounding it needs more than `largest` bytes. This limit changes the result, so it must not
    depend on the machine.
    """
    found: list[list[ir.Node]] = []
    large: list[ir.Node] = []
    used = 0
    for node in nodes:
        need = size_bytes(node)
        if need * (1 + _ROUNDING) > largest:
            large.append(node)
            continue
        if not found or used + need > max_ram:
            found.append([])
            used = 0
        found[-1].append(node)
        used += need
    return found, large


def rows(node: ir.Node, w: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The weight of `node`, or another of its shape, as [groups, out, in]."""
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    w = weight.const_value.numpy() if w is None else w
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        return w.reshape(group, w.shape[0] // group, -1)
    return (w if channel_axis(node) == 0 else w.T)[None]


def unrows(node: ir.Node, found: NDArray[np.floating]) -> NDArray[np.float32]:
    """`found` [groups, out, in] reshaped to the shape of the weight of `node`."""
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    shape = weight.const_value.shape.numpy()
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
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    kernel, group = tuple(weight.const_value.shape.numpy()[2:]), node.attributes.get_int("group", 1)
    ones = (1,) * len(kernel)
    strides, dilations = (_ints(node, name, ones) for name in ("strides", "dilations"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, x.shape[2:], reach, strides)
    size = [(x.shape[2 + i] + sum(pads[i]) - reach[i]) // strides[i] + 1 for i in range(len(kernel))]
    total = len(x) * math.prod(size)
    count = min(count, _FEW) if group == x.shape[1] and count == POSITIONS else count
    chosen = rng.integers(0, total, count) if total > count else np.arange(total)
    image, *at = np.unravel_index(chosen, (len(x), *size))
    index: list[Any] = [image.reshape(-1, *ones), slice(None)]
    inside = np.ones((len(chosen), *kernel), bool)
    for i, first in enumerate(at):
        position = first[:, None] * strides[i] - pads[i][0] + np.arange(kernel[i]) * dilations[i]
        position = position.reshape(-1, *(kernel[i] if i == j else 1 for j in range(len(kernel))))
        inside &= (position >= 0) & (position < x.shape[2 + i])
        index.append(np.clip(position, 0, x.shape[2 + i] - 1))
    found = x[tuple(index)] * inside[..., None]  # [n, *kernel, channels]
    return np.ascontiguousarray(np.moveaxis(found, -1, 1)).reshape(len(chosen), group, -1)


def _pads(node: ir.Node, size: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Padding (before, after) on each spatial axis, by `pads` or `auto_pad`."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        given = _ints(node, "pads", (0,) * 2 * len(size)) if automatic == "NOTSET" else (0,) * 2 * len(size)
        return list(zip(given[: len(size)], given[len(size) :], strict=True))
    found = []
    for n, r, s in zip(size, reach, strides, strict=True):
        all_of_it = max(0, (math.ceil(n / s) - 1) * s + r - n)
        half = all_of_it // 2
        found.append((half, all_of_it - half) if automatic == "SAME_UPPER" else (all_of_it - half, half))
    return found


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return tuple(found.as_ints()) if found is not None else default


def gather(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, LayerMoments]:
    """Moments of `nodes` (of `model`) by name, in one pass over the samples."""
    found: dict[str, LayerMoments] = {}
    waiting: list[Mapping[str, NDArray[np.float32]]] = []
    for done, columns_of in enumerate(_columns(model, nodes, samples), 1):
        waiting.append(columns_of)
        if len(waiting) == _TOGETHER or done == len(samples):
            for name in dict.fromkeys(n for c in waiting for n in c):
                with np.errstate(over="ignore", invalid="ignore"):
                    new = LayerMoments.of(np.concatenate([c[name] for c in waiting if name in c]))
                    found[name] = found[name].merge(new) if name in found else new
            waiting = []
        progress(done, len(samples))
    return {name: m for name, m in found.items() if np.isfinite(m.h).all()}  # after overflow only "nearest" is possible


def _columns(
    model: ir.Model, nodes: Sequence[ir.Node], samples: Sequence[Sample]
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """Columns of each node, one mapping for each sample, in order; empty for samples that cannot be read."""
    read = {str(n.name): str(activations(n)[0][1].name) for n in nodes}
    inner = sorted(set(read.values()) - {str(v.name) for v in model.graph.inputs})
    session = open_session(with_outputs(model, inner)) if inner else None

    def work(seed: int) -> dict[str, NDArray[np.float32]]:
        try:
            values = dict(samples[seed][1]())
        except DataError:
            return {}
        if session is not None:
            values |= dict(zip(session.outputs, session.run(values), strict=True))
        return {str(n.name): columns(n, values[read[str(n.name)]], np.random.default_rng(seed)) for n in nodes}

    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[Future[dict[str, NDArray[np.float32]]]] = deque()
        for seed in range(len(samples)):
            ahead.append(pool.submit(work, seed))
            if len(ahead) > cores():  # limits the number of results waiting in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
