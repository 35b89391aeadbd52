"""`edgeopt distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import listener, print_report
from edgeopt.errors import UsageError
from edgeopt.files import beside, check_place, shown
from edgeopt.options.distill import Distill
from edgeopt.options.quantize import Quantize
from edgeopt.options.reading import Reading

if TYPE_CHECKING:
    from edgeopt.quantization.report import Result
    from edgeopt.train.distill import Distilled

_NAMED = 8  # initializers of a list that the table shows; JSON has all


@click.command()
@click.option("--student", required=True, type=click.Path(path_type=Path), help="The model to improve.")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Samples, as `quantize --calib` reads them; a folder for each class gives labels.",
)
@options_of(Distill)
@click.option("--no-labels", is_flag=True, help="Do not take folder names for labels.")
@click.option(
    "--int8",
    type=click.Choice(["ptq", "qat"]),
    help="Then also write an int8 file, STUDENT.distilled.int8.onnx: quantized, or quantized and trained on.",
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def distill(student: Path, data: str, no_labels: bool, int8: str | None, form: str, **given: object) -> int:
    """Fine-tune a small model against a larger one; ONNX in, ONNX out.

    \b
    Example: edgeopt distill --teacher big.onnx --student small.onnx --data images/ -o small.distilled.onnx
    """
    from edgeopt import distill as run

    if no_labels and given["labels"] is not None:
        raise UsageError("--labels and --no-labels: one of them")
    with listener() as ears:
        options = chosen(Distill, given, listener=ears, **({"labels": False} if no_labels else {}))
        path = options.output or beside(student, f"{student.stem}.distilled.onnx")
        integers = path.with_name(f"{path.stem}.int8.onnx")
        if int8 is not None:
            check_place(integers, options.force)
        found = run(student, data, options.model_copy(update={"output": path}))
    if not found.first_rank:
        return 0
    if form == "table":
        _print(found)
    integer = _quantized(found, data, integers, int8, options) if int8 is not None and found.improved else None
    if form == "json":
        more = {} if integer is None else {"int8": json.loads(integer.report.to_json())}
        click.echo(json.dumps(_facts(found) | more, indent=2))
    elif integer is not None:
        print_report(integer, "table")
    return 0 if found.improved else 1


def _facts(found: Distilled) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "before": found.before,
        "after": found.after,
        "teacher": found.teacher,
        "losses": dict(found.losses),
        "parity": found.parity,
        "samples": dict(found.samples),
        "seconds": found.seconds,
        "trained": found.trained,
        "frozen": found.choice.frozen,
        "tied": found.choice.tied,
        "diverged": found.diverged,
        "path": None if found.path is None else str(found.path),
    }


def _print(found: Distilled) -> None:
    beside = "" if found.teacher is None else f" (teacher {found.teacher:.4f})"
    click.echo(f"{found.metric}  {found.before:.4f} -> {found.after:.4f}{beside}")
    click.echo(f"losses   {', '.join(f'{k}: {v}' for k, v in found.losses.items())}")
    lists = {"trained": found.trained, "frozen": found.choice.frozen, "tied": found.choice.tied}
    click.echo(f"weights  {', '.join(f'{len(names)} {what}' for what, names in lists.items() if names)}")
    for what in ("frozen", "tied"):
        if lists[what]:
            click.echo(f"  {what}: {', '.join(lists[what][:_NAMED])}{' ...' if len(lists[what]) > _NAMED else ''}")
    click.echo(f"samples  {found.samples['train']} to train with, {found.samples['held_out']} held out")
    click.echo(f"parity   {found.parity:.1e} between torch and ONNX Runtime")
    if found.diverged:
        click.echo(f"stopped  {found.diverged}")
    unwritten = "no epoch beat the student as it was: nothing was written"
    click.echo(f"wrote {shown(found.path)} in {found.seconds:.0f} s" if found.improved else unwritten)


def _quantized(found: Distilled, data: str, path: Path, int8: str, options: Distill) -> Result:
    """The distilled student in int8, beside it."""
    from edgeopt.quantization.quantize import quantize

    reading = options.model_dump(include=set(Reading.model_fields) - {"samples"}, exclude_unset=True)
    how = {"mode": "static" if int8 == "qat" else "auto", "qat": int8 == "qat", "target": options.target}
    with listener() as ears:
        more = {"output": path, "force": options.force, "listener": ears, "data_option": "--data"}
        return quantize(found.model, data, Quantize.of({**reading, **how, **more}, "command line"))
