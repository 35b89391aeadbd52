"""Decide which nodes compute in integers: the placement with the lowest total time, found exactly as a minimum cut.

Times come from the target's cost table or from measurements. Each node that can be integer costs its integer or its
float time; a value that crosses from float to integer costs one QuantizeLinear, a value that crosses back costs one
DequantizeLinear. With the labels integer = source side and float = sink side all terms are submodular, so the minimum
cut is the optimum (D. M. Greig et al. 1989). Thin first convolutions, isolated activations and small groups of pooling
nodes stay float because integers are slower there, not because of special rules.

The result is a `graph.plan.Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import (
    activations,
    array,
    constant,
    constants,
    cost_class,
    kernel,
    macs_of,
    rule,
    scalar,
    weight_of,
)
from edgeopt.graph.plan import Form, Plan
from edgeopt.hardware.target import OpCost, Target
from edgeopt.ptq.grids import channel_bias
from edgeopt.ptq.mincut import INFINITE, FlowNetwork
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.probe import Probe

_LEVELS = 8  # of a shared grid that an operand has to have at least
_STEPS = 255
_FREE = OpCost.model_validate({"float": (0, 0), "int": (0, 0)})  # for an included node without a row in the table


def refusal(node: ir.Node, probes: Mapping[str, Probe]) -> str | None:
    """The reason why `node` can never be integer, or None."""
    op = kernel(node)[1]
    if not op.inputs:
        return "no integer kernel for this operator"
    weight = weight_of(node)
    if op.weight is not None and weight is None:
        return "the weight is computed at run time"
    if node.op_type == "MatMul" and weight is not None and array(weight).ndim != 2:
        return "the weight is not a matrix"
    if weight is not None and not np.isfinite(array(weight)).all():
        return "weights are not finite"
    if weight is not None and weight.dtype != ir.DataType.FLOAT:
        return "weights are not float32"
    bias = op.bias
    given = node.inputs[bias] if bias is not None and len(node.inputs) > bias else None
    if given is not None and not constant(given):
        return "the bias is computed at run time"
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return "Gemm with alpha or beta"
    if given is not channel_bias(node):
        return "the bias varies over rows"
    operands = activations(node)
    if not operands or any(str(v.name) not in probes for v in [*(v for _, v in operands), *node.outputs]):
        return "not a float32 operation on the sample"
    touched = [probes[str(v.name)] for v in [*(v for _, v in operands), *node.outputs]]
    if any(p.size == 0 for p in touched):
        return "an empty tensor on the sample"
    if any(p.masked for p in touched):
        return "an attention mask or infinity would set its range"
    if any(not np.isfinite(array(c)).all() for _, c in constants(node)):
        return "a constant is not finite"
    if any(_masked(v) for _, v in operands):
        return "an attention mask or infinity would set its range"
    if op.inputs == (0, 1) and (len(node.inputs) > 2 or (node.op_type == "Pow" and constant(node.inputs[0]))):
        return "no integer kernel for these inputs"
    if node.op_type == "Concat":
        return _crushed([probes[str(v.name)] for _, v in operands], probes[str(node.outputs[0].name)])
    return None


def refusals(model: ir.Model, probes: Mapping[str, Probe]) -> dict[str, str | None]:
    """The `refusal` of every node of the main graph by its name, which depends on no target."""
    return {str(node.name): refusal(node, probes) for node in model.graph}


def _masked(value: ir.Value) -> bool:
    """Whether a mask puts infinities into `value` on some sample."""
    node = value.producer()
    if node is None or node.op_type != "Where":
        return False
    return any(constant(v) and not np.isfinite(array(v)).all() for v in node.inputs[1:3])


def _crushed(operands: Sequence[Probe], output: Probe) -> str | None:
    """Why the operands of a Concat cannot share its grid: boxes in pixels leave no level to scores."""
    wide = output.hi - output.lo
    least = min((p.hi - p.lo for p in operands if p.hi > p.lo), default=wide)
    if least * _STEPS >= wide * _LEVELS:
        return None
    return f"one grid for operands whose ranges differ {wide / least:.0f} times would leave the smallest no levels"


def _clamp_of(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip after `node` that the output grid can replace: the only consumer, with 0 inside its bounds."""
    if rule(node).moves or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 0 or not rule(uses[0].node).clamp or uses[0].node.graph is not node.graph:
        return None
    clamp = uses[0].node
    for bound, sign in zip(clamp.inputs[1:3], (1, -1), strict=False):
        number = scalar(bound)
        if bound is not None and (number is None or sign * number > 0):
            return None
    return clamp


def place(
    model: ir.Model,
    target: Target,
    probes: Mapping[str, Probe],
    *,
    exclude: frozenset[str] = frozenset(),
    include: frozenset[str] = frozenset(),
    costs: Costs | None = None,
    refused: Mapping[str, str | None] | None = None,
) -> Plan:
    """The fastest placement of `model` (canonical) on `target`.

    exclude: nodes that stay float; include: nodes that become integer if a kernel exists, even if slower; costs:
    measured costs, used instead of the target's; refused: the `refusals` of the model, if they are known.
    """
    refused = refusals(model, probes) if refused is None else refused
    reasons: dict[str, str] = {}
    candidates: list[ir.Node] = []
    for node in model.graph:
        reason = "chosen to stay float" if node.name in exclude else refused[str(node.name)] or _lacks(target, node)
        known = reason is None and (target.place.rule == "all" or cost_class(node) in target.cost)
        if reason is None and costs is not None:
            times = costs.of(node, probes)
            known = known if times is None else math.isfinite(times[1])
        if reason is None and not known and node.name not in include:
            reason = f"{cost_class(node)} does not pay in integers on {target.name}"
        if reason is None:
            candidates.append(node)
        else:
            reasons[str(node.name)] = reason
    clamps = {str(c.name): n for n in candidates if (c := _clamp_of(n)) is not None and c.name not in exclude}
    integer = frozenset(str(n.name) for n in candidates)
    if target.place.rule == "cut":
        integer = _cut(model, candidates, clamps, probes, include, _Prices(target, costs))
    reasons |= {
        str(n.name): "does not pay: the integer kernel and its Q/DQ take longer"
        for n in candidates
        if n.name not in integer
    }
    taken = {c: str(n.name) for c, n in clamps.items() if n.name in integer}
    forms: dict[str, Form] = dict.fromkeys(integer, "int8 static")
    grids = _grids(model, integer, taken, target.place.float_output)
    floats = {n: r for n, r in reasons.items() if n not in taken}
    return Plan(forms, taken, grids, floats, clamps_stay=target.place.clamps == "keep")


def _lacks(target: Target, node: ir.Node) -> str | None:
    """Why `target` has no integer kernel for `node`, or None."""
    name, op = kernel(node)
    lacks = op.elsewhere if target.place.rule == "cut" else name not in target.place.operators
    return "no integer kernel for this operator" if lacks else None


def outputs_of(node: ir.Node, clamps: Container[str]) -> list[ir.Value]:
    """The outputs of `node`; if a clamp after it is merged into its grid, the output of the clamp."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and str(uses[0].node.name) in clamps:
        return [uses[0].node.outputs[0]]
    return list(node.outputs)


@dataclass(frozen=True)
class _Prices:
    """Costs in picoseconds: measured ones where known, else from the target's table."""

    target: Target
    costs: Costs | None

    def node(self, node: ir.Node, probes: Mapping[str, Probe]) -> tuple[float, float]:
        """(float time, integer time) of `node`, in picoseconds."""
        found = self.costs.of(node, probes) if self.costs is not None else None
        if found is None or not math.isfinite(found[1]):  # an included node without a kernel
            row = self.target.cost.get(cost_class(node), _FREE)
            work, size = macs_of(node, _shapes(node, probes)), sum(probes[str(v.name)].size for v in node.outputs)
            found = _linear(row.float_ps, work, size), _linear(row.int_ps, work, size)
        return found[0], found[1] * (1 + self.target.place.margin)

    def crossing(self, value: Probe, image: bool) -> tuple[float, float]:
        """(time to quantize, time to dequantize) `value`, in picoseconds.

        image: whether a convolution produces or reads it; then converting the memory layout is added.
        """
        target = self.target
        known = self.costs.crossings if self.costs is not None else None
        quantize, dequantize, layout = known or (target.quantize_ps, target.dequantize_ps, target.layout_ps)
        more = layout if image else 0.0
        return (quantize + more) * value.size, (dequantize + more) * value.size


def _shapes(node: ir.Node, probes: Mapping[str, Probe]) -> dict[str, tuple[int, ...]]:
    values = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None]
    return {name: probes[name].shape for name in values if name in probes}


def _linear(row: tuple[float, float], work: int, size: int) -> float:
    return row[0] * work + row[1] * size


def _meets_conv(value: ir.Value) -> bool:
    around = [value.producer(), *(u.node for u in value.uses())]
    return any(n is not None and n.op_type == "Conv" for n in around)


def _cut(
    model: ir.Model,
    candidates: Sequence[ir.Node],
    clamps: Mapping[str, ir.Node],
    probes: Mapping[str, Probe],
    include: frozenset[str],
    prices: _Prices,
) -> frozenset[str]:
    network = FlowNetwork(2 + len(candidates))
    source, sink = 0, 1
    label = {str(n.name): i + 2 for i, n in enumerate(candidates)}
    for node in candidates:
        floating, integral = prices.node(node, probes)
        network.add_edge(source, label[str(node.name)], INFINITE if node.name in include else round(floating))
        network.add_edge(label[str(node.name)], sink, round(integral))
    made = {str(v.name): n for n in candidates for v in outputs_of(n, clamps)}
    for value in _values(model):
        inside = [u for u in value.uses() if u.node.graph is model.graph and str(u.node.name) in label]
        users = [u.node for u in inside if u.idx in {i for i, _ in activations(u.node)}]
        producer = made.get(str(value.name))
        if str(value.name) not in probes or (producer is None and not users):
            continue
        start = label[str(producer.name)] if producer is not None else sink
        quantize, dequantize = prices.crossing(probes[str(value.name)], _meets_conv(value))
        ends = [label[str(u.name)] for u in users]
        if ends:
            crossing = network.add_node()
            network.add_edge(crossing, start, round(quantize))
            for end in ends:
                network.add_edge(end, crossing, INFINITE)
        if producer is not None and (value is not producer.outputs[0] or not rule(producer).float_output):
            crossing = network.add_node()
            network.add_edge(start, crossing, round(dequantize))
            stays = len(users) < len(tuple(value.uses())) or value.is_graph_output()
            for end in [*ends, *([sink] if stays else [])]:
                network.add_edge(crossing, end, INFINITE)
    side = network.source_side(source, sink)
    return frozenset(name for name, i in label.items() if side[i])


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]


def _grids(model: ir.Model, integer: frozenset[str], clamps: Mapping[str, str], float_output: bool) -> dict[str, str]:
    """Every value that gets a grid, mapped to the value whose statistics determine it; float_output: whether kernels
    that can give floats may.
    """
    grids: dict[str, str] = {}
    for node in model.graph:
        if node.name not in integer:
            continue
        for _, value in activations(node):
            grids.setdefault(str(value.name), str(value.name))
        op = kernel(node)[1]
        for out in outputs_of(node, clamps):
            needed = (
                not (op.float_output and float_output)
                or any(str(u.node.name) in integer for u in out.uses())
                or out is not node.outputs[0]
            )
            if needed:
                first = activations(node)[0][1]
                grids[str(out.name)] = grids[str(first.name)] if op.moves else str(out.name)
    return grids
