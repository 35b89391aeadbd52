"""`edgeopt shrink`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeopt.cli.inspect import dimensions
from edgeopt.cli.reading import read_as, reading
from edgeopt.cli.show import listener
from edgeopt.errors import UsageError


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write. [default: MODEL.small.onnx]")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--width", default=1.0, show_default=True, help="Share of the channels and attention heads that stay.")
@click.option("--depth", default=1.0, show_default=True, help="Share of the residual blocks that stay.")
@click.option("--data", metavar="PATH", help="Samples, as `quantize --calib` reads them, to choose by.")
@click.option("--importance", type=click.Choice(["norm", "first-order"]), default="norm", show_default=True)
@click.option("--keep", multiple=True, metavar="NODE|GLOB|OP", help="Layers that stay as they are; may be repeated.")
@click.option("--samples", default=64, show_default=True)
@click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a dimension that varies.")
@reading
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def shrink(
    model: Path,
    output: Path | None,
    force: bool,
    width: float,
    depth: float,
    data: str | None,
    importance: str,
    keep: tuple[str, ...],
    samples: int,
    dims: tuple[str, ...],
    form: str,
    **given: Any,
) -> None:
    """Make a student: the same network with fewer channels or blocks, to be trained with `edgeopt distill`.

    \b
    Example: edgeopt shrink teacher.onnx --width 0.5 -o student.onnx
    """
    if importance == "first-order":
        try:
            import torch  # noqa: F401
        except ImportError as e:
            raise UsageError("--importance first-order needs torch: pip install 'edgeopt[train]'") from e
    from edgeopt.pruning.shrink import shrink as run

    path = output or model.parent / f"{model.stem}.small.onnx"
    with listener() as ears:
        found = run(
            model,
            width=width,
            depth=depth,
            data=data,
            importance=importance,
            keep=keep,
            dims=dimensions(dims),
            samples=samples,
            **read_as(given),
            output=path,
            force=force,
            listener=ears,
        )
    if form == "json":
        facts = {
            "path": str(found.path), "parameters": found.parameters, "macs": found.macs, "widths": dict(found.widths),
            "influence": dict(found.influence), "removed": found.removed,
        }  # fmt: skip
        click.echo(json.dumps(facts, indent=2))
        return
    for name, (before, after) in (("parameters", found.parameters), ("MACs", found.macs)):
        click.echo(f"{name:<10}  {before / 1e6:.2f} M -> {after / 1e6:.2f} M ({after / max(1, before):.0%})")
    if found.widths:
        narrower = sum(a < b for b, a in found.widths.values())
        click.echo(f"channels    {narrower} of {len(found.widths)} groups are narrower")
    if found.influence:
        click.echo(f"blocks      {len(found.influence)} -> {len(found.influence) - len(found.removed)}")
        for name in found.removed:
            click.echo(f"  without {name} (influence {found.influence[name]:.3f})")
    click.echo(f"wrote {found.path}; now: edgeopt distill --teacher {model} --student {found.path} --data ...")
