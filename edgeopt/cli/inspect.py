"""`edgeopt inspect`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import print_table
from edgeopt.numbers.words import counts, megabytes
from edgeopt.options.models import Inspect

if TYPE_CHECKING:
    from edgeopt.inspection import Inspection


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@options_of(Inspect)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def inspect(model: Path, form: str, **given: object) -> None:
    """Show inputs, operators, sizes, and what each target would quantize.

    \b
    Example: edgeopt inspect model.onnx --dim sequence=128
    """
    from edgeopt.inspection import inspect as run

    found = run(model, chosen(Inspect, given))
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    print_table(_rows(found))


def _rows(x: Inspection) -> Iterator[tuple[str, str]]:
    for name, text in x.inputs.items():
        yield "input", f"{name}: {text}"
    for name, text in x.outputs.items():
        yield "output", f"{name}: {text}"
    yield "opset", ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in x.opsets.items())
    yield "operators", counts(x.operators)
    yield "parameters", f"{x.parameters / 1e6:.2f} M"
    yield "size", f"{megabytes(x.file_bytes)}; download {megabytes(x.download_bytes)}"
    yield "weights", ", ".join(f"{k} {megabytes(v)}" for k, v in x.bytes_by_dtype.items())
    if x.macs is not None and x.activation_bytes is not None:
        shapes = ", ".join(f"{k} {'x'.join(map(str, s)) or 'scalar'}" for k, s in x.shapes.items())
        yield (
            "work",
            f"{x.macs / 1e6:.1f} M MACs, activations {megabytes(x.activation_bytes)} (sum, float32) on {shapes}",
        )
    for name, ops in x.integer_nodes.items():
        yield f"integer on {name}", counts(ops)
    if x.why:
        yield "note", x.why
