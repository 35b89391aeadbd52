"""A run as a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeopt.release.document import GateResult, Run, VariantResult
from edgeopt.release.project.metrics import metric, shown_columns
from edgeopt.release.project.quantities import shown

COLUMNS = (
    "size.file", "latency.p50", "speedup", "memory.peak_rss", "quant.sqnr", "accuracy.agreement",
    "accuracy.top1", "accuracy.eval",
)  # fmt: skip


def cell(v: VariantResult, name: str) -> str:
    """A metric of a variant with its interval, formatted with units."""
    if name not in v.metrics:
        return ""
    kind, x = metric(name).kind, v.intervals.get(name)
    if x is None:
        return shown(v.metrics[name], kind)
    return f"{shown(v.metrics[name], kind)} [{shown(x.low, kind)}, {shown(x.high, kind)}]"


def columns(run: Run, names: Sequence[str] = COLUMNS) -> list[str]:
    """The metrics of `names` that are in `run`, and those of its devices."""
    return shown_columns(names, run.devices, [v.metrics for v in run.variants])


def lines(run: Run) -> Iterator[str]:
    """The verdict for a terminal."""
    for v in run.variants:
        if v.error is not None:
            yield f"{v.name}: FAILED: {v.error}"
    for g in sorted(run.gates, key=_severity):
        yield f"{g.outcome:13} {g.variant}: {g.message}"
    yield f"verdict: {run.verdict}"


def _severity(g: GateResult) -> int:
    order = ("pass", "warn", "inconclusive", "not comparable", "no baseline", "not measured", "fail")
    return order.index(g.outcome)
