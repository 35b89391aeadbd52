"""Finds values through which everything passes: where intermediate classifiers can be attached."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.ops import LAYERS


def inner_values(model: ir.Model, count: int = 3) -> tuple[str, ...]:
    """Up to `count` values of `model` that divide its layers evenly; each is the only path from input to output.

    Raises:
        ModelError: there is none.
    """
    nodes = list(model.graph)
    fixed = _fixed(model)
    last = {v: i for i, node in enumerate(nodes) for v in node.inputs if v is not None}
    last |= {v: len(nodes) for v in model.graph.outputs}
    wanted = _last_layers(nodes, fixed)
    carried: set[ir.Value] = set()  # values computed with weights; masks and shapes beside them do not count
    candidates: list[tuple[int, str]] = []
    layers = 0
    for i, node in enumerate(nodes):
        layers += _weighs(node, fixed)
        if _weighs(node, fixed) or any(v in carried for v in node.inputs):
            carried.update(node.outputs)
        live = {v for v in carried if last.get(v, -1) > i} | {v for v in model.graph.inputs if wanted.get(v, -1) > i}
        if len(live) == 1 and node.outputs[0] in live and not node.outputs[0].is_graph_output():
            candidates.append((layers, str(node.outputs[0].name)))
    found: list[str] = []
    for part in range(1, count + 1):
        goal = layers * part / (count + 1)
        inside = [c for c in candidates if 0 < c[0] < layers]
        # of several after the same layer, the last comes after its activation and residual sum
        best = min(reversed(inside), key=lambda c: abs(c[0] - goal), default=None)
        if best is not None and best[1] not in found:
            found.append(best[1])
    if not found:
        raise ModelError("--heads auto: no inner value is the only way through the network; name some with --heads")
    return tuple(found)


_SPATIAL = frozenset(
    {
        "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool",
        "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "LRN", "Resize",
    }
)  # fmt: skip
_PASSES = frozenset(
    {
        "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Clip", "Sigmoid", "HardSigmoid",
        "HardSwish", "Swish", "Mish", "Gelu", "Erf", "Tanh", "Softplus", "Add",
        "Mul", "Sub", "Div", "Concat", "Dropout", "Identity", "Cast", "Pad",
        "Exp", "Sqrt", "Pow",
    }
)  # fmt: skip


def channels_first(model: ir.Model, name: str) -> bool:
    """Whether the value called `name` has its channels on axis 1 and positions behind it, as convolutions do: told by
    the layer that it comes from.
    """
    producers = {str(v.name): node for node in model.graph for v in node.outputs}
    node = producers.get(name)
    seen: set[str] = set()
    while node is not None and node.op_type in _PASSES:
        inner = next((str(v.name) for v in node.inputs if v is not None and str(v.name) in producers), "")
        if not inner or inner in seen:
            return False
        seen.add(inner)
        node = producers[inner]
    return node is not None and node.op_type in _SPATIAL


def _fixed(model: ir.Model) -> set[ir.Value]:
    """Weights, and values computed from weights alone (dequantized, transposed)."""
    found = {v for v in model.graph.initializers.values() if v.const_value is not None}
    for node in model.graph:
        if node.inputs and all(v is None or v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def _weighs(node: ir.Node, fixed: set[ir.Value]) -> bool:
    """Whether `node` is a layer: a product with weights."""
    return node.op_type in LAYERS and any(v in fixed for v in node.inputs[:2]) and node.outputs[0] not in fixed


def _last_layers(nodes: list[ir.Node], fixed: set[ir.Value]) -> dict[ir.Value, int]:
    """Index of the last layer that a value reaches through nodes without weights."""
    found: dict[ir.Value, int] = {}
    carried: set[ir.Value] = set()
    for node in nodes:
        if _weighs(node, fixed) or any(v in carried for v in node.inputs):
            carried.update(node.outputs)
    for i, node in reversed(list(enumerate(nodes))):
        if _weighs(node, fixed):
            goal = i
        elif any(v in carried for v in node.outputs):
            continue
        else:
            goal = max((found.get(v, -1) for v in node.outputs), default=-1)
        for v in node.inputs:
            if v is not None and v not in carried and v not in fixed:
                found[v] = max(found.get(v, -1), goal)
    return found
