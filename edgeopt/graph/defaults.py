"""Inputs with a default: in a file they are inputs and initializers of one name. In the canonical form they are inputs
only, so that no pass takes the default for a constant; it is kept as metadata of the value and put back on writing.
"""

from __future__ import annotations

import base64
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

_KEY = "edgeopt.default"
_INPUTS_ARE_WEIGHTS = 4  # IR version below which every weight had to be an input


def set_aside(model: ir.Model) -> None:
    """Turn inputs of `model` that have a default into plain inputs, in place.

    In files of IR version 3, and in those that list every weight as an input, they are weights and no inputs.
    """
    graph = model.graph
    both = [v for v in graph.inputs if v.name in graph.initializers]
    if model.ir_version < _INPUTS_ARE_WEIGHTS or len(both) == len(graph.initializers):
        return
    for value in both:
        del graph.initializers[str(value.name)]
        assert value.const_value is not None
        tensor = onnx.numpy_helper.from_array(value.const_value.numpy(), str(value.name))
        value.metadata_props[_KEY] = base64.b64encode(tensor.SerializeToString(deterministic=True)).decode()
        value.const_value = None


def default_of(value: ir.Value) -> NDArray[Any] | None:
    """The default of an input of a canonical model, None if it has none."""
    tensor = _tensor(value.metadata_props.get(_KEY))
    return None if tensor is None else onnx.numpy_helper.to_array(tensor)


def keep(before: ir.Model, after: ir.Model) -> None:
    """Give inputs of `after` the defaults that they have in `before`, in place."""
    for old, new in zip(before.graph.inputs, after.graph.inputs, strict=True):
        if _KEY in old.metadata_props:
            new.metadata_props[_KEY] = old.metadata_props[_KEY]


def put_back(proto: onnx.ModelProto) -> None:
    """Make initializers of the defaults in `proto`, in place."""
    for value in proto.graph.input:
        kept = next((p for p in value.metadata_props if p.key == _KEY), None)
        if kept is not None:
            tensor = _tensor(kept.value)
            if tensor is not None:
                proto.graph.initializer.append(tensor)
            value.metadata_props.remove(kept)


def _tensor(text: str | None) -> onnx.TensorProto | None:
    return None if text is None else onnx.TensorProto.FromString(base64.b64decode(text))
