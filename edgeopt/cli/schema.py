"""`edgeopt schema`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", type=click.Choice(["results", "project", "run"]))
def schema(name: str) -> None:
    """Print the JSON Schema of a file that edgeopt reads or writes: results.json, edgeopt.toml, a run.

    \b
    Example: edgeopt schema results > results.schema.json
    """
    from edgeopt import results
    from edgeopt.release import document, project

    schemas = {"results": results.schema, "project": project.schema, "run": document.schema}
    click.echo(json.dumps(schemas[name](), indent=2))
