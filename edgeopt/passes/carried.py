"""Values that a Loop carries without changing them become values that its body reads from outside.

Exporters carry the weights of recurrent layers through a Loop (Keras, `tf.while_loop`); as constants they can be stored
in integers, folded and multiplied with in integers.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.ops import bodies

_CARRIED, _RESULTS = 2, 1  # where carried values begin: after the count and the condition; after the condition


def read_from_outside(model: ir.Model) -> ir.Model:
    """A clone in which no Loop carries what stays the same; the model itself if none does."""
    if not any(_unchanged(n) for n in model.graph.all_nodes()):
        return model
    copy = model.clone()
    for node in tuple(copy.graph.all_nodes()):
        if same := _unchanged(node):
            _shorten(node, same)
    return copy


def _unchanged(node: ir.Node) -> list[int]:
    """The numbers of the values that a Loop carries without changing them, which no output of the model shows."""
    if node.op_type != "Loop" or node.domain or len(bodies(node)) != 1:
        return []
    (body,), count = bodies(node), len(node.inputs) - _CARRIED
    if len(body.inputs) != len(node.inputs) or min(len(body.outputs) - _RESULTS, len(node.outputs)) < count:
        return []  # ONNX Runtime says what is wrong with it
    same = [
        i
        for i, value in enumerate(node.inputs[_CARRIED:])
        if value is not None
        and not node.outputs[i].is_graph_output()
        and _source(body.outputs[_RESULTS + i]) is body.inputs[_CARRIED + i]
        and not any(v is body.inputs[_CARRIED + i] for j, v in enumerate(body.outputs) if j != _RESULTS + i)
    ]
    return same[1:] if len(same) == len(node.outputs) else same  # a Loop has results


def _source(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _shorten(node: ir.Node, same: list[int]) -> None:
    (body,), graph = bodies(node), node.graph
    assert graph is not None
    for i in reversed(same):
        value = node.inputs[_CARRIED + i]
        assert value is not None
        body.outputs.pop(_RESULTS + i)
        body.inputs[_CARRIED + i].replace_all_uses_with(value)
        body.inputs.pop(_CARRIED + i)
        node.outputs[i].replace_all_uses_with(value)
    kept = [v for i, v in enumerate(node.inputs) if i - _CARRIED not in same]
    olds = [v for i, v in enumerate(node.outputs) if i not in same]
    made = ir.Node("", "Loop", kept, node.attributes.values(), num_outputs=len(olds), name=node.name)
    names = [v.name for v in olds]
    for old, new in zip(olds, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.insert_before(node, made)
    graph.remove(node, safe=True)
    for name, new in zip(names, made.outputs, strict=True):
        new.name = name
