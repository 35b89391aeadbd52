"""Charts of a run as inline SVG; colours come from CSS classes, so that the page's style serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from edgeopt.pictures import WIDE, Axes, Bar, bars, labelled, shortened, svg, text
from edgeopt.profiling.results import Measured, Ops, Range
from edgeopt.release.document import Layer, Run, VariantResult
from edgeopt.release.project.file import FLOAT
from edgeopt.release.project.metrics import AGAINST_FLOAT
from edgeopt.release.project.quantities import shown

_BOTTOM, _LINE, _LETTER = 270, 14, 3.6  # trade-off chart, px: bottom edge, line height, half a letter's width
_LONGEST_DB = 80.0
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
    span, top = (high - low) or 1.0, math.log1p(max(h.counts))
    body, width, bottom = [], 300, 110
    for i, n in enumerate(h.counts):
        x0, x1 = ((e - low) / span * width for e in h.edges[i : i + 2])
        outside = h.clip is not None and not (
            h.clip[0] - 1e-9 * span <= (h.edges[i] + h.edges[i + 1]) / 2 <= h.clip[1] + 1e-9 * span
        )
        size = 90 * math.log1p(n) / top if top else 0.0
        body.append(
            f'<rect class="bar{" bad" if outside else ""}" x="{x0:.1f}" y="{bottom - size:.1f}"'
            f' width="{max(0.5, x1 - x0 - 0.6):.1f}" height="{size:.1f}"/>'
        )
    if h.clip is not None:
        for edge in h.clip:
            if low < edge < high:
                at = (edge - low) / span * width
                body.append(f'<path class="clip" d="M{at:.1f} 12V{bottom}"/>')
    body.append(
        f'<text class="tick" x="0" y="{bottom + 14}">{low:.3g}</text><text class="tick" x="{width}" y="{bottom + 14}"'
        f' text-anchor="end">{high:.3g}</text>'
    )
    return svg(width, bottom + 20, f"values of {layer.name}, logarithmic counts", body)


def times(ops: Ops, most: int = 10) -> str:
    """Time by operator type of a traced run."""
    rows: list[tuple[str, float, str]] = [(t.op, t.time_ms, t.kind) for t in ops.types[:most]]
    if ops.unexplained_ms > 0:
        rows.append(("unexplained", ops.unexplained_ms, "none"))
    top = max((ms for _, ms, _ in rows), default=0.0) or 1.0
    found = [Bar(op, [(ms / top, f"bar {kind}")], shown(ms, "ms")) for op, ms, kind in rows]
    return bars(found, "time by operator", at=178)


def ecdf(measured: Sequence[tuple[str, Measured]]) -> str:
    """Empirical distribution of block medians, one line a variant."""
    found = [(n, sorted(b.median_ms for b in m.latency.blocks)) for n, m in measured if m.latency is not None]
    if not found:
        return ""
    low, high = min(b[0] for _, b in found), max(b[min(len(b) - 1, int(0.98 * len(b)))] for _, b in found)
    span, bottom, left = (high - low) or 1.0, 200, 48

    def x(v: float) -> float:
        return left + (min(v, high) - low) / span * (WIDE - left - 110)

    body = [
        f'<path class="grid" d="M{left} {y}H{WIDE - 110}"/><text class="tick" x="{left - 6}" y="{y + 4}"'
        f' text-anchor="end">{p}</text>'
        for y, p in ((20, "100 %"), (110, "50 %"), (200, "0"))
    ]
    body += [
        f'<text class="tick" x="{x(t):.1f}" y="{bottom + 16}" text-anchor="middle">{told}</text>'
        for t, told in labelled(low, high)
    ]
    for i, (name, blocks) in enumerate(found):
        few = blocks[:: max(1, len(blocks) // 120)]
        points = " ".join(f"{x(v):.1f},{bottom - 180 * (k + 1) / len(few):.1f}" for k, v in enumerate(few))
        body.append(
            f'<polyline class="line c{i % _COLOURS}" points="{points}"/><text class="key c{i % _COLOURS}"'
            f' x="{WIDE - 100}" y="{24 + 17 * i}">{escape(name)}</text>'
        )
    body.append(
        f'<text class="axis" x="{WIDE / 2 - 40}" y="{bottom + 34}" text-anchor="middle">median of a block, ms</text>'
    )
    return svg(WIDE, bottom + 42, "distribution of block medians", body)


def series(measured: Sequence[tuple[str, Measured]]) -> str:
    """Block medians over time; contended blocks are open circles."""
    found = [
        (n, sorted(m.latency.blocks, key=lambda b: (b.process, b.round))) for n, m in measured if m.latency is not None
    ]
    if not found:
        return ""
    values = sorted(b.median_ms for _, blocks in found for b in blocks)
    low, high = values[0], values[min(len(values) - 1, int(0.99 * len(values)))] * 1.03
    longest, bottom, left = max(len(b) for _, b in found), 180, 50
    body = [
        f'<path class="grid" d="M{left} {y:.1f}H{WIDE - 110}"/><text class="tick" x="{left - 6}" y="{y + 4:.1f}"'
        f' text-anchor="end">{told}</text>'
        for t, told in labelled(low, high)
        for y in [bottom - (t - low) / ((high - low) or 1) * 160]
    ]
    for i, (name, blocks) in enumerate(found):
        few = max(1, len(blocks) // 250)
        for k, b in enumerate(blocks[::few]):
            at = left + k * few / max(1, longest) * (WIDE - left - 110)
            level = bottom - (min(b.median_ms, high) - low) / ((high - low) or 1) * 160
            body.append(
                f'<circle class="dot c{i % _COLOURS}{" open" if b.contended else ""}" cx="{at:.1f}" cy="{level:.1f}"'
                ' r="1.8"/>'
            )
        body.append(f'<text class="key c{i % _COLOURS}" x="{WIDE - 100}" y="{24 + 17 * i}">{escape(name)}</text>')
    body.append(
        f'<text class="axis" x="{WIDE / 2 - 40}" y="{bottom + 22}" text-anchor="middle">blocks in the order of time;'
        " open: contended</text>"
    )
    return svg(WIDE, bottom + 30, "block medians over time", body)


def trend(runs: Sequence[Run], metric: str) -> str:
    """A metric over several runs, one line a variant."""
    names = list(dict.fromkeys(v.name for r in runs for v in r.variants if metric in v.metrics))
    values = [v.metrics[metric] for r in runs for v in r.variants if metric in v.metrics]
    if len(runs) < 2 or not values:
        return ""
    low, high = min(values), max(values)
    span, bottom, left = (high - low) or abs(high) or 1.0, 150, 60
    body = [
        f'<path class="grid" d="M{left} {y:.1f}H{WIDE - 110}"/><text class="tick" x="{left - 6}" y="{y + 4:.1f}"'
        f' text-anchor="end">{told}</text>'
        for t, told in labelled(low, high, 3)
        for y in [bottom - (t - low) / span * 120]
    ]
    for i, name in enumerate(names):
        points = [
            (k, v.metrics[metric])
            for k, r in enumerate(runs)
            if (v := r.variant(name)) is not None and metric in v.metrics
        ]
        at = [
            (left + 10 + k / (len(runs) - 1) * (WIDE - left - 140), bottom - (y - low) / span * 120) for k, y in points
        ]
        body.append(f'<polyline class="line c{i % _COLOURS}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        body += [f'<circle class="dot c{i % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at]
        body.append(f'<text class="key c{i % _COLOURS}" x="{WIDE - 100}" y="{24 + 17 * i}">{escape(name)}</text>')
    return svg(WIDE, bottom + 10, f"{metric} over {len(runs)} runs", body)
