"""Max and Min with a constant number are Clip, which integer nodes before it take into the grid of their output:

Max(x, c) = Clip(x, min = c)        Min(x, c) = Clip(x, max = c)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant, scalar

_LARGEST = 1e30  # bounds beyond keep other passes from moving nodes across


def clips(model: ir.Model) -> ir.Model:
    """A clone in which every Max and Min of a float32 value and a constant number is a Clip; the model itself if it has
    none.
    """
    if not any(_bounded(n) is not None for n in model.graph):
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        found = _bounded(node)
        if found is None:
            continue
        x, number = found
        bound = initializer(copy, names, f"{node.name}_bound", np.asarray(number, np.float32))
        inputs = [x, bound] if node.op_type == "Max" else [x, None, bound]
        clip = make(names, "Clip", inputs, f"{node.name}_Clip")
        copy.graph.insert_before(node, clip)
        take_over(copy.graph, node, clip.outputs[0])
    drop_unused(copy)
    return copy


def _bounded(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, c) of `node` = Max(x, c) or Min(x, c) with a constant number c."""
    if node.op_type not in ("Max", "Min") or node.domain or len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, tuple(reversed(node.inputs))):
        number = scalar(c)
        if number is None or x is None or c is None or constant(x) or c.dtype != ir.DataType.FLOAT:
            continue
        if array(c).ndim <= (0 if x.shape is None else x.shape.rank()):
            return (x, number) if abs(number) < _LARGEST else None
    return None
