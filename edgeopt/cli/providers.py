"""`edgeopt providers`."""

from __future__ import annotations

import dataclasses
import json

import click
from rich.markup import escape
from rich.table import Table

from edgeopt.cli.show import console


@click.command()
@click.option("--python", metavar="PATH", help="Interpreter to ask. [default: this one]")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def providers(python: str | None, form: str) -> None:
    """List execution providers: present, plugins, what a package would add.

    \b
    Example: edgeopt providers --python other/.venv/bin/python
    """
    from edgeopt.runtime.providers import listed

    lines, about = listed(python)
    if form == "json":
        click.echo(json.dumps({"interpreter": about, "providers": [dataclasses.asdict(x) for x in lines]}, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("--provider", "state", "hardware", "devices", "why"):
        table.add_column(column, overflow="fold")
    for x in lines:
        table.add_row(*map(escape, (x.alias, x.state, x.hardware, ", ".join(x.devices), x.why)))
    console().print(table)
    click.echo(about)
