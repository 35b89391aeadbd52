"""Builds variants step by step and evaluates them on samples; both only on a cache miss.

A variant that fails is reported, and the others continue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.data.listing import exists
from edgeopt.errors import EdgeoptError
from edgeopt.hardware.target import Target, file_of
from edgeopt.release.build import actions, sources, targets
from edgeopt.release.build.actions import Context
from edgeopt.release.build.cache import Cache, Entry, key
from edgeopt.release.document import Evaluation, StepResult, VariantResult
from edgeopt.release.project.checks import SAMPLES
from edgeopt.release.project.file import FLOAT, ExportTable, Variant, in_order
from edgeopt.release.project.metrics import AGAINST_FLOAT


@dataclass(frozen=True)
class Digests:
    """Digests of the inputs that all variants share."""

    model: str
    data: str
    reading: str
    versions: Mapping[str, str]
    """Package -> version."""


@dataclass(frozen=True)
class Known:
    """Results of an evaluation besides the metrics of one variant."""

    samples: Mapping[str, int]
    """Number of samples by use: "calibration", "evaluation"."""
    notes: tuple[str, ...]


def digests(context: Context, cache: Cache) -> Digests:
    """The digests of the project's model, its data and its reading options."""
    return Digests(
        sources.model_digest(cache, context.model),
        sources.data_digest(cache, context.project.data.path, context.root),
        sources.reading_digest(cache, context.project, context.root),
        sources.versions(),
    )


def exported(context: Context, export: ExportTable, cache: Cache) -> Entry:
    """The model of an [export] table, exported again only if its code, shapes, data or package versions changed.

    Raises:
        EdgeoptError: see `edgeopt.export`.
    """
    root, path = context.root, context.project.data.path
    file = root / export.factory
    given = exists(file)
    code = cache.digest(file) if given else sources.module_digest(cache, export.factory, root)
    data = sources.data_digest(cache, path, root), sources.reading_digest(cache, context.project, root)

    def make(output: Path) -> Mapping[str, Any]:
        from edgeopt import Export
        from edgeopt import export as run
        from edgeopt.data.foreign import named

        if not given:
            named(export.factory, "export.factory", root)
        actions.import_from_root(context, "data.path")
        found = run(
            str(file) if given else export.factory,
            dict(export.inputs),
            Export(
                **{k: v for k, v in actions.data_choices(context.project, context.root).items() if k != "samples"},
                data_option="data.path",
                dynamic=export.dynamic,
                dtypes=export.dtypes,
                data=context.data,
                output=output,
                force=True,
            ),
        )
        return {"summary": str(found)}

    return cache.entry(key("export/2", export.model_dump(mode="json"), code, data, sources.versions()), make)


def built(context: Context, cache: Cache, known: Digests) -> list[VariantResult]:
    """Every variant with its file in the cache, parents before children, float first; each sha256 is of all files of
    the entry.
    """
    made: dict[str, tuple[Path, str]] = {FLOAT: (context.model, known.model)}
    found = [
        VariantResult(name=FLOAT, parent="", file=str(context.model), sha256=sources.fingerprint(context.model)),
    ]
    variants = context.project.variants
    for name in in_order(variants):
        variant = variants[name]
        if variant.parent not in made:
            error = f"{variant.parent} failed"
            found.append(VariantResult(name=name, parent=variant.parent, error=error))
            context.listener.note(f"{name}: not made: {error}")
            continue
        result = _variant(context, cache, name, variant, made[variant.parent], known)
        found.append(result)
        if result.file is not None and result.sha256 is not None:
            made[name] = Path(result.file), result.sha256
    return found


def _variant(
    context: Context, cache: Cache, name: str, variant: Variant, start: tuple[Path, str], known: Digests
) -> VariantResult:
    (path, digest), steps = start, list[StepResult]()
    for step in variant.steps:
        begun = time.perf_counter()
        context.listener.note(f"{name}: {step.step} ...")
        try:
            name_of_entry = key(digest, *_about(step, context, cache, known))
            entry = cache.entry(name_of_entry, lambda output, s=step, p=path: actions.run_step(s, p, output, context))  # type: ignore[misc]
        except EdgeoptError as e:
            context.listener.note(f"{name}: {step.step} failed: {e}")
            return VariantResult(name=name, parent=variant.parent, error=f"{step.step}: {e}", steps=tuple(steps))
        steps.append(_told(step, entry, time.perf_counter() - begun))
        summary = entry.facts.get("summary", "")
        said = str(summary).removeprefix(f"{step.step}: ")
        context.listener.note(f"{name}: {step.step}: {'from the cache: ' if entry.cached else ''}{said}")
        path, digest = entry.path, entry.sha256
    return VariantResult(name=name, parent=variant.parent, file=str(path), sha256=digest, steps=tuple(steps))


def _about(step: Any, context: Context, cache: Cache, known: Digests) -> Iterable[object]:
    """All inputs besides the model that determine the output of `step`."""
    call, more = getattr(step, "call", None), getattr(step, SAMPLES, None)
    named = {key: found for key, found in actions.files(step, context).items() if key != "teacher"}
    models = (*actions.teachers(step, context), *named.pop("peers", ()))
    read = [sources.model_digest(cache, model) for model in models]
    read += [cache.digest(file_of(f)) for found in named.values() for f in found]
    read += [] if more is None else [sources.data_digest(cache, more, context.root)]
    read += [] if call is None else [sources.module_digest(cache, call, context.root)]
    samples = (known.data, known.reading) if actions.reads_data(step) else ()
    return (actions.settings(step, context), read, samples, known.versions)


def _told(step: Any, entry: Entry, seconds: float) -> StepResult:
    notes = tuple(str(n) for n in entry.facts.get("notes", ()))
    summary = entry.facts.get("summary")
    chosen = {k: v for k, v in step.model_dump(mode="json").items() if v not in (None, [], False, {})}
    said = ((str(summary),) if summary else ()) + notes
    return StepResult(step=chosen, cached=entry.cached, seconds=round(seconds, 2), notes=said)


def evaluated(
    context: Context, cache: Cache, variants: list[VariantResult], known: Digests
) -> tuple[list[VariantResult], Known]:
    """Metrics of every variant; the float model and the samples are only loaded if something is not known yet.

    Raises:
        EdgeoptError: the float model or the data cannot be used.
    """
    about, shared = _judged_by(context, cache, known), list[Any]()
    found, all_known = [], Known({}, ())
    for v in variants:
        if v.file is None or v.error is not None:
            found.append(v)
            continue
        file, target = Path(v.file), targets.target_of(context.project, v.name, context.root)
        name = key("evaluation/5", v.sha256, about, *targets.about(target))
        try:
            value, _ = cache.remembered(name, lambda f=file, t=target: _look(context, shared, f, t))  # type: ignore[misc]
        except EdgeoptError as e:
            context.listener.note(f"{v.name}: evaluation failed: {e}")
            if v.name == FLOAT:
                raise
            found.append(v.model_copy(update={"error": f"evaluation: {e}"}))
            continue
        found.append(_with(v, value))
        all_known = Known(value["samples"], tuple(value["notes"]))
    return found, all_known


def _judged_by(context: Context, cache: Cache, known: Digests) -> str:
    """A digest of everything besides the variant that can change its metrics."""
    project, root = context.project, context.root
    others = "" if project.data.eval is None else sources.data_digest(cache, project.data.eval, root)
    own = project.accuracy.eval
    code = "" if own is None else sources.module_digest(cache, own, root)
    chosen = project.accuracy.model_dump(), dict(project.profile.dims)
    return key(known.model, known.data, known.reading, known.versions, others, code, *chosen)


def _look(context: Context, shared: list[Any], path: Path, target: Target | None) -> Any:
    """The evaluation of the model at `path` as plain values; `shared` holds the jury once it is loaded."""
    from edgeopt.release.build.evaluate import answers, evaluate, jury

    if not shared:
        shared.append(jury(context))
    task, found = shared[0].task, evaluate(shared[0], path)
    if target is not None:
        found = targets.with_target(found, path, shared[0], target)
    return found.model_dump(mode="json") | {
        "answers": answers(path, context.project.profile.dims),
        "samples": {"calibration": len(task.start.samples), "evaluation": len(shared[0].feeds)},
        "notes": list(task.notes.lines),
    }


def _with(v: VariantResult, value: Mapping[str, Any]) -> VariantResult:
    """`v` with its evaluation; the float model gets no metrics that would compare it with itself."""
    found = Evaluation.model_validate({k: x for k, x in value.items() if k in Evaluation.model_fields})
    if v.name == FLOAT:
        alone: dict[str, object] = {
            name: {k: x for k, x in getattr(found, name).items() if not k.startswith(("quant.", *AGAINST_FLOAT))}
            for name in ("metrics", "intervals")
        }
        found = found.model_copy(update=alone | {"drops": {}, "layers": (), "far": ()})
    return v.model_copy(update=dict(found))
