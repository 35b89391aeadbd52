"""`edgeopt simplify`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.files import beside, shown
from edgeopt.numbers.words import decibels, megabytes
from edgeopt.options.models import Simplify


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@options_of(Simplify)
def simplify(model: Path, **given: object) -> None:
    """Fold and fuse a float model; the outputs are checked against the model before.

    \b
    Example: edgeopt simplify model.onnx -o small.onnx
    """
    from edgeopt.simplification import simplify as run

    options = chosen(Simplify, given)
    path = options.output or beside(model, f"{model.stem}.simple.onnx")
    x = run(model, options.model_copy(update={"output": path}))
    click.echo(f"nodes    {x.nodes[0]} -> {x.nodes[1]}")
    click.echo(f"size     {megabytes(x.size_bytes[0])} -> {megabytes(x.size_bytes[1])}")
    click.echo(
        f"latency  {x.latency.speedup:.2f}x [{x.latency.speedup_low:.2f}, {x.latency.speedup_high:.2f}],"
        f" {x.latency.latency_ms:.2f} ms, 1 thread"
    )
    click.echo(f"outputs  SQNR {decibels(x.worst_sqnr_db)} against the model before")
    click.echo(f"wrote {shown(x.path)}")
