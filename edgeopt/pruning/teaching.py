"""Pruning with teaching between: what each step costs and gives, as a curve.

Between steps the network learns again what it lost (iterative pruning, Han et al. 2015, arXiv:1506.02626), by
the answers of the model that it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import onnx_ir as ir

from edgeopt.data import Feed, read, specs
from edgeopt.errors import UsageError, extra
from edgeopt.options.distill import Distill
from edgeopt.options.models import Shrink
from edgeopt.options.reading import Reading
from edgeopt.pictures import WIDE, Axes, svg, text
from edgeopt.runtime.measure import interleaved
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import open_session

_EPOCHS = 10_000  # the minutes end it
_TIMED_S = 2.0


@dataclass(frozen=True)
class Point:
    """What was left after a step, and what it was worth."""

    metric: str
    """What `before` and `after` measure on held-out samples; higher is better."""
    before: float
    """Of the network as it was pruned."""
    after: float
    """When it was taught."""
    latency_ms: float
    speedup: float
    """Over the model before all steps."""
    macs: int = 0
    parameters: int = 0

    def told(self) -> str:
        """A line."""
        size = f"{self.macs / 1e6:.2f} M MACs, {self.parameters / 1e6:.2f} M parameters"
        gain = f"{self.metric} {self.before:.4f} -> {self.after:.4f}"
        return f"{size}, {self.latency_ms:.2f} ms ({self.speedup:.2f}x): {gain}"


def settled_reading(source: ir.Model, options: Shrink) -> Shrink:
    """`options` for reading the samples more than once, always as `source` wants them: a network that was pruned does
    not tell any more how its pictures were prepared.
    """
    data = options.data
    if isinstance(data, Iterator):
        return options.model_copy(update={"data": list(data)})
    if options.minutes is None or not isinstance(data, str | Path):
        return options
    found = read(data, specs(source), options, open_session(source).run, norm_distance(source))
    if found.resolved is None:
        return options
    for line in found.notes:
        options.listener.note(line)
    return options.model_copy(update={"preprocess": found.resolved})


def taught(source: ir.Model, model: ir.Model, options: Shrink, minutes: float, feed: Feed) -> tuple[ir.Model, Point]:
    """(`model` taught by `source` for so long, the point that it is; `feed` times both).

    Raises:
        UsageError: torch is missing.
    """
    try:
        from edgeopt.train.distill import distill
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise UsageError(f"--minutes needs torch: {extra('train')}") from e
    assert options.data is not None
    reading = options.model_dump(include=set(Reading.model_fields) - {"samples"}, exclude_unset=True)
    how = Distill.of(
        {
            **reading, "teacher": source, "labels": options.labels, "minutes": minutes, "epochs": _EPOCHS,
            "learning_rate": options.learning_rate, "augment": options.augment,
            "listener": options.listener,
        },
        "command line",
    )  # fmt: skip
    found = distill(model, options.data, how)
    sessions = {"before": open_session(source, threads=1), "after": open_session(found.model, threads=1)}
    times = interleaved(sessions, "before", dict.fromkeys(sessions, feed), seconds=_TIMED_S)["after"]
    return found.model, Point(found.metric, found.before, found.after, times.latency_ms, times.speedup)


def drawn(curve: Sequence[Point]) -> str:
    """An SVG of the held-out metric against the latency, a dot a step: taught, and light as it was pruned."""
    xs = [p.latency_ms for p in curve] + [p.latency_ms * p.speedup for p in curve]
    ys = [y for p in curve for y in (p.before, p.after)]
    low, high = min(ys), max(ys)
    room = 0.05 * (high - low) or 0.01
    axes = Axes(0.95 * min(xs), 1.05 * max(xs), low - room, high + room, bottom=340)
    body = [*axes.down(), *axes.across(), *axes.named("latency in ms, one thread", curve[0].metric)]
    for p in curve:
        for y, kind in ((p.before, "light"), (p.after, "bubble")):
            body.append(
                f'<circle class="{kind}" cx="{axes.x(p.latency_ms):.1f}" cy="{axes.y(y):.1f}" r="5">'
                f"<title>{escape(p.told())}</title></circle>"
            )
        body.append(
            text(axes.x(p.latency_ms), axes.y(p.after) - 9, f"{p.macs / 1e6:.3g} M", kind="name", anchor="middle")
        )
    whole = curve[0].latency_ms * curve[0].speedup
    body.append(f'<path class="grid" d="M{axes.x(whole):.1f} {axes.top:g}V{axes.bottom:g}"/>')
    body.append(text(axes.x(whole), axes.top - 6, "the whole", kind="name", anchor="middle"))
    return svg(WIDE, axes.bottom + 46, f"{curve[0].metric} against latency", body, alone=True) + "\n"
