"""Find the integer nodes that lose most accuracy, so that they can stay float.

The loss of an integer node is the SQNR of its worst input minus the SQNR of its output, in dB, both compared with the
float model on the same sample. It measures what the node itself adds: rounding of its weights and the grid of its
output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import activations, constant
from edgeopt.graph.plan import Plan
from edgeopt.passes.qdq import dequantized_names
from edgeopt.ptq.place import outputs_of
from edgeopt.runtime.session import Feed, open_session, with_outputs

_CLEAN_DB = 60.0


def _sqnr(r: np.ndarray, y: np.ndarray) -> float:
    noise, signal = float(np.square(r - y, dtype=np.float64).sum()), float(np.square(r, dtype=np.float64).sum())
    return _CLEAN_DB if noise == 0 or signal == 0 else min(_CLEAN_DB, 10 * math.log10(signal / noise))


def blame(model: ir.Model, quantized: ir.Model, plan: Plan, feeds: Sequence[Feed]) -> Mapping[str, float]:
    """SQNR in dB lost at each integer node of `plan`, worst first."""
    lost = {name: before - after for name, (before, after) in levels(model, quantized, plan, feeds).items()}
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def levels(
    model: ir.Model, quantized: ir.Model, plan: Plan, feeds: Sequence[Feed], names: frozenset[str] | None = None
) -> Mapping[str, tuple[float, float]]:
    """(SQNR of the worst input, SQNR of the output) in dB for each integer node of `plan`, or for the nodes `names`, in
    graph order.
    """
    nodes = [n for n in model.graph if n.name in (plan.integer if names is None else names)]
    outputs = {str(n.name): result(n, plan) for n in nodes}
    inputs = {str(n.name): [str(v.name) for v in n.inputs if v is not None and not constant(v)] for n in nodes}
    if names is None:
        inputs = {str(n.name): [str(v.name) for _, v in activations(n)] for n in nodes}
    watched = sorted(
        {*outputs.values(), *(v for read in inputs.values() for v in read)} - {str(v.name) for v in model.graph.inputs}
    )
    known = {str(v.name) for n in quantized.graph for v in n.outputs}
    read = dequantized_names(quantized)
    twin = {v: read.get(v) or (v if v in known else None) for v in watched}
    shown = [v for v in watched if twin[v] is not None]
    float_session = open_session(with_outputs(model, shown))
    integer_session = open_session(with_outputs(quantized, [str(twin[v]) for v in shown]))
    seen: dict[str, list[float]] = {v: [] for v in shown}
    for feed in feeds:
        for name, r, y in zip(shown, float_session.run(feed), integer_session.run(feed), strict=True):
            seen[name].append(_sqnr(r, y))
    sqnr = {name: float(np.mean(x)) for name, x in seen.items()}
    found = {}
    for node in nodes:
        before = min((sqnr.get(v, _CLEAN_DB) for v in inputs[str(node.name)]), default=_CLEAN_DB)
        found[str(node.name)] = (before, sqnr.get(outputs[str(node.name)], before))
    return found


def result(node: ir.Node, plan: Plan) -> str:
    """The value that carries the output grid of `node`: its output, or that of a clamp merged into the grid."""
    return str(outputs_of(node, plan.clamps)[0].name)
