"""Static int8 models of a job, each from a `Tuning`; `MOVES` are the ways from one tuning to the next.

float model -> equalized or smoothed -> ground: plan, probes, statistics, moments -> weights rounded -> Q/DQ
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from edgeopt.grid import QParams
from edgeopt.observers import Statistics
from edgeopt.ops import OPS, cost_class
from edgeopt.options import Options, Rounding
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.passes.shield import shield
from edgeopt.prepare import Job
from edgeopt.ptq.equalize import equalized
from edgeopt.ptq.islands import blame
from edgeopt.ptq.moments import Moments, gather, layers
from edgeopt.ptq.place import place
from edgeopt.ptq.quantize import activation_params, quantization_params, untie
from edgeopt.ptq.reconstruct import clipped, reconstructed
from edgeopt.ptq.smooth import smoothed
from edgeopt.report import ActivationReport
from edgeopt.runtime.calibrate import forecast, observe
from edgeopt.runtime.probe import Probe, probe
from edgeopt.state import Plan

_SAMPLES = {"fast": 32, "normal": 32, "high": 96}  # whose moments are taken
_PEAKS = 32
_SHARES = (0.05, 0.1, 0.25, 0.5)
_BLAME_SAMPLES = 4
_FACTORS = (0.4, 2.5)  # how wrong a table may be about a machine
_BLAMED = "integers lose most of the accuracy here"


@dataclass(frozen=True)
class Tuning:
    """How a static model is made. floats: nodes that stay float; costs: factors on rows of the target's integer costs."""

    range_rule: str = "mse"
    rounding: Rounding = "gptq"
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = None
    floats: frozenset[str] = frozenset()
    costs: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def of(options: Options) -> Tuning:
        """What `options` ask for."""
        rounding = options.rounding or ("nearest" if options.effort == "fast" else "gptq")
        return Tuning(options.range_rule, rounding, options.clip_weights, options.equalize, options.smooth)


MOVES: tuple[tuple[str, Mapping[str, Any]], ...] = (  # in the order of their cost
    ("weights rounded by what layers read (GPTQ)", {"rounding": "gptq"}),
    ("ranges by percentile", {"range_rule": "percentile"}),
    ("ranges by minmax", {"range_rule": "minmax"}),
    ("weights clipped", {"clip_weights": True}),
    ("inputs of layers smoothed", {"smooth": 0.5}),
    ("layers equalized", {"equalize": True}),
)
LAST = (
    "rounding learned (AdaRound)",
    {"rounding": "adaround"},
)  # slow, and behind GPTQ on all models that were measured


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
    moments: dict[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class Statics:
    """The static models of `job`; what several of them need is found once."""

    job: Job
    grounds: dict[tuple[bool, float | None], Ground | None] = field(default_factory=dict)

    def ground(self, tuning: Tuning) -> Ground | None:
        """What `tuning` starts from, or None where no node becomes integer."""
        key = (tuning.equalize, tuning.smooth)
        if key not in self.grounds:
            self.grounds[key] = _ground(self.job, _reshaped(self.job, tuning))
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
        if not tuning.floats and not tuning.costs:
            return base.plan
        job, out = self.job, tuning.floats
        target = job.target.scaled(dict(tuning.costs))
        plan = place(base.model, target, base.probes, exclude=job.exclude | out, include=job.include - out)
        reasons = {n: _BLAMED if n in out else reason for n, reason in plan.kept_float.items()}
        return replace(plan, kept_float=reasons)

    def placements(self, tuning: Tuning) -> Iterator[tuple[str, Tuning]]:
        """Tunings that place nodes as if the integers of one class of operators were cheaper or dearer than the table of the
        target says; only those that place some node otherwise.
        """
        base = self.ground(tuning)
        if base is None:
            return
        seen = {self.plan(tuning, base).integer}
        for name in sorted({cost_class(n) for n in base.model.graph if n.op_type in OPS} & self.job.target.cost.keys()):
            for factor in _FACTORS:
                changed = replace(tuning, costs=(*((k, f) for k, f in tuning.costs if k != name), (name, factor)))
                plan = self.plan(changed, base)
                if plan.integer and plan.integer not in seen:
                    seen.add(plan.integer)
                    count = len(plan.integer) - len(self.plan(tuning, base).integer)
                    yield f"{name}: {abs(count)} nodes {'more' if count > 0 else 'fewer'} in integers", changed

    def islands(self, made: Made, shares: tuple[float, ...] = _SHARES) -> Iterator[tuple[str, Tuning]]:
        """Tunings of `made` with more and more of its worst nodes in float."""
        if made.plan is None or made.source is None or made.tuning is None:
            return
        feeds = [feed for _, feed in self.job.held[:_BLAME_SAMPLES]]
        lost = blame(untie(made.source, made.plan), made.model, made.plan, feeds)
        worst = [name for name, db in lost.items() if db > 0]
        for share in shares:
            out = frozenset(worst[: max(1, round(share * len(made.plan.integer)))])
            if out:
                yield f"{len(out)} nodes left in float", replace(made.tuning, floats=made.tuning.floats | out)


def static(job: Job) -> Made | None:
    """Static int8 as the options ask for it, or None where no node becomes integer."""
    return Statics(job).made(Tuning.of(job.options))


def _reshaped(job: Job, tuning: Tuning) -> ir.Model:
    model = job.model
    if tuning.equalize:
        model = equalized(model, job.calibration[:_PEAKS])
    return model if tuning.smooth is None else smoothed(model, job.calibration[:_PEAKS], tuning.smooth)


def _ground(job: Job, model: ir.Model) -> Ground | None:
    start = time.perf_counter()
    probes: Mapping[str, Probe] = probe(model, job.held[0][1])
    job.seconds["probe"] = job.seconds.get("probe", 0.0) + time.perf_counter() - start
    plan = place(model, job.target, probes, exclude=job.exclude, include=job.include)
    if not plan.integer:
        return None
    statistics = _calibrated(job, model, sorted(set(plan.grids.values())), probes)
    probes = {**probes, **{name: _widened(probes[name], s) for name, s in statistics.items() if name in probes}}
    plan = place(model, job.target, probes, exclude=job.exclude, include=job.include)
    return Ground(model, plan, probes, statistics) if plan.integer else None


def _widened(p: Probe, statistics: Statistics) -> Probe:
    """`p` with the extremes of all samples: a mask may be in none of the first."""
    return replace(p, lo=min(p.lo, statistics.minmax.lo), hi=max(p.hi, statistics.minmax.hi))


def _made(job: Job, tuning: Tuning, plan: Plan, base: Ground, mode: str) -> Made:
    """`base` gets the statistics and moments that the plan needs and it lacks."""
    missing = sorted(set(plan.grids.values()) - base.statistics.keys())
    if missing:
        base.statistics.update(_calibrated(job, base.model, missing, base.probes))
    start = time.perf_counter()
    activation = activation_params(plan, base.statistics, job.target, tuning.range_rule)
    model = untie(base.model, plan)
    params = quantization_params(model, plan, activation, job.target)
    if tuning.clip_weights or tuning.rounding != "nearest":
        moments = _moments(job, model, plan, base.moments)
        if tuning.clip_weights:
            params = clipped(model, params, moments, job.target)
        model = reconstructed(model, params, moments, job.target, tuning.rounding)
    quantized = quantize_embeddings(shield(fold_weights(insert_qdq(model, plan, params))), job.exclude)
    job.seconds["quantize"] = job.seconds.get("quantize", 0.0) + time.perf_counter() - start
    return Made(mode, quantized, plan, _activations(base.statistics, activation), base.model, tuning)


def _moments(job: Job, model: ir.Model, plan: Plan, found: dict[str, Moments]) -> Mapping[str, Moments]:
    nodes = [n for n in layers(model, plan.integer) if n.name not in found]
    if nodes:
        start = time.perf_counter()
        found |= gather(
            model,
            nodes,
            job.calibration[: _SAMPLES[job.options.effort]],
            (job.options.max_ram or free_bytes() // 2) // 2,
            lambda done, total: job.listener.progress("looking at what layers read", done, total),
        )
        job.seconds["moments"] = job.seconds.get("moments", 0.0) + time.perf_counter() - start
    return {name: m for name, m in found.items() if name in plan.integer}  # others are float in this plan


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


def free_bytes() -> int:
    """Memory that can be had without swapping; 4 GB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30
