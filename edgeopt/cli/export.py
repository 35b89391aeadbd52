"""`edgeopt export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.cli.parse import counts, pairs
from edgeopt.cli.reading import read_as, reading
from edgeopt.errors import UsageError


@click.command()
@click.argument("source", metavar="MODULE:FACTORY|FILE.pt2")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Shape of an input, in order; NAME=1,128:int64 if it is not float32.",
)
@click.option("--dynamic", multiple=True, metavar="NAME=AXES", help="Axes that may change, e.g. x=0.")
@click.option("--data", metavar="PATH|MODULE:FUNC", help="Samples to compare with torch on, besides random inputs.")
@reading
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--trust", is_flag=True, help="Read pickles (.pt, .pth), which can run code.")
def export(
    source: str,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    data: str | None,
    output: Path,
    force: bool,
    trust: bool,
    **given: Any,
) -> None:
    """A torch module as an ONNX file that answers as torch does (needs the extra train).

    A .pt2 is read without its pickles; still, torch evaluates expressions in it: take none from strangers.

    \b
    Examples:
      edgeopt export mynet.models:small --input x=1,3,224,224 --dynamic x=0 -o small.onnx
      edgeopt export bert:encoder --input ids=1,128:int64 --input mask=1,128:int64 --data feeds/ -o bert.onnx
    """
    texts = pairs(inputs, "--input", "x=1,3,224,224")
    if not texts:
        raise UsageError("no --input; e.g. --input x=1,3,224,224")
    parts = {name: text.partition(":") for name, text in texts.items()}
    axes = {name: counts(text, "--dynamic") for name, text in pairs(dynamic, "--dynamic", "x=0").items()}
    try:
        from edgeopt.quantization.options import Options
        from edgeopt.train.export import export as run
    except ImportError as e:
        raise UsageError("export needs torch: pip install 'edgeopt[train]'") from e
    found = run(
        source,
        {name: _shape(shape) for name, (shape, _, _) in parts.items()},
        dtypes={name: dtype for name, (_, colon, dtype) in parts.items() if colon},
        dynamic=axes,
        data=data,
        reading=Options(data_option="--data", **read_as(given)),
        output=output,
        force=force,
        trust=trust,
    )
    click.echo(f"wrote {found.path}; {found}")


def _shape(text: str) -> tuple[int, ...]:
    counts(text, "--input")  # refuses what is no number; it gives each once, a shape has 224,224
    return tuple(int(n) for n in text.split(","))
