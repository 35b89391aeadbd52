"""`edgeopt device`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from edgeopt.cli.show import print_table


@click.group()
def device() -> None:
    """Devices that models are measured on."""


@device.command()
@click.argument("name")
@click.option("--python", metavar="PATH", help="Its Python with onnxruntime. [default: python3]")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(name: str, python: str | None, form: str) -> None:
    """Reach a device, say what it lacks, and put its worker to the protocol. Ends with 1 if something is wrong.

    NAME is one of edgeopt.toml, or an address: local, ssh://user@board, exec:COMMAND.

    \b
    Example: edgeopt device check ssh://pi@raspberrypi.local
    """
    from edgeopt.profiling.devices import look

    found = look(name, python)
    if form == "json":
        click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=2))
    else:
        rules = [
            ("ok" if not r.problem else "WRONG", r.rule + (f": {r.problem}" if r.problem else "")) for r in found.rules
        ]
        wrong = [("WRONG", found.problem)] if found.problem else []
        print_table([*found.facts, *rules, *wrong])
    sys.exit(0 if found.ok else 1)
