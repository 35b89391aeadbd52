"""The main entry point `quantize(model, data) -> Result`: from a float model and samples to a checked file.

load -> canonical form -> ONNX Runtime's basic optimizations -> candidates of the mode -> each is written to a staging
folder, checked, compared with float and timed -> the best one is kept
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import onnx_ir as ir

from edgeopt import graph
from edgeopt.data.reading import Data
from edgeopt.errors import ModelError, UsageError, ValidityError, extra
from edgeopt.files import check_folder, check_place, empty, staged, temporary_folder
from edgeopt.files.cloud import anywhere
from edgeopt.hardware import target
from edgeopt.hardware.host import numeric_work
from edgeopt.options import takes
from edgeopt.options.quantize import Quantize
from edgeopt.passes.tie import tied
from edgeopt.quantization.candidates import Draft, of_mode
from edgeopt.quantization.check import Tried, verify
from edgeopt.quantization.devices import answers, device
from edgeopt.quantization.improve import Outcome, outcome, put_away, searched, trained, with_integer_ends
from edgeopt.quantization.journal import is_of, journal_of
from edgeopt.quantization.judge import close, good, missed, nearest, preferred, undecided, why_not
from edgeopt.quantization.on_target import checked_result
from edgeopt.quantization.prepare import Task, prepare
from edgeopt.quantization.report import ActivationReport, LatencyReport, MetricReport, Report, Result
from edgeopt.quantization.state import State
from edgeopt.quantization.trials import Trials, try_auto, try_static
from edgeopt.runtime.meter import DeviceMeter
from edgeopt.runtime.spread import spread


@takes(Quantize)
@numeric_work()
@anywhere
def quantize(model: graph.Source, data: Data, options: Quantize) -> Result:
    """Quantize `model` with calibration `data` and check the result against the float model.

    data: a path (images, .npz/.npy, ONNX test data, .wav, text), `package.module:function`, "random", or an iterable of
    feeds or arrays.

    Raises:
        EdgeoptError: see `edgeopt.errors`; nothing was written.
    """
    start = time.perf_counter()
    path = options.output
    journal = path is not None and options.searches and journal_of(path).is_file()
    source = graph.load(model)
    if path is not None:
        check_place(path, options.force or journal, (data,))
    if options.pareto is not None:
        check_folder(options.pareto)
    if options.qat and importlib.util.find_spec("torch") is None:
        raise UsageError(f"--qat needs torch: {extra('train')}")
    by = spread(options.executor, options.jobs, options.cluster, options.listener.note)
    with device(options.device, options.target) as (meter, own), by as workers:
        task = prepare(source, data, options.model_copy(update={"target": own}), meter, workers)
        return _quantized(model, task, meter, start)


def _quantized(model: graph.Source, task: Task, meter: DeviceMeter | None, start: float) -> Result:
    options, path = task.options, task.options.output
    journal = path is not None and options.searches and journal_of(path).is_file()
    resumed = path is not None and journal and is_of(task, path)
    if path is not None:
        check_place(path, options.force or resumed)  # a resumed search may replace its own file
    input_bytes = _input_bytes(model, task.source)
    with temporary_folder() as folder:
        place = path or folder / "model.onnx"
        done = _done(task, place, path, resumed)
        if options.io == "quantized":
            done = with_integer_ends(task, done, place)
        if task.target.check.kind != "cpu":
            checked = done.kept.there or checked_result(place, task)
            for line in checked.lines:
                task.note(line)
            done = replace(done, ended=(*done.ended, *(f"{task.target.name}: {p}" for p in checked.problems)))
        if meter is not None:
            told, wrong = answers(task, place, meter, meter.place.name)
            task.note(told)
            done = replace(done, ended=(*done.ended, *wrong))
    return Result(done.kept.draft.model, path, _report(task, options, done, input_bytes, start))


def _done(task: Task, place: Path, output: Path | None, resumed: bool) -> Outcome:
    """Do all that the options ask for and write the result to `place`.

    The first result is written before a search begins, so that it is there whatever happens later. When a search is
    resumed, the file from the interrupted search stays in place until the end.
    """
    with ExitStack() as until_now, ExitStack() as until_the_end:
        first = (until_the_end if resumed else until_now).enter_context(staged(place))
        done = best = _best(task, first / place.name)
        until_now.close()
        if task.options.effort == "high":
            with staged(place) as stage:
                done = searched(task, done, stage / place.name, output)
                if resumed and (done.kept is not best.kept or done.interrupted):
                    empty(first)
    put_away(task, done)
    if task.options.qat and not done.interrupted:
        with staged(place) as stage:
            done = trained(task, done, stage / place.name)
    return done


def _file_bytes(model: ir.Model) -> int:
    return graph.size_bytes(model) if graph.above_protobuf(model) else len(graph.proto_bytes(model, lean=True))


def _input_bytes(model: object, source: ir.Model) -> int:
    if isinstance(model, str | Path):
        return sum(f.stat().st_size for f in (Path(model), *graph.external_files(source)))
    return graph.size_bytes(source) if graph.above_protobuf(source) else len(graph.proto_bytes(source))


def _best(task: Task, path: Path) -> Outcome:
    """The best candidate of the options' mode, written to `path`, with the list of all candidates that were tried."""
    options = task.options
    if options.recipe is not None or options.mode not in ("auto", "static"):
        tried = verify(task, _asked_for(task), path)
        return outcome(tried, f"{tried.mode}: asked for", [tried.candidate("asked for")])
    trials = Trials(task, path)
    (try_auto if options.mode == "auto" else try_static)(task, trials)
    kept, reason = _chosen(task, trials)
    only = options.mode == "static" and len(trials.tried) == 1
    words = {id(t): why_not(task, t) for t in trials.tried} | {id(kept): "asked for" if only else "kept"}
    lines = [t.candidate(words[id(t)]) for t in trials.tried] + trials.refused
    known = kept in trials.tried
    return outcome(trials.keep(kept), reason, lines if known else [*lines, kept.candidate("kept")])


def _asked_for(task: Task) -> Draft:
    if task.options.recipe is None:
        return of_mode(task)
    state = task.recipe(task.start)
    if not state.written:
        raise UsageError("the recipe does not write its plan into the model; it ends with the step `write`")
    return Draft("recipe", state, task.recipe)


def _chosen(task: Task, trials: Trials) -> tuple[Tried, str]:
    """(the preferred good candidate, else in mode static the one closest to float, else float; the reason)."""
    tried = trials.tried
    found = [t for t in tried if good(task, t)]
    if found:
        kept = preferred(task, found)
        return kept, _why(task, kept, tried)
    if task.options.mode == "static":
        if not tried:
            raise ValidityError(trials.refused[0].verdict)
        kept = nearest(task, tried)
        return kept, _why(task, kept, tried)
    nothing = "" if tried or trials.refused else _nothing(task)
    small = task.start.of(tied(task.start.model))
    forms = [small] if task.selection is not None else [small, task.start.of(task.source)]
    state = min(forms, key=lambda s: _file_bytes(s.model))
    kept = verify(task, Draft("float", state), trials.path)
    if state is small and not close(task, kept):  # float64 values beyond float32
        kept = verify(task, Draft("float", task.start.of(task.source)), trials.path)
    form = "simplified float model"
    if kept.slower:  # ONNX Runtime fuses the nodes that were given better
        kept, form = verify(task, Draft("float", task.start.of(task.given)), trials.path), "float model as it was given"
    why = nothing or "no integer form was both close enough and no slower"
    reason = f"float: {why}; the file is the {form}"
    task.note(reason)
    return kept, reason


def _nothing(task: Task) -> str:
    """Why there was nothing to try.

    Raises:
        ModelError: the model has operators of ai.onnx.ml, such as trees, and no layers.
    """
    others = sorted({n.op_type for n in task.source.graph if n.domain == "ai.onnx.ml"})
    if others:
        raise ModelError(
            f"nothing to quantize: the model is computed by {', '.join(others[:3])}, which has no weights to multiply "
            "with; fewer or shallower trees make it smaller, or train a small network on its answers (edgeopt distill)"
        )
    return "nothing to quantize: no node has a constant weight of 256 elements or more, and none pays in integers"


def _why(task: Task, kept: Tried, tried: Sequence[Tried]) -> str:
    if good(task, kept):
        speed = "; its speed was not measured"
        if kept.latency is not None:
            slightly = kept.latency.speedup_high < 1  # than what counts as slower
            speed = f" and hardly slower ({kept.latency.speedup:.2f}x)" if slightly else " and no slower"
        return f"{kept.mode}: close to float{speed}"
    return f"{kept.mode}: asked for" + ("; the nearest of what was tried" if len(tried) > 1 else "")


def _report(task: Task, options: Quantize, done: Outcome, input_bytes: int, start: float) -> Report:
    kept = done.kept
    latency = None
    if task.options.measure and kept.latency is None:
        installed = f"; edgeopt env {options.target} makes its runtime" if task.target.check.timed else ""
        task.note(f"speed not measured: this machine is {target.host()}, the target is {task.target.name}{installed}")
    if kept.latency is not None:
        latency = LatencyReport(float_ms=kept.latency.reference_ms, **asdict(kept.latency), threads=1)
    state, seconds = kept.draft.state, task.cache.seconds
    return Report(
        mode=kept.mode,
        reason=done.reason,
        target=task.target.name,
        host=target.host(),
        input_bytes=input_bytes,
        output_bytes=done.sizes[0],
        download_bytes=done.sizes[1],
        bytes_before=graph.bytes_by_dtype(task.source),
        bytes_after=graph.bytes_by_dtype(kept.draft.model),
        outputs=kept.errors,
        later=kept.later,
        latency=latency,
        kernels=asdict(kept.kernels),
        integer_nodes=tuple(sorted(state.plan.integer)) if state.plan else (),
        activations=_activations(state),
        kept_float=dict(state.plan.kept_float) if state.plan else {},
        samples={"calibration": len(task.start.samples), "held_out": len(task.held)},
        preprocess=task.preprocess,
        candidates=done.candidates,
        notes=tuple(task.notes.lines),
        seconds={k: round(v, 3) for k, v in seconds.items()} | {"total": round(time.perf_counter() - start, 3)},
        metric=None
        if task.metric is None or kept.metric is None
        else MetricReport(task.metric.name, task.metric.on_float, kept.metric),
        versions={p: importlib.metadata.version(p) for p in ("edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy")},
        missed=(*missed(task, kept), *done.ended),
        undecided=tuple(undecided(task, kept)),
        interrupted=done.interrupted,
        choices=options.changed(),
        recipe=tuple(kept.draft.recipe.to_json()) if kept.draft.recipe is not None else (),
    )


def _activations(state: State) -> dict[str, ActivationReport]:
    found = {}
    for name, p in state.params.items() if state.written else ():
        if name in state.statistics:
            s = state.statistics[name]
            seen, scale = (s.minmax.lo, s.minmax.hi), float(p.scale)
            found[name] = ActivationReport(seen, p.range, scale, int(p.zero_point))
    return found
