"""Inputs with a default: in a file they are inputs and initializers of one name. In the canonical form they are inputs
only, so that no pass takes the default for a constant; it is kept as metadata of the value and put back on writing.
"""

from __future__ import annotations

import base64
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.ops import rule

_KEY = "edgeopt.default"
_MOST_ELEMENTS = 1024
_NORM = (1, 2, 3, 4)  # positions of scale, shift, mean and variance
_PARAMETERS = {
    "BatchNormalization": _NORM,
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
_INPUTS_ARE_WEIGHTS = 4  # IR version below which every weight had to be an input


def names(model: ir.Model) -> frozenset[str]:
    """The inputs of a canonical model that have a default."""
    return frozenset(str(v.name) for v in model.graph.inputs if _KEY in v.metadata_props)


def set_aside(model: ir.Model, always: frozenset[str] = frozenset()) -> None:
    """Turn inputs of `model` that have a default into plain inputs, in place; always: names that are known to be ones.

    Those that are weights of a layer, or large, are weights and no inputs; so is everything in files of IR version 3,
    and in those that list every weight as an input.
    """
    graph = model.graph
    both = [v for v in graph.inputs if v.name in graph.initializers]
    old = model.ir_version < _INPUTS_ARE_WEIGHTS or (len(both) == len(graph.initializers) and len(both) > 1)
    for value in both:
        if value.const_value is None or value.dtype == ir.DataType.STRING:
            continue
        weight = old or value.const_value.size > _MOST_ELEMENTS or _is_weight(value)
        if weight and value.name not in always:
            continue
        del graph.initializers[str(value.name)]
        tensor = onnx.numpy_helper.from_array(value.const_value.numpy(), str(value.name))
        value.metadata_props[_KEY] = base64.b64encode(tensor.SerializeToString(deterministic=True)).decode()
        value.const_value = None


def _is_weight(value: ir.Value) -> bool:
    return any(i in (*rule(n).weights, rule(n).bias, *_PARAMETERS.get(n.op_type, ())) for n, i in value.uses())


def default_of(value: ir.Value) -> NDArray[Any] | None:
    """The default of an input of a canonical model, None if it has none."""
    text = value.metadata_props.get(_KEY)
    return None if text is None else onnx.numpy_helper.to_array(onnx.TensorProto.FromString(base64.b64decode(text)))


def keep(before: ir.Model, after: ir.Model) -> None:
    """Give inputs of `after` the defaults that they have in `before`, in place."""
    for old, new in zip(before.graph.inputs, after.graph.inputs, strict=True):
        if _KEY in old.metadata_props:
            new.metadata_props[_KEY] = old.metadata_props[_KEY]


def restored(model: ir.Model) -> ir.Model:
    """The model as it is in a file: inputs with a default are initializers too. The model itself if it has none."""
    if not any(_KEY in v.metadata_props for v in model.graph.inputs):
        return model
    copy = model.clone()
    for value in copy.graph.inputs:
        default = default_of(value)
        if default is not None:
            kind = value.dtype or ir.DataType.from_numpy(default.dtype)
            value.const_value = ir.Tensor(default.astype(kind.numpy()), dtype=kind, name=value.name)
            copy.graph.register_initializer(value)
            del value.metadata_props[_KEY]
    return copy
