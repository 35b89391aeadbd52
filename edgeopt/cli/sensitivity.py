"""`edgeopt sensitivity`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import listener
from edgeopt.files import check_place, put
from edgeopt.options.quantize import SensitivityOptions

_SHOWN = 20


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", required=True, metavar="PATH", help="Samples, as `quantize --calib` reads them.")
@options_of(SensitivityOptions)
@click.option("--picture", type=click.Path(path_type=Path), help="Write an SVG.")
@click.option("--force", is_flag=True, help="Overwrite the picture.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def sensitivity(model: Path, calib: str, picture: Path | None, force: bool, form: str, **given: object) -> None:
    """Which nodes lose the accuracy in int8, by weights or activations, and what leaving each in float gives.

    \b
    Example: edgeopt sensitivity model.onnx --calib images/ --picture loss.svg
    """
    if picture is not None:
        check_place(picture, force, (model, calib))
    from edgeopt.quantization.sensitivity import picture as drawn
    from edgeopt.quantization.sensitivity import sensitivity as run

    with listener() as ears:
        found = run(model, calib, chosen(SensitivityOptions, given, listener=ears))
    if picture is not None:
        put(picture, drawn(found))
        click.echo(f"wrote {picture}", err=True)
    if form == "json":
        click.echo(json.dumps(asdict(found), indent=2))
        return
    click.echo(f"all quantized, weights to the nearest: {found.sqnr_db:.1f} dB on {found.samples} samples")
    if not found.exact:
        click.echo("shares are approximate: the budget is too short for a run of each node (--budget)")
    for node in found.nodes[:_SHOWN]:
        click.echo(f"  {node.describe()}")
    if len(found.nodes) > _SHOWN:
        rest = sum(n.share for n in found.nodes[_SHOWN:])
        click.echo(f"  {len(found.nodes) - _SHOWN} others: {rest:.0%} together")
    if not found.complete:
        click.echo(f"the budget was over after {found.seconds:.0f} s: some figures are missing (--budget)")
