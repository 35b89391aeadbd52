"""`edgeopt check` and `edgeopt env`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.hardware import target as targets
from edgeopt.options.models import CheckFile


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@options_of(CheckFile)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(model: Path, form: str, **given: object) -> None:
    """Check a file for a target: by its rules, and run in the target's own runtime where that is installed.

    Ends with 1 if something is wrong.

    \b
    Example: edgeopt check model.int8.onnx --target qnn-htp --calib images/ --float model.onnx
    """
    from edgeopt.quantization.on_target import check as run

    found = run(model, chosen(CheckFile, given))
    if form == "json":
        plain = replace(found, ran=None if found.ran is None else replace(found.ran, outputs=()))
        click.echo(json.dumps({"ok": found.ok, **asdict(plain)}, indent=2, default=str))
    else:
        wrong = [f"WRONG    {problem}" for problem in found.problems]
        click.echo("\n".join([f"target   {found.target}", *found.lines, *(wrong or ["right"])]))
    sys.exit(0 if found.ok else 1)


@click.command()
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Remove the environment of the target.")
@click.option("--list", "listed", is_flag=True, help="Which targets have one, and where.")
def env(target: str | None, remove: bool, listed: bool) -> None:
    """Make the environment in which files are checked for a target, with the versions that the target names.

    \b
    Example: edgeopt env qnn-htp
    """
    from edgeopt.runtime import environments

    if listed:
        for known in (targets.load(name) for name in targets.names()):
            if known.check.packages:
                place = environments.home_of(known) or f"not made; {', '.join(known.check.packages)}"
                click.echo(f"{known.name}: {place}")
        return
    if target is None:
        raise click.UsageError("name a target: edgeopt targets lists them")
    wanted = targets.load(target)
    if remove:
        click.echo("removed" if environments.remove(wanted) else "there was none")
        return
    click.echo(environments.make(wanted, told=lambda line: click.echo(line, err=True)))
