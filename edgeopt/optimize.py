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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeopt import graph, target
from edgeopt.bars import close, good, line, meets, merit, missed, why_not
from edgeopt.candidates import dynamic_int8, nothing_to_do, of_mode, weights
from edgeopt.errors import DataError, EdgeoptError, UsageError, ValidityError
from edgeopt.journal import journal_of
from edgeopt.options import Data, Listener, Options, Result, check_folder, check_place
from edgeopt.pareto import write_front
from edgeopt.prepare import Job, prepare
from edgeopt.report import Candidate, LatencyReport, MetricReport, Report
from edgeopt.search import FASTER, LOSS_DB
from edgeopt.search import start as start_search
from edgeopt.staging import staged, temporary_folder
from edgeopt.statics import LAST, Made, Statics, Tuning
from edgeopt.verify import Tried, measurable, verify

_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Outcome:
    """kept: the candidate in the stage, with the bytes of its files, as they are and deflated; reason: why it; ended: what
    cut the work short.
    """

    kept: Tried
    reason: str
    candidates: tuple[Candidate, ...]
    sizes: tuple[int, int]
    ended: tuple[str, ...] = ()
    interrupted: bool = False


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
        check_place(path, force or journal_of(path).is_file())  # what a search that was cut short left is gone on with
    if options.pareto is not None:
        check_folder(options.pareto)
    if options.qat and importlib.util.find_spec("torch") is None:
        raise UsageError("--qat needs torch: pip install 'edgeopt[train]'")
    job = prepare(graph.load(model), data, options, listener or Listener())
    input_bytes, statics = _input_bytes(model, job.source), Statics(job)
    with temporary_folder() as folder:
        place = path or folder / "model.onnx"
        with staged(place) as stage:
            outcome = _best(job, statics, stage / place.name)
        if options.effort == "high":  # the first result is in its place already, whatever happens now
            with staged(place) as stage:
                outcome = _searched(job, statics, outcome, stage / place.name, path)
        if options.qat:
            with staged(place) as stage:
                outcome = _trained(job, statics, outcome, stage / place.name)
    return Result(outcome.kept.made.model, path, _report(job, outcome, input_bytes, start))


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


def _best(job: Job, statics: Statics, path: Path) -> _Outcome:
    """The candidate of the options' mode that is good, or the best there is; at `path`, with all that were tried."""
    if job.options.mode not in ("auto", "static"):
        tried = verify(job, of_mode(job), path)
        return _outcome(tried, f"{tried.mode}: asked for", [tried.candidate("asked for")])
    tried_all: list[Tried] = []
    refused: list[Candidate] = []
    for made in (_auto if job.options.mode == "auto" else _static)(job, statics, tried_all):
        # a folder for each, since a data file beside a model is found by its name
        folder = path.parent / str(len(tried_all) + len(refused))
        folder.mkdir()
        try:
            tried_all.append(verify(job, made, folder / path.name))
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
    for i in range(len(tried_all) + len(refused)):
        shutil.rmtree(path.parent / str(i))
    only = job.options.mode == "static" and len(tried_all) == 1
    words = {id(t): why_not(job, t) for t in tried_all} | {id(kept): "asked for" if only else "kept"}
    lines = [t.candidate(words[id(t)]) for t in tried_all] + refused
    return _outcome(replace(kept, path=path), reason, lines if kept in tried_all else [*lines, kept.candidate("kept")])


def _chosen(job: Job, tried: list[Tried], refused: list[Candidate], path: Path) -> tuple[Tried, str]:
    """(the fastest of what is good, else the nearest of mode static, else float; why)."""
    found = [t for t in tried if good(job, t)]
    if found:
        kept = max(found, key=lambda t: t.latency.speedup if t.latency else 0.0)
        return kept, _why(job, kept, tried)
    if job.options.mode == "static":
        if not tried:
            raise ValidityError(refused[0].verdict)
        kept = max(tried, key=merit)
        return kept, _why(job, kept, tried)
    smaller = graph.size_bytes(job.model) <= graph.size_bytes(job.source)
    kept = verify(job, Made("float", job.model if smaller else job.source), path)
    reason = "float: no integer form was both close enough and no slower; the file is the simplified float model"
    job.note(reason)
    return kept, reason


def _outcome(kept: Tried, reason: str, candidates: Sequence[Candidate]) -> _Outcome:
    files = sorted(f for f in kept.path.parent.iterdir() if f.is_file())
    sizes = sum(f.stat().st_size for f in files), _deflated(files)
    return _Outcome(kept, reason, tuple(candidates), sizes)


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
    for made in chain(search.islands(), search.mixtures(), search.climb(), search.move(*LAST)):
        yield replace(made, mode=f"static, {search.best.what}")
        if good(job, tried[-1]):
            return


def _searched(job: Job, statics: Statics, before: _Outcome, path: Path, output: Path | None) -> _Outcome:
    """What a search makes of the static result; the front of all that it tried goes to `options.pareto`."""
    if before.kept.made.plan is None:
        job.note(f"search: none, since it begins with a static result, and {before.kept.mode} was kept")
        return before
    try:
        search = start_search(job, before.kept.made, statics, output)
    except DataError as e:
        job.note(f"search: not possible: {e}")
        return replace(before, ended=(f"no search: {e}",))
    if search is None:
        return before
    interrupted, ended = False, list[str]()
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted, ended = True, ["the search was interrupted; the same command goes on with it"]
        job.note("search: interrupted; the best so far is kept")
    found = before
    if search.best.made is not before.kept.made:
        faster = search.best.speed >= FASTER
        found = _replaced(job, before, search.best.made, "search", path, faster=faster)
    if job.options.pareto is not None:
        write_front(job, search.points, job.options.pareto)
    if job.metric is not None and not interrupted:
        ended += _unsteady(job)
    if not interrupted:
        search.journal.remove()
    return replace(found, ended=tuple(ended), interrupted=interrupted)


def _unsteady(job: Job) -> list[str]:
    """What is wrong with the metric, if it does not say of the float model what it said at first."""
    assert job.metric is not None
    try:
        varies = job.metric.varies(job.float_session)
    except DataError as e:
        return [str(e)]
    return [] if varies is None else [f"--eval {varies}"]


def _trained(job: Job, statics: Statics, before: _Outcome, path: Path) -> _Outcome:
    """What training makes of the static result, if it is nearer to float; the report compares it with every effort before."""
    from edgeopt.qat import trained

    made = before.kept.made
    found = _replaced(job, before, trained(job, made), "QAT", path)
    plain = Tuning(rounding="nearest")
    if made.tuning in (None, plain):
        return found
    nearest = statics.made(plain, "static, weights to the nearest (--effort fast)")
    if nearest is None:
        return found
    untimed = replace(job, options=replace(job.options, measure=False))
    with temporary_folder() as folder:
        row = verify(untimed, nearest, folder / path.name).candidate("to compare with")
    return replace(found, candidates=(*found.candidates, row))


def _replaced(job: Job, before: _Outcome, made: Made, how: str, path: Path, *, faster: bool = False) -> _Outcome:
    """`made` in the place of what was kept, if on the held-out samples it is nearer to float, or, where it is faster, near
    enough; and no slower than float because of it. Otherwise `path` stays empty.
    """
    kept = before.kept
    try:
        found = verify(job, replace(made, mode=f"{kept.mode}, then {how}"), path)
    except (ValidityError, DataError) as e:
        job.note(f"{how}: {e}")
        return replace(before, candidates=(*before.candidates, Candidate(how, None, None, str(e))))
    figures = f"{found.worst_sqnr_db:.1f} dB, {kept.worst_sqnr_db:.1f} dB before"
    job.note(f"{how}: {figures}")
    if (found.slower and not kept.slower) or not (merit(found) > merit(kept) or (faster and _enough(job, found, kept))):
        for file in path.parent.iterdir():
            file.unlink()
        verdict = "slower than float" if found.slower else f"no nearer to float than before {how}"
        reason = f"{kept.mode}: {figures} {how}, which was kept"
        return replace(before, reason=reason, candidates=(*before.candidates, found.candidate(verdict)))
    lines = [
        replace(c, verdict=f"before {how}") if c.verdict in ("kept", "asked for") else c for c in before.candidates
    ]
    return _outcome(found, f"{kept.mode}: {figures}", [*lines, found.candidate("kept")])


def _enough(job: Job, found: Tried, kept: Tried) -> bool:
    """Whether a faster model is near enough: by the user's bars, else not much further than what it replaces."""
    asked = meets(job, found.metric, found.worst_sqnr_db, found.agreement)
    if asked is not None:
        return asked
    return (found.metric or 0.0) >= (kept.metric or 0.0) and found.worst_sqnr_db >= kept.worst_sqnr_db - LOSS_DB


def _why(job: Job, kept: Tried, tried: list[Tried]) -> str:
    others = "; ".join(f"{t.mode} {why_not(job, t)}" for t in tried if t is not kept)
    if good(job, kept):
        return f"{kept.mode}: close to float and no slower" + (f" ({others})" if others else "")
    return f"{kept.mode}: asked for" + (f"; the nearest of what was tried ({others})" if others else "")


def _report(job: Job, outcome: _Outcome, input_bytes: int, start: float) -> Report:
    kept = outcome.kept
    if job.options.measure and not measurable(job):
        job.note(f"speed not measured: this machine is {target.host()}, the target is {job.target.name}")
    latency = None
    if kept.latency is not None:
        latency = LatencyReport(float_ms=kept.float_ms, **asdict(kept.latency), threads=1)
    plan = kept.made.plan
    return Report(
        mode=kept.mode,
        reason=outcome.reason,
        target=job.target.name,
        host=target.host(),
        input_bytes=input_bytes,
        output_bytes=outcome.sizes[0],
        download_bytes=outcome.sizes[1],
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
        candidates=outcome.candidates,
        notes=tuple(job.notes),
        seconds={k: round(v, 3) for k, v in job.seconds.items()} | {"total": round(time.perf_counter() - start, 3)},
        metric=None
        if job.metric is None or kept.metric is None
        else MetricReport(job.metric.name, job.metric.on_float, kept.metric),
        versions={p: importlib.metadata.version(p) for p in ("edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy")},
        missed=(*missed(job, kept), *outcome.ended),
        interrupted=outcome.interrupted,
    )


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
