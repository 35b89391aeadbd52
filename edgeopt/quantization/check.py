"""Checks that every result must pass before it is kept: ONNX checker, loading and running in ONNX Runtime on held-out
samples, finite outputs; then a comparison with the float model in accuracy and in latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.errors import EdgeoptError, LostError, ValidityError, WorkerError
from edgeopt.files import temporary_folder
from edgeopt.hardware import target
from edgeopt.hardware.host import cores
from edgeopt.numbers.figure import Figure
from edgeopt.numbers.scores import OutputReport, Outputs, compare, lowest_agreement, lowest_sqnr_db
from edgeopt.ptq.guard import unguarded
from edgeopt.quantization.candidates import Draft
from edgeopt.quantization.outputs import steps_on
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.report import Candidate
from edgeopt.runtime.elsewhere import timed_elsewhere
from edgeopt.runtime.environments import home_of, lacking
from edgeopt.runtime.kernels import Kernels, kernels
from edgeopt.runtime.measure import PairedLatency
from edgeopt.runtime.meter import Timed
from edgeopt.runtime.session import Session, open_session, run_all

if TYPE_CHECKING:
    from edgeopt.quantization.on_target import Checked

SECONDS = 0.6
_CHANCE_DB = -1.0
SLOWER = 0.97  # speed-ups down to this do not count as slower
FASTER = 1.1  # those from this on are a gain


@dataclass(frozen=True)
class Tried:
    """A candidate that passed the checks."""

    draft: Draft
    path: Path
    errors: tuple[OutputReport, ...]
    latency: PairedLatency | None
    kernels: Kernels
    smaller: float
    """Bytes of the float model's weights against its own."""
    metric: float | None = None
    later: tuple[OutputReport, ...] = ()
    """The outputs after states were fed back, where there are states."""
    by_sample: tuple[float, ...] = ()
    """The lowest SQNR of all outputs on each held-out sample, in dB."""
    there: Checked | None = None
    """What the target's own runtime makes of it, if that was looked at."""

    @property
    def mode(self) -> str:
        """The mode of the candidate."""
        return self.draft.mode

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of all outputs, in dB."""
        return lowest_sqnr_db(self.errors)

    @property
    def agreement(self) -> float | None:
        """The lowest top-1 agreement over the outputs that look like class scores."""
        return lowest_agreement(self.errors)

    @property
    def slower(self) -> bool:
        """Whether its latency was measured and, by the 95 % interval and a margin, the float model is faster."""
        return self.latency is not None and self.latency.speedup_high < SLOWER

    def candidate(self, verdict: str) -> Candidate:
        """Its entry in the report's list of candidates."""
        speedup = self.latency.speedup if self.latency else None
        return Candidate(self.mode, self.worst_sqnr_db, speedup, verdict, self.metric)


def verify(task: Task, draft: Draft, path: Path) -> Tried:
    """Write `draft` to `path` (in a staging folder), check it and compare it with the float model.

    Raises:
        ValidityError: a check failed; the message says which.
    """
    with task.cache.timed("check"):
        session, judging, made_of = _checked(task, draft, path)
        outputs = _outputs(task, draft.mode, session, judging)
        errors = tuple(against_chance(o, task.chance_db) for o in _by_level(task, judging.outputs, outputs))
        later = later_of(task, judging)
        pairs = zip(task.reference, outputs, strict=True)
        by_sample = tuple(lowest_sqnr_db(compare(judging.outputs, [r], [y])) for r, y in pairs)
    with task.cache.timed("measure"):
        latency = _latency(task, draft.mode, session, path) if task.options.measure else None
    score = None if task.metric is None else task.metric(session, task.reference, outputs)
    smaller = graph.size_bytes(task.source) / max(graph.size_bytes(draft.model), 1)
    return Tried(draft, path, errors, latency, made_of, smaller, score, later, by_sample)


def _latency(task: Task, mode: str, session: Session, path: Path) -> PairedLatency | None:
    """The latency beside float: by the meter, else in the target's runtime where its times tell those of devices; None
    if neither can be.
    """
    feed, asked = task.held[0][1], task.options.min_speedup
    levels = (SLOWER, FASTER, *(() if asked is None else (asked,)))
    meter = task.start.resources.meter
    if meter is not None:
        models = {"float": Timed(task.given, feed, task.float_session), "result": Timed(path, feed, session)}
        try:
            return meter.interleaved(models, "float", seconds=SECONDS, levels=levels)["result"]
        except LostError:
            raise
        except WorkerError as e:
            raise ValidityError(f"{mode}: {meter.host}: {e}") from e
    home = home_of(task.target) if task.target.check.timed else None
    if home is None or lacking(task.target):
        return None
    with temporary_folder() as folder:
        graph.write(task.given, folder / "float.onnx")
        try:
            return timed_elsewhere(folder / "float.onnx", path, feed, task.target, home, seconds=SECONDS, levels=levels)
        except WorkerError as e:
            raise ValidityError(f"{mode}: {task.target.name}: {e}") from e


def _by_level(task: Task, names: Sequence[str], outputs: Sequence[Outputs]) -> list[OutputReport]:
    """The errors of all outputs; signals from which the model removes noise have the figures of the worst level too,
    since the whole shows that of the largest.
    """
    feeds = [feed for _, feed in task.held]
    found = task.compared(names, feeds, task.reference, outputs)
    parts = [
        compare(names, [task.reference[i] for i in part], [outputs[i] for i in part], task.kinds)
        for part in task.levels
    ]
    for i, o in enumerate(found if parts else ()):
        if o.kind == "signal":
            worst = min((part[i] for part in parts), key=lambda x: min((f.value for f in x.figures), default=math.inf))
            figures = (replace(f, name=f"{f.name} at the worst level of noise") for f in worst.figures)
            found[i] = replace(o, figures=(*o.figures, *figures))
    return found


def later_of(task: Task, session: Session) -> tuple[OutputReport, ...]:
    """The outputs other than states after `STEPS` runs in which the states are fed back."""
    if not task.fed:
        return ()
    feeds = [feed for _, feed in task.held[: len(task.reference_later)]]
    outputs = [steps_on(session, feed, task.fed) for feed in feeds]
    found = compare(session.outputs, task.reference_later, outputs, task.kinds)
    return tuple(against_chance(o, task.chance_db) for o in found if o.kind != "state")


def against_chance(o: OutputReport, chance_db: Mapping[str, float]) -> OutputReport:
    """An output that differs between two float runs is judged relative to that difference."""
    if o.output not in chance_db or (o.figures and all(f.close for f in o.figures)):
        return o
    nearer = o.sqnr_db - chance_db[o.output]
    return replace(o, figures=(Figure("against another run of float", nearer, _CHANCE_DB, "dB"),))


def _outputs(task: Task, mode: str, session: Session, judging: Session) -> list[Outputs]:
    """What is compared of a result on the held-out samples."""
    try:
        outputs = run_all(session, task.held, workers=cores())
        judged = outputs if judging is session else run_all(judging, task.held, workers=cores())
    except EdgeoptError as e:
        raise ValidityError(f"{mode}: the result does not run: {e}") from e
    selected = () if judging is session else (y for found in outputs for y in found)
    if any(np.isnan(y).any() for y in selected if np.issubdtype(y.dtype, np.floating)):
        raise ValidityError(f"{mode}: an output has NaN")
    return judged


def _checked(task: Task, draft: Draft, path: Path) -> tuple[Session, Session, Kernels]:
    """(session for the file at `path`, that whose outputs are compared, the kernels ONNX Runtime chose)."""
    graph.write(draft.model, path, lean=True)
    graph.check_valid(path, f"{draft.mode}: the result")
    if task.target.grid.saturates:
        saturating = unguarded(draft.model)
        if saturating:
            raise ValidityError(f"{draft.mode}: sums can saturate on {task.target.name} in {', '.join(saturating[:3])}")
    try:
        session, made_of = _loaded(task, draft.model, path)
        shown = task.shown(draft.model)
        judging = session if shown is draft.model else open_session(shown, options=target.arithmetic(task.target))
        return session, judging, made_of
    except EdgeoptError as e:
        raise ValidityError(f"{draft.mode}: the result does not run: {e}") from e


def _loaded(task: Task, model: ir.Model, path: Path) -> tuple[Session, Kernels]:
    """A session for the file at `path` and the kernels ONNX Runtime chose.

    The kernels are unknown (empty) above 2 GB, since ONNX Runtime cannot write such an optimized model.
    """
    if graph.above_protobuf(model):
        return open_session(path, options=target.arithmetic(task.target)), Kernels({}, {}, {})
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        session = open_session(path, options=target.arithmetic(task.target), optimized=optimized)
        return session, kernels(optimized)


def measurable(task: Task) -> bool:
    """Whether latencies can be measured that mean something for the target: here if it is one, or on a device."""
    return task.start.resources.meter is not None
