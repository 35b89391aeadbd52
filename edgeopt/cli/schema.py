"""`edgeopt schema`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", type=click.Choice(["results"]))
def schema(name: str) -> None:
    """Print the JSON Schema of a file that edgeopt writes.

    \b
    Example: edgeopt schema results > results.schema.json
    """
    from edgeopt import results

    click.echo(json.dumps({"results": results.schema}[name](), indent=2))
