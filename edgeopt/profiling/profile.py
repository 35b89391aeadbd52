"""`profile(models)` and `compare(models)`: the same measurement with interleaved settings; `compare` adds the
differences to the first.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgeopt.errors import UsageError, ValidityError, WorkerError
from edgeopt.files import temporary_folder
from edgeopt.files.cloud import anywhere
from edgeopt.listener import Listener
from edgeopt.numbers.intervals import ratio_interval, unpaired_ratio_interval, verdict
from edgeopt.numbers.scores import compare as output_errors
from edgeopt.options import takes
from edgeopt.options.profile import Profile, ProfileOne
from edgeopt.profiling import latency
from edgeopt.profiling.arms import Arm, described, files_read, looking, wanted
from edgeopt.profiling.cases import Case, cases, first_run
from edgeopt.profiling.environment import environment
from edgeopt.profiling.latency import failing
from edgeopt.profiling.memory import memory
from edgeopt.profiling.results import (
    Comparison,
    Environment,
    Measured,
    OutputError,
    Range,
    Results,
    SelfCheck,
    Setting,
    Size,
)
from edgeopt.profiling.saving import Files, write_trace
from edgeopt.profiling.size import size
from edgeopt.runtime.address import LOCAL
from edgeopt.runtime.devices import visited
from edgeopt.runtime.process import Place
from edgeopt.runtime.tensor_file import NPZ

_BUSY = 0.1
Kind = Literal["profile", "compare", "self-check"]


@takes(ProfileOne).of_many
@anywhere
def profile(models: Sequence[str | Path], options: ProfileOne) -> Results:
    """Latency, cold start, memory, size and placement of every setting of `models`.

    A setting that fails keeps its error; the others continue.

    Raises:
        EdgeoptError: a model, an option or the data cannot be used; nothing was measured.
    """
    paths = [Path(m) for m in models]
    return _run("profile", paths, options, Files(options.report, options.trace, files_read(options, paths)))


@takes(Profile).of_many
@anywhere
def compare(models: Sequence[str | Path], options: Profile) -> Results:
    """Every model (or setting) against the first, interleaved in one run; see `profile`.

    Raises:
        EdgeoptError: fewer than two settings, or see `profile`.
    """
    paths = [Path(m) for m in models]
    return _run("compare", paths, options, Files(options.report, None, files_read(options, paths)))


def _run(kind: Kind, models: list[Path], options: Profile, files: Files) -> Results:
    start, listener = time.perf_counter(), options.listener
    if not models:
        raise UsageError("no model; e.g. edgeopt profile model.onnx --provider cpu")
    here = environment()
    with _visited(options) as places, temporary_folder() as folder:
        asked = wanted(options, models, places)
        if kind == "compare" and len(asked) < 2:
            raise UsageError(
                "compare needs two models or more, or one model under two settings, e.g. edgeopt compare a.onnx b.onnx"
            )
        found = cases(asked, options, folder, listener)
        devices = _environments(found)
        notes = _oddities({LOCAL: here, **devices}, asked)
        for line in notes:
            listener.note(line)
        for i, case in enumerate(found):
            first_run(case, options, folder, keep_outputs=kind == "compare")
            if case.timing.error is not None:
                listener.note(f"{case.arm.label}: {case.timing.error}")
            if not case.deterministic:
                notes.append(
                    f"{case.arm.label} gives other outputs for the same input; its time may depend on them too"
                )
                listener.note(notes[-1])
            listener.progress("first run", i + 1, len(found))
        _time(found, options, listener)
        sizes: dict[object, Size] = {}
        measured = tuple(_measured(case, options, listener, sizes) for case in found)
        for line in (told for case in found for told in _lost(case)):
            notes.append(line)
            listener.note(line)
    comparisons = _comparisons(found, measured, options) if kind == "compare" else ()
    document = Results(
        kind=kind,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=here,
        devices=devices,
        preset=options.preset if options.sustained_s is None else "sustained",
        measured=measured,
        comparisons=comparisons,
        notes=tuple(notes),
        seconds=round(time.perf_counter() - start, 2),
    )
    if files.trace is not None:
        write_trace({c.arm.label: c.trace.events for c in found if c.trace is not None}, files.trace)
    return files.written(document, latency.raw({c.arm.label: c.timing for c in found}))


def _visited(options: Profile) -> contextlib.AbstractContextManager[Mapping[str, Place]]:
    return visited(options.devices, described(options.devices, options.known), options.python)


def _environments(found: Sequence[Case]) -> dict[str, Environment]:
    """The devices by name, without those that cannot be reached, which their first run tells."""
    environments = {}
    for place in {c.arm.place.name: c.arm.place for c in found if c.arm.place.name != LOCAL}.values():
        with contextlib.suppress(WorkerError):
            environments[place.name] = environment(place)
    return environments


def _lost(case: Case) -> list[str]:
    dropped = case.timing.dropped
    return [f"{case.arm.label}: its device was lost, {len(dropped)} in all; last: {dropped[-1]}"] if dropped else []


def _oddities(machines: Mapping[str, Environment], asked: Sequence[Arm]) -> list[str]:
    """Conditions that make the times less reliable, in words."""
    found = [
        f"{a.label}: the hardware is simulated here; its times say nothing of a device"
        for a in asked
        if a.provider.simulated
    ]
    for name, m in machines.items():
        of = "" if name == LOCAL else f"{name}: "
        if m.pressure is not None and m.pressure > _BUSY:
            found.append(
                f"{of or 'this machine '}is busy: tasks waited for a CPU {m.pressure:.0%} of the last 10 s; intervals"
                " will be wide"
            )
        if m.governor not in (None, "performance"):
            told = f"the CPU governor is {m.governor!r}: clocks move with the load; 'performance' is steadier"
            found.append(of + told)
    return found


def _time(found: Sequence[Case], options: Profile, listener: Listener) -> None:
    timings = [c.timing for c in found if c.timing.error is None]
    how = looking(options)
    if how.sustained_s:
        for t in timings:
            latency.sustained(t, how, allow_fallback=options.allow_fallback, progress=listener.progress)
    elif timings:
        latency.measure(timings, how, allow_fallback=options.allow_fallback, progress=listener.progress)


def _measured(case: Case, options: Profile, listener: Listener, sizes: dict[object, Size]) -> Measured:
    """The results of one case; memory and size are measured after all timing. `sizes`: known ones by model and
    feeds.
    """
    t, arm = case.timing, case.arm
    used = None
    if t.error is None and not arm.place.web:
        with failing(t):
            used = memory(arm, t.feeds, allow_fallback=options.allow_fallback)
        listener.progress(f"memory {arm.label}", 1, 1)
    key = arm.model, t.feeds, t.error is None
    if key not in sizes:
        runs = case.placement is not None or (arm.place.web and t.error is None)
        feeds = t.feeds.with_suffix(NPZ.suffix) if runs else None
        sizes[key] = size(arm.model, case.model, feeds, xz=options.preset != "quick")
    setting = Setting(
        label=arm.label,
        model=str(arm.model),
        sha256=case.sha256,
        provider=arm.provider.name,
        provider_options=arm.provider.options,
        threads=arm.threads,
        session=arm.session,
        level=arm.level,
        fixed_dims=arm.fixed,
        shapes=case.shapes,
        inputs=case.told,
        rate=arm.rate,
        python=str(t.hello.get("python", "")),
        onnxruntime=str(t.hello.get("onnxruntime", "")),
        numpy=str(t.hello.get("numpy", "")),
        device=arm.place.name,
    )
    return Measured(
        setting=setting,
        error=t.error,
        latency=latency.summary(t, looking(options)),
        cold=latency.cold(t),
        memory=used,
        size=sizes[key],
        placement=case.placement,
        ops=case.ops,
    )


def _comparisons(found: Sequence[Case], measured: Sequence[Measured], options: Profile) -> tuple[Comparison, ...]:
    together = not looking(options).sustained_s  # else one after the other
    compared = []
    for case, m in list(zip(found, measured, strict=True))[1:]:
        # of the same device, where another setting came before: what a device is worth is not what a model is
        at = next(i for i, c in enumerate(found) if c.arm.place.name == case.arm.place.name)
        at = 0 if found[at] is case else at
        first = found[at]
        pairs = latency.paired(first.timing, case.timing)
        if pairs is None:
            continue
        outputs, notes = _outputs(first, case)
        ratio = (ratio_interval if together else unpaired_ratio_interval)(*pairs)
        compared.append(
            Comparison(
                reference=first.arm.label,
                other=case.arm.label,
                ratio=Range.of(ratio),
                ratio_uncontended=_calm(first, case) if together else None,
                verdict=verdict(ratio, options.margin),
                margin=options.margin,
                interleaved=together,
                file_ratio=size_ratio(measured[at], m),
                peak_memory_ratio=peak_ratio(measured[at], m),
                outputs=outputs,
                notes=tuple(notes),
            )
        )
    return tuple(compared)


def _calm(a: Case, b: Case) -> float | None:
    """The latency ratio over the rounds in which neither was contended."""
    quiet = [{(x.process, x.round): x.median_ms for x in c.timing.blocks if not x.contended} for c in (a, b)]
    keys = quiet[0].keys() & quiet[1].keys()
    return math.exp(float(np.median([math.log(quiet[1][k] / quiet[0][k]) for k in sorted(keys)]))) if keys else None


def size_ratio(a: Measured, b: Measured) -> float | None:
    """File size of b relative to a."""
    return b.size.file_bytes / a.size.file_bytes if a.size and b.size else None


def peak_ratio(a: Measured, b: Measured) -> float | None:
    """Peak RSS of b relative to a."""
    if a.memory is None or b.memory is None:
        return None
    return max(p.peak_bytes for p in b.memory.arena) / max(p.peak_bytes for p in a.memory.arena)


def _outputs(a: Case, b: Case) -> tuple[tuple[OutputError, ...] | None, list[str]]:
    """(errors of b's outputs against a's, matched by name or else by position; notes that limit their meaning)."""
    if a.outputs is None or b.outputs is None or len(a.outputs) != len(b.outputs):
        return None, ["outputs not compared: one of them gave none"]
    notes = [
        f"{c.arm.label} gives other outputs for the same input: the output error says nothing"
        for c in (a, b)
        if not c.deterministic
    ]
    if a.feeds is not b.feeds:
        notes.append("the inputs differ: the output error says nothing")
    for i, name in enumerate(a.output_names):
        if (
            not any(np.isfinite(sample[i]).any() for sample in a.outputs if sample[i].dtype.kind == "f")
            and a.outputs[0][i].dtype.kind == "f"
        ):
            notes.append(f"output {name!r} of {a.arm.label} is nowhere finite: its error says nothing")
    order = list(range(len(a.output_names)))
    if set(a.output_names) <= set(b.output_names):
        order = [b.output_names.index(n) for n in a.output_names]
    elif len(a.output_names) == len(b.output_names):
        notes.append("outputs have other names and are matched by position")
    else:
        return None, [*notes, "outputs not compared: their numbers differ"]
    theirs = [
        [sample[i].astype(r.dtype) for i, r in zip(order, ref, strict=True)]
        for sample, ref in zip(b.outputs, a.outputs, strict=True)
    ]
    try:
        errors = output_errors(a.output_names, a.outputs, theirs)
    except ValidityError as e:
        return None, [*notes, f"outputs not compared: {e}"]
    found = tuple(
        OutputError(
            output=e.output,
            exact=e.max_abs == 0,
            sqnr_db=e.sqnr_db if math.isfinite(e.sqnr_db) else None,
            cosine=e.cosine,
            max_abs=e.max_abs,
            agreement=e.agreement,
        )
        for e in errors
    )
    return found, notes


@takes(ProfileOne)
@anywhere
def self_check(model: str | Path, options: ProfileOne) -> Results:
    """`model` against itself, `trials` times: the rate of false alarms, and the smallest change that can be detected
    here.
    """
    start, ears = time.perf_counter(), options.listener
    files = Files(options.report, None, files_read(options, [Path(model)]))
    how = looking(options)
    ratios = []
    here = environment()
    with _visited(options) as places, temporary_folder() as folder:
        arm, *others = wanted(options, [Path(model)], places)
        if others or options.sustained_s is not None:
            raise UsageError(
                "--self-check takes one setting: no sweep of --threads, --batch, --dim, --provider or --device, and no"
                " --sustained"
            )
        case = cases([arm], options, folder, ears)[0]
        devices = _environments([case])
        first_run(case, options, folder, keep_outputs=False)
        ears.note(f"self-check: the model against itself, {options.trials} times, one after the other")
        for trial in range(options.trials if case.timing.error is None else 0):
            a, b = (latency.Timing(replace(case.arm, label=name), case.timing.feeds) for name in ("A", "A again"))
            latency.measure([a, b], how, allow_fallback=options.allow_fallback, progress=_silent, seed=trial)
            pairs = latency.paired(a, b)
            case.timing = replace(a, arm=case.arm, error=a.error or b.error)
            if pairs is None or case.timing.error is not None:
                break
            ratios.append(ratio_interval(*pairs))
            ears.progress("self-check", trial + 1, options.trials)
        measured = _measured(case, options.model_copy(update={"preset": "quick"}), ears, {})
    verdicts = [verdict(r, options.margin) for r in ratios]
    # 0 in a trial that was a false alarm without any change
    visible = [max(0.0, 1 / r.low - 1, (1 + options.margin) / r.value - 1) for r in ratios]
    check = SelfCheck(
        label=arm.label,
        trials=len(ratios),
        margin=options.margin,
        false_alarms=sum(v in ("improved", "regressed") for v in verdicts),
        inconclusive=verdicts.count("inconclusive"),
        excludes_one=sum(r.low > 1 or r.high < 1 for r in ratios),
        smallest_visible=float(np.quantile(visible or [0.0], 0.9)),
        ratios=tuple(Range.of(r) for r in ratios),
    )
    document = Results(
        kind="self-check",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=here,
        devices=devices,
        preset=options.preset,
        measured=(measured,),
        self_check=check if ratios else None,
        seconds=round(time.perf_counter() - start, 2),
    )
    return files.written(document, {})


def _silent(stage: str, done: int, total: int) -> None:
    """Ignore the progress of a sub-measurement."""
