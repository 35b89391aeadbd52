"""`edgeopt schema`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", type=click.Choice(["results", "project", "run", "protocol"]))
def schema(name: str) -> None:
    """Print the JSON Schema of a file that edgeopt reads or writes (results.json, edgeopt.toml, a run), or of the
    protocol of workers.

    \b
    Example: edgeopt schema results > results.schema.json
    """
    from edgeopt.profiling import results
    from edgeopt.release import document
    from edgeopt.release.project import file
    from edgeopt.runtime import protocol

    schemas = {"results": results.schema, "project": file.schema, "run": document.schema, "protocol": protocol.schema}
    click.echo(json.dumps(schemas[name](), indent=2))
