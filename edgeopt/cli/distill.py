"""`edgeopt distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli import parse
from edgeopt.cli.reading import read_as, reading
from edgeopt.cli.show import listener, print_report
from edgeopt.errors import UsageError
from edgeopt.files import check_place

if TYPE_CHECKING:
    from edgeopt.quantization.options import Result
    from edgeopt.train.distill import Distilled

_NAMED = 8  # initializers of a list that the table shows; JSON has all


@click.command()
@click.option("--student", required=True, type=click.Path(path_type=Path), help="The model to improve.")
@click.option("--teacher", type=click.Path(path_type=Path), help="The model to learn from (not with --kind self).")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Samples, as `quantize --calib` reads them; a folder for each class gives labels.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: STUDENT.distilled.onnx]"
)
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--kind", type=click.Choice(["offline", "online", "self"]), default="offline", show_default=True)
@click.option(
    "--peer", "peers", multiple=True, type=click.Path(path_type=Path), help="Learns along, with --kind online; repeat."
)
@click.option(
    "--by",
    type=click.Choice(["generations", "average", "heads"]),
    default="generations",
    show_default=True,
    help="Who teaches with --kind self: the student before, its moving average, its output.",
)
@click.option(
    "--heads", default="", metavar="VALUE[,VALUE]|auto", help="Inner values that get a classifier while training."
)
@click.option(
    "--hint", "hints", multiple=True, metavar="STUDENT=TEACHER", help="Inner values to bring together; may be repeated."
)
@click.option("--hint-weight", default=1.0, show_default=True)
@click.option(
    "--loss", default="auto", show_default=True, help="kd, dkd, dist, mse, cosine, similarity, bce or probabilities."
)
@click.option("--temperature", default=2.0, show_default=True)
@click.option("--alpha", default=0.9, show_default=True, help="Share of the teacher, where there are labels.")
@click.option("--epochs", default=20, show_default=True)
@click.option("--minutes", type=float, help="Stop after so long, if the epochs are not over.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--accumulate", default=1, show_default=True, help="Batches a step.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--lr", "learning_rate", type=float, help="[default: 3e-4, or 1e-4 with --qat]")
@click.option("--warm-up", default=0.05, show_default=True, help="Share of the steps in which the rate rises.")
@click.option("--clip", default=1.0, show_default=True, help="Largest norm of a gradient.")
@click.option("--weight-decay", default=0.01, show_default=True)
@click.option("--ema", default=0.0, show_default=True, help="Judge a moving average of the weights, e.g. 0.999.")
@click.option("--generations", default=1, show_default=True, help="Of --kind self.")
@click.option(
    "--patience", default=0, show_default=True, help="Stop after so many epochs without a better one; 0: never."
)
@click.option("--augment", default="", metavar="A[,B]", help="flip, crop, mixup: the same view to teacher and student.")
@click.option("--no-labels", is_flag=True, help="Do not take folder names for labels.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV file: sample's file name, label.")
@click.option("--student-classes", type=click.Path(path_type=Path), help="File with a class name a line, ...")
@click.option("--teacher-classes", type=click.Path(path_type=Path), help="... and the teacher's, if in another order.")
@click.option(
    "--match", multiple=True, metavar="STUDENT=TEACHER", help="Outputs that belong together; may be repeated."
)
@click.option(
    "--class-axis",
    "class_axes",
    multiple=True,
    metavar="OUTPUT=AXIS",
    help="Where an output has its classes, if not last (or second of four axes); may be repeated.",
)
@click.option(
    "--freeze", multiple=True, metavar="NAME|GLOB", help="Initializers that stay as they are; may be repeated."
)
@click.option(
    "--train", multiple=True, metavar="NAME|GLOB", help="Initializers to train that would not be; may be repeated."
)
@click.option("--samples", default=1_000_000, show_default=True, help="How many to read; all are held in memory.")
@reading
@click.option("--qat", "quantized", is_flag=True, help="The student is a QDQ model: train it through its Q/DQ.")
@click.option("--target", default="host", show_default=True, help="Hardware of an int8 result (edgeopt targets).")
@click.option(
    "--int8",
    type=click.Choice(["ptq", "qat"]),
    help="Then also write an int8 file, STUDENT.distilled.int8.onnx: quantized, or quantized and trained on.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Write the state after every epoch.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keep the teacher's answers here for the next run.")
@click.option("--log", type=click.Path(path_type=Path), help="Write a line an epoch as CSV.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Write the log to this folder for TensorBoard.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def distill(
    student: Path,
    teacher: Path | None,
    data: str,
    output: Path | None,
    force: bool,
    no_labels: bool,
    labels: Path | None,
    int8: str | None,
    form: str,
    **given: Any,
) -> int:
    """Fine-tune a small model against a larger one; ONNX in, ONNX out.

    \b
    Example: edgeopt distill --teacher big.onnx --student small.onnx --data images/ -o small.distilled.onnx
    """
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise UsageError("distill needs torch: pip install 'edgeopt[train]'") from e
    from edgeopt.train.distill import distill as run

    given["augment"] = tuple(filter(None, given["augment"].split(",")))
    given["heads"] = tuple(filter(None, given["heads"].split(",")))
    given["match"] = parse.pairs(given["match"], "--match", "logits=output")
    given["class_axes"] = parse.whole(parse.pairs(given["class_axes"], "--class-axis", "scores=1"), "--class-axis")
    given["hints"] = parse.pairs(given["hints"], "--hint", "/block3/Add_output_0=/layer4/Add_output_0")
    if no_labels and labels is not None:
        raise UsageError("--labels and --no-labels: one of them")
    read = read_as(given)
    path = output or student.parent / f"{student.stem}.distilled.onnx"
    integers = path.with_name(f"{path.stem}.int8.onnx")
    if int8 is not None:
        check_place(integers, force)
    with listener() as ears:
        found = run(
            student,
            data,
            teacher=teacher,
            output=path,
            force=force,
            listener=ears,
            labels=False if no_labels else labels,
            **read,
            **given,
        )
    if not found.first_rank:
        return 0
    if form == "table":
        _print(found)
    integer = (
        _quantized(found, data, integers, int8, force, {**read, "target": given["target"]})
        if int8 is not None and found.improved
        else None
    )
    if form == "json":
        more = {} if integer is None else {"int8": json.loads(integer.report.to_json())}
        click.echo(json.dumps(_facts(found) | more, indent=2))
    elif integer is not None:
        print_report(integer, "table")
    return 0 if found.improved else 1


def _facts(found: Distilled) -> dict[str, Any]:
    return {
        "metric": found.metric, "before": found.before, "after": found.after, "teacher": found.teacher, "losses": dict(found.losses),
        "parity": found.parity, "samples": dict(found.samples), "seconds": found.seconds, "trained": found.trained,
        "frozen": found.choice.frozen, "tied": found.choice.tied, "diverged": found.diverged,
        "path": None if found.path is None else str(found.path),
    }  # fmt: skip


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
    click.echo(f"wrote {found.path} in {found.seconds:.0f} s" if found.improved else unwritten)


def _quantized(found: Distilled, data: str, path: Path, int8: str, force: bool, read: dict[str, Any]) -> Result:
    """The distilled student in int8, beside it."""
    from edgeopt.quantization.quantize import quantize

    with listener() as ears:
        return quantize(
            found.model,
            data,
            output=path,
            force=force,
            listener=ears,
            mode="static" if int8 == "qat" else "auto",
            qat=int8 == "qat",
            **read,
            data_option="--data",
        )
