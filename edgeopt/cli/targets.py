"""`edgeopt targets`."""

from __future__ import annotations

import json

import click

from edgeopt.cli.show import print_table
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
    here = {target.host(): "<- this machine"}
    sums = {True: "guarded", False: "exact"}
    rows = [
        (t.name, t.title, t.grid.activations, "int8 per channel", sums[t.grid.saturates], here.get(t.name, ""))
        for t in known
    ]
    print_table(rows, ("target", "what", "activations", "weights", "pair sums", ""))
