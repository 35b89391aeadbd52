"""What each step of a variant does: a file in, a file out, by the same functions as the commands of that name."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.data.source import named
from edgeopt.errors import UsageError
from edgeopt.files import temporary_folder
from edgeopt.hardware import target as targets
from edgeopt.listener import Listener
from edgeopt.release.build.sources import there
from edgeopt.release.project import recipes
from edgeopt.release.project.file import Project

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What steps need besides the model. root: the project file's folder; model: the float model; data: as the functions take it."""

    root: Path
    model: Path
    data: str
    project: Project
    listener: Listener


def run_step(step: Any, source: Path, output: Path, context: Context) -> Facts:
    """`step` (of the project file) from `source` to `output`; what is known about the result.

    Raises:
        EdgeoptError: as the function does.
    """
    if reads_data(step):
        import_from_root(context, "data.path")
    return _RUN[type(step)](step, source, output, context)


def settings(step: Any, context: Context) -> Mapping[str, Any]:
    """All that decides what `step` makes of a model, besides the files that it reads, data and versions."""
    found: dict[str, Any] = dict(step.model_dump(mode="json"))
    if isinstance(step, recipes.Quantize | recipes.Distill):
        found["target"] = targets.load(step.target).name
    if isinstance(step, recipes.Distill):
        found["labels"] = context.project.accuracy.labels
    if isinstance(step, recipes.Simplify):
        found["dims"] = dict(context.project.profile.dims)
    return found


def reads_data(step: Any) -> bool:
    """Whether the samples have a say in what `step` makes."""
    return not isinstance(step, recipes.Simplify)


def models(step: Any, context: Context) -> list[Path]:
    """Models that `step` reads besides its input."""
    teacher = _teacher(step, context) if isinstance(step, recipes.Distill) else None
    return [] if teacher is None else [teacher]


def files(step: Any, context: Context) -> dict[str, Path]:
    """Other files that `step` reads, by the key that names them."""
    given = {key: getattr(step, key, None) for key in ("costs", "student_classes", "teacher_classes")}
    return {key: context.root / path for key, path in given.items() if path is not None}


def import_from_root(context: Context, *options: str) -> None:
    """Import the functions that `options` of the project name from its folder, so that who asks for them by name finds these.

    Raises:
        UsageError: there is no such module or function.
    """
    data, accuracy = context.project.data, context.project.accuracy
    sources = {"data.path": data.path, "data.eval": data.eval or "", "accuracy.eval": accuracy.eval or ""}
    for option in options:
        if ":" in sources[option] and not there(context.root / sources[option]):
            named(sources[option], option, context.root)


def data_choices(context: Context) -> dict[str, Any]:
    """How the project says that samples are read."""
    data = context.project.data
    tokenizer = None if data.tokenizer is None else context.root / data.tokenizer
    return {"preprocess": data.preprocess, "tokenizer": tokenizer}


def _simplify(step: recipes.Simplify, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.simplification import simplify

    found = simplify(source, output=output, dims=context.project.profile.dims or None)
    return {"summary": f"{found.nodes[0]} -> {found.nodes[1]} nodes"}


def _quantized(source: Path, output: Path, context: Context, **choices: Any) -> Facts:
    from edgeopt.quantization.quantize import quantize

    result = quantize(
        source,
        context.data,
        output=output,
        listener=context.listener,
        samples=context.project.data.samples,
        data_option="data.path",
        **data_choices(context),
        **choices,
    )
    r = result.report
    sqnr = "exact" if math.isinf(r.worst_sqnr_db) else f"{r.worst_sqnr_db:.1f} dB"
    return {
        "summary": f"{r.mode}: {sqnr} on {r.samples['held_out']} held-out samples",
        "notes": [r.reason, *r.notes],
        "mode": r.mode,
        "kernels": {kind: dict(counts) for kind, counts in r.kernels.items()},
        "kept_float": dict(r.kept_float),
    }


def _quantize(step: recipes.Quantize, source: Path, output: Path, context: Context) -> Facts:
    choices = step.model_dump(exclude={"step", "costs"})
    with temporary_folder() as folder:  # quantize adds to the file of costs, and a build must not change what it reads
        given = files(step, context).get("costs")
        costs = None if given is None else Path(shutil.copy(given, folder / "costs.json"))
        return _quantized(source, output, context, costs=costs, **choices)


def _fp16(step: recipes.Fp16, source: Path, output: Path, context: Context) -> Facts:
    return _quantized(source, output, context, mode="fp16", measure=False, **step.model_dump(exclude={"step"}))


def _weights(step: recipes.Weights, source: Path, output: Path, context: Context) -> Facts:
    return _quantized(source, output, context, mode="weights", measure=False, **step.model_dump(exclude={"step"}))


def _shrink(step: recipes.Shrink, source: Path, output: Path, context: Context) -> Facts:
    from edgeopt.pruning.shrink import shrink

    found = shrink(
        source, width=step.width, depth=step.depth, keep=step.keep, output=output, data=context.data, **data_choices(context)
    )  # fmt: skip
    return {
        "summary": f"{found.parameters[0]} -> {found.parameters[1]} parameters, {found.macs[0]} -> {found.macs[1]} MACs"
    }


def _teacher(step: recipes.Distill, context: Context) -> Path | None:
    if step.kind == "self":
        return None
    return context.model if step.teacher is None else context.root / step.teacher


def _distill(step: recipes.Distill, source: Path, output: Path, context: Context) -> Facts:
    try:
        from edgeopt.train.distill import distill
    except ImportError as e:
        raise UsageError("a distill step needs torch: pip install 'edgeopt[train]'") from e

    choices = step.model_dump(exclude={"step", "teacher"}) | files(step, context)
    found = distill(
        source,
        context.data,
        teacher=_teacher(step, context),
        output=output,
        labels=context.project.accuracy.labels or False,
        listener=context.listener,
        **data_choices(context),
        **choices,
    )
    if not output.is_file():
        raise UsageError(
            f"distill: nothing was better than its input ({found.metric} {found.before:.4g}); more epochs, another learning_rate, or leave the step out"
        )
    return {"summary": f"{found.metric} {found.before:.4g} -> {found.after:.4g}"}


_RUN: Mapping[type, Callable[[Any, Path, Path, Context], Facts]] = {
    recipes.Simplify: _simplify,
    recipes.Quantize: _quantize,
    recipes.Fp16: _fp16,
    recipes.Weights: _weights,
    recipes.Shrink: _shrink,
    recipes.Distill: _distill,
}
