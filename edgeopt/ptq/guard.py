"""Find and correct integer weights of a finished QDQ model whose sums could saturate on CPUs without VNNI.

These CPUs add pairs of 8-bit products in 16 bits. `guarded` changes the weights so that no pair can saturate for any
input; this corrects weights that training moved beyond the limit set by `ptq.grids`. `guards` are the same for integers
that change while they are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.ops import PRODUCTS
from edgeopt.numbers.grid import largest_pair
from edgeopt.ptq.grids import PAIR, reduction_rows, within_pairs

Integers = NDArray[np.integer[Any]]


def unguarded(model: ir.Model) -> list[str]:
    """The nodes of `model` in which a pair of products can saturate: some pair of weights sums to more than `PAIR`."""
    return [
        str(node.name)
        for node, _, q, axis, _ in _weights(model)
        if largest_pair(reduction_rows(q.astype(np.float32), node.op_type, axis)).max(initial=0.0) > PAIR
    ]


def guarded(model: ir.Model) -> ir.Model:
    """A clone with weights reduced so that no pair of products can saturate."""
    copy = model.clone()
    for node, weight, q, axis, order in _weights(copy):
        kept = within_pairs(q, node.op_type, axis).transpose(np.argsort(order))
        weight.const_value = ir.tensor(np.ascontiguousarray(kept), name=weight.name)
    return copy


def guards(model: ir.Model) -> dict[str, Callable[[Integers], Integers]]:
    """What `guarded` does to each weight, by its name; not for tied weights, which are read through a Transpose."""
    return {
        str(weight.name): partial(within_pairs, op_type=node.op_type, axis=axis)
        for node, weight, _, axis, order in _weights(model)
        if list(order) == sorted(order)
    }


def _weights(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, np.ndarray, int, Sequence[int]]]:
    """(node, its int8 weight, the integers as the node reads them, their channel axis, the order of the weight's axes
    in them) of each product that can saturate; depthwise kernels cannot, since they add in 32 bits. A tied weight is
    read through a Transpose.
    """
    for node in model.graph:
        value = node.inputs[1] if node.op_type in PRODUCTS else None
        dequantize = value.producer() if value is not None else None
        weight = dequantize.inputs[0] if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
        turn = weight.producer() if weight is not None else None
        if turn is not None and turn.op_type == "Transpose":
            weight = turn.inputs[0]
        if dequantize is None or weight is None or weight.const_value is None:
            continue
        q = weight.const_value.numpy()
        order = range(q.ndim) if turn is None else turn.attributes.get_ints("perm", range(q.ndim)[::-1])
        q = q.transpose(order)
        axis = {"Conv": 0, "Gemm": 1 - node.attributes.get_int("transB", 0)}.get(node.op_type, q.ndim - 1)
        depthwise = node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1 and q.shape[1] == 1
        if q.dtype == np.int8 and not depthwise:
            yield node, weight, q, axis, order
