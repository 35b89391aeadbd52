"""`edgeopt providers`."""

from __future__ import annotations

import dataclasses
import json

import click

from edgeopt.cli.show import print_table


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
    rows = [(x.alias, x.state, x.hardware, ", ".join(x.devices), x.why) for x in lines]
    print_table(rows, ("--provider", "state", "hardware", "devices", "why"))
    click.echo(about)
