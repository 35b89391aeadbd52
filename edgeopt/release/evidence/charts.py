"""Charts of a run as inline SVG; colours come from CSS classes, so that the page's style serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from edgeopt.pictures import WIDE, Axes, Bar, bars, shortened, svg, text
from edgeopt.profiling.results import Measured, Ops, Range
from edgeopt.release.document import Layer, Run, VariantResult
from edgeopt.release.project.file import FLOAT
from edgeopt.release.project.metrics import AGAINST_FLOAT
from edgeopt.release.project.quantities import shown

_BOTTOM, _LINE, _LETTER = 270, 14, 3.6  # trade-off chart, px: bottom edge, line height, half a letter's width
_LONGEST_DB = 80.0
_RIGHT = WIDE - 110  # edge of the lines, beside which their names stand
_COLOURS = 8  # classes c0 to c7 in the page's style


def _latency(v: VariantResult) -> Range:
    value = v.metrics["latency.p50"]
    return v.intervals.get("latency.p50") or Range(value=value, low=value, high=value)


def _free(x: float, y: float, half: float, taken: list[tuple[float, float, float]]) -> float:
    """The free height nearest to `y` for a label of half-width `half` at `x`; `taken` are the (x, y, half) of other
    labels.
    """
    heights = sorted((y + _LINE * k for k in range(-20, 21)), key=lambda h: abs(h - y))
    inside = [h for h in heights if _LINE <= h <= _BOTTOM - 4]
    free = (h for h in inside if all(abs(h - b) >= _LINE or abs(x - a) >= half + w for a, b, w in taken))
    return next(free, y)


def tradeoff(run: Run, accuracy: str) -> str:
    """Latency against accuracy: whiskers are 95 % intervals, bubbles grow with the download size."""
    score = {v.name: v.metrics[accuracy] for v in run.variants if accuracy in v.metrics}
    if accuracy in AGAINST_FLOAT:
        score.setdefault(FLOAT, 1.0)
    having = [v for v in run.variants if "latency.p50" in v.metrics and v.name in score]
    if len(having) < 2:
        return ""
    xs = [x for v in having for x in (_latency(v).low, _latency(v).high)]
    ys = [score[v.name] for v in having]
    x0, x1 = 0.9 * min(xs), 1.08 * max(xs)
    pad = max((max(ys) - min(ys)) * 0.25, abs(max(ys)) * 0.01, 1e-6)
    axes = Axes(x0, x1, min(ys) - pad, max(ys) + pad, bottom=_BOTTOM)
    body = [*axes.down(), *axes.across(), *axes.named("latency, ms (left is better)", f"{accuracy} (up is better)")]
    body += _bubbles(having, score, accuracy, axes)
    return svg(WIDE, axes.bottom + 46, "latency against accuracy", body)


def _bubbles(having: Sequence[VariantResult], score: Mapping[str, float], accuracy: str, axes: Axes) -> Iterator[str]:
    """Circle, whisker and label of each variant, labels placed without overlap."""
    largest = max(v.metrics.get("size.download", 1.0) for v in having) or 1.0
    taken: list[tuple[float, float, float]] = []
    for v in having:
        i, level, ms = _latency(v), axes.y(score[v.name]), v.metrics["latency.p50"]
        radius = 5 + 13 * math.sqrt(v.metrics.get("size.download", largest) / largest)
        half = _LETTER * len(v.name)
        x = axes.x(ms)
        taken.append((x, _free(x, level - radius - 5, half, taken), half))
        told = f"{v.name}: {shown(ms, 'ms')}, {accuracy} {score[v.name]:.4g}"
        yield (
            f'<circle class="bubble" cx="{x:.1f}" cy="{level:.1f}"'
            f' r="{radius:.1f}"><title>{escape(told)}</title></circle>'
        )
        yield axes.whisker(i.low, i.high, score[v.name])
        yield text(x, taken[-1][1], v.name, kind="name", anchor="middle")


def layers(found: Sequence[Layer], most: int = 20) -> str:
    """SQNR of the worst layers as bars."""
    rows = list(found)[:most]
    if not rows:
        return ""
    top = max(1.0, *(min(x.sqnr_db, _LONGEST_DB) for x in rows))
    return bars(
        [
            Bar(
                shortened(x.name),
                [(max(0.0, min(x.sqnr_db, _LONGEST_DB)) / top, "bar bad" if x.sqnr_db < 10 else "bar")],
                f"{x.sqnr_db:.1f} dB",
                title=f"{x.name} ({x.op})",
            )
            for x in rows
        ],
        "SQNR by layer, worst first",
    )


def histogram(layer: Layer) -> str:
    """Histogram of a layer's float values; bins outside of the quantization grid are marked."""
    h = layer.histogram
    if h is None or not h.counts:
        return ""
    low, high = h.edges[0], h.edges[-1]
    axes = Axes(low, high, 0, math.log1p(max(h.counts)), left=0, right=300, bottom=110)
    slack = 1e-9 * (high - low)
    body = []
    for x0, x1, n in zip(h.edges, h.edges[1:], h.counts, strict=False):
        outside = h.clip is not None and not h.clip[0] - slack <= (x0 + x1) / 2 <= h.clip[1] + slack
        left, top = axes.x(x0), axes.y(math.log1p(n))
        body.append(
            f'<rect class="bar{" bad" if outside else ""}" x="{left:.1f}" y="{top:.1f}"'
            f' width="{max(0.5, axes.x(x1) - left - 0.6):.1f}" height="{axes.bottom - top:.1f}"/>'
        )
    for edge in h.clip or ():
        if low < edge < high:
            body.append(f'<path class="clip" d="M{axes.x(edge):.1f} 12V{axes.bottom:g}"/>')
    ends = ((0, low, "start"), (axes.right, high, "end"))
    body += [text(at, axes.bottom + 14, f"{x:.3g}", anchor=anchor) for at, x, anchor in ends]
    return svg(axes.right, axes.bottom + 20, f"values of {layer.name}, logarithmic counts", body)


def times(ops: Ops, most: int = 10) -> str:
    """Time by operator type of a traced run."""
    rows: list[tuple[str, float, str]] = [(t.op, t.time_ms, t.kind) for t in ops.types[:most]]
    if ops.unexplained_ms > 0:
        rows.append(("unexplained", ops.unexplained_ms, "none"))
    top = max((ms for _, ms, _ in rows), default=0.0) or 1.0
    found = [Bar(op, [(ms / top, f"bar {kind}")], shown(ms, "ms")) for op, ms, kind in rows]
    return bars(found, "time by operator", at=178)


def _key(i: int, name: str) -> str:
    """The name of the variant with colour `i`, right of the lines."""
    return text(_RIGHT + 10, 24 + 17 * i, name, kind=f"key c{i % _COLOURS}")


def ecdf(measured: Sequence[tuple[str, Measured]]) -> str:
    """Empirical distribution of block medians, one line a variant."""
    found = [(n, sorted(b.median_ms for b in m.latency.blocks)) for n, m in measured if m.latency is not None]
    if not found:
        return ""
    low, high = min(b[0] for _, b in found), max(b[min(len(b) - 1, int(0.98 * len(b)))] for _, b in found)
    axes = Axes(low, high, 0, 1, right=_RIGHT, bottom=200)
    body = [*axes.across(), *axes.down(), *axes.named("median of a block, ms", "share of blocks")]
    for i, (name, blocks) in enumerate(found):
        few = blocks[:: max(1, len(blocks) // 120)]
        points = " ".join(f"{axes.x(min(v, high)):.1f},{axes.y((k + 1) / len(few)):.1f}" for k, v in enumerate(few))
        body += [f'<polyline class="line c{i % _COLOURS}" points="{points}"/>', _key(i, name)]
    return svg(WIDE, axes.bottom + 46, "distribution of block medians", body)


def series(measured: Sequence[tuple[str, Measured]]) -> str:
    """Block medians over time; contended blocks are open circles."""
    found = [
        (n, sorted(m.latency.blocks, key=lambda b: (b.process, b.round))) for n, m in measured if m.latency is not None
    ]
    if not found:
        return ""
    values = sorted(b.median_ms for _, blocks in found for b in blocks)
    low, high = values[0], values[min(len(values) - 1, int(0.99 * len(values)))] * 1.03
    axes = Axes(0, max(len(b) for _, b in found), low, high, right=_RIGHT, bottom=180)
    body = [*axes.across(), *axes.named("blocks in the order of time; open: contended", "ms")]
    for i, (name, blocks) in enumerate(found):
        few = max(1, len(blocks) // 250)
        for k, b in enumerate(blocks[::few]):
            kind = f"dot c{i % _COLOURS}{' open' if b.contended else ''}"
            body.append(_dot(axes.x(k * few), axes.y(min(b.median_ms, high)), kind, 1.8))
        body.append(_key(i, name))
    return svg(WIDE, axes.bottom + 46, "block medians over time", body)


def _dot(x: float, y: float, kind: str, radius: float) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def trend(runs: Sequence[Run], metric: str) -> str:
    """A metric over several runs, one line a variant."""
    names = list(dict.fromkeys(v.name for r in runs for v in r.variants if metric in v.metrics))
    values = [v.metrics[metric] for r in runs for v in r.variants if metric in v.metrics]
    if len(runs) < 2 or not values:
        return ""
    axes = Axes(0, len(runs) - 1, min(values), max(values), right=_RIGHT, bottom=150)
    body = axes.across(3)
    for i, name in enumerate(names):
        found = [(k, v.metrics) for k, r in enumerate(runs) if (v := r.variant(name)) is not None]
        at = [(axes.x(k), axes.y(x[metric])) for k, x in found if metric in x]
        body.append(f'<polyline class="line c{i % _COLOURS}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        body += [*(_dot(x, y, f"dot c{i % _COLOURS}", 3) for x, y in at), _key(i, name)]
    return svg(WIDE, axes.bottom + 10, f"{metric} over {len(runs)} runs", body)
