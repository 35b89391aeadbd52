"""Values inside a network through which everything passes: where a classifier on the way can learn."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import ModelError

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"})


def inner_values(model: ir.Model, count: int = 3) -> tuple[str, ...]:
    """Up to `count` values of `model` that split its layers evenly; each is the only way from the input to the output.

    Raises:
        ModelError: there is none.
    """
    nodes = list(model.graph)
    last = {v: i for i, node in enumerate(nodes) for v in node.inputs if v is not None}
    last |= {v: len(nodes) for v in model.graph.outputs}
    carried: set[ir.Value] = set()  # values that weights have gone into; masks and shapes beside them do not count
    candidates: list[tuple[int, str]] = []
    layers = 0
    for i, node in enumerate(nodes):
        weighs = node.op_type in _PRODUCTS and any(
            v is not None and v.const_value is not None and len(v.const_value.shape) > 1 for v in node.inputs
        )
        layers += weighs
        if weighs or any(v in carried for v in node.inputs):
            carried.update(node.outputs)
        live = {v for v in carried if last.get(v, -1) > i}
        if len(live) == 1 and node.outputs[0] in live and not node.outputs[0].is_graph_output():
            candidates.append((layers, str(node.outputs[0].name)))
    found: list[str] = []
    for part in range(1, count + 1):
        goal = layers * part / (count + 1)
        inside = [c for c in candidates if 0 < c[0] < layers]
        # the last of several after the same layer has its activation and its sum behind it
        best = min(reversed(inside), key=lambda c: abs(c[0] - goal), default=None)
        if best is not None and best[1] not in found:
            found.append(best[1])
    if not found:
        raise ModelError("--heads auto: no inner value is the only way through the network; name some with --heads")
    return tuple(found)
