"""Bring models to float32, in which all other passes compute: `widened` those in float16, bfloat16 or float64, whose
inputs and outputs keep their types; `unfolded` those whose float weights are stored as integers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, cast, drop_unused, initializer
from edgeopt.graph.ops import constant

_OTHERS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_SINGLE = ir.DataType.FLOAT
_HIGHEST = np.float64(np.finfo(np.float32).max)
_TYPES = ("to", "dtype", "output_dtype", "output_datatype")  # attributes that name the type of an output


def widened(model: ir.Model) -> ir.Model:
    """A clone of `model` (canonical) that computes in float32, with a Cast at inputs and outputs of another float type;
    the model itself if it has nothing else.
    """
    values = [v for g in model.graphs() for v in (*g.inputs, *g.initializers.values())]
    values += [v for n in model.graph.all_nodes() for v in n.outputs]
    if not any(v.dtype in _OTHERS for v in values):
        return model
    copy = model.clone()
    names = Names(copy)
    kept = {id(v): v.dtype for v in (*copy.graph.inputs, *copy.graph.outputs) if v.dtype in _OTHERS}
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in _OTHERS:
                wide = value.const_value.numpy()
                if wide.dtype == np.float64:  # masks: the lowest of float64 is the lowest of float32
                    wide = np.where(np.isinf(wide), wide, np.clip(wide, -_HIGHEST, _HIGHEST))
                wide = wide.astype(np.float32)
                value.const_value = ir.Tensor(wide, dtype=_SINGLE, name=value.name)
        for value in (*graph.inputs, *graph.initializers.values()):
            _retype(value)
    for n in copy.graph.all_nodes():
        _widen_attributes(n)
        for value in n.outputs:
            _retype(value)
    _cast_interface(copy, names, kept)
    copy.graph.sort()
    return copy


def _retype(value: ir.Value) -> None:
    if value.dtype in _OTHERS:
        single = ir.TensorType(_SINGLE)
        value.type = ir.SequenceType(single) if isinstance(value.type, ir.SequenceType) else single


def _widen_attributes(n: ir.Node) -> None:
    for attribute in tuple(n.attributes.values()):
        if attribute.name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.as_int() in _OTHERS:
            n.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(_SINGLE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _OTHERS:
            wide = ir.Tensor(attribute.as_tensor().numpy().astype(np.float32), dtype=_SINGLE)
            n.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)


def _cast_interface(model: ir.Model, names: Names, kept: Mapping[int, ir.DataType | None]) -> None:
    """Casts behind the inputs and before the outputs that keep their type."""
    graph = model.graph

    outputs = list(graph.outputs)
    for i, value in enumerate(outputs):
        dtype = kept.get(id(value))
        if dtype is None:
            continue
        if value.is_graph_input():  # passes through
            value.type = ir.TensorType(dtype)
            continue
        name = str(value.name)
        value.name = names.value(f"{name}_wide")
        names.release(name)
        graph.outputs[i] = cast(graph, names, value, dtype, name)
    for value in graph.inputs:
        dtype = kept.get(id(value))
        if dtype is not None:
            readers = tuple(value.uses())
            value.type = ir.TensorType(dtype)
            made = cast(graph, names, value, _SINGLE)
            for reader, position in readers:
                reader.replace_input_with(position, made)


def unfolded(model: ir.Model) -> ir.Model:
    """A clone of `model` (canonical) in which every constant behind a DequantizeLinear, or a Cast from integers, is a
    float32 constant; the model itself if there is none.

    These are weights that are stored as integers, and computed with in floats.
    """
    if not any(map(_stored, model.graph.all_nodes())):
        return model
    copy = model.clone()
    names = Names(copy)
    for n in tuple(copy.graph.all_nodes()):
        if _stored(n) and n.graph is not None and not n.outputs[0].is_graph_output():
            wide = initializer(copy, names, f"{n.outputs[0].name}_float", _floats(n))
            n.outputs[0].replace_all_uses_with(wide)
            n.graph.remove(n, safe=True)
    drop_unused(copy)
    return copy


def _stored(n: ir.Node) -> bool:
    source = n.inputs[0] if n.inputs else None
    if n.op_type == "Cast" and source is not None:
        whole = source.dtype is not None and source.dtype.is_integer()
        return constant(source) and whole and n.attributes.get_int("to", 0) == _SINGLE
    return n.op_type == "DequantizeLinear" and all(v is None or constant(v) for v in n.inputs)


def _floats(n: ir.Node) -> np.ndarray:
    """What a Cast or DequantizeLinear of constants gives."""
    q, scale, zero_point = (
        None if v is None or v.const_value is None else v.const_value.numpy() for v in (*n.inputs, None, None)[:3]
    )
    assert q is not None
    if scale is None:
        return q.astype(np.float32)
    axis, block = n.attributes.get_int("axis", 1), n.attributes.get_int("block_size", 0)

    def along(x: np.ndarray) -> np.ndarray:
        if x.size == 1:
            return x.reshape(())
        if block:
            return np.repeat(x, block, axis)[tuple(slice(0, d) for d in q.shape)]
        return x.reshape([-1 if i == axis % q.ndim else 1 for i in range(q.ndim)])

    exact = np.int64 if q.dtype.kind in "iu" else np.float64  # float8 has no integers
    shifted = q.astype(exact) - (0 if zero_point is None else along(zero_point.astype(exact)))
    return np.asarray(shifted.astype(np.float32) * along(scale.astype(np.float32)), np.float32)
