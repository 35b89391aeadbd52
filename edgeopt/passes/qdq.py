"""Write a quantization plan into the graph: `insert_qdq` inserts Q/DQ pairs, `fold_weights` replaces quantized
constants by integers.

A value produced by an integer node is quantized for all readers; other values are quantized only for their integer
readers, so that float readers lose no accuracy. Biases directly become int32 constants with a DequantizeLinear, because
QuantizeLinear has no 32-bit output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph import raise_opset
from edgeopt.graph.edit import DTYPES, Names, drop_unused, initializer, node, take_over
from edgeopt.graph.ops import array, constant, kernel, pixels
from edgeopt.graph.plan import Plan
from edgeopt.numbers.grid import STORAGE, QParams, QType, quantize

_WIDE_OPSET = 21
Use = tuple[ir.Node, int]  # a reader and the position of its input


def insert_qdq(model: ir.Model, plan: Plan, params: Mapping[str, QParams]) -> ir.Model:
    """A clone of `model` with a Q/DQ pair on every value of `params` where integer nodes of the plan need it; clamps
    that a grid replaces are removed, unless the plan says that they stay. Grids of 16 bits need opset 21, to which an
    older model is raised.

    Raises:
        ModelError: it cannot be raised.
    """
    wide = any(p.qtype.dtype in ("uint16", "int16") for p in params.values())
    copy = (raise_opset(model, _WIDE_OPSET) if wide else model).clone()
    nodes = {str(n.name): n for n in copy.graph}
    for name in () if plan.clamps_stay else plan.clamps:
        before = nodes[name].inputs[0]
        assert before is not None
        take_over(copy.graph, nodes[name], before)
    names = Names(copy)
    makers = plan.integer | (plan.clamps.keys() if plan.clamps_stay else frozenset())
    made = {str(v.name) for n in copy.graph if n.name in makers for v in n.outputs}
    values = {str(v.name): v for v in _values(copy)}
    for name, p in params.items():
        value = values[name]
        if p.qtype.dtype == "int32":
            dequantized_constant(copy, names, value, p, tuple(value.uses()), name)
        else:
            _pair(copy, names, value, p, plan, made=name in made)
    copy.graph.sort()
    return copy


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for n in model.graph:
        yield from n.outputs


def _attributes(p: QParams) -> list[ir.Attr]:
    attributes = [ir.AttrInt64("axis", p.axis)] if p.axis is not None else []
    return attributes + ([ir.AttrInt64("block_size", p.block)] if p.block is not None else [])


def _takes_grid(use: Use, plan: Plan) -> bool:
    reader, position = use
    if reader.name not in plan.integer:
        return False
    op = kernel(reader)[1]
    return position in op.inputs or position in (op.weight, op.bias)


def params_of(q: ir.Node) -> QParams:
    """The grid of a QuantizeLinear or DequantizeLinear with constant scale and zero point."""
    scale, zero_point = (array(v) for v in q.inputs[1:3])
    dtype = zero_point.dtype.name
    low, high = STORAGE[dtype]
    axis = q.attributes.get_int("axis", 1) if scale.ndim else None
    block = q.attributes.get_int("block_size", 0) or None
    return QParams(scale, zero_point, QType(dtype, low, high, symmetric=False), axis, block)


def _grid(model: ir.Model, names: Names, name: str, p: QParams) -> list[ir.Value]:
    scale = initializer(model, names, f"{name}_scale", p.scale, ir.DataType.FLOAT)
    if p.qtype.dtype == "int32":
        return [scale]
    return [scale, initializer(model, names, f"{name}_zero_point", p.zero_point, DTYPES[p.qtype.dtype])]


def dequantized_constant(
    model: ir.Model,
    names: Names,
    value: ir.Value,
    p: QParams,
    readers: Sequence[Use],
    name: str,
    *,
    owner: str = "",
) -> ir.Value:
    """Let `readers` (all in one graph) read the constant `value` from integers on the grid `p` through a
    DequantizeLinear; `model` is changed and left unsorted. Returns the dequantized value.

    name: prefix of the new names; owner: added to the name of the DequantizeLinear, to tell several of one constant
    apart.
    """
    q = quantize(array(value), p)
    integers = initializer(model, names, f"{name}_quantized", q, DTYPES[p.qtype.dtype])
    graph = readers[0][0].graph
    assert graph is not None
    return _dequantized(graph, names, [integers, *_grid(model, names, name, p)], f"{name}{owner}", value, p, readers)


def _pair(model: ir.Model, names: Names, value: ir.Value, p: QParams, plan: Plan, *, made: bool) -> None:
    """Insert a Q/DQ pair on `value`. made: whether an integer node produces the value."""
    readers = [u for u in tuple(value.uses()) if made or _takes_grid(u, plan)]
    name, is_output = str(value.name), value.is_graph_output() and made
    if not readers and not is_output:  # a weight that is stored only
        return
    grid = _grid(model, names, name, p)
    q = node(
        names, "QuantizeLinear", [value, *grid], f"{name}_QuantizeLinear", _attributes(p), outputs=[f"{name}_quantized"]
    )
    q.outputs[0].type, q.outputs[0].shape = ir.TensorType(DTYPES[p.qtype.dtype]), value.shape
    model.graph.append(q)
    dq = _dequantized(model.graph, names, [q.outputs[0], *grid], name, value, p, readers)
    if is_output:
        outputs = model.graph.outputs
        for i in [i for i, v in enumerate(outputs) if v is value]:
            outputs[i] = dq
        value.name, dq.name = names.value(f"{name}_real"), name


def _dequantized(
    graph: ir.Graph | ir.Function,
    names: Names,
    inputs: Sequence[ir.Value],
    name: str,
    value: ir.Value,
    p: QParams,
    readers: Sequence[Use],
) -> ir.Value:
    """Append a DequantizeLinear to `graph` (unsorted) and let `readers` read its output in place of `value`."""
    dq = node(
        names,
        "DequantizeLinear",
        inputs,
        f"{name}_DequantizeLinear",
        _attributes(p),
        outputs=[f"{name}_DequantizeLinear_output"],
    )
    out = dq.outputs[0]
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.append(dq)
    for reader, position in readers:
        reader.replace_input_with(position, out)
    return out


def zero_points(model: ir.Model) -> ir.Model:
    """A clone in which every DequantizeLinear has a zero point: readers that know no default refuse others."""
    copy = model.clone()
    names = Names(copy)
    for dq in copy.graph:
        if dq.op_type == "DequantizeLinear" and len(dq.inputs) == 2:
            zeros = np.zeros(array(dq.inputs[1]).shape, np.int32)
            zero_point = initializer(copy, names, f"{dq.name}_zero_point", zeros, ir.DataType.INT32)
            dq.resize_inputs(3)
            dq.replace_input_with(2, zero_point)
    return copy


def dequantized_names(model: ir.Model) -> dict[str, str]:
    """For each value of `model` with a Q/DQ pair, its name -> the name of its dequantized form."""
    found = {}
    for dq in model.graph:
        q = dq.inputs[0].producer() if dq.op_type == "DequantizeLinear" and dq.inputs[0] is not None else None
        if q is not None and q.op_type == "QuantizeLinear" and q.inputs[0] is not None:
            found[str(q.inputs[0].name)] = str(dq.outputs[0].name)
    return found


def without_casts(model: ir.Model) -> ir.Model:
    """A clone in which pixels of 8 bits are not made floats to become the same integers again: a Cast that is
    quantized with a scale of 1 and a zero point of 0 only.
    """
    copy = model.clone()
    for q in tuple(copy.graph):
        cast = q.inputs[0].producer() if q.op_type == "QuantizeLinear" and q.inputs[0] is not None else None
        if cast is None or not pixels(cast) or not all(map(constant, q.inputs[1:3])):
            continue
        p, given = params_of(q), cast.inputs[0]
        assert given is not None
        if p.qtype.dtype == "uint8" and p.scale.size == 1 and p.scale == 1 and p.zero_point == 0:
            q.outputs[0].replace_all_uses_with(given)
            copy.graph.remove(q, safe=True)
            if not cast.outputs[0].uses() and not cast.outputs[0].is_graph_output():
                copy.graph.remove(cast, safe=True)
    drop_unused(copy)
    return copy


def fold_weights(model: ir.Model) -> ir.Model:
    """A clone in which every QuantizeLinear of a constant is replaced by a constant of integers; unused float constants
    are removed.
    """
    copy = model.clone()
    names = Names(copy)
    for q in tuple(copy.graph):
        source = q.inputs[0] if q.op_type == "QuantizeLinear" else None
        if not constant(source) or source is None:
            continue
        p, out = params_of(q), q.outputs[0]
        name = str(out.name)
        out.name = f"{name}_old"
        names.release(name)
        integers = quantize(array(source), p)
        out.replace_all_uses_with(initializer(copy, names, name, integers, DTYPES[p.qtype.dtype]))
        copy.graph.remove(q, safe=True)
    drop_unused(copy)
    return copy
