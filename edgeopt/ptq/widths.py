"""Activations of two widths in one network, for devices that compute in either: values whose grid is wide, and
conversions where a node reads a value of the other width.

A node computes in the width of its output. Where it reads another, an Identity of the value carries a grid of the
node's width over the same range; once grids are written, it is a QuantizeLinear behind a DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeopt.graph.edit import Names, node
from edgeopt.graph.ops import activations
from edgeopt.graph.plan import Plan
from edgeopt.numbers.grid import QParams, choose
from edgeopt.ptq.place import outputs_of


def converted(model: ir.Model, plan: Plan, activation: Mapping[str, QParams]) -> tuple[ir.Model, Mapping[str, QParams]]:
    """(a clone of `model` with an Identity before each integer node that reads a value of another width than that of
    its output, `activation` with the grids of their outputs).
    """
    copy = model.clone()
    names, found = Names(copy), dict(activation)
    made = dict[tuple[str, str], ir.Value]()
    for reader in tuple(copy.graph):
        own = found.get(str(outputs_of(reader, plan.clamps)[0].name)) if reader.name in plan.integer else None
        if own is None:
            continue
        for position, value in activations(reader):
            name, kind = str(value.name), own.qtype
            grid = found.get(name)
            if grid is None or grid.qtype.dtype == kind.dtype:
                continue
            if (name, kind.dtype) not in made:
                identity = node(names, "Identity", [value], f"{name}_{kind.dtype}")
                out = identity.outputs[0]
                out.type, out.shape = value.type, value.shape
                copy.graph.append(identity)
                made[name, kind.dtype] = out
                found[str(out.name)] = choose(*grid.range, kind)
            reader.replace_input_with(position, made[name, kind.dtype])
    copy.graph.sort()
    return copy, found


def without_identities(model: ir.Model) -> ir.Model:
    """A clone in which a value goes from one grid to the other without the Identity between them."""
    copy = model.clone()
    for identity in tuple(copy.graph):
        value = identity.inputs[0] if identity.op_type == "Identity" else None
        readers = {u.node.op_type for u in identity.outputs[0].uses()}
        if value is not None and readers == {"QuantizeLinear"} and not identity.outputs[0].is_graph_output():
            identity.outputs[0].replace_all_uses_with(value)
            copy.graph.remove(identity, safe=True)
    return copy
