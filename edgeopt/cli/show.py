"""How results look in a terminal."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from edgeopt.listener import Listener
    from edgeopt.quantization.report import Report, Result


@contextlib.contextmanager
def listener() -> Iterator[Listener]:
    """Notes and a progress bar on stderr; the bar only on a terminal."""
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


def printable(text: str, longest: int | None = None) -> str:
    """`text` without what moves the cursor or colours the screen; lines stay lines, unless `longest` makes it one cell."""
    kept = "".join(c if c.isprintable() or (c == "\n" and longest is None) else "?" for c in text)
    if longest is not None and len(kept) > longest:
        half = longest // 2 - 1
        return f"{kept[:half]}...{kept[-half:]}"
    return kept


def console() -> Console:
    """Stdout; 120 columns wide where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def megabytes(size: int) -> str:
    """`5.12 MB`."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def decibels(x: float) -> str:
    """`22.3 dB`, or `exact`."""
    return "exact" if math.isinf(x) and x > 0 else f"{x:.1f} dB"


def counts(found: Mapping[str, int]) -> str:
    """`43 QLinearConv, 9 QLinearAdd`."""
    return ", ".join(f"{n} {k}" for k, n in found.items()) or "none"


def print_report(result: Result, form: str) -> None:
    """The report on stdout, as a table or as JSON."""
    report = result.report
    if form == "json":
        click.echo(report.to_json())
        return
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _rows(report):
        table.add_row(escape(name), escape(value))
    console().print(table)
    for line in report.missed:
        click.echo(f"MISSED: {line}")
    click.echo(f"wrote {result.path} in {report.seconds['total']:.1f} s")


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "mode", report.reason
    yield "target", report.target + ("" if report.target == report.host else f" (this machine: {report.host})")
    small, large = report.output_bytes, report.input_bytes
    yield (
        "size",
        f"{megabytes(large)} -> {megabytes(small)} ({large / small:.2f}x smaller); download {megabytes(report.download_bytes)}",
    )
    yield "weights", ", ".join(f"{k} {megabytes(v)}" for k, v in report.bytes_after.items())
    if report.latency is not None:
        x = report.latency
        yield (
            "latency",
            f"{x.float_ms:.2f} ms -> {x.latency_ms:.2f} ms, {x.speedup:.2f}x [{x.speedup_low:.2f}, {x.speedup_high:.2f}], {x.threads} thread",
        )
    if report.metric is not None:
        yield "metric", f"{report.metric.name} {report.metric.on_float:.4g} -> {report.metric.result:.4g}"
    for o in report.outputs:
        agreement = "" if o.agreement is None else f", top-1 agreement {o.agreement:.1%}"
        yield (
            f"output {o.output}",
            f"SQNR {decibels(o.sqnr_db)}, cosine {o.cosine:.5f}{agreement} ({report.samples['held_out']} held-out samples)",
        )
    yield "integer", counts(report.kernels["integer"])
    yield "Q/DQ left", counts(report.kernels["qdq"])
    yield "float", counts(report.kernels["floating"])
    reasons: dict[str, list[str]] = {}
    for node, reason in report.kept_float.items():
        reasons.setdefault(reason, []).append(node)
    for reason, nodes in reasons.items():
        yield "stays float", f"{len(nodes)}: {', '.join(nodes[:3])}{' ...' if len(nodes) > 3 else ''} - {reason}"
