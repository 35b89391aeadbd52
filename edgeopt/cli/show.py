"""Output of results to a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgeopt.files import shown
from edgeopt.numbers.words import printable

if TYPE_CHECKING:
    from edgeopt.listener import Listener
    from edgeopt.quantization.report import Result


@contextlib.contextmanager
def listener() -> Iterator[Listener]:
    """A listener that prints notes and a progress bar to stderr; the bar only on a terminal."""
    from edgeopt.listener import Listener

    terminal = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, int] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield Listener(note=lambda line: terminal.print(printable(line), markup=False), progress=progress)


def cells(*texts: str) -> list[str]:
    """Cells of a rich table, with markup escaped and control characters replaced."""
    return [escape(printable(text)) for text in texts]


def print_table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> None:
    """Print a table to stdout, 120 columns wide if that is not a terminal; without a head none is shown."""
    table = Table(show_header=bool(head), box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in cells(*head):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*cells(*row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def print_report(result: Result, form: str) -> None:
    """Print the report to stdout, as a table or as JSON."""
    report = result.report
    if form == "json":
        click.echo(report.to_json())
        return
    print_table(report.rows())
    for line in report.missed:
        click.echo(f"MISSED: {printable(line)}")
    for line in report.undecided:
        click.echo(f"NOT SHOWN: {printable(line)}")
    click.echo(f"wrote {shown(result.path)} in {report.seconds['total']:.1f} s")
