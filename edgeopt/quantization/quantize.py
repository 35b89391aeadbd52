"""The main job: `quantize(model, data) -> Result`, from a float model and samples to a checked file.

load -> canonical -> ONNX Runtime's basic optimizations -> candidates of the mode -> each written to a stage, checked,
compared, timed -> the best is kept
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data.reading import Data
from edgeopt.errors import DataError, UsageError, ValidityError
from edgeopt.files import check_folder, check_place, empty, staged, temporary_folder
from edgeopt.hardware import target
from edgeopt.hardware.host import numeric_work
from edgeopt.options import takes
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.check import Tried, measurable, verify
from edgeopt.quantization.forms import dynamic_int8, nothing_to_do, of_mode, weights
from edgeopt.quantization.improve import Outcome, outcome, put_away, searched, trained
from edgeopt.quantization.journal import is_of, journal_of
from edgeopt.quantization.judge import close, good, line, missed, nearest, why_not
from edgeopt.quantization.prepare import Job, prepare
from edgeopt.quantization.report import Candidate, LatencyReport, MetricReport, Report, Result
from edgeopt.quantization.search import start as start_search
from edgeopt.quantization.static import LAST, Made, Statics, Tuning

Source = str | Path | bytes | onnx.ModelProto | ir.Model


@takes(Quantize)
def quantize(model: Source, data: Data, options: Quantize) -> Result:
    """Quantize `model` with calibration `data` and check the result against the float model.

    data: a path (images, .npz/.npy, ONNX test data, .wav, text), `package.module:function`, "random", or an iterable of
    feeds or arrays.

    Raises:
        EdgeoptError: see `edgeopt.errors`; nothing was written.
    """
    start = time.perf_counter()
    path = options.output
    journal = path is not None and options.searches and journal_of(path).is_file()
    if path is not None:
        check_place(path, options.force or journal)
    if options.pareto is not None:
        check_folder(options.pareto)
    if options.qat and importlib.util.find_spec("torch") is None:
        raise UsageError("--qat needs torch: pip install 'edgeopt[train]'")
    with numeric_work():
        return _quantized(model, data, options, start)


def _quantized(model: Source, data: Data, options: Quantize, start: float) -> Result:
    path = options.output
    journal = path is not None and options.searches and journal_of(path).is_file()
    job = prepare(graph.load(model), data, options, options.listener)
    resumed = path is not None and journal and is_of(job, path)
    if path is not None:
        check_place(path, options.force or resumed)  # what a search left that was cut short is gone on with
    input_bytes = _input_bytes(model, job.source)
    with temporary_folder() as folder:
        done = _done(job, path or folder / "model.onnx", path, resumed)
    return Result(done.kept.made.model, path, _report(job, done, input_bytes, start))


def _done(job: Job, place: Path, output: Path | None, resumed: bool) -> Outcome:
    """The result of all that the options ask for, in its place. The first one is there before a search begins, whatever happens then;
    what a search has left that is gone on with stays there until the end.
    """
    statics = Statics(job)
    with ExitStack() as until_now, ExitStack() as until_the_end:
        first = (until_the_end if resumed else until_now).enter_context(staged(place))
        done = best = _best(job, statics, first / place.name)
        until_now.close()
        if job.options.effort == "high":
            with staged(place) as stage:
                done = searched(job, statics, done, stage / place.name, output)
                if resumed and (done.kept is not best.kept or done.interrupted):
                    empty(first)
    put_away(job, done)
    if job.options.qat and not done.interrupted:
        with staged(place) as stage:
            done = trained(job, statics, done, stage / place.name)
    return done


def _input_bytes(model: object, source: ir.Model) -> int:
    if isinstance(model, str | Path):
        file = Path(model)
        external = sum(
            v.const_value.nbytes
            for v in source.graph.initializers.values()
            if isinstance(v.const_value, ir.ExternalTensor)
        )
        return file.stat().st_size + external
    return graph.size_bytes(source) if graph.above_protobuf(source) else len(graph.proto_bytes(source))


def _best(job: Job, statics: Statics, path: Path) -> Outcome:
    """The candidate of the options' mode that is good, or the best there is; at `path`, with all that were tried."""
    if job.options.mode not in ("auto", "static"):
        tried = verify(job, of_mode(job), path)
        return outcome(tried, f"{tried.mode}: asked for", [tried.candidate("asked for")])
    tried_all: list[Tried] = []
    refused: list[Candidate] = []
    folders: list[Path] = []
    for made in (_auto if job.options.mode == "auto" else _static)(job, statics, tried_all):
        # a folder for each, since a data file beside a model is found by its name
        folders.append(Path(tempfile.mkdtemp(prefix=".", dir=path.parent)))
        try:
            tried_all.append(verify(job, made, folders[-1] / path.name))
        except (ValidityError, DataError) as e:
            refused.append(Candidate(made.mode, None, None, str(e)))
            job.note(f"{made.mode}: {e}")
            continue
        if job.options.mode == "auto" or len(tried_all) > 1:
            job.note(line(job, tried_all[-1]))
    kept, reason = _chosen(job, tried_all, refused, path)
    if kept.path != path:
        for file in kept.path.parent.iterdir():
            file.replace(path.parent / file.name)
    for folder in folders:
        shutil.rmtree(folder)
    only = job.options.mode == "static" and len(tried_all) == 1
    words = {id(t): why_not(job, t) for t in tried_all} | {id(kept): "asked for" if only else "kept"}
    lines = [t.candidate(words[id(t)]) for t in tried_all] + refused
    return outcome(replace(kept, path=path), reason, lines if kept in tried_all else [*lines, kept.candidate("kept")])


def _chosen(job: Job, tried: list[Tried], refused: list[Candidate], path: Path) -> tuple[Tried, str]:
    """(the fastest of what is good, else the nearest of mode static, else float; why)."""
    found = [t for t in tried if good(job, t)]
    if found:
        kept = max(found, key=lambda t: t.latency.speedup if t.latency else 0.0)
        return kept, _why(job, kept, tried)
    if job.options.mode == "static":
        if not tried:
            raise ValidityError(refused[0].verdict)
        kept = nearest(job, tried)
        return kept, _why(job, kept, tried)
    smaller = graph.size_bytes(job.model) <= graph.size_bytes(job.source)
    kept = verify(job, Made("float", job.model if smaller else job.source), path)
    reason = "float: no integer form was both close enough and no slower; the file is the simplified float model"
    job.note(reason)
    return kept, reason


def _static(job: Job, statics: Statics, tried: list[Tried]) -> Iterator[Made]:
    """The static model, and repaired ones while it is too far from float; `tried` is filled by the caller in between."""
    first = statics.made(Tuning.of(job.options))
    if first is None:
        raise UsageError(nothing_to_do("static"))
    yield first
    if tried and not close(job, tried[0]):
        yield from _repaired(job, statics, first, tried)


def _auto(job: Job, statics: Statics, tried: list[Tried]) -> Iterator[Made]:
    """Candidates in turn until one is good: static, dynamic, static repaired, weights; `tried` is filled by the caller in
    between.
    """
    first = statics.made(Tuning.of(job.options))
    if first is not None:
        yield first
        if tried and good(job, tried[-1]):
            return
    yield from dynamic_int8(job)
    if any(good(job, t) for t in tried):
        return
    if first is not None and tried and tried[0].mode == "static" and not tried[0].slower:
        yield from _repaired(job, statics, first, tried)
        if good(job, tried[-1]):
            return
    yield from weights(job)


def _repaired(job: Job, statics: Statics, first: Made, tried: list[Tried]) -> Iterator[Made]:
    """Better and better forms of a static result that missed its bar, until one is good: float islands, then all else
    that helps.
    """
    job.note(f"{line(job, tried[0])}: looking for what helps")
    try:
        search = start_search(job, first, statics)
    except DataError as e:
        job.note(f"no repair: {e}")
        return
    if search is None:
        return
    moves = chain.from_iterable(
        search.safely(m)
        for m in (search.islands(), search.mixtures(), search.climb(), search.ranges(), search.climb(LAST))
    )
    for made in moves:
        yield replace(made, mode=f"static, {search.best.what}")
        if good(job, tried[-1]):
            return


def _why(job: Job, kept: Tried, tried: list[Tried]) -> str:
    others = "; ".join(f"{t.mode} {why_not(job, t)}" for t in tried if t is not kept)
    if good(job, kept):
        speed = " and no slower" if kept.latency is not None else "; its speed was not measured"
        return f"{kept.mode}: close to float{speed}" + (f" ({others})" if others else "")
    return f"{kept.mode}: asked for" + (f"; the nearest of what was tried ({others})" if others else "")


def _report(job: Job, done: Outcome, input_bytes: int, start: float) -> Report:
    kept = done.kept
    if job.options.measure and not measurable(job):
        job.note(f"speed not measured: this machine is {target.host()}, the target is {job.target.name}")
    latency = None
    if kept.latency is not None:
        latency = LatencyReport(float_ms=kept.float_ms, **asdict(kept.latency), threads=1)
    plan = kept.made.plan
    return Report(
        mode=kept.mode,
        reason=done.reason,
        target=job.target.name,
        host=target.host(),
        input_bytes=input_bytes,
        output_bytes=done.sizes[0],
        download_bytes=done.sizes[1],
        bytes_before=graph.bytes_by_dtype(job.source),
        bytes_after=graph.bytes_by_dtype(kept.made.model),
        outputs=kept.errors,
        latency=latency,
        kernels=asdict(kept.kernels),
        integer_nodes=tuple(sorted(plan.integer)) if plan else (),
        activations=kept.made.activations,
        kept_float=dict(plan.kept_float) if plan else {},
        samples={"calibration": len(job.calibration), "held_out": len(job.held)},
        preprocess=job.preprocess,
        candidates=done.candidates,
        notes=tuple(job.notes),
        seconds={k: round(v, 3) for k, v in job.seconds.items()} | {"total": round(time.perf_counter() - start, 3)},
        metric=None
        if job.metric is None or kept.metric is None
        else MetricReport(job.metric.name, job.metric.on_float, kept.metric),
        versions={p: importlib.metadata.version(p) for p in ("edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy")},
        missed=(*missed(job, kept), *done.ended),
        interrupted=done.interrupted,
    )
