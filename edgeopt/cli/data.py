"""`edgeopt data`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import print_table
from edgeopt.errors import DataError
from edgeopt.options.models import PreviewOptions


@click.command()
@click.argument("path")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The model that reads the samples.")
@options_of(PreviewOptions)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def data(path: str, model: Path, form: str, **given: object) -> int:
    """Show what a model will be given of a folder of samples, before anything is spent on it.

    \b
    Example: edgeopt data images/ --model model.onnx --sheet sheet.png
    """
    from edgeopt.inspection import preview

    options = chosen(PreviewOptions, given)
    found = preview(model, path, options)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_table(found.rows())
    for written in (options.sheet, options.write):
        if written is not None:
            click.echo(f"wrote {written}", err=True)
    return 0 if found.read else DataError.exit_code
