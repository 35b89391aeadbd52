"""The part of a model behind its selections (NonMaxSuppression, TopK ...), and the values that it selects from.

The smallest error may change what is selected, and so the length and order of an output, without being an error that
matters. So that part stays float, and models are compared by the values that enter it. What it is, is decided once, on
the float model, and kept by names, under which it is found in every form of the model.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.errors import ValidityError
from edgeopt.graph.edit import Names
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import LAYERS, constant, inside, rule

# operator -> the positions of inputs that it selects by or from
_SELECTS: dict[str, tuple[int, ...]] = {
    "NonMaxSuppression": (0, 1),
    "TopK": (0,),
    "NonZero": (0,),
    "Unique": (0,),
    "Compress": (0, 1),
}
_OF_SHAPES = frozenset({"Shape", "Size"})
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Cast"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Selection:
    """The end of a model that selections decide."""

    nodes: frozenset[str]
    """The selections and all behind them, and where peaks are picked the layers that make their map, by name."""
    entries: tuple[tuple[str, int, str], ...]
    """(node, position of its input, operator) of each float value that enters that part."""
    outputs: frozenset[int]
    """Positions of the outputs of the model behind them, which are the same in every form of it."""

    def names(self) -> list[str]:
        """A name for each entry."""
        return [f"before {op}: {node}.{i}" for node, i, op in self.entries]

    def shown(self, model: ir.Model) -> ir.Model:
        """A clone of a form of the model that gives the entries in place of the outputs that the selections decide.

        Raises:
            ValidityError: it lacks one of the nodes.
        """
        copy = model.clone()
        nodes = {str(n.name): n for n in copy.graph}
        names, entries = Names(copy), list[ir.Value]()
        for (node, i, _), name in zip(self.entries, self.names(), strict=True):
            value = nodes[node].inputs[i] if node in nodes and i < len(nodes[node].inputs) else None
            if value is None:
                raise ValidityError(f"node {node!r} with what enters the model's selections is not in the result")
            entry = make(names, "Identity", [value], name, outputs=[name]).outputs[0]
            entry.type, entry.shape = value.type, value.shape
            copy.graph.append(entry.producer())  # type: ignore[arg-type]
            entries.append(entry)
        at = min(self.outputs)
        kept = [v for i, v in enumerate(copy.graph.outputs) if i not in self.outputs]
        copy.graph.outputs.clear()
        copy.graph.outputs.extend([*kept[:at], *entries, *kept[at:]])
        return copy


def selects(model: ir.Model) -> bool:
    """Whether a node of `model` may select."""
    return any(
        n.op_type in _SELECTS or (n.op_type == "Equal" and not any(constant(v) for v in n.inputs))
        for n in model.graph.all_nodes()
    )


def selection(model: ir.Model, types: Mapping[str, ir.DataType]) -> Selection | None:
    """The end of `model` (canonical) that selections decide; None if there is none, or if layers with weights follow
    it, so that it is not the end.

    types: of the values of the main graph, by name.
    """
    floats = {name for name, dtype in types.items() if dtype in _FLOATS}
    computed = _computed(model.graph)
    behind = _closed(model.graph, {n for n in model.graph if _selects(n, computed, floats)})
    while others := [v for _, _, v in _entering(model.graph, behind, computed) if v.name not in floats]:
        makers = {p for v in others if (p := v.producer()) is not None}
        behind = _closed(model.graph, behind | makers)  # what compares and rounds selects too
    if any(_has_weights(n) or _captures(n, behind) for n in behind):
        return None
    outputs = frozenset(i for i, v in enumerate(model.graph.outputs) if v.producer() in behind)
    if not outputs:
        return None
    entries: dict[ir.Value, tuple[str, int, str]] = {}  # by what is moved there, once
    for node, i, value in sorted(_entering(model.graph, behind, computed), key=lambda e: e[0].op_type not in _SELECTS):
        entries.setdefault(origin(value), (str(node.name), i, node.op_type))
    peaks = [v for n, _, v in _entering(model.graph, behind, computed) if n.op_type == "Equal"]
    nodes = frozenset(str(n.name) for n in behind | _makers(peaks))
    return Selection(nodes, tuple(sorted(entries.values())), outputs) if entries else None


def _computed(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that read the contents of inputs, and not only shapes."""
    found: set[ir.Node] = set()
    for node in graph:
        reads = any(v.is_graph_input() or v.producer() in found for v in _read(node))
        if reads and node.op_type not in _OF_SHAPES:
            found.add(node)
    return found


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, its bodies included."""
    yield from (v for v in node.inputs if v is not None)
    yield from (v for n in inside(node) for v in n.inputs if v is not None)


def _selects(node: ir.Node, computed: set[ir.Node], floats: Container[str]) -> bool:
    if any(n.op_type in _SELECTS for n in inside(node)):
        return node in computed
    inputs = [node.inputs[i] for i in _SELECTS.get(node.op_type, ()) if i < len(node.inputs)]
    peaks = node.op_type == "Equal" and all(v is not None and v.name in floats for v in node.inputs)
    if peaks:  # of a map that is compared with its own maxima
        return all(v is not None and v.producer() in computed for v in node.inputs)
    return any(v is not None and v.producer() in computed for v in inputs)


def _closed(graph: ir.Graph, start: set[ir.Node]) -> set[ir.Node]:
    """`start` and all nodes behind it."""
    found: set[ir.Node] = set()
    for node in graph:
        if node in start or any(v.producer() in found for v in _read(node)):
            found.add(node)
    return found


def _entering(graph: ir.Graph, behind: set[ir.Node], computed: set[ir.Node]) -> list[tuple[ir.Node, int, ir.Value]]:
    """(node, position, value) of each computed value that `behind` reads and does not make, in the graph's order."""
    return [
        (node, i, v)
        for node in graph
        if node in behind
        for i, v in enumerate(node.inputs)
        if v is not None and v.producer() in computed and v.producer() not in behind
    ]


def _makers(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that make `values`, back to the first layers with weights: of equal values on a grid all are peaks."""
    found: set[ir.Node] = set()
    waiting = [v.producer() for v in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [] if _has_weights(node) else [v.producer() for v in node.inputs if v is not None]
    return found


def _captures(node: ir.Node, behind: set[ir.Node]) -> bool:
    """Whether a body reads a value that is computed before the selections, which no position of an input names."""
    own = set(inside(node))
    values = (v for n in own for v in n.inputs if v is not None and not constant(v))
    return any((p := v.producer()) is not None and p not in own and p not in behind for v in values)


def origin(value: ir.Value) -> ir.Value:
    """The value of which `value` is another shape or type."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def _has_weights(node: ir.Node) -> bool:
    layers = [n for n in (node, *inside(node)) if n.op_type in LAYERS]
    return any(constant(n.inputs[i]) for n in layers for i in rule(n).weights if i < len(n.inputs))
