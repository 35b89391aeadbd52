"""Graph edits shared by several passes. They change the given model in place, which must be the caller's own clone, and
never give a new value or node a name that already exists in the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DTYPES = {t.name.lower(): t for t in ir.DataType}


class Names:
    """The names of values and nodes used in a model, including sub-graphs."""

    def __init__(self, model: ir.Model) -> None:
        self._values = {str(v.name) for v in (*model.graph.inputs, *model.graph.initializers.values())}
        self._nodes: set[str] = set()
        for graph in model.graphs():
            self._values |= {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
        for node in model.graph.all_nodes():
            self._nodes.add(str(node.name))
            self._values |= {str(v.name) for v in node.outputs if v.name}

    def value(self, wanted: str) -> str:
        """`wanted`, or a similar name that is free; it is reserved from now on."""
        return _free(wanted, self._values)

    def node(self, wanted: str) -> str:
        """The same for the name of a node."""
        return _free(wanted, self._nodes)

    def release(self, name: str) -> None:
        """Make `name` available again after its value was removed or renamed."""
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
    """An initializer of `model` with the content `array`: the existing one called `name` if its content is equal, else
    a new one.
    """
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
    """A new node called `name`, not yet in a graph, with outputs called `outputs` ("": named after the node)."""
    made = ir.Node(domain, op_type, inputs, attributes, num_outputs=len(outputs), name=names.node(name))
    for i, (value, wanted) in enumerate(zip(made.outputs, outputs, strict=True)):
        value.name = names.value(wanted or f"{made.name}_{i}")
    return made


def take_over(graph: ir.Graph | ir.Function, old: ir.Node, *values: ir.Value) -> None:
    """Replace the outputs of the node `old` by `values`, which take their names, and remove `old`."""
    names = [v.name for v in old.outputs]
    for before, value in zip(tuple(old.outputs), values, strict=True):
        value.type = before.type or value.type
        value.shape = value.shape if before.shape is None else before.shape
        before.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    for name, value in zip(names, values, strict=True):
        value.name = name


def cast(graph: ir.Graph | ir.Function, names: Names, value: ir.Value, to: ir.DataType, name: str = "") -> ir.Value:
    """`value` as another type, by a Cast that is appended to `graph` (unsorted); name: of the result."""
    made = node(names, "Cast", [value], f"{name or value.name}_Cast", [ir.AttrInt64("to", int(to))], outputs=[name])
    made.outputs[0].type, made.outputs[0].shape = ir.TensorType(to), value.shape
    graph.append(made)
    return made.outputs[0]


def drop_unused(model: ir.Model) -> None:
    """Remove unused initializers in every graph of `model`."""
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
