"""Sizes that an exporter computes at run time although they are the same for every input, made constants. Which are fixed is
seen on two feeds whose free dimensions all differ, among the values that follow from shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.ops import constant

Numbers = Mapping[str, NDArray[np.int64]]
Known = Mapping[str, list[int | None]]  # the elements of a value, None where they vary


def of_shapes(model: ir.Model) -> Set[ir.Value]:
    """The values that follow from shapes and constants alone."""
    found: set[ir.Value] = set()
    for node in model.graph:
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type == "Shape" or (
            inputs and any(v in found for v in inputs) and all(v in found or constant(v) for v in inputs)
        ):
            found.update(node.outputs)
    return found


def known(model: ir.Model, one: Numbers, other: Numbers) -> Known:
    """The elements of what follows from shapes that are the same on two feeds; one, other: whole numbers on either."""
    names = {str(v.name) for v in of_shapes(model)}
    return {
        name: [int(a) if a == b else None for a, b in zip(one[name].reshape(-1), other[name].reshape(-1), strict=True)]
        for name in names & one.keys() & other.keys()
        if one[name].shape == other[name].shape
    }


def static_sizes(model: ir.Model, numbers: Known, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """A clone of `model` with constants in the place of what is all known; `model` itself where nothing is."""
    copy, changed = model.clone(), False
    for node in list(copy.graph):
        found = [numbers.get(str(v.name), [None]) for v in node.outputs]
        if (
            node.op_type != "Shape"
            and len(found) == 1
            and None not in found[0]
            and not node.outputs[0].is_graph_output()
        ):
            _constant(copy, node, np.array(found[0], np.int64).reshape(shapes[str(node.outputs[0].name)]))
            changed = True
    return copy if changed else model


def _constant(model: ir.Model, node: ir.Node, content: NDArray[np.int64]) -> None:
    """Put `content` in the place of the only output of `node`."""
    out = node.outputs[0]
    name = f"{out.name}/fixed"
    tensor = ir.tensor(content, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(content.shape), const_value=tensor)
    model.graph.register_initializer(value)
    out.replace_all_uses_with(value)
    model.graph.remove(node, safe=True)
