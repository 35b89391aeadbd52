"""A quantized model whose inputs and outputs are integers themselves: the QuantizeLinear behind an input and the
DequantizeLinear before an output are left to who calls it.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeopt.graph.edit import DTYPES, Names, drop_unused
from edgeopt.graph.ops import constant
from edgeopt.numbers.grid import QParams
from edgeopt.passes.qdq import params_of


def integer_ends(model: ir.Model) -> tuple[ir.Model, Mapping[str, QParams], Mapping[str, QParams]]:
    """(a clone of `model` with integers at its ends, the grid of each input and of each output that is so now).

    An input stays as it is where not all of its readers quantize it, on one grid; an output where it is not the output
    of a DequantizeLinear with one scale.
    """
    copy = model.clone()
    names = Names(copy)
    inputs = {name: p for v in copy.graph.inputs if (p := _into(v)) is not None and (name := str(v.name))}
    for i, value in enumerate(copy.graph.inputs):
        if value.name not in inputs:
            continue
        first, *others = [u.node for u in tuple(value.uses())]
        made = first.outputs[0]
        for q in others:
            q.outputs[0].replace_all_uses_with(made)
        kind = DTYPES[inputs[str(value.name)].qtype.dtype]
        new = ir.Value(name=value.name, type=ir.TensorType(kind), shape=value.shape)
        made.replace_all_uses_with(new)
        value.name = names.value(f"{value.name}_real")
        copy.graph.remove([first, *others], safe=True)
        copy.graph.inputs[i] = new
    outputs = dict[str, QParams]()
    for i, value in enumerate(copy.graph.outputs):
        dq = value.producer()
        if dq is None or not _readable(dq) or dq.op_type != "DequantizeLinear" or value in copy.graph.outputs[:i]:
            continue
        integers = dq.inputs[0]
        if integers is None or integers.is_graph_input() or integers.is_graph_output() or constant(integers):
            continue
        outputs[str(value.name)] = params_of(dq)
        name = str(value.name)
        value.name = names.value(f"{name}_real")
        integers.name = name
        integers.shape = integers.shape or value.shape
        integers.type = ir.TensorType(DTYPES[outputs[name].qtype.dtype])
        copy.graph.outputs[i] = integers
        if not value.uses():
            copy.graph.remove(dq, safe=True)
    drop_unused(copy)
    return copy, inputs, outputs


def _into(value: ir.Value) -> QParams | None:
    """The one grid onto which all readers of an input quantize it; None if there is none, or it has a default."""
    readers = [u.node for u in value.uses()]
    inside = all(n.graph is value.graph and n.op_type == "QuantizeLinear" and _readable(n) for n in readers)
    if value.is_graph_output() or value.const_value is not None or not readers or not inside:
        return None
    first, *others = [params_of(n) for n in readers]
    same = all((g.scale, g.zero_point, g.qtype) == (first.scale, first.zero_point, first.qtype) for g in others)
    return first if same and not any(n.outputs[0].is_graph_output() for n in readers) else None


def _readable(node: ir.Node) -> bool:
    """Whether the grid of a QuantizeLinear or DequantizeLinear is told by constants, and is one for all values."""
    grid = node.inputs[1:3]
    return len(grid) == 2 and all(constant(v) and v is not None and _scalar(v) for v in grid)


def _scalar(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 0
