"""`edgeopt targets`."""

from __future__ import annotations

import json

import click
from rich.table import Table

from edgeopt.cli.show import console
from edgeopt.hardware import target


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def targets(form: str) -> None:
    """List the hardware targets that --target knows.

    \b
    Example: edgeopt targets --format json
    """
    known = [target.load(name) for name in target.names() if name != "host"]
    if form == "json":
        click.echo(json.dumps({t.name: t.model_dump(by_alias=True) for t in known}, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("target", "what", "activations", "weights", "pair sums", ""):
        table.add_column(column)
    for t in known:
        here = "<- this machine" if t.name == target.host() else ""
        table.add_row(t.name, t.title, t.activations, "int8 per channel", "guarded" if t.saturates else "exact", here)
    console().print(table)
