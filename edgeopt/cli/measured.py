"""Output of measurements: one list of facts for each setting, as a table, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import click

from edgeopt.cli.show import print_table
from edgeopt.numbers.intervals import NEEDED
from edgeopt.numbers.words import decibels, megabytes, printable
from edgeopt.profiling.results import Comparison, Latency, Measured, Memory, Ops, Point, Range, Results

FORMATS = ("table", "json", "csv", "markdown")
_NODES = 20
_COLUMNS = 4
_LONGEST, _WIDEST = 60, 400  # characters of a name, and of any other cell
Row = tuple[str, list[str]]


def show(results: Results, form: str, ops: bool = False) -> None:
    """Print the document to stdout."""
    if form == "json":
        click.echo(results.to_json())
        return
    if form == "csv":
        click.echo(_csv(results), nl=False)
        return
    measured = list(results.measured)
    for start in range(0, len(measured), _COLUMNS):
        part = measured[start : start + _COLUMNS]
        _table(["", *(m.setting.label for m in part)], _rows(part), form)
    for m in measured if ops else []:
        if m.ops is not None:
            _ops(m.setting.label, m.ops, form)
    for c in results.comparisons:
        _table([f"{c.other} against {c.reference}", ""], _compared(c), form)
    if results.self_check is not None:
        _table(["self-check", ""], _checked(results), form)
    for m in measured:
        if m.error:
            click.echo(f"FAILED {printable(m.setting.label, _LONGEST)}: {printable(m.error)}")


def _table(head: list[str], rows: Sequence[Row], form: str) -> None:
    head = [printable(c, _LONGEST) for c in head]
    rows = [(printable(name, _LONGEST), [printable(c, _WIDEST) for c in cells]) for name, cells in rows]
    if form == "markdown":
        lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows)]
        click.echo("\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines) + "\n")
        return
    print_table([(name, *cells) for name, cells in rows], head)
    click.echo()


def _rows(measured: Sequence[Measured]) -> list[Row]:
    """Facts as rows, settings as columns."""
    columns = [facts(m) for m in measured]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def facts(m: Measured) -> dict[str, str]:
    """The facts of one setting, the most important first."""
    found: dict[str, str] = {}
    if m.latency:
        found |= _latency(m.latency)
    if m.cold:
        found["cold: create session"] = f"{m.cold.create_ms:.1f} ms"
        found["cold: first, second run"] = f"{m.cold.first_ms:.2f} ms, {m.cold.second_ms:.2f} ms"
    if m.memory:
        found |= _memory(m.memory)
    if m.size:
        s = m.size
        xz = f", xz {megabytes(s.xz_bytes)}" if s.xz_bytes is not None else ""
        deflate = f"; deflate {megabytes(s.deflate_bytes)}" if s.deflate_bytes is not None else ""
        found["file"] = f"{megabytes(s.file_bytes)}{deflate}{xz}"
        found["weights"] = ", ".join(f"{k} {megabytes(n)}" for k, n in list(s.weights_by_dtype.items())[:3])
        found["parameters"] = f"{s.parameters / 1e6:.2f} M"
        if s.activations is not None and s.peak_activation_bytes is not None and s.macs is not None:
            found["activations"] = f"{s.activations / 1e6:.2f} M, peak {megabytes(s.peak_activation_bytes)}"
            found["MACs"] = f"{s.macs / 1e6:.1f} M"
        elif s.why:
            found["activations"] = s.why
    if m.placement:
        p = m.placement
        where = ", ".join(f"{n} on {name.removesuffix('ExecutionProvider')}" for name, n in p.nodes.items())
        time = "" if p.coverage_time is None else f", {p.coverage_time:.0%} of the time"
        found["nodes"] = f"{where} ({p.coverage_nodes:.0%}{time}; {p.partitions} partition{'s' * (p.partitions != 1)})"
        if p.fallback_ops:
            found["fallback"] = ", ".join(f"{n} {op}" for op, n in p.fallback_ops.items())
    if m.ops and len(m.ops.by_kind_ms) > 1:
        total = sum(m.ops.by_kind_ms.values()) or 1.0
        names = {"integer": "integer kernels", "float": "float", "qdq": "Q/DQ"}
        found["time by kind"] = ", ".join(f"{names[k]} {v / total:.0%}" for k, v in m.ops.by_kind_ms.items())
    return found


def _latency(x: Latency) -> dict[str, str]:
    steady = "yes" if x.steady else "warm-up did not become steady"
    found = {
        "p50": f"{_ms(x.p50_ms)} ms",
        "p90 / p95 / p99": _percentiles(x),
        "min / mean / MAD": f"{x.min_ms:.3g} / {x.mean_ms:.3g} / {x.mad_ms:.2g} ms",
        "throughput": f"{x.throughput_per_s:.1f}/s",
        "runs": f"{x.runs} in {len(x.blocks)} blocks, {x.processes} process{'es' * (x.processes != 1)}",
        "steady": steady if not x.series else "sustained",
        "contended": f"{x.contended} of {len(x.blocks)} blocks" + _without(x),
    }
    if x.outliers:
        found["outliers"] = f"{x.outliers} block{'s' * (x.outliers != 1)} (kept)"
    if x.series and x.last_to_first is not None:
        found["sustained"] = f"last / first {x.last_to_first:.3f}; p50 ms: " + " ".join(
            f"{p.p50_ms:.3g}" for p in x.series
        )
        found |= _held_back(x.series)
    if not x.precise:
        found["precision"] = "wider than asked for: measure longer (--seconds) or on a quieter machine"
    return found


def _held_back(series: Sequence[Point]) -> dict[str, str]:
    """What the machine told of itself over a sustained run."""
    found = {}
    for name, unit in (("celsius", "°C"), ("mhz", "MHz")):
        values = [x for p in series if (x := getattr(p, name)) is not None]
        if values:
            found[f"sustained, {unit}"] = " ".join(f"{x:.0f}" for x in values)
    told = [p for p in series if p.throttled is not None]
    first = next((p for p in told if p.throttled), None)
    if told:
        found["throttled"] = "no" if first is None else f"from {first.at_s:.0f} s on"
    return found


def _without(x: Latency) -> str:
    if not x.contended:
        return ""
    return f"; p50 without them {x.p50_uncontended_ms:.4g} ms" if x.p50_uncontended_ms is not None else "; none without"


def _ms(x: Range) -> str:
    return f"{x.value:.4g} [{x.low:.4g}, {x.high:.4g}]"


def _percentiles(x: Latency) -> str:
    """The percentiles that the sample size allows."""
    values = (x.p90_ms, x.p95_ms, x.p99_ms)
    if values == (None, None, None):
        return f"n/a (n={x.runs})"
    return " / ".join(f"n/a (n={x.runs})" if v is None else f"{v:.4g}" for v in values) + " ms"


def _memory(x: Memory) -> dict[str, str]:
    base, peak = x.arena[0], max(p.peak_bytes for p in x.arena)
    bare = max(p.peak_bytes for p in x.no_arena)
    last = x.arena[-1]
    found = {
        "memory: peak RSS": f"{megabytes(peak)}; without arena {megabytes(bare)}",
        "memory: model's share": (
            f"{megabytes(max(0, peak - base.rss_bytes))} above {megabytes(base.rss_bytes)} of onnxruntime"
        ),
        "memory: peak by phase": ", ".join(f"{p.name} {megabytes(p.peak_bytes)}" for p in x.arena[1:]),
    }
    if last.pss_bytes is not None and last.private_dirty_bytes is not None:
        found["memory: PSS, private dirty"] = f"{megabytes(last.pss_bytes)}, {megabytes(last.private_dirty_bytes)}"
    if not x.peak_per_phase:
        found["memory: note"] = "this kernel cannot reset the peak: phases show the peak so far"
    return found


def _ops(label: str, x: Ops, form: str) -> None:
    rows: list[Row] = [
        (t.op, [t.kind, str(t.nodes), f"{t.time_ms:.3f}", f"{t.share:.1%}", f"{t.cumulative:.1%}"]) for t in x.types
    ]
    rows.append(
        ("not in any node", ["", "", f"{x.unexplained_ms:.3f}", f"{x.unexplained_ms / x.wall_ms:.1%}", "100.0%"])
    )
    rows.append(("wall, traced", ["", "", f"{x.wall_ms:.3f}", "", ""]))
    _table([f"{label}: operator", "kind", "nodes", "ms", "share", "cumulative"], rows, form)
    cumulative, nodes = 0.0, list[Row]()
    for n in x.nodes[:_NODES]:
        cumulative += n.share
        provider = n.provider.removesuffix("ExecutionProvider")
        nodes.append((n.name, [n.op, provider, f"{n.time_ms:.3f}", f"{n.share:.1%}", f"{cumulative:.1%}", n.shapes]))
    title = f"{label}: node" if len(x.nodes) <= _NODES else f"{label}: node ({_NODES} of {len(x.nodes)} executed)"
    _table([title, "operator", "provider", "ms", "share", "cumulative", "input shapes"], nodes, form)


def _compared(c: Comparison) -> list[Row]:
    calm = "" if c.ratio_uncontended is None else f"; {c.ratio_uncontended:.3f} without contended blocks"
    evidence = "" if c.interleaved else " (not interleaved: weaker evidence)"
    rows: list[Row] = [
        ("verdict", [f"{c.verdict.upper()} at a margin of {c.margin:.0%}{evidence}"]),
        ("latency ratio", [f"{c.ratio.value:.3f} [{c.ratio.low:.3f}, {c.ratio.high:.3f}]{calm}"]),
        ("speed-up", [f"{1 / c.ratio.value:.2f}x [{1 / c.ratio.high:.2f}, {1 / c.ratio.low:.2f}]"]),
    ]
    if c.file_ratio is not None:
        rows.append(("file size ratio", [f"{c.file_ratio:.3f}"]))
    if c.peak_memory_ratio is not None:
        rows.append(("peak memory ratio", [f"{c.peak_memory_ratio:.3f}"]))
    for o in c.outputs or ():
        agreement = "" if o.agreement is None else f", top-1 agreement {o.agreement:.1%}"
        sqnr = decibels(math.inf if o.exact else o.sqnr_db if o.sqnr_db is not None else -math.inf)
        rows.append(
            (f"output {o.output}", [f"SQNR {sqnr}, cosine {o.cosine:.5f}, largest error {o.max_abs:.3g}{agreement}"])
        )
    rows += [("note", [note]) for note in c.notes]
    return rows


def _checked(results: Results) -> list[Row]:
    x = results.self_check
    assert x is not None
    spread = ", ".join(f"{r.value:.3f}" for r in x.ratios)
    return [
        ("false alarms", [f"{x.false_alarms} of {x.trials} at a margin of {x.margin:.0%}"]),
        ("inconclusive", [f"{x.inconclusive} of {x.trials}"]),
        ("intervals without 1", [f"{x.excludes_one} of {x.trials} (5 % expected)"]),
        ("smallest visible change", [f"{x.smallest_visible:.1%} (told in 90 % of the trials)"]),
        ("ratios", [spread]),
    ]


_CSV = (
    *("label", "model", "provider", "threads", "shapes", "p50_ms", "p50_low_ms", "p50_high_ms"),
    *(f"p{q}_ms" for q in NEEDED),
    *("min_ms", "mean_ms", "mad_ms", "runs", "throughput_per_s", "contended_blocks", "create_ms", "first_ms"),
    *("second_ms", "peak_rss_bytes", "file_bytes", "parameters", "macs", "ratio", "ratio_low", "ratio_high"),
    *("verdict", "error"),
)


def _csv(results: Results) -> str:
    """One line for each setting, with plain numbers."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_CSV)
    compared = {c.other: c for c in results.comparisons}
    for m in results.measured:
        x, cold, c = m.latency, m.cold, compared.get(m.setting.label)
        setting = [_text(m.setting.label), _text(m.setting.model), m.setting.provider]
        lines.writerow(
            [*setting, m.setting.threads, _shapes(m)]
            + (_times(x) if x else [""] * 12)
            + ([cold.create_ms, cold.first_ms, cold.second_ms] if cold else [""] * 3)
            + [max(p.peak_bytes for p in m.memory.arena) if m.memory else ""]
            + ([m.size.file_bytes, m.size.parameters, m.size.macs] if m.size else [""] * 3)
            + ([c.ratio.value, c.ratio.low, c.ratio.high, c.verdict] if c else [""] * 4)
            + [_text(m.error or "")]
        )
    return text.getvalue()


def _text(text: str) -> str:
    """A cell that no spreadsheet interprets as a formula."""
    cell = printable(text, _WIDEST)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _times(x: Latency) -> list[float | None]:
    middle = [x.p50_ms.value, x.p50_ms.low, x.p50_ms.high, x.p90_ms, x.p95_ms, x.p99_ms]
    return [*middle, x.min_ms, x.mean_ms, x.mad_ms, x.runs, x.throughput_per_s, x.contended]


def _shapes(m: Measured) -> str:
    return printable(" ".join(f"{k}:{'x'.join(map(str, s))}" for k, s in m.setting.shapes.items()), _WIDEST)
