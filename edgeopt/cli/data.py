"""`edgeopt data`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import cells, console
from edgeopt.errors import DataError
from edgeopt.options.models import PreviewOptions

if TYPE_CHECKING:
    from edgeopt.data.preview import InputFacts, Preview

_SHOWN = 5


@click.command()
@click.argument("path")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The model that reads the samples.")
@options_of(PreviewOptions)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def data(path: str, model: Path, form: str, **given: object) -> int:
    """Show what a model will be given of a folder of samples, before anything is spent on it.

    \b
    Example: edgeopt data images/ --model model.onnx --sheet sheet.png
    """
    from edgeopt.inspection import preview

    options = chosen(PreviewOptions, given)
    found = preview(model, path, options)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in _rows(found):
            table.add_row(*cells(*row))
        console().print(table)
    for written in (options.sheet, options.write):
        if written is not None:
            click.echo(f"wrote {written}", err=True)
    return 0 if found.read else DataError.exit_code


def _rows(x: Preview) -> Iterator[tuple[str, str]]:
    looked = "" if x.read + len(x.skipped) == x.count else f"; {x.read} looked at (--samples)"
    yield "samples", f"{x.count}, {x.kind}{looked}"
    for note in x.notes:
        yield "note", note
    for name, facts in x.inputs.items():
        yield f"input {name}", _of_input(facts, x.read)
    for i, text in enumerate(x.texts, 1):
        yield f"tokens {i}", text
    for name, reason in list(x.skipped.items())[:_SHOWN]:
        yield "skipped", reason if name in reason else f"{name}: {reason}"
    if len(x.skipped) > _SHOWN:
        yield "", f"... and {len(x.skipped) - _SHOWN} more"


def _of_input(x: InputFacts, count: int) -> str:
    sizes = " or ".join("x".join(map(str, s)) or "scalar" for s in x.shapes[:_SHOWN])
    more = f" ({len(x.shapes)} shapes)" if len(x.shapes) > _SHOWN else ""
    constant = f"; {x.constant} of {count} samples are constant" if x.constant else ""
    if x.mean is None or x.std is None or x.low is None or x.high is None or x.ends is None:
        return f"{x.dtype} {sizes}{more}; no figures: no numbers, or NaN among them{constant}"
    figures = f"mean {x.mean:.4g}, std {x.std:.4g}, {x.low:.4g} ... {x.high:.4g}, {x.ends:.1%} at these ends"
    return f"{x.dtype} {sizes}{more}; {figures}{constant}"
