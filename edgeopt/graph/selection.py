"""Outputs that a selection decides (NonMaxSuppression, TopK ...): what they select from is what can be compared.

The smallest error may change what is selected, and so the length and order of an output, without being an error that
matters. So models are compared by the values that enter the part behind the selections.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.edit import Names
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import LAYERS, constant, rule

_SELECTS = frozenset({"NonMaxSuppression", "TopK", "NonZero", "Unique", "Compress"})
_SHAPES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MOVES = _SHAPES | {"Cast", "DequantizeLinear", "QuantizeLinear"}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, None)


def before_selection(model: ir.Model) -> ir.Model:
    """`model` with the float values that enter the part behind its selections in place of the outputs that depend on
    them; `model` itself if none does, or if layers with weights follow, so that the selections are not its end.
    """
    nodes = list(model.graph)
    behind: set[ir.Node] = set()
    for node in nodes:
        if node.op_type in _SELECTS or any(v is not None and v.producer() in behind for v in node.inputs):
            behind.add(node)
    if not any(v.producer() in behind for v in model.graph.outputs) or any(_has_weights(n) for n in behind):
        return model
    copy = model.clone()
    later = [twin for node, twin in zip(nodes, copy.graph, strict=True) if node in behind]
    entries = dict[ir.Value, tuple[str, ir.Value]]()  # by what is moved there, once
    for node in sorted(later, key=lambda n: n.op_type not in _SELECTS):
        for i, v in enumerate(node.inputs):
            if v is not None and v.producer() not in later and _compared(v):
                entries.setdefault(_origin(v), (f"before {node.op_type}: {node.name}.{i}", v))
    if not entries:
        return model
    kept = [v for v in copy.graph.outputs if v.producer() not in later]
    names = Names(copy)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(kept)
    for name, value in sorted(entries.values(), key=lambda entry: entry[0]):
        node = make(names, "Identity", [value], name, outputs=[name])
        node.outputs[0].type, node.outputs[0].shape = value.type or ir.TensorType(ir.DataType.FLOAT), value.shape
        copy.graph.append(node)
        copy.graph.outputs.append(node.outputs[0])
    return copy


def _origin(value: ir.Value) -> ir.Value:
    """The value of which `value` is another shape, type or grid."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _has_weights(node: ir.Node) -> bool:
    weights = (node.inputs[i] for i in rule(node).weights if i < len(node.inputs))
    return node.op_type in LAYERS and any(constant(v) for v in weights)


def _compared(value: ir.Value) -> bool:
    """Whether `value` is computed, and a float."""
    return value.producer() is not None and not constant(value) and value.dtype in _FLOATS
