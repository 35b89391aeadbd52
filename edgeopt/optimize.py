"""The main job: `quantize(model, data) -> Result`, from a float model and samples to a checked file.

load -> canonical -> ONNX Runtime's basic optimizations -> candidates of the mode -> each written to a stage, checked,
compared, timed -> the best is kept
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeopt import graph, target
from edgeopt.candidates import dynamic_int8, of_mode, weights
from edgeopt.errors import EdgeoptError, UsageError, ValidityError
from edgeopt.options import Data, Listener, Options, Result, check_folder, check_place
from edgeopt.pareto import write_front
from edgeopt.prepare import Job, prepare
from edgeopt.report import Candidate, LatencyReport, MetricReport, Report
from edgeopt.search import start as start_search
from edgeopt.staging import staged, temporary_folder
from edgeopt.statics import LAST, Made, Statics, Tuning
from edgeopt.verify import Tried, measurable, verify

GOOD_SQNR_DB, GOOD_AGREEMENT = 10.0, 0.75  # below either `auto` looks for something better
SURE_SQNR_DB = 15.0  # from here on agreement is not asked: an embedding's largest element is no class
_BLOCK = 1 << 20


def quantize(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    data: Data,
    *,
    output: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
    **choices: Any,
) -> Result:
    """Quantize `model` with calibration `data` and check the result against the float model; the fields of `Options`
    are keyword arguments.

    data: a path (images, .npz/.npy, ONNX test data, .wav, text), `package.module:function`, "random", or an iterable of
    feeds or arrays. output: the file to write; an existing one needs `force`. None: nothing is written, the model is in
    the result.

    Raises:
        EdgeoptError: see `edgeopt.errors`; nothing was written.
    """
    options = Options(**choices)
    start = time.perf_counter()
    path = None if output is None else Path(output)
    if path is not None:
        check_place(path, force)
    if options.pareto is not None:
        check_folder(options.pareto)
    if options.qat and importlib.util.find_spec("torch") is None:
        raise UsageError("--qat needs torch: pip install 'edgeopt[train]'")
    job = prepare(graph.load(model), data, options, listener or Listener())
    input_bytes = _input_bytes(model, job.source)
    with temporary_folder() as folder, staged(path or folder / "model.onnx") as stage:
        final = stage / (path.name if path is not None else "model.onnx")
        kept, reason, candidates = _best(job, final)
        if options.effort == "high" and kept.made.plan is not None:
            kept, reason, candidates = _searched(job, kept, reason, candidates, final, path)
        if options.qat:
            kept, reason, candidates = _trained(job, kept, reason, candidates, final)
        report = _report(job, kept, final, reason, candidates, input_bytes, start)
    return Result(kept.made.model, path, report)


def _input_bytes(model: object, source: ir.Model) -> int:
    if isinstance(model, str | Path):
        file = Path(model)
        external = sum(
            v.const_value.nbytes
            for v in source.graph.initializers.values()
            if isinstance(v.const_value, ir.ExternalTensor)
        )
        return file.stat().st_size + external
    return (
        len(graph.proto_bytes(source)) if graph.size_bytes(source) < graph.PROTOBUF_LIMIT else graph.size_bytes(source)
    )


def _best(job: Job, path: Path) -> tuple[Tried, str, list[Candidate]]:
    """(the candidate at `path`, why, all that were tried)."""
    if job.options.mode != "auto":
        tried = verify(job, of_mode(job), path)
        return tried, f"{tried.mode}: asked for", [tried.candidate("asked for")]
    tried_all: list[Tried] = []
    refused: list[Candidate] = []
    for made in _auto(job, tried_all, refused):
        # a folder for each, since a data file beside a model is found by its name
        folder = path.parent / str(len(tried_all) + len(refused))
        folder.mkdir()
        try:
            tried_all.append(verify(job, made, folder / path.name))
        except ValidityError as e:
            refused.append(Candidate(made.mode, None, None, str(e)))
            continue
        job.note(_line(job, tried_all[-1]))
    good = [t for t in tried_all if _good(job, t)]
    if good:
        kept = max(good, key=lambda t: t.latency.speedup if t.latency else 0.0)
        reason = _why(job, kept, tried_all)
    else:
        smaller = graph.size_bytes(job.model) <= graph.size_bytes(job.source)
        kept = verify(job, Made("float", job.model if smaller else job.source), path)
        reason = "float: no integer form was both close enough and no slower; the file is the simplified float model"
        job.note(reason)
    if kept.path != path:
        for file in kept.path.parent.iterdir():
            file.replace(path.parent / file.name)
    for i in range(len(tried_all) + len(refused)):
        shutil.rmtree(path.parent / str(i))
    lines = [t.candidate("kept" if t is kept else _why_not(job, t)) for t in tried_all] + refused
    return kept, reason, lines if kept in tried_all else [*lines, kept.candidate("kept")]


def _auto(job: Job, tried: list[Tried], refused: list[Candidate]) -> Any:
    """Candidates in turn until one is good: static, dynamic, static repaired, weights; `tried` is filled by the caller in
    between.
    """
    statics = Statics(job)
    first = statics.made(Tuning.of(job.options))
    if first is not None:
        yield first
        if tried and _good(job, tried[-1]):
            return
    for made in dynamic_int8(job):
        yield made
    if any(_good(job, t) for t in tried):
        return
    if first is not None and tried and tried[0].mode == "static" and not tried[0].slower:
        for made in _repaired(job, first, statics):
            yield made
            if _good(job, tried[-1]):
                return
    yield from weights(job)


def _searched(
    job: Job, kept: Tried, reason: str, candidates: list[Candidate], path: Path, output: Path | None
) -> tuple[Tried, str, list[Candidate]]:
    """What a search makes of the static result; the front of all that it tried goes to `options.pareto`."""
    search = start_search(job, kept.made, Statics(job), output)
    if search is None:
        return kept, reason, candidates
    moves = (search.climb, search.islands, search.placements)
    for move in moves:
        for _ in move():
            pass
    search.train()
    made = search.best.made
    if job.options.pareto is not None:
        write_front(job, search.points, job.options.pareto)
    if made is not kept.made:
        kept, reason, candidates = _replaced(job, kept, made, "search", candidates, path)
    search.journal.remove()
    return kept, reason, candidates


def _repaired(job: Job, first: Made, statics: Statics) -> Iterator[Made]:
    """Better and better forms of a static result that missed its bar: float islands, then all else that helps."""
    search = start_search(job, first, statics)
    if search is None:
        return
    for made in search.islands():
        yield replace(made, mode=f"static with {search.best.what}")
    for made in chain(search.climb(), search.move(*LAST)):
        yield replace(made, mode=f"static, {search.best.what}")


def _trained(
    job: Job, kept: Tried, reason: str, candidates: list[Candidate], path: Path
) -> tuple[Tried, str, list[Candidate]]:
    """What training makes of the static result, if it is nearer to float; `kept` otherwise."""
    from edgeopt.qat import trained

    return _replaced(job, kept, trained(job, kept.made), "QAT", candidates, path)


def _replaced(
    job: Job, kept: Tried, made: Made, how: str, candidates: list[Candidate], path: Path
) -> tuple[Tried, str, list[Candidate]]:
    """`made` in the place of `kept`, if it is nearer to float on the held-out samples."""
    folder = path.parent / "next"
    folder.mkdir()
    found = verify(job, replace(made, mode=f"{kept.mode}, then {how}"), folder / path.name)
    before = f"{found.worst_sqnr_db:.1f} dB, {kept.worst_sqnr_db:.1f} dB before"
    better = _merit(found) > _merit(kept)
    if better:
        for file in folder.iterdir():
            file.replace(path.parent / file.name)
        candidates = [
            replace(c, verdict=f"before {how}") if c.verdict in ("kept", "asked for") else c for c in candidates
        ]
        candidates, kept = [*candidates, found.candidate("kept")], found
    else:
        candidates = [*candidates, found.candidate(f"no nearer to float than before {how}")]
    reason = f"{kept.mode}: {before}" + ("" if better else f" {how}, which was kept")
    job.note(f"{how}: {before}")
    shutil.rmtree(folder)
    return kept, reason, candidates


def _merit(t: Tried) -> tuple[float, float, float]:
    """What a result is judged by: the user's metric, then SQNR."""
    return (t.metric or 0.0, t.worst_sqnr_db, t.agreement or 0.0)


def _close(job: Job, t: Tried) -> bool:
    """Near enough to float: by the user's metric if there is a bar for it, else by SQNR, and below `SURE_SQNR_DB` by agreement too, where the output looks like class scores."""
    if job.metric is not None and job.options.max_drop is not None and t.metric is not None:
        return job.metric.on_float - t.metric <= job.options.max_drop
    if t.worst_sqnr_db >= SURE_SQNR_DB:
        return True
    return t.worst_sqnr_db >= GOOD_SQNR_DB and (t.agreement is None or t.agreement >= GOOD_AGREEMENT)


def _good(job: Job, t: Tried) -> bool:
    return _close(job, t) and not t.slower


def _line(job: Job, t: Tried) -> str:
    speed = f", {t.latency.speedup:.2f}x float speed" if t.latency else ""
    return f"{t.mode}: SQNR {t.worst_sqnr_db:.1f} dB{speed}{'' if _good(job, t) else ' - ' + _why_not(job, t)}"


def _why_not(job: Job, t: Tried) -> str:
    if not _close(job, t):
        if job.metric is not None and t.metric is not None and job.options.max_drop is not None:
            return f"{job.metric.name} falls from {job.metric.on_float:.4g} to {t.metric:.4g}"
        agreement = "" if t.agreement is None else f", agreement {t.agreement:.0%}"
        return f"too far from float ({t.worst_sqnr_db:.1f} dB{agreement}; the bar is {GOOD_SQNR_DB:.0f} dB and {GOOD_AGREEMENT:.0%})"
    return "slower than float" if t.slower else "another one is faster"


def _why(job: Job, kept: Tried, tried: list[Tried]) -> str:
    others = "; ".join(f"{t.mode} {_why_not(job, t)}" for t in tried if t is not kept)
    return f"{kept.mode}: close to float and no slower" + (f" ({others})" if others else "")


def _report(
    job: Job, kept: Tried, path: Path, reason: str, candidates: list[Candidate], input_bytes: int, start: float
) -> Report:
    if job.options.measure and not measurable(job):
        job.note(f"speed not measured: this machine is {target.host()}, the target is {job.target.name}")
    data = sorted(f for f in path.parent.iterdir() if f.is_file())
    latency = None
    if kept.latency is not None:
        latency = LatencyReport(float_ms=kept.float_ms, **asdict(kept.latency), threads=1)
    plan = kept.made.plan
    report = Report(
        mode=kept.mode,
        reason=reason,
        target=job.target.name,
        host=target.host(),
        input_bytes=input_bytes,
        output_bytes=sum(f.stat().st_size for f in data),
        download_bytes=_deflated(data),
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
        candidates=tuple(candidates),
        notes=tuple(job.notes),
        seconds={k: round(v, 3) for k, v in job.seconds.items()} | {"total": round(time.perf_counter() - start, 3)},
        metric=None
        if job.metric is None or kept.metric is None
        else MetricReport(job.metric.name, job.metric.on_float, kept.metric),
        versions={p: importlib.metadata.version(p) for p in ("edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy")},
    )
    return _with_missed(report, job.options)


def _with_missed(report: Report, options: Options) -> Report:
    demands = (
        ("SQNR", "dB", report.worst_sqnr_db, options.min_sqnr),
        ("agreement", "", report.agreement, options.min_agreement),
        ("speed-up", "x", report.latency.speedup if report.latency else None, options.min_speedup),
    )
    missed = [
        f"{name} {'not known' if value is None else f'{value:.3g}{unit}'} is below {bar:g}{unit}"
        for name, unit, value, bar in demands
        if bar is not None and (value is None or value < bar)
    ]
    if report.metric is not None and options.max_drop is not None:
        drop = report.metric.on_float - report.metric.result
        if drop > options.max_drop:
            missed.append(f"{report.metric.name} falls by {drop:.4g}, more than {options.max_drop:g}")
    return replace(report, missed=tuple(missed))


def _deflated(files: list[Path]) -> int:
    """Bytes after deflate, as a download or an app package would carry them; streamed."""
    size = 0
    for file in files:
        packer = zlib.compressobj(6)
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                size += len(packer.compress(block))
        size += len(packer.flush())
    return size


__all__ = ["EdgeoptError", "Listener", "Options", "Result", "quantize"]
