"""Replace sizes that are computed at run time but are the same for every input by constants.

Fixed sizes are found by comparing two feeds whose free dimensions all differ, and are followed through the nodes that
compute with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.edit import Names, initializer
from edgeopt.graph.ops import array, constant

Numbers = Mapping[str, NDArray[np.int64]]
Known = Mapping[str, list[int | None]]  # the elements of a value, None where they vary


_SAME = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"})
_BY_ELEMENT = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs", "Where", "Equal", "Less", "Greater",
        "Not", "And", "Or",
    }
)  # fmt: skip
Fixed = NDArray[np.bool_]


def known(model: ir.Model, one: Numbers, other: Numbers) -> Known:
    """The fixed elements of values that depend only on shapes and constants.

    Fixed are sizes that are equal on both feeds, and elements that are moved or computed from fixed elements only. It
    is not enough that a computed element is equal on both feeds, since this can happen by chance.

    one, other: integer values on the first and the second feed.
    """
    fixed: dict[ir.Value, Fixed] = {}
    for node in model.graph:
        inputs = [v for v in node.inputs if v is not None]
        follows = any(v in fixed for v in inputs) and all(v in fixed or constant(v) for v in inputs)
        if len(node.outputs) != 1 or not (follows or node.op_type == "Shape"):
            continue
        name = str(node.outputs[0].name)
        if name not in one or name not in other or one[name].shape != other[name].shape:
            continue
        if node.op_type == "Shape":
            fixed[node.outputs[0]] = one[name] == other[name]
        else:
            fixed[node.outputs[0]] = _mask(node, [fixed.get(v, np.array(True)) for v in inputs], one[name].shape)
    return {
        str(v.name): [
            int(n) if f else None for n, f in zip(one[str(v.name)].reshape(-1), mask.reshape(-1), strict=True)
        ]
        for v, mask in fixed.items()
        if one[str(v.name)].dtype == np.int64
    }


def _mask(node: ir.Node, masks: Sequence[Fixed], shape: tuple[int, ...]) -> Fixed:
    """A mask of the fixed elements of the output of `node`, given the masks of its inputs (True for a constant)."""
    if node.op_type == "Concat":
        return np.concatenate(
            [np.full(array(v).size, True) if constant(v) else m for m, v in zip(masks, node.inputs, strict=True)]
        )
    if node.op_type in _SELECTS:
        return np.asarray(_SELECTS[node.op_type](node, np.atleast_1d(masks[0]))).reshape(shape)
    if node.op_type in _SAME:
        return np.broadcast_to(masks[0], shape) if masks[0].ndim == 0 else masks[0].reshape(shape)
    if node.op_type in _BY_ELEMENT:
        return np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(*masks)), shape)
    return np.full(shape, all(np.all(m) for m in masks))


def _numbers(node: ir.Node, i: int, default: list[int]) -> list[int]:
    value = node.inputs[i] if len(node.inputs) > i else None
    return default if value is None or value.const_value is None else value.const_value.numpy().reshape(-1).tolist()


def _slice(node: ir.Node, mask: Fixed) -> Fixed:
    (start,), (end,), (step,) = (_numbers(node, i, d) for i, d in ((1, [0]), (2, [0]), (4, [1])))
    return (
        mask[slice(start, end, step)] if constant(node.inputs[1]) and constant(node.inputs[2]) else np.zeros_like(mask)
    )


def _gather(node: ir.Node, mask: Fixed) -> Fixed:
    return mask[_numbers(node, 1, [])] if constant(node.inputs[1]) else np.zeros_like(mask)


_SELECTS: Mapping[str, Callable[[ir.Node, Fixed], Fixed]] = {"Slice": _slice, "Gather": _gather}


def static_sizes(model: ir.Model, numbers: Known, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """A clone of `model` with fully known values replaced by constants; `model` itself if there are none."""
    copy, changed = model.clone(), False
    names = Names(copy)
    for node in list(copy.graph):
        found = [numbers.get(str(v.name), [None]) for v in node.outputs]
        if (
            node.op_type != "Shape"
            and len(found) == 1
            and None not in found[0]
            and not node.outputs[0].is_graph_output()
        ):
            out = node.outputs[0]
            content = np.array(found[0], np.int64).reshape(shapes[str(out.name)])
            out.replace_all_uses_with(initializer(copy, names, f"{out.name}/fixed", content))
            copy.graph.remove(node, safe=True)
            changed = True
    return copy if changed else model
