"""Static int8 models of a job, each from a `Tuning`; `MOVES` are the ways from one tuning to the next.

float model -> equalized or smoothed -> ground: plan, probes, statistics, moments -> weights rounded -> Q/DQ
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from edgeopt.data import readable
from edgeopt.graph.ops import activations
from edgeopt.graph.plan import Plan
from edgeopt.hardware.host import free_bytes
from edgeopt.numbers.grid import QParams
from edgeopt.numbers.observers import Statistics
from edgeopt.options.quantize import Quantize
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.passes.dynamic import dynamic
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.passes.shield import shield
from edgeopt.ptq.equalize import equalized
from edgeopt.ptq.grids import activation_params, dynamic_params, quantization_params, untie
from edgeopt.ptq.islands import blame, result
from edgeopt.ptq.moments import LayerMoments, gather, layers, parts
from edgeopt.ptq.place import place
from edgeopt.ptq.reconstruct import clipped, reconstructed
from edgeopt.ptq.refit import refitted
from edgeopt.ptq.smooth import smoothed
from edgeopt.quantization.costing import costed
from edgeopt.quantization.prepare import Job
from edgeopt.quantization.report import ActivationReport
from edgeopt.runtime.calibrate import forecast, observe
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.probe import Probe, probe

_SAMPLES = {"fast": 32, "normal": 32, "high": 96}  # whose moments are taken
SELECTION = 32  # calibration samples, the first ones, by which a search judges; weights are not fitted to them
_FITTED = 256
_PEAKS = 32
_LARGEST = 8 << 30  # bytes for one layer where --max-ram does not say
_SHARES = (0.05, 0.1, 0.25, 0.5)
_RANGE_SHARES = (0.1, 0.5)
_RULES = ("mse", "percentile", "minmax")
_BLAME_SAMPLES = 4
_DYNAMIC = "in integers whose scale is found at run time"
_BLAMED = "integers lose most of the accuracy here"


@dataclass(frozen=True)
class Tuning:
    """How a static model is made. refit: weights fitted to what layers read in integers; floats: nodes that stay float; measured:
    placed by measured costs, not by the target's table; dynamics: products whose inputs get their scale at run time; rules:
    (value, range rule) where it is another one.
    """

    range_rule: str = "mse"
    rounding: str = "gptq"
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = None
    refit: bool = False
    floats: frozenset[str] = frozenset()
    measured: bool = False
    dynamics: frozenset[str] = frozenset()
    rules: frozenset[tuple[str, str]] = frozenset()

    @staticmethod
    def of(options: Quantize) -> Tuning:
        """What `options` ask for."""
        rounding = options.rounding or ("nearest" if options.effort == "fast" else "gptq")
        by_clock = options.costs is not None
        o = options
        return Tuning(o.range_rule, rounding, o.clip_weights, o.equalize, o.smooth, o.refit, measured=by_clock)


MOVES: tuple[tuple[str, Mapping[str, Any]], ...] = (  # in the order of their cost
    ("weights rounded by what layers read (GPTQ)", {"rounding": "gptq"}),
    ("ranges by percentile", {"range_rule": "percentile"}),
    ("ranges by minmax", {"range_rule": "minmax"}),
    ("weights clipped", {"clip_weights": True}),
    ("inputs of layers smoothed", {"smooth": 0.5}),
    ("layers equalized", {"equalize": True}),
)
LAST: tuple[tuple[str, Mapping[str, Any]], ...] = (  # slow
    ("weights fitted to what layers read in integers", {"refit": True}),
    ("weights rounded by GPTQ or AdaRound, output by output", {"rounding": "best"}),
)


@dataclass(frozen=True)
class Made:
    """A candidate before any check; plan, source, tuning: of a static one, the plan with the float model that it is for."""

    mode: str
    model: ir.Model
    plan: Plan | None = None
    activations: Mapping[str, ActivationReport] = field(default_factory=dict)
    source: ir.Model | None = None
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Ground:
    """What static models of a float `model` start from. probes: with the extremes of all calibration samples; statistics and
    moments grow as plans need them.
    """

    model: ir.Model
    plan: Plan
    probes: Mapping[str, Probe]
    statistics: dict[str, Statistics]
    moments: dict[str, LayerMoments] = field(default_factory=dict)


@dataclass
class Statics:
    """The static models of `job`; what several of them need is found once. costs: measured when a tuning first asks for them,
    or known from before.
    """

    job: Job
    grounds: dict[tuple[bool, float | None, bool], Ground | None] = field(default_factory=dict)
    costs: Costs | None = None

    def ground(self, tuning: Tuning) -> Ground | None:
        """What `tuning` starts from, or None where no node becomes integer."""
        key = (tuning.equalize, tuning.smooth, tuning.measured)
        if key not in self.grounds:
            self.grounds[key] = self._ground(_reshaped(self.job, tuning), tuning.measured)
        return self.grounds[key]

    def made(self, tuning: Tuning, mode: str = "static") -> Made | None:
        """The model of `tuning`, or None where no node becomes integer."""
        base = self.ground(tuning)
        if base is None:
            return None
        plan = self.plan(tuning, base)
        return _made(self.job, tuning, plan, base, mode) if plan.integer else None

    def plan(self, tuning: Tuning, base: Ground) -> Plan:
        """Where the model of `tuning` computes in integers."""
        job, out = self.job, tuning.floats | tuning.dynamics
        if not out:
            return base.plan
        plan = place(
            base.model,
            job.target,
            base.probes,
            exclude=job.exclude | out,
            include=job.include - out,
            costs=self.costs if tuning.measured else None,
        )
        words = dict.fromkeys(tuning.floats, _BLAMED) | dict.fromkeys(tuning.dynamics, _DYNAMIC)
        reasons = {n: words.get(n, reason) for n, reason in plan.kept_float.items()}
        return replace(plan, kept_float=reasons)

    def placements(self, tuning: Tuning) -> Iterator[tuple[str, Tuning]]:
        """The tuning that places nodes by measured costs, if it places some otherwise than the target's table."""
        if tuning.measured:
            return
        changed = replace(tuning, measured=True)
        before, after = self.ground(tuning), self.ground(changed)
        if before is None or after is None:
            return
        old, new = self.plan(tuning, before).integer, self.plan(changed, after).integer
        if old != new:
            yield f"placed by measured times ({len(new - old)} nodes to integers, {len(old - new)} to float)", changed

    def _ground(self, model: ir.Model, by_clock: bool) -> Ground | None:
        job, start = self.job, time.perf_counter()
        found: Mapping[str, Probe] = probe(model, job.held[0][1])
        job.seconds["probe"] = job.seconds.get("probe", 0.0) + time.perf_counter() - start
        if by_clock:
            self.costs = costed(job, model, found, self.costs)
        costs = self.costs if by_clock else None
        plan = place(model, job.target, found, exclude=job.exclude, include=job.include, costs=costs)
        if not plan.integer:
            return None
        known = next((g.statistics for g in self.grounds.values() if g is not None and g.model is model), {})
        missing = sorted(set(plan.grids.values()) - known.keys())
        statistics = {**known, **(_calibrated(job, model, missing, found) if missing else {})}
        wide = {**found, **{name: _widened(found[name], s) for name, s in statistics.items() if name in found}}
        plan = place(model, job.target, wide, exclude=job.exclude, include=job.include, costs=costs)
        return Ground(model, plan, wide, statistics) if plan.integer else None

    def islands(self, made: Made, shares: tuple[float, ...] = _SHARES) -> Iterator[tuple[str, Tuning]]:
        """Tunings of `made` with more and more of its worst nodes in float."""
        if made.tuning is None:
            return
        for what, worst in self._worst(made, shares):
            yield f"{what} left in float", replace(made.tuning, floats=made.tuning.floats | worst)

    def mixtures(self, made: Made) -> Iterator[tuple[str, Tuning]]:
        """Tunings of `made` with some or all of its matrix products dynamic: the worst ones, then all."""
        if made.plan is None or made.source is None or made.tuning is None:
            return
        products = frozenset(str(n.name) for n in dynamic_nodes(made.source) if n.name in made.plan.integer)
        if not products:
            return
        seen = set[frozenset[str]]()
        for _, worst in [*self._worst(made, _SHARES), ("", products)]:
            some = worst & products
            if some and some not in seen:
                seen.add(some)
                what = "all products dynamic" if some == products else f"{len(some)} of the worst products dynamic"
                yield what, replace(made.tuning, dynamics=made.tuning.dynamics | some)

    def ranges(self, made: Made) -> Iterator[tuple[str, Tuning]]:
        """Tunings of `made` in which what its worst nodes read and give has ranges by another rule."""
        if made.plan is None or made.source is None or made.tuning is None:
            return
        grids, nodes = made.plan.grids, {str(n.name): n for n in made.source.graph}
        for what, worst in self._worst(made, _RANGE_SHARES):
            around = [v for n in worst for v in (result(nodes[n], made.plan), *_read(nodes[n]))]
            for rule in _RULES:
                own = {**dict(made.tuning.rules), **dict.fromkeys((grids[v] for v in around if v in grids), rule)}
                rules = frozenset((v, r) for v, r in own.items() if r != made.tuning.range_rule)
                if rules != made.tuning.rules:
                    yield f"ranges at {what} by {rule}", replace(made.tuning, rules=rules)

    def _worst(self, made: Made, shares: tuple[float, ...]) -> Iterator[tuple[str, frozenset[str]]]:
        """More and more of the nodes of `made` that lose most, each with how many."""
        if made.plan is None or made.source is None:
            return
        seen, _ = readable(self.job.calibration[:_BLAME_SAMPLES], total=len(self.job.calibration))
        feeds = [feed for _, feed in seen] or [feed for _, feed in self.job.held[:_BLAME_SAMPLES]]
        lost = blame(untie(made.source, made.plan), made.model, made.plan, feeds)
        worst = [name for name, db in lost.items() if db > 0]
        sizes = dict.fromkeys(min(len(worst), max(1, round(share * len(made.plan.integer)))) for share in shares)
        for size in sizes:
            if size:
                yield f"{size} node{'s' if size > 1 else ''}", frozenset(worst[:size])


def _read(node: ir.Node) -> list[str]:
    return [str(v.name) for _, v in activations(node)]


def _reshaped(job: Job, tuning: Tuning) -> ir.Model:
    model = job.model
    if tuning.equalize:
        model = equalized(model, job.calibration[:_PEAKS])
    return model if tuning.smooth is None else smoothed(model, job.calibration[:_PEAKS], tuning.smooth)


def _widened(p: Probe, statistics: Statistics) -> Probe:
    """`p` with the extremes of all samples: a mask may be in none of the first."""
    return replace(p, lo=min(p.lo, statistics.minmax.lo), hi=max(p.hi, statistics.minmax.hi))


def _made(job: Job, tuning: Tuning, plan: Plan, base: Ground, mode: str) -> Made:
    """`base` gets the statistics and moments that the plan needs and it lacks."""
    missing = sorted(set(plan.grids.values()) - base.statistics.keys())
    if missing:
        base.statistics.update(_calibrated(job, base.model, missing, base.probes))
    start = time.perf_counter()
    activation = activation_params(plan, base.statistics, job.target, tuning.range_rule, dict(tuning.rules))
    model = untie(base.model, plan)
    params = quantization_params(model, plan, activation, job.target)
    alone = tuning.rounding != "nearest" and not tuning.refit
    if tuning.clip_weights or alone:
        for moments in _moments(job, model, plan, base.moments):
            if tuning.clip_weights:
                params = clipped(model, params, moments, job.target)
            if alone:
                model = reconstructed(model, params, moments, job.target, tuning.rounding)
    if tuning.refit:
        model = _refitted(job, model, plan, params, tuning.rounding)
    quantized = fold_weights(insert_qdq(model, plan, params))
    if tuning.dynamics:
        nodes = [n for n in dynamic_nodes(quantized) if n.name in tuning.dynamics]
        quantized = dynamic(quantized, *dynamic_params(nodes, job.target))
    quantized = quantize_embeddings(shield(quantized), job.exclude)
    job.seconds["quantize"] = job.seconds.get("quantize", 0.0) + time.perf_counter() - start
    return Made(mode, quantized, plan, _activations(base.statistics, activation), base.model, tuning)


def _moments(
    job: Job, model: ir.Model, plan: Plan, known: dict[str, LayerMoments]
) -> Iterator[Mapping[str, LayerMoments]]:
    """Moments of the integer layers, all at once and kept in `known`, or as many at a time as fit into memory."""
    found = _parts(job, model, plan)
    for part in found:
        missing = [n for n in part if n.name not in known]
        start = time.perf_counter()
        new = (
            gather(
                model,
                missing,
                job.calibration[: _SAMPLES[job.options.effort]],
                lambda done, total: job.listener.progress("looking at what layers read", done, total),
            )
            if missing
            else {}
        )
        job.seconds["moments"] = job.seconds.get("moments", 0.0) + time.perf_counter() - start
        if len(found) == 1:
            known |= new
        yield {str(n.name): m for n in part if (m := known.get(str(n.name)) or new.get(str(n.name))) is not None}


def _refitted(job: Job, model: ir.Model, plan: Plan, params: Mapping[str, QParams], rounding: str) -> ir.Model:
    nodes = [n for part in _parts(job, model, plan) for n in part]
    samples = job.calibration[min(SELECTION, len(job.calibration) // 2) :][:_FITTED]

    def progress(done: int, total: int) -> None:
        job.listener.progress("fitting layers to what they read in integers", done, total)

    return refitted(model, nodes, plan, params, samples, job.target, rounding, progress)


def _parts(job: Job, model: ir.Model, plan: Plan) -> list[list[ir.Node]]:
    """The layers whose moments can be taken, as many at a time as fit into memory."""
    max_ram = (job.options.max_ram or free_bytes() // 2) // 2
    found, large = parts(layers(model, plan.integer), max_ram, (job.options.max_ram or _LARGEST) // 2)
    for node in large:
        job.note(f"{node.name}: too large to be rounded by what it reads within --max-ram; to the nearest")
    return found


def _activations(statistics: Mapping[str, Statistics], params: Mapping[str, QParams]) -> dict[str, ActivationReport]:
    found = {}
    for name, p in params.items():
        if name in statistics:
            s = statistics[name]
            seen, scale = (s.minmax.lo, s.minmax.hi), float(p.scale)
            found[name] = ActivationReport(seen, s.moments.mean, s.moments.std, p.range, scale, int(p.zero_point))
    return found


def _calibrated(job: Job, model: ir.Model, values: list[str], probes: Mapping[str, Probe]) -> dict[str, Statistics]:
    """Statistics of `values` over the job's calibration samples, with a forecast before."""
    start = time.perf_counter()
    max_ram = job.options.max_ram or free_bytes() // 2
    expected = forecast(model, values, probes, max_ram)
    seconds = 2 * _run_seconds(job) * expected.passes * len(job.calibration)
    passes = "one pass" if expected.passes == 1 else f"{expected.passes} passes"
    cost = f"about {max(1, round(seconds))} s and {expected.ram_bytes / 1e6:.0f} MB"
    if not job.seconds.get("calibrate"):
        job.note(f"calibration: {len(values)} tensors, {len(job.calibration)} samples, {passes}; {cost}")
    observation = observe(
        model,
        values,
        job.calibration,
        probes=probes,
        max_ram=max_ram,
        progress=lambda done, total: job.listener.progress("calibrating", done, total),
    )
    if not job.seconds.get("calibrate"):
        for reason in observation.skipped.values():
            job.note(f"skipped: {reason}")
        job.note_oddities(job.calibration)
    job.seconds["calibrate"] = job.seconds.get("calibrate", 0.0) + time.perf_counter() - start
    return observation.statistics


def _run_seconds(job: Job) -> float:
    start = time.perf_counter()
    job.float_session.run(job.held[0][1])
    return time.perf_counter() - start
