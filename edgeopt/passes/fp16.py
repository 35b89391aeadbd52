"""Convert a model to fp16: half the size on all devices, half the time on devices with fp16 kernels.

Types come from the operator schemas. A float32 tensor bound to a type variable that allows float16 becomes float16; an
input with a fixed type (scales of Resize) keeps its type. A node stays float32 if its schema does not allow float16, if
the caller asks for it, if a constant or a calibrated range exceeds the range of fp16, or if a constant would become 0.
A Cast is inserted where the two types meet, once for each value and graph. The bodies of If, Loop and Scan are
converted as well, but their inputs and outputs keep their types, since the node that contains them expects them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.graph.edit import Names, cast, drop_unused, initializer
from edgeopt.graph.ops import array, bodies, constant

LARGEST = 65504.0
_ROUNDS_TO_0 = 2.0**-25
_DIVIDES = frozenset({"Div", "Log", "Mul"})
_PASSES_ON = frozenset(
    {"Sqrt", "Reciprocal", "Pow", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity"}
    | {"Transpose", "Concat", "Tile", "Slice", "Gather", "Cast", "Flatten", "Neg", "Abs"}
)
_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


@dataclass(frozen=True)
class _Half:
    """A node that computes in fp16: positions of the inputs and outputs that change from float32 to float16."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def fp16(
    model: ir.Model,
    *,
    keep: frozenset[str] = frozenset(),
    io_keep: bool = True,
    peaks: Mapping[str, float] | None = None,
) -> ir.Model:
    """A clone of `model` (canonical, typed) in fp16.

    keep: nodes that stay float32; io_keep: inputs and outputs of the model stay float32; peaks: largest calibrated
    magnitude by value name.
    """
    copy = model.clone()
    behind = _behind_small(copy)
    plan = {
        n: half
        for n in copy.graph.all_nodes()
        if n.name not in keep and n not in behind and (half := _half(n, copy, peaks or {})) is not None
    }
    were_single: set[ir.Value] = set()
    for source in copy.graph.inputs:
        if not io_keep and source.dtype == _SINGLE:
            source.type = ir.TensorType(_HALF)
            were_single.add(source)
    for node, half in plan.items():
        for i in half.outputs:
            were_single.add(node.outputs[i])
            node.outputs[i].type = ir.TensorType(_HALF)
    casts: dict[tuple[int, int], ir.Value] = {}
    names = Names(copy)
    for node in tuple(copy.graph.all_nodes()):
        if node.op_type == "Cast" and not node.domain:
            continue
        half_inputs = plan[node].inputs if node in plan else frozenset()
        for i, value in enumerate(node.inputs):
            if value is not None and (value.dtype == _SINGLE or value in were_single):
                wanted = _HALF if i in half_inputs else _SINGLE
                if value.dtype != wanted:
                    node.replace_input_with(i, _as(copy, names, value, wanted, node, casts))
    for graph in copy.graphs():
        _fix_outputs(graph, names, were_single, keep_types=io_keep or graph is not copy.graph)
    copy.graph.sort()
    drop_unused(copy)
    return copy


def _half(node: ir.Node, model: ir.Model, peaks: Mapping[str, float]) -> _Half | None:
    """How `node` computes in fp16, or None if it stays float32."""
    if node.domain not in ("", "ai.onnx") or bodies(node):
        return None
    if node.op_type == "Cast":
        return _cast(node, peaks)
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""])
    except onnx.defs.SchemaError:
        return None
    variables = {
        c.type_param_str
        for c in schema.type_constraints
        if "tensor(float16)" in c.allowed_type_strs and "tensor(float)" in c.allowed_type_strs
    }
    inputs = frozenset(
        i
        for i, v in enumerate(node.inputs)
        if v is not None and v.dtype == _SINGLE and _formal(schema.inputs, i) in variables
    )
    outputs = frozenset(
        i for i, v in enumerate(node.outputs) if v.dtype == _SINGLE and _formal(schema.outputs, i) in variables
    )
    if not inputs and not outputs:
        return None
    # float32 inputs or outputs of a fixed type are allowed; a type variable that does not allow float16 is not
    bound = {_formal(schema.inputs, i) for i, v in enumerate(node.inputs) if v is not None and v.dtype == _SINGLE}
    bound |= {_formal(schema.outputs, i) for i, v in enumerate(node.outputs) if v.dtype == _SINGLE}
    constraints = {c.type_param_str for c in schema.type_constraints}
    if bound & constraints - variables or not inputs or "dtype" in node.attributes:
        return None
    touched = [node.inputs[i] for i in inputs] + [node.outputs[i] for i in outputs]
    return None if any(_too_large(v, peaks) for v in touched) else _Half(inputs, outputs)


def _cast(node: ir.Node, peaks: Mapping[str, float]) -> _Half | None:
    """Change a Cast to float32 into a Cast to float16, unless its input is float16; the input type is not changed."""
    source = node.inputs[0]
    if node.attributes.get_int("to") != _SINGLE.value or source is None or source.dtype == _HALF:
        return None
    if _too_large(source, peaks) or _too_large(node.outputs[0], peaks):
        return None
    node.attributes["to"] = ir.AttrInt64("to", _HALF.value)
    return _Half(frozenset(), frozenset({0}))


def _formal(formals: object, i: int) -> str:
    """The type string of formal parameter `i`; a variadic last parameter is repeated."""
    listed = list(formals)  # type: ignore[call-overload]
    return str(listed[min(i, len(listed) - 1)].type_str) if listed else ""


def _behind_small(model: ir.Model) -> set[ir.Node]:
    """The nodes with a constant that would become 0, and those that their result goes through until it divides: a bound
    in float32 does not help a division in float16.
    """
    found = {n for n in model.graph.all_nodes() if any(_vanishes(v) for v in n.inputs)}
    pending = list(found)
    while pending:
        node = pending.pop()
        if node.op_type in _DIVIDES:
            continue
        behind = {n for v in node.outputs for n, _ in v.uses() if n.op_type in _PASSES_ON | _DIVIDES} - found
        found |= behind
        pending += behind
    return found


def _vanishes(value: ir.Value | None) -> bool:
    """Whether a constant is not 0 and becomes 0 in fp16: the bound that keeps a division from 0 / 0. Of the many
    elements of a weight some may.
    """
    if value is None or not constant(value) or value.const_value is None:
        return False
    peak = float(np.abs(value.const_value.numpy()).max(initial=0.0))
    return 0 < peak <= _ROUNDS_TO_0


def _too_large(value: ir.Value | None, peaks: Mapping[str, float]) -> bool:
    if value is None:
        return False
    if constant(value) and value.const_value is not None:
        x = value.const_value.numpy()
        return bool(x.size and np.abs(x[np.isfinite(x)]).max(initial=0.0) > LARGEST)
    return peaks.get(str(value.name), 0.0) > LARGEST


def _as(
    model: ir.Model,
    names: Names,
    value: ir.Value,
    wanted: ir.DataType,
    reader: ir.Node,
    casts: dict[tuple[int, int], ir.Value],
) -> ir.Value:
    """`value` converted to the type `wanted`: a converted constant, or the output of a Cast in the reader's graph."""
    graph = reader.graph
    assert graph is not None
    is_constant = constant(value)
    key = (id(value), 0 if is_constant else id(graph))
    if key not in casts:
        name = f"{value.name}_{wanted.name.lower()}" + ("" if is_constant or graph is model.graph else f"_{len(casts)}")
        if is_constant:
            casts[key] = initializer(model, names, name, array(value).astype(wanted.numpy()), wanted)
        else:
            casts[key] = cast(graph, names, value, wanted, name)
    return casts[key]


def _fix_outputs(graph: ir.Graph, names: Names, were_single: set[ir.Value], *, keep_types: bool) -> None:
    """Cast graph outputs that became float16 back to float32 and keep their names."""
    if not keep_types:
        return
    restored: dict[ir.Value, ir.Value] = {}
    for i, value in enumerate(graph.outputs):
        if value in restored:
            graph.outputs[i] = restored[value]
        elif value.dtype == _HALF and not value.is_initializer() and value in were_single:
            name = str(value.name)
            value.name = names.value(f"{name}_float16")
            names.release(name)
            graph.outputs[i] = restored[value] = cast(graph, names, value, _SINGLE, name)
