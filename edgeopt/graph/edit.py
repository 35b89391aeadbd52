"""Edits that several passes share. All of them change the model they are given, which is the caller's own clone, and none gives a
new value or node a name that the model has already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DTYPES = {t.name.lower(): t for t in ir.DataType}


class Names:
    """The names that are taken in a model, values and nodes, bodies included."""

    def __init__(self, model: ir.Model) -> None:
        self._values = {str(v.name) for v in (*model.graph.inputs, *model.graph.initializers.values())}
        self._nodes: set[str] = set()
        for graph in model.graphs():
            self._values |= {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
        for node in model.graph.all_nodes():
            self._nodes.add(str(node.name))
            self._values |= {str(v.name) for v in node.outputs if v.name}

    def value(self, wanted: str) -> str:
        """`wanted`, or what comes nearest and is free; taken from now on."""
        return _free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """The same for a node."""
        return _free(wanted, self._nodes)

    def release(self, name: str) -> None:
        """Let `name` be taken again: the value that had it is gone or called otherwise."""
        self._values.discard(name)


def _free(wanted: str, taken: set[str]) -> str:
    name, i = wanted, 0
    while name in taken:
        i += 1
        name = f"{wanted}_{i}"
    taken.add(name)
    return name


def initializer(
    model: ir.Model, names: Names, name: str, array: NDArray[np.generic], dtype: ir.DataType | None = None
) -> ir.Value:
    """A constant of `model` called `name` with the content `array`: the one that is there, if it has this content, or a new one."""
    kind = dtype or ir.DataType.from_numpy(np.asarray(array).dtype)
    content = np.asarray(array).astype(kind.numpy())
    known = model.graph.initializers.get(name)
    if known is not None and known.const_value is not None and known.const_value.dtype == kind:
        there = known.const_value.numpy()
        if there.shape == content.shape and np.array_equal(there, content):
            return known
    tensor = ir.Tensor(content, dtype=kind, name=names.value(name))
    value = ir.Value(name=tensor.name, type=ir.TensorType(kind), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def node(
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: Sequence[ir.Attr] = (),
    *,
    domain: str = "",
    outputs: Sequence[str] = ("",),
) -> ir.Node:
    """A node called `name`, not yet in a graph, whose outputs are called `outputs` ("": after the node)."""
    made = ir.Node(domain, op_type, inputs, attributes, num_outputs=len(outputs), name=names.node(name))
    for i, (value, wanted) in enumerate(zip(made.outputs, outputs, strict=True)):
        value.name = names.value(wanted or f"{made.name}_{i}")
    return made


def take_over(graph: ir.Graph | ir.Function, old: ir.Node, value: ir.Value) -> None:
    """Let `value` stand for the output of the node `old`, name included, and remove `old`."""
    before = old.outputs[0]
    name, value.type, value.shape = before.name, before.type, before.shape
    before.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    value.name = name


def remove(graph: ir.Graph, old: ir.Node) -> None:
    """Remove the node `old` and what only it read."""
    inputs = [v.producer() for v in old.inputs if v is not None]
    graph.remove(old, safe=True)
    for producer in inputs:
        unread = producer is not None and not any(v.uses() or v.is_graph_output() for v in producer.outputs)
        if producer is not None and producer.graph is graph and unread:
            remove(graph, producer)


def drop_unused(model: ir.Model) -> None:
    """Remove initializers that nothing reads, in every graph of `model`."""
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
