"""Write a quantization plan into the graph: `insert_qdq` puts Q/DQ pairs in, `fold_weights` turns a constant's Q into
integers.

A value that an integer node makes is quantized for every reader; a value that stays float inside is quantized only for
its integer readers, so that float readers lose nothing. Biases become int32 behind a DequantizeLinear at once, because
QuantizeLinear has no 32-bit output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import OPS
from edgeopt.graph.plan import Plan
from edgeopt.numbers.grid import STORAGE, QParams, QType, quantize

Use = tuple[ir.Node, int]  # a reader and the position of its input
TYPES = {t.name.lower(): t for t in ir.DataType}


def insert_qdq(model: ir.Model, plan: Plan, params: Mapping[str, QParams]) -> ir.Model:
    """A clone of `model` with a Q/DQ pair on every value of `params` where the plan's integer nodes need it; clamps
    taken over by a grid are gone.
    """
    copy = model.clone()
    nodes = {str(n.name): n for n in copy.graph}
    for name in plan.clamps:
        _bypass(nodes[name])
    made = {str(v.name): str(n.name) for n in copy.graph if n.name in plan.integer for v in n.outputs}
    values = {str(v.name): v for v in _values(copy)}
    for name, p in params.items():
        value = values[name]
        if p.qtype.dtype == "int32":
            dequantized_constant(copy, value, p, tuple(value.uses()), name)
        else:
            _pair(copy, value, p, plan, made)
    copy.graph.sort()
    return copy


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _bypass(clamp: ir.Node) -> None:
    """Take `clamp` out; its producer's output takes its name, type and readers."""
    before, after = clamp.inputs[0], clamp.outputs[0]
    assert before is not None and clamp.graph is not None
    name, graph = str(after.name), clamp.graph
    before.type, before.shape = after.type or before.type, after.shape or before.shape
    after.replace_all_uses_with(before, replace_graph_outputs=True)
    graph.remove(clamp, safe=True)
    before.name = name


def _constant(model: ir.Model, name: str, array: np.ndarray, dtype: str) -> ir.Value:
    """The initializer called `name`, made if it is not there."""
    kind = TYPES[dtype]
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.Tensor(array.astype(kind.numpy()), dtype=kind, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _attributes(p: QParams) -> list[ir.Attr]:
    attributes = [ir.AttrInt64("axis", p.axis)] if p.axis is not None else []
    return attributes + ([ir.AttrInt64("block_size", p.block)] if p.block is not None else [])


def _grid(model: ir.Model, name: str, p: QParams) -> list[ir.Value]:
    scale = _constant(model, f"{name}_scale", p.scale, "float")
    return (
        [scale]
        if p.qtype.dtype == "int32"
        else [scale, _constant(model, f"{name}_zero_point", p.zero_point, p.qtype.dtype)]
    )


def dequantized_constant(
    model: ir.Model, value: ir.Value, p: QParams, readers: Sequence[Use], name: str, *, owner: str = ""
) -> None:
    """Let `readers` (all in one graph) read the constant `value` as integers on the grid `p`, stored as `name`; changes
    `model` and leaves it unsorted. owner: tells DequantizeLinear nodes of one constant apart.
    """
    assert value.const_value is not None
    integers = _constant(model, f"{name}_quantized", quantize(value.const_value.numpy(), p), p.qtype.dtype)
    named = f"{name}{owner}_DequantizeLinear"
    dq = ir.Node("", "DequantizeLinear", [integers, *_grid(model, name, p)], _attributes(p), name=named)
    graph = readers[0][0].graph
    assert graph is not None
    _finish(graph, value, dq, readers)


def drop_unused(model: ir.Model) -> None:
    """Remove initializers that nothing reads, in every graph of `model`; changes it."""
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]


def _pair(model: ir.Model, value: ir.Value, p: QParams, plan: Plan, made: Mapping[str, str]) -> None:
    uses = tuple(value.uses())
    integer_made = str(value.name) in made
    readers = [u for u in uses if integer_made or _takes_grid(u, plan)]
    name, is_output = str(value.name), value.is_graph_output() and integer_made
    grid = _grid(model, name, p)
    q = ir.Node("", "QuantizeLinear", [value, *grid], _attributes(p), name=f"{name}_QuantizeLinear")
    q.outputs[0].name = f"{name}_quantized"
    q.outputs[0].type = ir.TensorType(TYPES[p.qtype.dtype])
    q.outputs[0].shape = value.shape
    dq = ir.Node("", "DequantizeLinear", [q.outputs[0], *grid], _attributes(p), name=f"{name}_DequantizeLinear")
    model.graph.append(q)
    _finish(model.graph, value, dq, readers)
    if is_output:
        outputs = model.graph.outputs
        for i in [i for i, v in enumerate(outputs) if v is value]:
            outputs[i] = dq.outputs[0]
        value.name, dq.outputs[0].name = f"{name}_real", name


def _takes_grid(use: Use, plan: Plan) -> bool:
    node, position = use
    if node.name not in plan.integer:
        return False
    rule = OPS[node.op_type]
    return position in rule.inputs or position in (rule.weight, rule.bias)


def _finish(graph: ir.Graph | ir.Function, value: ir.Value, dq: ir.Node, readers: Sequence[Use]) -> None:
    """Put `dq` into `graph`, unsorted, as what `readers` read in place of `value`."""
    out = dq.outputs[0]
    out.name, out.type, out.shape = f"{dq.name}_output", ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.append(dq)
    for node, position in readers:
        node.replace_input_with(position, out)


def fold_weights(model: ir.Model) -> ir.Model:
    """A clone in which a QuantizeLinear of a constant has become a constant of integers; floats that nothing reads any
    more are gone.
    """
    copy = model.clone()
    for node in tuple(copy.graph):
        source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if source is None or source.const_value is None or not source.is_initializer():
            continue
        q = node.outputs[0]
        p = params_of(node)
        name = str(q.name)
        q.name = f"{name}_old"
        q.replace_all_uses_with(_constant(copy, name, quantize(source.const_value.numpy(), p), p.qtype.dtype))
        copy.graph.remove(node, safe=True)
    drop_unused(copy)
    return copy


def params_of(node: ir.Node) -> QParams:
    """The grid that a QuantizeLinear or DequantizeLinear with constant scale and zero point states."""
    scale, zero_point = node.inputs[1], node.inputs[2]
    assert (
        scale is not None
        and zero_point is not None
        and scale.const_value is not None
        and zero_point.const_value is not None
    )
    dtype = zero_point.const_value.dtype.name.lower()
    low, high = STORAGE[dtype]
    axis = node.attributes.get_int("axis", 1) if scale.const_value.shape.rank() else None
    block = node.attributes.get_int("block_size", 0) or None
    return QParams(
        scale.const_value.numpy(), zero_point.const_value.numpy(), QType(dtype, low, high, symmetric=False), axis, block
    )
