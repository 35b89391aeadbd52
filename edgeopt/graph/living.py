"""How long values are in memory while a model runs, and how much of it they take at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgeopt.graph.ops import bodies, inside

_ALIASES = frozenset({"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DequantizeLinear"})
_IN_PLACE = frozenset({
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Softplus", "Gelu", "Erf", "BatchNormalization",
})  # fmt: skip


def only_quantized(value: ir.Value) -> bool:
    """Whether every consumer of `value`, behind in-place operators, quantizes it: then an integer kernel writes the
    integers directly.
    """
    readers = [node for node, _ in value.uses()]
    return bool(readers) and all(
        n.op_type == "QuantizeLinear" or (reused(n) is value and only_quantized(n.outputs[0])) for n in readers
    )


def reused(node: ir.Node | None) -> ir.Value | None:
    """The input whose memory the output of `node` reuses, or None: always for a reshape, for an activation function if
    nothing else reads that memory.
    """
    x = node.inputs[0] if node is not None and node.inputs else None
    if node is None or x is None:
        return None
    if node.op_type in _ALIASES:
        return x
    return x if node.op_type in _IN_PLACE and _read_once(x) else None


def _read_once(x: ir.Value) -> bool:
    """Whether `x` is a node's output with a single consumer, as are the values whose memory it reuses."""
    node = x.producer()
    if node is None or len(x.uses()) != 1 or x.is_graph_output():
        return False
    before = reused(node)
    return before is None or _read_once(before)


def _root(value: ir.Value) -> ir.Value:
    """The value in whose memory `value` is stored."""
    while (before := reused(value.producer())) is not None:
        value = before
    return value


def peak_bytes(model: ir.Model, sizes: Mapping[ir.Value, int]) -> int:
    """The most bytes alive at one time, with nodes run in graph order and values freed after their last use."""
    return _most(list(model.graph), [_root(v) for v in model.graph.outputs], sizes)


def _most(order: Sequence[ir.Node], results: Sequence[ir.Value], sizes: Mapping[ir.Value, int]) -> int:
    """`peak_bytes` of one graph; values around a body stay alive while it runs."""
    last = {v: len(order) for v in results}
    index = {node: i for i, node in enumerate(order)}
    for node in order:
        for v in (v for n in [node, *inside(node)] for v in n.inputs if v is not None):
            last[_root(v)] = max(_end(node, index), last.get(_root(v), 0))
    dies: dict[int, list[ir.Value]] = {}
    for v, i in last.items():
        dies.setdefault(i, []).append(v)
    made: set[ir.Value] = set()
    alive = most = 0
    for i, node in enumerate(order):
        inner = max((_most(list(g), [_root(v) for v in g.outputs], sizes) for g in bodies(node)), default=0)
        made.update(v for v in node.outputs if v in sizes)
        alive += sum(sizes.get(v, 0) for v in node.outputs)
        most = max(most, alive + inner)
        alive -= sum(sizes[v] for v in dies.get(i, []) if v in made)
        alive -= sum(sizes.get(v, 0) for v in node.outputs if v not in last)
    return most


def _end(node: ir.Node, index: Mapping[ir.Node, int]) -> int:
    """The node index at which the result of `node` is in memory: an integer kernel writes the output of the
    QuantizeLinear behind it.
    """
    if node.op_type == "QuantizeLinear" or not node.outputs or not only_quantized(node.outputs[0]):
        return index[node]
    return max(_end(reader, index) for reader, _ in node.outputs[0].uses() if reader in index)
