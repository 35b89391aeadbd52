"""`edgeopt shrink`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import listener
from edgeopt.errors import UsageError
from edgeopt.files import beside, shown
from edgeopt.options.models import Shrink


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@options_of(Shrink)
@click.option("--no-labels", is_flag=True, help="Do not take folder names for labels.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def shrink(model: Path, no_labels: bool, form: str, **given: object) -> None:
    """Make a student: the same network with fewer channels, blocks or ranks, to be trained with `edgeopt distill`.

    \b
    Example: edgeopt shrink teacher.onnx --width 0.5 -o student.onnx
    Example: edgeopt shrink teacher.onnx --to "30% macs" --steps 4 --data images/ --minutes 30
    """
    with listener() as ears:
        if no_labels and given["labels"] is not None:
            raise UsageError("--labels and --no-labels: one of them")
        options = chosen(Shrink, given, listener=ears, **({"labels": False} if no_labels else {}))
        from edgeopt import shrink as run

        path = options.output or beside(model, f"{model.stem}.small.onnx")
        found = run(model, options.model_copy(update={"output": path}))
    if form == "json":
        facts = {
            "path": str(found.path), "parameters": found.parameters, "macs": found.macs, "widths": dict(found.widths),
            "influence": dict(found.influence), "removed": found.removed, "ranks": dict(found.ranks),
            "curve": [asdict(p) for p in found.curve],
        }  # fmt: skip
        click.echo(json.dumps(facts, indent=2))
        return
    for name, (before, after) in (("parameters", found.parameters), ("MACs", found.macs)):
        click.echo(f"{name:<10}  {before / 1e6:.2f} M -> {after / 1e6:.2f} M ({after / max(1, before):.0%})")
    if found.widths:
        narrower = sum(a < b for b, a in found.widths.values())
        click.echo(f"channels    {narrower} of {len(found.widths)} groups are narrower")
    if found.ranks:
        click.echo(f"ranks       {len(found.ranks)} layers are products of two")
    if found.influence:
        click.echo(f"blocks      {len(found.influence)} -> {len(found.influence) - len(found.removed)}")
        for name in found.removed:
            click.echo(f"  without {name} (influence {found.influence[name]:.3f})")
    for point in found.curve:
        click.echo(f"taught      {point.told()}")
    here = shown(found.path)
    if found.curve:
        click.echo(f"wrote {here}")
        return
    click.echo(f"wrote {here}; now: edgeopt distill --teacher {shown(model)} --student {here} --data ...")
