"""`edgeopt export`."""

from __future__ import annotations

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.errors import UsageError
from edgeopt.options.models import Export
from edgeopt.options.texts import pairs, whole_numbers


@click.command()
@click.argument("source", metavar="MODULE:FACTORY|FILE.pt2")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Shape of an input, in order; NAME=1,128:int64 if it is not float32.",
)
@options_of(Export)
def export(source: str, inputs: tuple[str, ...], **given: object) -> None:
    """A torch module as an ONNX file that answers as torch does (needs the extra train).

    A .pt2 is read without its pickles; still, torch evaluates expressions in it: take none from strangers.

    \b
    Examples:
      edgeopt export mynet.models:small --input x=1,3,224,224 --dynamic x=0 -o small.onnx
      edgeopt export bert:encoder --input ids=1,128:int64 --input mask=1,128:int64 --data feeds/ -o bert.onnx
    """
    try:
        texts = pairs(inputs, "x=1,3,224,224")
        parts = {name: text.partition(":") for name, text in texts.items()}
        shapes = {name: whole_numbers(shape) for name, (shape, _, _) in parts.items()}
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--input") from e
    if not texts:
        raise UsageError("no --input; e.g. --input x=1,3,224,224")
    dtypes = {name: dtype for name, (_, colon, dtype) in parts.items() if colon}
    options = chosen(Export, given, dtypes=dtypes)
    from edgeopt import export as run

    found = run(source, shapes, options)
    click.echo(f"wrote {found.path}; {found}")
