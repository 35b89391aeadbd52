"""The steps of a variant: each reads a model file and writes one, by the function of the command of that name."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import graph
from edgeopt.data import read, specs
from edgeopt.data.foreign import named
from edgeopt.data.listing import exists
from edgeopt.data.spec import without_label
from edgeopt.errors import UsageError
from edgeopt.files import temporary_folder
from edgeopt.hardware import target as targets
from edgeopt.listener import Listener
from edgeopt.options.distill import Distill
from edgeopt.options.models import Shrink, Simplify
from edgeopt.options.quantize import TABLE, Quantize
from edgeopt.options.reading import Reading
from edgeopt.release.project.checks import FILES, MODELS, SAMPLES, paths
from edgeopt.release.project.file import Project
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import open_session

Facts = Mapping[str, Any]
BOOK = ".edgeopt.costs.json"  # measured times, beside the project file; hidden, so that it is no sample


@dataclass(frozen=True)
class Context:
    """What the steps need besides the input model."""

    root: Path
    """Folder of the project file."""
    model: Path
    """The float model."""
    data: str
    """The samples: a path, "random" or `package.module:function`."""
    project: Project
    listener: Listener


def run_step(step: Any, source: Path, output: Path, context: Context) -> Facts:
    """Run `step` (of the project file) from `source` to `output`; returns facts about the result.

    Raises:
        EdgeoptError: as the function does.
    """
    if reads_data(step):
        import_from_root(context, "data.path")
    return _RUN[step.step](step, source, output, context)


def settings(step: Any, context: Context) -> Mapping[str, Any]:
    """All settings that determine the output of `step`, besides the files it reads, the data and the versions."""
    found: dict[str, Any] = dict(step.model_dump(mode="json"))
    if "target" in found and not targets.is_file(step.target):
        found["target"] = targets.load(step.target).name
    if step.step in ("distill", "shrink"):
        found["labels"] = context.project.accuracy.labels
    if step.step == "simplify":
        found["dims"] = dict(context.project.profile.dims)
    return found


def reads_data(step: Any) -> bool:
    """Whether the result of `step` depends on the samples."""
    return bool(step.step != "simplify")


def files(step: Any, context: Context) -> dict[str, tuple[Path, ...]]:
    """Other files that `step` reads, by the option that names them."""
    given = {key: tuple(context.root / p for p in paths(step, key) if str(p) != TABLE) for key in FILES}
    target = getattr(step, "target", None)
    if target is not None and targets.is_file(target):
        given["target"] = (context.root / target,)
    return {key: found for key, found in given.items() if found}


def import_from_root(context: Context, *options: str) -> None:
    """Import the functions that `options` of the project name from its folder, so that later lookups resolve to
    these.

    Raises:
        UsageError: there is no such module or function.
    """
    data, accuracy = context.project.data, context.project.accuracy
    sources = {"data.path": data.path, "data.eval": data.eval or "", "accuracy.eval": accuracy.eval or ""}
    for option in options:
        if ":" in sources[option] and not exists(context.root / sources[option]):
            named(sources[option], option, context.root)


def data_choices(project: Project, root: Path) -> dict[str, Any]:
    """The reading options that `project` sets, by option name."""
    data = project.data
    given = data.model_dump(include=set(Reading.model_fields), exclude_unset=True)
    return given | ({"tokenizer": root / data.tokenizer} if data.tokenizer is not None else {})


def _chosen(step: Any, context: Context, more: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `step` and of the project; paths are resolved against the root."""
    reading = {k: v for k, v in data_choices(context.project, context.root).items() if k != "samples"}
    own = {k: v for k, v in step.choices().items() if k not in FILES}
    if SAMPLES in own:
        own[SAMPLES] = str(context.root / own[SAMPLES])
    named = {key: found if key in MODELS else found[0] for key, found in files(step, context).items()}
    return {**reading, **own, **named, "listener": context.listener, "data_option": "data.path", **more}


def _simplify(step: Any, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.simplification import simplify

    options = Simplify(**step.choices(), output=output, dims=context.project.profile.dims)
    found = simplify(source, options)
    return {"summary": f"{found.nodes[0]} -> {found.nodes[1]} nodes"}


def _quantize(step: Any, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.quantization.quantize import quantize

    with temporary_folder() as folder:  # quantize appends to the cost file, and a build must not change its inputs
        given = files(step, context).get("costs")
        costs = {} if given is None else {"costs": Path(shutil.copy(given[0], folder / "costs.json"))}
        if str(getattr(step, "costs", None)) == TABLE:
            costs["costs"] = Path(TABLE)
        costs["book"] = context.root / BOOK  # of the project, so that its builds stay repeatable
        more = {"output": output, "samples": context.project.data.samples, **costs}
        r = quantize(source, context.data, Quantize(**_chosen(step, context, more))).report
    sqnr = "exact" if math.isinf(r.worst_sqnr_db) else f"{r.worst_sqnr_db:.1f} dB"
    return {
        "summary": f"{r.mode}: {sqnr} on {r.samples['held_out']} held-out samples",
        "notes": [r.reason, *(f"not kept: {c.describe()}" for c in r.not_kept), *r.notes],
        "mode": r.mode,
        "kernels": {kind: dict(counts) for kind, counts in r.kernels.items()},
        "kept_float": dict(r.kept_float),
    }


def _shrink(step: Any, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.pruning.shrink import shrink

    labels = {"labels": context.project.accuracy.labels or False} if step.minutes is not None else {}
    options = Shrink(**_chosen(step, context, {"output": output, "data": context.data, **labels}))
    found = shrink(source, options)
    return {
        "summary": f"{found.parameters[0]} -> {found.parameters[1]} parameters, {found.macs[0]} -> {found.macs[1]} MACs"
    }


def teachers(step: Any, context: Context) -> tuple[Path, ...]:
    """The models that `step` learns from, or with: if it names none, the float model."""
    if step.step != "distill" or step.kind == "self":
        return ()
    given = files(step, context)
    return given.get("teacher", ()) if given.keys() & MODELS else (context.model,)


def _distill(step: Any, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt import distill

    labels = context.project.accuracy.labels or False
    more = {"teacher": teachers(step, context) or None, "output": output, "labels": labels}
    found = distill(source, context.data, Distill(**_chosen(step, context, more)))
    if not output.is_file():
        raise UsageError(
            f"distill: nothing was better than its input ({found.metric} {found.before:.4g}); more epochs, another"
            " learning_rate, or leave the step out"
        )
    return {"summary": f"{found.metric} {found.before:.4g} -> {found.after:.4g}"}


def _python(step: Any, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.quantization.state import Resources, State
    from edgeopt.quantization.steps import Own

    named(step.call, "call", context.root)  # from the project's folder
    model = graph.canonical(graph.load(source))
    session = open_session(model)
    reading = Reading(data_option="data.path", **data_choices(context.project, context.root))
    found = read(context.data, specs(model), reading, session.run, norm_distance(model)).samples
    samples = tuple((name, lambda of=of: without_label(of(), model)) for name, of in found)
    resources = Resources(feeds=(), run=session.run, listener=context.listener)
    state = State(model, targets.load("host"), samples, resources, model)
    result = Own(call=step.call)(state).model
    graph.write_valid(result, output, step.call)
    open_session(output)
    nodes = [sum(1 for _ in m.graph.all_nodes()) for m in (model, result)]
    return {"summary": f"{step.call}: {nodes[0]} -> {nodes[1]} nodes"}


_RUN: Mapping[str, Callable[[Any, Path, Path, Context], Facts]] = {
    "simplify": _simplify,
    "quantize": _quantize,
    "fp16": _quantize,
    "weights": _quantize,
    "shrink": _shrink,
    "distill": _distill,
    "python": _python,
}
