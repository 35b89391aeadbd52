"""Nothing is written that was not checked: the ONNX checker, a load, a run on held-out samples, finite, compared with
float, timed against it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeopt import graph
from edgeopt.errors import EdgeoptError, ValidityError
from edgeopt.files import temporary_folder
from edgeopt.hardware import target
from edgeopt.hardware.host import cores
from edgeopt.numbers.scores import OutputReport, compare, lowest_agreement, lowest_sqnr_db
from edgeopt.ptq.guard import unguarded
from edgeopt.quantization.prepare import Job
from edgeopt.quantization.report import Candidate
from edgeopt.quantization.static import Made
from edgeopt.runtime.kernels import Kernels, kernels
from edgeopt.runtime.measure import PairedLatency, interleaved
from edgeopt.runtime.session import Session, open_session, run_all

SECONDS = 1.0


@dataclass(frozen=True)
class Tried:
    """A candidate that passed the checks."""

    made: Made
    path: Path
    errors: tuple[OutputReport, ...]
    latency: PairedLatency | None
    float_ms: float
    kernels: Kernels
    metric: float | None = None

    @property
    def mode(self) -> str:
        """How it was made."""
        return self.made.mode

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of all outputs, in dB."""
        return lowest_sqnr_db(self.errors)

    @property
    def agreement(self) -> float | None:
        """The lowest top-1 agreement of the outputs that look like class scores."""
        return lowest_agreement(self.errors)

    @property
    def slower(self) -> bool:
        """Whether it was measured and the 95 % interval says that float is faster."""
        return self.latency is not None and self.latency.speedup_high < 1.0

    def candidate(self, verdict: str) -> Candidate:
        """Its line in the report."""
        speedup = self.latency.speedup if self.latency else None
        return Candidate(self.mode, self.worst_sqnr_db, speedup, verdict, self.metric)


def verify(job: Job, made: Made, path: Path) -> Tried:
    """Write `made` at `path` (in a stage), check and compare it.

    Raises:
        ValidityError: any check failed; says which.
    """
    start = time.perf_counter()
    graph.write(made.model, path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as e:
        raise ValidityError(f"{made.mode}: the result is not valid ONNX: {e}") from e
    if job.target.saturates:
        saturating = unguarded(made.model)
        if saturating:
            raise ValidityError(f"{made.mode}: sums can saturate on {job.target.name} in {', '.join(saturating[:3])}")
    try:
        session, made_of = _loaded(job, made.model, path)
        outputs = run_all(session, job.held, workers=cores())
    except EdgeoptError as e:
        raise ValidityError(f"{made.mode}: the result does not run: {e}") from e
    errors = tuple(compare(session.outputs, job.reference, outputs))
    job.seconds["check"] = job.seconds.get("check", 0.0) + time.perf_counter() - start
    start = time.perf_counter()
    latency, float_ms = None, math.nan
    if job.options.measure and measurable(job):
        sessions = {"float": job.float_session, "result": session}
        found = interleaved(sessions, "float", dict.fromkeys(sessions, job.held[0][1]), seconds=SECONDS)
        latency, float_ms = found["result"], found["float"].latency_ms
        job.seconds["measure"] = job.seconds.get("measure", 0.0) + time.perf_counter() - start
    score = None if job.metric is None else job.metric(session, job.reference, outputs)
    return Tried(made, path, errors, latency, float_ms, made_of, score)


def _loaded(job: Job, model: ir.Model, path: Path) -> tuple[Session, Kernels]:
    """A session of the file at `path`, and what ONNX Runtime made of it (nothing known above 2 GB, which it cannot write)."""
    if graph.above_protobuf(model):
        return open_session(path, options=_options(job)), Kernels({}, {}, {})
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        session = open_session(path, options=_options(job), optimized=optimized)
        return session, kernels(optimized)


def measurable(job: Job) -> bool:
    """Whether this machine is the target, so that its clock says something."""
    return job.target.name in (target.host(), "cpu-portable")


def _options(job: Job) -> dict[str, str]:
    """Session options that give the target's arithmetic here: exact sums for a target that does not saturate on a
    machine that does.
    """
    saturating_here = target.load("host").saturates and not job.target.saturates
    return {**job.target.session, **({"session.x64quantprecision": "1"} if saturating_here else {})}
