"""`sensitivity(model, data)`: which nodes lose accuracy when a model is quantized, and why.

For each integer node of the plan, on some samples and compared with the float model: the noise in the outputs when only
this node is quantized, the parts of it caused by its weights and by its activations, and the SQNR gained when only this
node stays float. The noise powers of single nodes nearly add up, so a share of their sum is a share of the loss.
Weights are rounded to nearest here: the result shows the error that learned rounding has to reduce.

If one run for each node would take longer than the budget, shares are approximate: they come from the noise that each
node adds to that of its inputs in the fully quantized model, as if all noise reached the outputs equally.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data.reading import Data
from edgeopt.errors import DataError, ModelError
from edgeopt.files.cloud import anywhere
from edgeopt.graph.ops import array, bias_of, channel_axis, weight_of
from edgeopt.graph.plan import Plan
from edgeopt.hardware.host import cores, numeric_work
from edgeopt.hardware.target import Target, arithmetic
from edgeopt.numbers.grid import QParams, fake_quantize
from edgeopt.numbers.scores import Outputs, class_scores
from edgeopt.options import takes
from edgeopt.options.quantize import Placing, Quantize, SensitivityOptions
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.passes.shield import shield
from edgeopt.pictures import Bar, bars, shortened
from edgeopt.ptq.islands import levels
from edgeopt.ptq.place import outputs_of
from edgeopt.quantization.devices import device
from edgeopt.quantization.metric import kl
from edgeopt.quantization.prepare import Task, prepare
from edgeopt.quantization.steps import Clip, Refit, Round, Write
from edgeopt.runtime.meter import Meter, Timed
from edgeopt.runtime.session import AS_WRITTEN, Feed, open_session, run_all
from edgeopt.runtime.spread import Spread, spread

_MEASURED_S = 0.1
_TRIED = 8  # nodes to run before the total time is estimated
_LEVELS = 4
_DEAD = 1e-6  # of the widest channel: below, a channel does nothing
_TOLD = 10  # a larger spread of the channels' weight ranges is reported


@dataclass(frozen=True)
class Node:
    """The accuracy that one node loses."""

    name: str
    op_type: str
    sqnr_db: float
    """SQNR in dB when only this node is quantized."""
    share: float
    """Its part of the sum of the noise of all nodes, each quantized alone."""
    weights: float | None
    """Part of its own noise that its weights cause, None if the budget was used up."""
    activations: float | None
    """Part of its own noise that its activations cause, None likewise."""
    won_db: float | None
    """SQNR in dB gained when only this node stays float, None likewise."""
    float_ms: float | None
    """By how many ms an inference is then slower; None if not significantly different from 0, or if this machine is not
    the target.
    """
    spread: float | None
    """Largest over median weight range of its channels."""
    kl: float | None
    """KL divergence in nats of class scores from the float model's when only this node is quantized."""

    def describe(self) -> str:
        """A description in plain words."""
        parts = [f"{self.share:.0%} of the loss" + ("" if self.kl is None else f" (KL {self.kl:.2g})")]
        if self.weights is not None and self.activations is not None:
            side = "weights" if self.weights >= self.activations else "activations"
            parts.append(f"mostly its {side} ({max(self.weights, self.activations):.0%})")
        if self.spread is not None and self.spread > _TOLD:
            parts.append(f"its channels' weights span {self.spread:.0f}:1")
        if self.won_db is not None:
            told = "" if self.float_ms is None else f"{self.float_ms:+.2f}"
            cost = " and costs no time" if told.endswith("0.00") else f" and costs {told} ms" if told else ""
            parts.append(f"left in float it gives {self.won_db:+.1f} dB{cost}")
        return f"{self.name} ({self.op_type}): {'; '.join(parts)}"


@dataclass(frozen=True)
class Sensitivity:
    """The nodes, worst first."""

    nodes: tuple[Node, ...]
    sqnr_db: float
    """SQNR in dB with all nodes quantized."""
    samples: int
    """Number of samples used."""
    seconds: float
    complete: bool
    """Whether the budget was enough for every figure."""
    exact: bool
    """Whether shares come from one run for each node."""


@takes(SensitivityOptions)
@numeric_work()
@anywhere
def sensitivity(model: graph.Source, data: Data, options: SensitivityOptions) -> Sensitivity:
    """Find the nodes of `model` that lose accuracy in static int8.

    When the budget is used up, figures are left out: first the gain of single nodes in float, then the split of their
    noise into weights and activations.

    Raises:
        EdgeoptError: as for `edgeopt.quantize`; ModelError also if no node becomes integer.
    """
    given = options.model_fields_set & (Placing.model_fields.keys() - {"samples"})
    chosen = Quantize(mode="static", measure=False, **{name: getattr(options, name) for name in given})
    by = spread(options.executor, options.jobs, options.cluster, options.listener.note)
    with device(options.device, chosen.target) as (meter, own), by as workers:
        task = prepare(graph.load(model), data, chosen.model_copy(update={"target": own}), meter, workers)
        return _sensitivity(_trial(task, options.samples), options, None if task.selection else workers)


def _sensitivity(trial: _Trial, options: SensitivityOptions, by: Spread | None) -> Sensitivity:
    start, ears, budget_s = time.monotonic(), options.listener, options.budget_s
    whole, _ = trial.loss(trial.plan.integer)
    nodes = [n for n in trial.model.graph if n.name in trial.plan.integer]
    alone: dict[ir.Node, float] = {}
    divergence: dict[ir.Node, float | None] = {}
    begun = time.monotonic()
    names = [str(node.name) for node in nodes]
    shared = None if by is None else by.shared(_Portable.of(trial))
    for i, found_of in enumerate(map(trial.alone, names) if by is None else by.map(_alone, shared, names)):
        node = nodes[i]
        alone[node], divergence[node] = found_of
        ears.progress("one node at a time", i + 1, len(nodes))
        expected = (time.monotonic() - begun) / (i + 1) * len(nodes)
        if i + 1 < len(nodes) and expected > budget_s and i >= min(_TRIED, len(nodes) - 1):
            break
    exact = len(alone) == len(nodes)
    if not exact:
        alone = dict(zip(nodes, trial.added(whole), strict=True))
        ears.note(f"{len(nodes)} nodes would take {expected:.0f} s one by one: shares are approximate (--budget)")
    total = sum(alone.values()) or 1.0
    ranked, deadline = sorted(nodes, key=lambda n: -alone[n]), start + budget_s
    parts: Iterable[_Parts] = (trial.parts(str(n.name), deadline) for n in ranked)
    if by is not None:  # nothing is timed beside it
        within = ((str(n.name), deadline - time.monotonic()) for n in ranked)
        parts = list(by.map(_parts, shared, within))
    found = tuple(
        replace(_looked_at(trial, node, p, alone[node], total, whole, deadline), kl=divergence.get(node))
        for node, p in zip(ranked, parts, strict=True)
    )
    complete = all(n.won_db is not None for n in found)
    return Sensitivity(
        found, _db(trial.signal, whole), len(trial.feeds), round(time.monotonic() - start, 2), complete, exact
    )


def _trial(task: Task, samples: int) -> _Trial:
    state = task.recipe.without(Clip, Round, Refit, Write)(task.start)
    if state.plan is None or not state.plan.integer:
        raise ModelError("no node becomes integer on this target; name some with --include")
    feeds = [feed for _, feed in task.held[:samples]]
    if not any(_floats(task.reference[:1])):
        raise DataError(
            "no output is a float, so that no node's share of a loss can be told; cut the model before ArgMax"
        )
    reference = list(task.reference[:samples])
    meter = task.start.resources.meter
    return _Trial(state.model, state.plan, state.params, feeds, reference, task.target, meter, task.shown)


def _looked_at(
    trial: _Trial, node: ir.Node, parts: _Parts, own: float, total: float, whole: float, deadline: float
) -> Node:
    """The figures of `node`, as far as the time allows; `own`: noise power when it alone is quantized."""
    name = str(node.name)
    weights = activations = won = ms = None
    if parts.sides is not None:
        w, a = parts.sides
        weights, activations = w / max(w + a, 1e-30), a / max(w + a, 1e-30)
    if parts.without is not None:
        won = _db(trial.signal, parts.without) - _db(trial.signal, whole)
        ms = trial.longer_ms(trial.plan.integer - {name}) if time.monotonic() < deadline else None
    alone = _db(trial.signal, own)
    return Node(name, node.op_type, alone, own / total, weights, activations, won, ms, _spread(node), None)


@dataclass(frozen=True)
class _Parts:
    """Noise powers of a node; None where the time was up."""

    sides: tuple[float, float] | None
    """With only its weights quantized, and with only its activations."""
    without: float | None
    """With all nodes quantized but this one."""


@dataclass(frozen=True)
class _Portable:
    """What of a trial goes to workers."""

    proto: bytes
    plan: Plan
    params: Mapping[str, QParams]
    feeds: Sequence[Feed]
    reference: Sequence[Outputs]
    target: Target

    @staticmethod
    def of(trial: _Trial) -> _Portable:
        """Without what only this process has."""
        kept = trial.plan, trial.params, trial.feeds, trial.reference, trial.target
        return _Portable(graph.proto_bytes(trial.model), *kept)

    @cached_property
    def trial(self) -> _Trial:
        """The trial in a worker, on one thread."""
        model = graph.load(self.proto)
        kept = self.plan, self.params, self.feeds, self.reference, self.target
        return _Trial(model, *kept, None, lambda m: m, 1)


def _alone(portable: _Portable, name: str) -> tuple[float, float | None]:
    return portable.trial.alone(name)


def _parts(portable: _Portable, item: tuple[str, float]) -> _Parts:
    name, left_s = item
    return portable.trial.parts(name, time.monotonic() + left_s)


@dataclass(frozen=True)
class _Trial:
    """Runs the model with a subset of its nodes quantized."""

    model: ir.Model
    plan: Plan
    params: Mapping[str, QParams]
    feeds: Sequence[Feed]
    reference: Sequence[Outputs]
    target: Target
    meter: Meter | None
    shown: Callable[[ir.Model], ir.Model]
    """Gives a form of the model the outputs that are compared."""
    workers: int = field(default_factory=cores)

    @property
    def signal(self) -> float:
        """Mean power of the float outputs."""
        return _power(_floats(self.reference))

    def loss(self, integer: frozenset[str], side: str = "both") -> tuple[float, float | None]:
        """(mean power of the outputs' error, KL divergence of class scores) if only the nodes `integer` are quantized.

        side: "weights", "activations" or "both".
        """
        options = arithmetic(self.target) if side == "both" else AS_WRITTEN
        session = open_session(self.quantized(integer, side), options=options)
        found = run_all(session, [(str(i), feed) for i, feed in enumerate(self.feeds)], workers=self.workers)
        noise = [
            [a - b for a, b in zip(y, r, strict=True)]
            for y, r in zip(_floats(found), _floats(self.reference), strict=True)
        ]
        return _power(noise), -kl(self.reference, found) if self.scored else None

    def alone(self, name: str) -> tuple[float, float | None]:
        """`loss` of a node alone."""
        return self.loss(frozenset({name}))

    def parts(self, name: str, deadline: float) -> _Parts:
        """The parts of the loss of a node, as far as the time allows."""
        sides = without = None
        if time.monotonic() < deadline:
            w, a = (self.loss(frozenset({name}), side)[0] for side in ("weights", "activations"))
            sides = w, a
        if time.monotonic() < deadline:
            without = self.loss(self.plan.integer - {name})[0]
        return _Parts(sides, without)

    @property
    def scored(self) -> bool:
        """Whether an output looks like class scores."""
        return any(class_scores([r[i] for r in self.reference]) for i in range(len(self.reference[0])))

    def quantized(self, integer: frozenset[str], side: str = "both") -> ir.Model:
        """The model with only `integer` quantized."""
        plan = self._part(integer)
        model, params = self.model, {k: p for k, p in self.params.items() if k in self._needed(plan)}
        constants = {str(v.name) for n in model.graph if n.name in integer for v in (weight_of(n), bias_of(n)) if v}
        if side == "weights":
            model = _rounded(model, {k: params[k] for k in constants if k in params})
        else:
            kept = {k: p for k, p in params.items() if side == "both" or k not in constants}
            model = insert_qdq(model, plan, kept)
            model = shield(fold_weights(model) if side == "both" else model)
        return self.shown(model)

    def longer_ms(self, integer: frozenset[str]) -> float | None:
        """By how many ms an inference is slower with only `integer` quantized than with all nodes quantized; None if
        the 95 % interval contains 0.
        """
        if self.meter is None:
            return None
        models = {"all": Timed(self.quantized(self.plan.integer), self.feeds[0])}
        models["part"] = Timed(self.quantized(integer), self.feeds[0])
        found = self.meter.interleaved(models, "all", seconds=_MEASURED_S)
        part = found["part"]
        if part.speedup_low <= 1 <= part.speedup_high:
            return None
        return found["all"].latency_ms * (1 / part.speedup - 1)

    def added(self, whole: float) -> list[float]:
        """The approximate part of the noise power `whole` that each integer node adds."""
        quantized = shield(fold_weights(insert_qdq(self.model, self.plan, self.params)))
        found = levels(self.model, quantized, self.plan, self.feeds[:_LEVELS])
        shares = [max(0.0, 10 ** (-after / 10) - 10 ** (-before / 10)) for before, after in found.values()]
        total = sum(shares) or 1.0
        return [whole * share / total for share in shares]

    def _part(self, integer: frozenset[str]) -> Plan:
        clamps = {clamp: node for clamp, node in self.plan.clamps.items() if node in integer}
        return replace(self.plan, forms=dict.fromkeys(integer, "int8 static"), clamps=clamps)

    def _needed(self, plan: Plan) -> set[str]:
        """The values that keep a grid: inputs and outputs of integer nodes."""
        nodes = [n for n in self.model.graph if n.name in plan.integer]
        return {str(v.name) for n in nodes for v in (*n.inputs, *outputs_of(n, plan.clamps)) if v is not None}


def _rounded(model: ir.Model, params: Mapping[str, QParams]) -> ir.Model:
    copy = model.clone()
    for name, p in params.items():
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(fake_quantize(array(value), p), name=name)
    return copy


def _floats(outputs: Sequence[Outputs]) -> list[list[np.ndarray]]:
    """The float outputs of each sample; values that are not finite (such as masked scores) become 0."""
    return [
        [np.where(np.isfinite(y), y, 0) for y in sample if np.issubdtype(y.dtype, np.floating)] for sample in outputs
    ]


def _power(outputs: Sequence[Sequence[np.ndarray]]) -> float:
    """The mean square, with equal weight for every output."""
    return float(np.mean([np.mean(np.square(y, dtype=np.float64)) for sample in outputs for y in sample]))


def _db(signal: float, noise: float) -> float:
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))


def _spread(node: ir.Node) -> float | None:
    weight = weight_of(node) if node.op_type in ("Conv", "Gemm", "MatMul") else None
    if weight is None:
        return None
    w = np.moveaxis(array(weight), channel_axis(node), 0)
    ranges = np.abs(w.reshape(len(w), -1)).max(1)
    alive = ranges[ranges > _DEAD * ranges.max()]
    return float(alive.max() / np.median(alive)) if alive.size else None


def picture(found: Sensitivity, most: int = 40) -> str:
    """An SVG bar chart of the worst nodes; dark: weights, light: activations."""
    top = max((n.share for n in found.nodes[:most]), default=1.0) or 1.0
    rows = []
    for node in found.nodes[:most]:
        length, weights = node.share / top, node.weights if node.weights is not None else 0.0
        parts = [(length * weights, "bar"), (length * (1 - weights), "bar light")]
        rows.append(Bar(shortened(node.name, 44), parts, f"{node.share:.1%}", title=node.describe()))
    label = f"share of the loss by node; all quantized: {found.sqnr_db:.1f} dB; dark: weights, light: activations"
    return bars(rows, label, at=320, alone=True) + "\n"
