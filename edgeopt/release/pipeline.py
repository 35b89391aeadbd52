"""`run(project)`: build the variants, evaluate, measure, judge, write the artefacts.

Builds and evaluations are cached by content, so a second run does only what changed and an interrupted one resumes. The
release is replaced at the end, all files at once.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeopt.data.listing import exists
from edgeopt.errors import EdgeoptError, UsageError, suggestion
from edgeopt.files import address, check_folder, locked, writing
from edgeopt.listener import Listener
from edgeopt.release.build.actions import Context
from edgeopt.release.build.building import Digests, Known, built, digests, evaluated, exported
from edgeopt.release.build.cache import Cache
from edgeopt.release.build.measuring import measured, moved, with_measured
from edgeopt.release.document import Run, VariantResult
from edgeopt.release.evidence import artefacts, publishing
from edgeopt.release.project import file as projects
from edgeopt.release.project.checks import check
from edgeopt.release.project.file import FLOAT, PRESETS, Project
from edgeopt.release.project.names import check_names
from edgeopt.release.verdict import baseline
from edgeopt.release.verdict.gates import judge
from edgeopt.release.verdict.judging import line_finder

CACHE = ".cache"


def run(
    project: str | Path | Project,
    *,
    preset: str | None = None,
    measure: bool | None = None,
    allow_failed: bool = False,
    code: bool = True,
    root: str | Path | None = None,
    listener: Listener | None = None,
) -> Run:
    """Build, measure and judge a project, and write the artefacts to its output folder.

    `project`: its file, or a `Project` with `root`, the folder for relative paths and for imports of its functions.
    `preset`: quick, pr or release; how long to measure, instead of the project's.
    `measure`: whether to measure at all, instead of the project's.
    `allow_failed`: release even if gates fail; otherwise the models go to `failed` and the last release stays.
    `code`: False refuses a project that names functions.

    The result has the verdict and its exit code.

    Raises:
        EdgeoptError: the project, the float model or the data cannot be used. A variant that fails does not raise.
    """
    start = time.perf_counter()
    file = Path(project) if not isinstance(project, Project) else Path(root or ".") / projects.FILE
    found = project if isinstance(project, Project) else projects.load(file)
    home = (Path(root) if root is not None else file.parent).resolve()
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset {preset!r}: unknown{suggestion(preset, PRESETS)} Known: {', '.join(PRESETS)}")
    chosen = found.profile.preset if preset is None else preset
    timed = found.profile.measure if measure is None else measure
    found = found.model_copy(
        update={"profile": found.profile.model_copy(update={"preset": chosen or "quick", "measure": timed})}
    )
    folder = home / found.output.folder
    found = _fetched(found, folder, listener or Listener())
    check(found, home, file, code=code)
    try:
        check_folder(folder)
    except UsageError as e:
        raise UsageError(f"{e}; choose another output.folder in {file}") from e
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    publishing.check(folder)
    with locked(folder), _importable(home) if code else contextlib.nullcontext():
        return _run(found, file, home, listener or Listener(), start, allow_failed)


def _fetched(project: Project, folder: Path, ears: Listener) -> Project:
    """`project` with its model and samples here, where they are addresses; the cache keeps them until they change."""
    paths = {"model": project.model, "path": project.data.path, "eval": project.data.eval}
    urls = {key: url for key, path in paths.items() if (url := address(path)) is not None}
    if not urls:
        return project
    from edgeopt.files import cloud

    with writing(folder):
        (folder / CACHE / "fetched").mkdir(parents=True, exist_ok=True)
    here = {key: cloud.kept(url, folder / CACHE / "fetched", ears.note).resolve() for key, url in urls.items()}
    data = project.data.model_copy(update={key: str(path) for key, path in here.items() if key != "model"})
    return project.model_copy(update={"data": data} | ({"model": here["model"]} if "model" in here else {}))


def _run(project: Project, file: Path, home: Path, ears: Listener, start: float, allow_failed: bool) -> Run:
    folder = home / project.output.folder
    stand = baseline.kept(project, home)
    cache = Cache(folder / CACHE)
    context = _context(project, home, cache, ears)
    _check_model(context, folder)
    check_names(project, context.model, file)
    known = digests(context, cache)
    variants, facts = evaluated(context, cache, built(context, cache, known), known)
    cache.keep()
    with publishing.stage(folder) as stage:
        variants = publishing.place(variants, stage, folder, convert=project.output.ort)
        document = _document(context, file, variants, known, facts)
        document = _judged(_timed(document, context, stage), context, stand, file)
        released = allow_failed or document.exit_code == 0
        document = _settled(document, stage, folder if released else folder / publishing.FAILED)
        seconds = round(time.perf_counter() - start, 2)
        document = document.model_copy(update={"seconds": seconds, "released": released})
        artefacts.write(document, project, stage)
        publishing.publish(stage, folder, released=released)
    artefacts.tell_github(document)
    return document


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported inside the context, also lazily by the project's functions."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(str(folder))


def _context(project: Project, home: Path, cache: Cache, ears: Listener) -> Context:
    data = home / project.data.path
    context = Context(
        home, home / (project.model or ""), str(data) if exists(data) else project.data.path, project, ears
    )
    if project.export is None:
        return context
    entry = exported(context, project.export, cache)
    ears.note(f"export: {'from the cache: ' if entry.cached else ''}{entry.facts.get('summary', '')}")
    return replace(context, model=publishing.beside(entry.path, home / project.output.folder, project.name))


def _check_model(context: Context, folder: Path) -> None:
    """Refuse a model that a variant would overwrite."""
    model = context.model.resolve()
    for name in context.project.variants:
        if (folder / f"{name}.onnx").resolve() == model:
            raise UsageError(
                f"variant {name!r} would overwrite the model {context.model}; choose another output.folder"
            )
    if model.parent == (folder / CACHE).resolve():
        raise UsageError(f"{context.model}: lies in the cache of {folder}")


def _document(context: Context, file: Path, variants: list[VariantResult], known: Digests, facts: Known) -> Run:
    project = context.project
    return Run(
        project=project.name or context.model.stem,
        project_file=str(file),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        preset=project.profile.preset or "quick",
        model=str(context.model),
        model_sha256=variants[0].sha256 or "",
        samples=facts.samples,
        variants=tuple(variants),
        notes=facts.notes,
        versions=known.versions,
    )


def _timed(document: Run, context: Context, stage: Path) -> Run:
    """`document` with latency and memory, if the project measures."""
    profile = context.project.profile
    if not profile.measure:
        return document
    preset = profile.preset or "quick"
    found = measured(document.variants, context, preset, stage)
    variants, notes = [with_measured(v, found) for v in document.variants], [*document.notes, *found.notes]
    devices = {}
    for device in context.project.devices:
        try:
            devices[device] = there = measured(variants, context, preset, stage, device)
        except EdgeoptError as e:
            context.listener.note(f"{device}: {e}")
            variants = [v.model_copy(update={"on_devices": {**v.on_devices, device: str(e)}}) for v in variants]
            continue
        variants = [with_measured(v, there, device) for v in variants]
        notes += (f"{device}: {note}" for note in there.notes)
    return document.model_copy(
        update={"profile": found, "devices": devices, "variants": tuple(variants), "notes": tuple(notes)}
    )


def _judged(document: Run, context: Context, stand: baseline.KeptBaseline, file: Path) -> Run:
    """`document` with its gates judged, against the baseline `stand`."""
    project, home = context.project, context.root
    files = {v.name: Path(v.file) for v in document.variants if v.file and not v.error and document.profile}
    against = baseline.against(project, home, stand, document, files, context.listener)
    problem = () if stand.name is None or stand.problem is None else (f"baseline: {stand.problem}",)
    facts = {
        "ratios": against.ratios or {},
        "measured_against": stand.known_as if against.ratios else None,
        "baseline": stand.run.created if stand.run else None,
        "notes": (*document.notes, *problem),
    }
    return judge(project, document.model_copy(update=facts), against, line_finder(file))


def _settled(document: Run, stage: Path, folder: Path) -> Run:
    """`document` with final instead of staged paths, and without the files of variants whose measurement failed."""
    found = [publishing.withdraw(v, stage) if v.error and v.file and v.name != FLOAT else v for v in document.variants]
    staged = [v.file for v in document.variants if v.file is not None and Path(v.file).parent == stage]
    places = {file: str(folder / Path(file).name) for file in staged}
    variants = tuple(v.model_copy(update={"file": places.get(v.file or "", v.file)}) for v in found)
    profile = None if document.profile is None else moved(document.profile, places)
    devices = {device: moved(found, places) for device, found in document.devices.items()}
    return document.model_copy(update={"variants": variants, "profile": profile, "devices": devices})
