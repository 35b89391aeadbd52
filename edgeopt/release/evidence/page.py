"""`report.html`: one self-contained file that needs no network and can be read without JavaScript and in print.

A Jinja2 template renders the document and its charts; the only script sorts tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeopt.profiling.results import Measured
from edgeopt.release.document import Run, VariantResult
from edgeopt.release.evidence import charts
from edgeopt.release.project.metrics import METRICS
from edgeopt.release.project.quantities import shown

_COLUMNS = (
    "size.file",
    "size.download",
    "latency.p50",
    "latency.p90",
    "speedup",
    "memory.peak_rss",
    "quant.sqnr",
    "accuracy.agreement",
    "accuracy.top1",
    "accuracy.eval",
)
_BY = ("accuracy.eval", "accuracy.top1", "accuracy.agreement", "accuracy.cosine")
_TRENDS = (
    "latency.p50",
    "size.file",
    "quant.sqnr",
    "accuracy.agreement",
    "accuracy.top1",
    "accuracy.eval",
    "memory.peak_rss",
)
_NODES = 12


def page(runs: Sequence[Run]) -> str:
    """The report of the last of `runs`, with the trend over all of them if there are several."""
    environment = Environment(
        loader=PackageLoader("edgeopt.release.evidence"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run = runs[-1]
    measured = _measured(run)
    columns = [c for c in _COLUMNS if any(c in v.metrics for v in run.variants)]
    accuracy = next((m for m in _BY if sum(m in v.metrics for v in run.variants) > 1), "")
    trends = [(METRICS[m].title, charts.trend(runs, m)) for m in _TRENDS]
    return environment.get_template("report.html.j2").render(
        run=run,
        counts={o: sum(g.outcome == o for g in run.gates) for o in dict.fromkeys(g.outcome for g in run.gates)},
        titles=[METRICS[c].title for c in columns],
        rows=[_row(v, columns) for v in run.variants],
        tradeoff=charts.tradeoff(run, accuracy) if accuracy else "",
        accuracy=METRICS[accuracy].title if accuracy else "",
        details=[_detail(v, measured.get(v.name)) for v in run.variants if v.name != "float" or v.name in measured],
        ecdf=charts.ecdf(list(measured.items())),
        series=charts.series(list(measured.items())),
        memory=[_memory(name, m) for name, m in measured.items() if m.memory is not None],
        providers=[_provider(name, m) for name, m in measured.items() if m.placement is not None],
        environment=_environment(run),
        trends=[(title, svg) for title, svg in trends if svg],
        runs=len(runs),
    )


def _measured(run: Run) -> dict[str, Measured]:
    """The first setting of each variant."""
    found: dict[str, Measured] = {}
    for m in run.profile.measured if run.profile is not None else ():
        name = Path(m.setting.model).stem if m.setting.model != run.model else "float"
        if run.variant(name) is not None and name not in found:
            found[name] = m
    return found


def _row(v: VariantResult, columns: Sequence[str]) -> Mapping[str, Any]:
    cells = []
    for name in columns:
        value, interval, kind = v.metrics.get(name), v.intervals.get(name), METRICS[name].kind
        told = "" if interval is None else f"[{shown(interval.low, kind)}, {shown(interval.high, kind)}]"
        cells.append(
            {
                "text": "" if value is None else shown(value, kind),
                "interval": told,
                "value": "" if value is None else repr(value),
            }
        )
    return {"name": v.name, "parent": v.parent, "error": v.error, "cells": cells}


def _detail(v: VariantResult, m: Measured | None) -> Mapping[str, Any]:
    ops = m.ops if m is not None else None
    return {
        "name": v.name,
        "error": v.error,
        "steps": [
            {
                "text": ", ".join(f"{k} = {x}" for k, x in s.step.items() if k != "step"),
                "step": s.step.get("step", ""),
                "cached": s.cached,
                "seconds": s.seconds,
                "notes": s.notes[:8],
            }
            for s in v.steps
        ],
        "layers": charts.layers(v.layers),
        "layer_count": len(v.layers),
        "worst": [x for x in v.layers if x.sqnr_db < 10][:3],
        "histograms": [(x, charts.histogram(x)) for x in v.layers if x.histogram is not None],
        "times": charts.times(ops) if ops is not None else "",
        "nodes": (
            [(n.name, n.op, f"{n.time_ms:.3f}", f"{n.share:.1%}", n.shapes) for n in ops.nodes[:_NODES]]
            if ops is not None
            else []
        ),
    }


def _memory(name: str, m: Measured) -> Mapping[str, Any]:
    assert m.memory is not None
    return {
        "name": name,
        "phases": [(p.name, shown(p.rss_bytes, "bytes"), shown(p.peak_bytes, "bytes")) for p in m.memory.arena],
        "peak": shown(max(p.peak_bytes for p in m.memory.arena), "bytes"),
        "without": shown(max(p.peak_bytes for p in m.memory.no_arena), "bytes") if m.memory.no_arena else "n/a",
    }


def _provider(name: str, m: Measured) -> Mapping[str, Any]:
    assert m.placement is not None
    p = m.placement
    return {
        "name": name,
        "requested": p.requested,
        "nodes": ", ".join(f"{k} {n}" for k, n in p.nodes.items()),
        "coverage": shown(p.coverage_nodes, "share"),
        "partitions": p.partitions,
        "fallback": ", ".join(p.fallback_nodes[:5]) or "none",
    }


def _environment(run: Run) -> list[tuple[str, str]]:
    found = [
        ("project", run.project),
        ("file", run.project_file),
        ("model", f"{run.model} ({run.model_sha256[:12]})"),
        ("made", run.created),
    ]
    if run.profile is not None:
        e = run.profile.environment
        found += [("CPU", f"{e.cpu}, {e.cores} cores"), ("features", ", ".join(e.features)), ("system", e.system)]
        found += [
            ("governor", e.governor or "not known"),
            ("virtual", e.virtual or "no"),
            ("load before", ", ".join(f"{x:.2f}" for x in e.load)),
        ]
        found += [("preset", run.preset), ("measured for", f"{run.profile.seconds:.0f} s")]
    return [*found, ("versions", ", ".join(f"{k} {v}" for k, v in run.versions.items()))]
