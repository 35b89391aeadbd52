"""The models that each mode makes of a job; `auto` and the checks do not know how."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.errors import UsageError
from edgeopt.grid import QParams
from edgeopt.observers import Statistics
from edgeopt.ops import channel_axis, weight_of
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.passes.dynamic import dynamic
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.fp16 import fp16
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.passes.shield import shield
from edgeopt.passes.weights import weight_only
from edgeopt.prepare import Job
from edgeopt.ptq.islands import blame
from edgeopt.ptq.moments import Moments, gather, layers
from edgeopt.ptq.place import place, select
from edgeopt.ptq.quantize import activation_params, quantization_params, saturation_floor, untie, weight_params
from edgeopt.ptq.reconstruct import reconstructed
from edgeopt.report import ActivationReport
from edgeopt.runtime.calibrate import forecast, observe
from edgeopt.runtime.probe import Probe, probe
from edgeopt.state import Plan

_MOMENT_SAMPLES = {"normal": 32, "high": 96}
_ISLAND_SHARES = (0.1, 0.25, 0.5)
_BLAME_SAMPLES = 4
_INT4_OPSET = 21
_NOTHING = {
    "static": "no node pays in integers on this target",
    "dynamic": "no MatMul or Gemm has constant weights",
    "weights": "no weight is large enough",
}
_BLAMED = "integers lose most of the accuracy here"


@dataclass(frozen=True)
class Made:
    """A candidate before any check."""

    mode: str
    model: ir.Model
    plan: Plan | None = None
    activations: Mapping[str, ActivationReport] = field(default_factory=dict)


@dataclass(frozen=True)
class Ground:
    """What static candidates start from. probes: with the extremes of all calibration samples."""

    plan: Plan
    probes: Mapping[str, Probe]
    statistics: dict[str, Statistics]


def ground(job: Job) -> Ground | None:
    """The plan of the job and statistics for it, or None where no node becomes integer."""
    probes = _probe(job)
    plan = place(job.model, job.target, probes, exclude=job.exclude, include=job.include)
    if not plan.integer:
        return None
    statistics = calibrate(job, sorted(set(plan.grids.values())), probes)
    probes = {**probes, **{name: _widened(probes[name], s) for name, s in statistics.items() if name in probes}}
    plan = place(job.model, job.target, probes, exclude=job.exclude, include=job.include)
    return Ground(plan, probes, statistics) if plan.integer else None


def static(job: Job) -> Iterator[Made]:
    """Static int8; asked again, the same with the worst nodes left in float, three times with more of them."""
    base = ground(job)
    if base is None:
        return
    plan, moments = base.plan, dict[str, Moments]()
    made = made_static(job, plan, base, moments)
    yield made
    feeds = [feed for _, feed in job.held[:_BLAME_SAMPLES]]
    lost = [name for name, db in blame(untie(job.model, plan), made.model, plan, feeds).items() if db > 0]
    for share in _ISLAND_SHARES:
        worst = frozenset(lost[: max(1, round(share * len(plan.integer)))])
        islands = place(job.model, job.target, base.probes, exclude=job.exclude | worst, include=job.include - worst)
        reasons = {n: _BLAMED if n in worst else reason for n, reason in islands.kept_float.items()}
        islands = replace(islands, kept_float=reasons)
        if islands.integer:
            yield made_static(job, islands, base, moments, f"static with {len(worst)} nodes left in float")


def _widened(p: Probe, statistics: Statistics) -> Probe:
    """`p` with the extremes of all samples: a mask may be in none of the first."""
    return replace(p, lo=min(p.lo, statistics.minmax.lo), hi=max(p.hi, statistics.minmax.hi))


def _probe(job: Job) -> Mapping[str, Probe]:
    start = time.perf_counter()
    found = probe(job.model, job.held[0][1])
    job.seconds["probe"] = time.perf_counter() - start
    return found


def made_static(job: Job, plan: Plan, base: Ground, moments: dict[str, Moments], mode: str = "static") -> Made:
    """`moments`, and the statistics of `base`, get what the plan needs and they lack."""
    missing = sorted(set(plan.grids.values()) - base.statistics.keys())
    if missing:
        base.statistics.update(calibrate(job, missing, base.probes))
    start = time.perf_counter()
    activation = activation_params(plan, base.statistics, job.target, job.options.range_rule)
    model = untie(job.model, plan)
    params = quantization_params(model, plan, activation, job.target)
    if job.options.effort != "fast":
        model = reconstructed(model, params, _moments(job, model, plan, moments), job.target)
    made = Made(
        mode,
        quantize_embeddings(shield(fold_weights(insert_qdq(model, plan, params))), job.exclude),
        plan,
        _activations(base.statistics, activation),
    )
    job.seconds["quantize"] = job.seconds.get("quantize", 0.0) + time.perf_counter() - start
    return made


def _moments(job: Job, model: ir.Model, plan: Plan, found: dict[str, Moments]) -> Mapping[str, Moments]:
    nodes = [n for n in layers(model, plan.integer) if n.name not in found]
    if nodes:
        start = time.perf_counter()
        found |= gather(
            model,
            nodes,
            job.calibration[: _MOMENT_SAMPLES[job.options.effort]],
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


def calibrate(job: Job, values: list[str], probes: Mapping[str, Probe]) -> dict[str, Statistics]:
    """Statistics of `values` over the job's calibration samples, with a forecast before."""
    start = time.perf_counter()
    max_ram = job.options.max_ram or free_bytes() // 2
    expected = forecast(job.model, values, probes, max_ram)
    run_s = _run_seconds(job)
    seconds = 2 * run_s * expected.passes * len(job.calibration)
    passes = "one pass" if expected.passes == 1 else f"{expected.passes} passes"
    job.note(
        f"calibration: {len(values)} tensors, {len(job.calibration)} samples, {passes}; about {max(1, round(seconds))} s and {expected.ram_bytes / 1e6:.0f} MB"
    )
    observation = observe(
        job.model,
        values,
        job.calibration,
        probes=probes,
        max_ram=max_ram,
        progress=lambda done, total: job.listener.progress("calibrating", done, total),
    )
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


def dynamic_int8(job: Job) -> Iterator[Made]:
    """Dynamic int8 of every matrix product with constant weights (LSTMs when `include` names them)."""
    lstm = {str(n.name) for n in job.model.graph.all_nodes() if n.op_type == "LSTM"} & job.include
    nodes = [
        n
        for n in dynamic_nodes(job.model, lstm=bool(lstm))
        if n.name not in job.exclude and (n.op_type != "LSTM" or n.name in lstm)
    ]
    if not nodes:
        return
    params: dict[str, QParams] = {}
    skipped: set[str | None] = set()
    for node in nodes:
        weight = weight_of(node) if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None and weight.const_value is not None:
            if str(weight.name) in params and params[str(weight.name)].axis != channel_axis(node):
                skipped.add(node.name)  # one matrix read both ways: its first reader decides the grid
                continue
            w, axis = weight.const_value.numpy(), channel_axis(node)
            floor = saturation_floor(w, node.op_type, axis) if job.target.saturates else 0.0
            params[str(weight.name)] = weight_params(w, axis, job.target.weight_type, floor=floor)
    model = dynamic(job.model, params, frozenset(str(n.name) for n in nodes if n.name not in skipped))
    yield Made("dynamic", quantize_embeddings(model, job.exclude))


def half(job: Job) -> Iterator[Made]:
    """fp16, with nodes beyond its range, by constants or by what the held-out samples show, left in float32."""
    keep = select([job.source, job.model], job.options.keep) | job.exclude
    peaks: dict[str, float] = {}
    for _, feed in job.held[:_BLAME_SAMPLES]:
        for name, p in probe(job.model, feed).items():
            peak = max(abs(p.lo), abs(p.hi))
            peaks[name] = max(peaks.get(name, 0.0), 0.0 if np.isnan(peak) or np.isinf(peak) else peak)
    yield Made("fp16", fp16(graph.typed(job.model), keep=keep, io_keep=job.options.io_types == "keep", peaks=peaks))


def weights(job: Job) -> Iterator[Made]:
    """Weight-only integers; 4 bits raise the opset to 21."""
    bits = job.options.bits
    model = graph.raise_opset(job.model, _INT4_OPSET) if bits == 4 else job.model
    result = quantize_embeddings(weight_only(model, bits, job.exclude), job.exclude)
    if any(v.dtype in (ir.DataType.INT8, ir.DataType.INT4) for v in result.graph.initializers.values()):
        yield Made("weights" if bits == 8 else "weights (4 bits)", result)


def of_mode(job: Job) -> Made:
    """The one candidate of an explicit mode.

    Raises:
        UsageError: the mode has nothing to do in this model.
    """
    makers = {"static": static, "dynamic": dynamic_int8, "fp16": half, "weights": weights}
    made = next(makers[job.options.mode](job), None)
    if made is None:
        raise UsageError(
            f"--mode {job.options.mode}: {_NOTHING[job.options.mode]}; use --mode auto, or name nodes with --include"
        )
    return made
