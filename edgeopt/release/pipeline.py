"""`run(project)`: build the variants, evaluate, measure, judge, write the evidence.

What was built and evaluated is kept by its content, so that a second run does only what changed and an interrupted one goes
on. A variant that fails is told and the others go on.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.options import Listener, check_folder
from edgeopt.release import artefacts, manifest
from edgeopt.release import project as projects
from edgeopt.release.baseline import against
from edgeopt.release.cache import Cache, Entry, key, sha256
from edgeopt.release.document import Layer, Run, Step, VariantResult
from edgeopt.release.gates import judge
from edgeopt.release.judging import line_finder
from edgeopt.release.measuring import choices
from edgeopt.release.names import check_names
from edgeopt.release.project import FLOAT, Project, Variant, in_order
from edgeopt.release.steps import Context, reads_data, run_step, settings, teachers
from edgeopt.results import Measured, Range, Results
from edgeopt.staging import staged

CACHE = ".cache"
_PACKAGES = ("edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy")


def run(
    project: str | Path | Project,
    *,
    preset: str | None = None,
    measure: bool | None = None,
    root: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Build, measure and judge a project; the evidence is in its output folder.

    project: its file, or the model of one with `root`, the folder that its paths are relative to. preset: how long to measure
    (quick, pr, release), over the project's. The verdict and the exit code that goes with it are in the result.

    Raises:
        EdgeoptError: the project, the float model or the data cannot be used. A variant that fails does not raise.
    """
    start, ears = time.perf_counter(), listener or Listener()
    file = Path(project) if not isinstance(project, Project) else Path(root or ".") / projects.FILE
    found = project if isinstance(project, Project) else projects.load(file)
    home = (Path(root) if root is not None else file.parent).resolve()
    folder = home / found.output.folder
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        context = Context(home, _model(found, home, folder, ears), _place(found.data.path, home), found, ears)
        _check_places(found, context, folder)
        check_names(found, context.model, file)
        cache = Cache(folder / CACHE)
        notes: list[str] = []
        digest = cache.digest(context.model)
        data = _data_digest(cache, found.data.path, home)
        variants = _built(context, cache, digest, data)
        variants = _evaluated(context, cache, variants, data, digest)
        cache.keep()
        files = _published(variants, folder, context)
        measured, chosen = None, preset or found.profile.preset or "quick"
        if found.profile.measure if measure is None else measure:
            measured = _measured(context, files, chosen, ears)
            variants = [_with_measured(v, files, measured) for v in variants]
        document = Run(
            project=found.name or context.model.stem,
            project_file=str(file),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            preset=chosen,
            model=str(context.model),
            model_sha256=sha256(context.model),
            variants=tuple(variants),
            profile=measured,
            notes=tuple(notes),
            versions=_versions(),
        )
        stand = against(found, home, document, files, ears, measure=measured is not None)
        document = document.model_copy(
            update={"ratios": stand.ratios or {}, "baseline": stand.run.created if stand.run else None}
        )
        document = judge(found, document, stand, line_finder(file))
        document = document.model_copy(update={"seconds": round(time.perf_counter() - start, 2)})
        artefacts.write(document, found, folder)
    return document


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time in `folder`; the system lets go when the process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / ".lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            lock.seek(0)
            raise UsageError(
                f"{folder}: another run is at work there (process {lock.read().strip() or 'unknown'}); wait for it, or choose another output.folder"
            ) from e
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _model(project: Project, home: Path, folder: Path, ears: Listener) -> Path:
    if project.export is None:
        path = home / (project.model or "")
        if not path.is_file():
            raise UsageError(f"model = {str(project.model)!r}: no such file in {home}")
        return path
    try:
        from edgeopt.train.export import export
    except ImportError as e:
        raise UsageError("[export] needs torch: pip install 'edgeopt[train]'") from e
    path = folder / "exported" / f"{project.name or 'model'}.onnx"
    path.parent.mkdir(exist_ok=True)
    export(project.export.factory, dict(project.export.inputs), dynamic=project.export.dynamic, output=path, force=True)
    ears.note(f"export: {path}")
    return path


def _check_places(project: Project, context: Context, folder: Path) -> None:
    """Refuse variants that would be written over what is read."""
    for name in project.variants:
        if (folder / f"{name}.onnx").resolve() == context.model.resolve():
            raise UsageError(
                f"variant {name!r} would overwrite the model {context.model}; choose another output.folder"
            )
    if context.model.parent.resolve() == (folder / CACHE).resolve():
        raise UsageError(f"{context.model}: lies in the cache of {folder}")


def _place(data: str, home: Path) -> str:
    """`data` as the functions take it: a path from the project's folder, or `package.module:function`."""
    path = home / data
    if path.exists():
        return str(path)
    if ":" in data or data == "random":
        return data
    raise DataError(f"data.path = {data!r}: no such file or folder in {home}")


def _data_digest(cache: Cache, data: str, home: Path) -> str:
    path = home / data
    if path.exists():
        return cache.digest(path)
    module = home / (data.partition(":")[0].replace(".", "/") + ".py")
    return key(data, cache.digest(module) if module.is_file() else "")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _built(context: Context, cache: Cache, digest: str, data: str) -> list[VariantResult]:
    """Every variant's file in the cache, in an order in which each comes after its parent; float first."""
    made: dict[str, tuple[Path, str]] = {FLOAT: (context.model, digest)}
    found = [VariantResult(name=FLOAT, parent="", file=str(context.model), sha256=sha256(context.model))]
    variants = context.project.variants
    for name in in_order(variants):
        variant = variants[name]
        if variant.parent not in made:
            error = f"{variant.parent} failed"
            found.append(VariantResult(name=name, parent=variant.parent, error=error))
            context.listener.note(f"{name}: not made: {error}")
            continue
        result, end = _variant(context, cache, name, variant, made[variant.parent], data)
        found.append(result)
        if end is not None:
            made[name] = end
    return found


def _variant(
    context: Context, cache: Cache, name: str, variant: Variant, start: tuple[Path, str], data: str
) -> tuple[VariantResult, tuple[Path, str] | None]:
    path, digest = start
    steps: list[Step] = []
    for step in variant.steps:
        begun = time.perf_counter()
        others = [cache.digest(t) for t in teachers(step, context) if t.is_file()]
        chosen = settings(step, context)
        about = _reading(context) if reads_data(step) else {}
        entry_key = key(digest, chosen, others, data if reads_data(step) else "", about, _versions())
        context.listener.note(f"{name}: {step.step} ...")
        try:
            entry = cache.entry(entry_key, lambda output, s=step, p=path: run_step(s, p, output, context))  # type: ignore[misc]
        except EdgeoptError as e:
            context.listener.note(f"{name}: {step.step} failed: {e}")
            return VariantResult(name=name, parent=variant.parent, error=f"{step.step}: {e}", steps=tuple(steps)), None
        steps.append(_told(step, entry, time.perf_counter() - begun))
        summary = entry.facts.get("summary", "")
        context.listener.note(f"{name}: {step.step}: {'from the cache: ' if entry.cached else ''}{summary}")
        path, digest = entry.path, entry.sha256
    result = VariantResult(name=name, parent=variant.parent, file=str(path), sha256=sha256(path), steps=tuple(steps))
    return result, (path, digest)


def _reading(context: Context) -> Mapping[str, Any]:
    """What decides how samples are read."""
    return context.project.data.model_dump(mode="json")


def _told(step: Any, entry: Entry, seconds: float) -> Step:
    notes = tuple(str(n) for n in entry.facts.get("notes", ()))
    summary = entry.facts.get("summary")
    chosen = {k: v for k, v in step.model_dump(mode="json").items() if v not in (None, [], False)}
    return Step(
        step=chosen, cached=entry.cached, seconds=round(seconds, 2), notes=((str(summary),) if summary else ()) + notes
    )


def _evaluated(
    context: Context, cache: Cache, variants: list[VariantResult], data: str, digest: str
) -> list[VariantResult]:
    """Metrics of every variant; the float model and the samples are only loaded if something is not known yet."""
    others = "" if context.project.data.eval is None else _data_digest(cache, context.project.data.eval, context.root)
    about = key(
        digest,
        data,
        others,
        _reading(context),
        context.project.accuracy.model_dump(),
        dict(context.project.profile.dims),
        _versions(),
    )
    shared: list[Any] = []

    def look(path: Path) -> Any:
        from edgeopt.release.evaluate import answers, evaluate, jury, opset

        if not shared:
            shared.append(jury(context))
        metrics, layers = evaluate(shared[0], path)
        return {
            "metrics": metrics,
            "layers": [x.model_dump() for x in layers],
            "answers": answers(path, context.project.profile.dims),
            "opset": opset(path),
        }

    found = []
    for v in variants:
        if v.file is None or v.error is not None:
            found.append(v)
            continue
        path = Path(v.file)
        try:
            value, _ = cache.remembered(key("evaluation/3", v.sha256, about), lambda p=path: look(p))  # type: ignore[misc]
        except EdgeoptError as e:
            context.listener.note(f"{v.name}: evaluation failed: {e}")
            if v.name == FLOAT:
                raise
            found.append(v.model_copy(update={"error": f"evaluation: {e}"}))
            continue
        layers = () if v.name == FLOAT else tuple(Layer.model_validate(x) for x in value["layers"])
        metrics = _of_variant(v.name, value["metrics"])
        facts = {"metrics": metrics, "layers": layers, "answers": tuple(value["answers"]), "opset": value["opset"]}
        found.append(v.model_copy(update=facts))
    return found


def _of_variant(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Of the float model only what does not compare it with itself."""
    itself = ("quant.", "accuracy.agreement", "accuracy.cosine") if name == FLOAT else ()
    return {k: float(v) for k, v in metrics.items() if not k.startswith(itself)}


def _published(variants: list[VariantResult], folder: Path, context: Context) -> dict[str, Path]:
    """The files to ship, `NAME.onnx` in `folder`; float stays where it is. A file that is the same is left alone."""
    found: dict[str, Path] = {}
    for v in variants:
        if v.file is None or v.error is not None:
            continue
        if v.name == FLOAT:
            found[v.name] = context.model
            continue
        target = folder / f"{v.name}.onnx"
        found[v.name] = target
        if target.is_file() and sha256(target) == v.sha256:
            continue
        _publish(Path(v.file), target)
    for name in manifest.variants(folder) - found.keys():  # of an earlier run, and no longer made
        for suffix in (".onnx", *manifest.ORT):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return found


def _publish(source: Path, target: Path) -> None:
    """Copy a model out of the cache; one with data in files of its own gets files named after it."""
    from edgeopt import graph

    with staged(target) as stage:
        if len(list(source.parent.iterdir())) > 2:  # more than the model and its entry
            graph.write(graph.load(source), stage / target.name)
        else:
            shutil.copyfile(source, stage / target.name)


def _measured(context: Context, files: Mapping[str, Path], preset: str, ears: Listener) -> Results:
    from edgeopt.profiling.profile import compare, profile

    paths = [str(f) for f in files.values()]
    report = context.root / context.project.output.folder / "profile.json"
    function = compare if len(paths) > 1 else profile
    return function(*paths, report=report, listener=ears, **choices(context.project, context.root, preset))


def first_of(document: Results, path: Path) -> Measured | None:
    """The first setting of the model at `path`."""
    return next((m for m in document.measured if m.setting.model == str(path)), None)


def _with_measured(v: VariantResult, files: Mapping[str, Path], measured: Results) -> VariantResult:
    m = first_of(measured, files[v.name]) if v.name in files else None
    if m is None:
        return v
    if m.error is not None:
        return v.model_copy(update={"error": f"profile: {m.error}"})
    metrics, intervals = dict(v.metrics), dict(v.intervals)
    if m.latency is not None:
        metrics["latency.p50"], intervals["latency.p50"] = m.latency.p50_ms.value, m.latency.p50_ms
        for name, value in (("latency.p90", m.latency.p90_ms), ("latency.p99", m.latency.p99_ms)):
            if value is not None:
                metrics[name] = value
    if m.cold is not None:
        metrics |= {"cold.session_create": m.cold.create_ms, "cold.first_inference": m.cold.first_ms}
    if m.memory is not None:
        metrics["memory.peak_rss"] = float(max(x.peak_bytes for x in m.memory.arena))
    if m.placement is not None:
        metrics |= {"ep.coverage": m.placement.coverage_nodes, "ep.partitions": float(m.placement.partitions)}
    ratio = next((c.ratio for c in measured.comparisons if c.other == m.setting.label), None)
    if ratio is not None:
        metrics["speedup"] = 1 / ratio.value
        intervals["speedup"] = Range(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)
    return v.model_copy(update={"metrics": metrics, "intervals": intervals})
