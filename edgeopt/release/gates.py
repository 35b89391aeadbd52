"""Gates: bounds on metrics, judged with their intervals.

A metric with a 95 % interval [low, high] passes `max` if high <= max, fails if low > max, and is inconclusive in between;
`min` likewise. A metric without one is what it is. `warn` is a bound of the same side that never fails. Against the baseline
a regression is judged by the interval of the ratio. What inconclusive gates count as is the project's policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edgeopt.release.document import GateResult, Outcome, Run, VariantResult
from edgeopt.release.metrics import METRICS, Metric
from edgeopt.release.project import FLOAT, Gate, Policy, Project
from edgeopt.release.units import quantity, shown
from edgeopt.results import Range

EXIT = {"pass": 0, "warn": 0, "fail": 1, "error": 3, "inconclusive": 4, "no baseline": 5}
_LINE = Callable[[str, str, str], int]


@dataclass(frozen=True)
class Against:
    """What regressions are judged by. run: of the baseline, None without one; refused: why it cannot be compared."""

    run: Run | None = None
    ratios: Mapping[str, Range] | None = None
    refused: str | None = None


def judge(project: Project, run: Run, against: Against, line: _LINE = lambda variant, metric, bound: 1) -> Run:
    """`run` with every gate of `project` judged, and the verdict."""
    found = tuple(
        g
        for variant in run.variants
        for name, gate in sorted(_gates(project, variant.name).items())
        for g in _judged(run, variant, name, gate, against, line)
    )
    verdict = _verdict(found, run, project.policy)
    return run.model_copy(update={"gates": found, "verdict": verdict, "exit_code": EXIT[verdict]})


def _gates(project: Project, variant: str) -> Mapping[str, Gate]:
    own = dict(project.gates.get(variant, {}))
    return own if variant == FLOAT else {**project.gates.get("*", {}), **own}


def _judged(
    run: Run, variant: VariantResult, name: str, gate: Gate, against: Against, line: _LINE
) -> Iterator[GateResult]:
    row, value = METRICS[name], variant.metrics.get(name)
    interval = variant.intervals.get(name)
    for bound in ("min", "max", "warn", "max_drop", "max_regression"):
        given = getattr(gate, bound)
        if given is None:
            continue
        limit = quantity(given, "share" if bound == "max_regression" else row.kind)
        outcome, message = _outcome(run, variant, name, bound, limit, against)
        yield GateResult(
            variant=variant.name,
            metric=name,
            bound=bound,
            limit=limit,
            value=value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            outcome=outcome,
            message=message,
            line=line(variant.name, name, bound),
        )


def _outcome(
    run: Run, variant: VariantResult, name: str, bound: str, limit: float, against: Against
) -> tuple[Outcome, str]:
    row, value = METRICS[name], variant.metrics.get(name)
    if value is None:
        return "not measured", f"{row.title}: not measured{'' if variant.error is None else ' (' + variant.error + ')'}"
    interval = variant.intervals.get(name) or Range(value=value, low=value, high=value)
    if bound == "max_regression":
        return _regression(variant, name, limit, against)
    if bound == "max_drop":
        on_float = run.variant(FLOAT)
        before = on_float.metrics.get(name) if on_float else None
        before = 1.0 if before is None and name in ("accuracy.agreement", "accuracy.cosine") else before
        if before is None:
            return "not measured", f"{row.title}: the float model's is not known"
        drop = before - value
        text = f"{row.title} falls by {_points(drop, row)}, allowed {_points(limit, row)}"
        return ("fail" if drop > limit + 1e-12 else "pass"), text
    upper = bound == "max" or (bound == "warn" and not row.higher)
    outcome = _bounded(interval, limit, upper)
    sign = "<=" if upper else ">="
    text = f"{row.title} {_with_interval(value, interval, row)}, demanded {sign} {shown(limit, row.kind)}"
    if bound == "warn":
        return ("pass" if outcome == "pass" else "warn"), text
    return outcome, text


def _bounded(x: Range, limit: float, upper: bool) -> Outcome:
    best, worst = (x.low, x.high) if upper else (-x.high, -x.low)
    limit = limit if upper else -limit
    return "pass" if worst <= limit else "fail" if best > limit else "inconclusive"


def _with_interval(value: float, x: Range, row: Metric) -> str:
    if x.low == x.high:
        return shown(value, row.kind)
    return f"{shown(value, row.kind)} [{shown(x.low, row.kind)}, {shown(x.high, row.kind)}]"


def _points(x: float, row: Metric) -> str:
    return f"{100 * x:.2f} pp" if row.kind == "share" else f"{x:.4g}"


def _regression(variant: VariantResult, name: str, limit: float, against: Against) -> tuple[Outcome, str]:
    row = METRICS[name]
    if against.run is None:
        return "no baseline", f"{row.title}: no baseline; edgeopt baseline save makes one"
    old = against.run.variant(variant.name)
    before = old.metrics.get(name) if old else None
    again = (against.ratios or {}).get(variant.name) if name.startswith("latency.p50") else None
    if again is None and against.refused is not None and _clocked(name):
        return "not comparable", f"{row.title}: {against.refused}"
    if again is None and (before is None or old is None):
        return "no baseline", f"{row.title}: the baseline has no {variant.name}"
    ratio = again or _ratio(variant, old, name)  # type: ignore[arg-type]
    if row.higher:
        ratio = Range(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)
    how = "measured again side by side" if again is not None else "stored"
    text = f"{row.title} {ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}] against the baseline ({how}), allowed {limit:+.1%}"
    outcome = _bounded(ratio, 1 + limit, upper=True)
    if row.higher:
        text = text.replace(" against", " worse against", 1)
    return outcome, text


def _clocked(name: str) -> bool:
    """Whether the metric depends on the machine."""
    return name.split(".")[0] in ("latency", "cold", "memory", "speedup")


def _ratio(new: VariantResult, old: VariantResult, name: str) -> Range:
    a, b = old.metrics[name], new.metrics[name]
    value = b / a if a else (1.0 if b == a else math.inf)
    x, y = old.intervals.get(name), new.intervals.get(name)
    if x is None or y is None or not a or not b:
        return Range(value=value, low=value, high=value)
    # intervals of independent medians, on the log scale
    half = math.hypot(math.log(x.high / x.low) / 2, math.log(y.high / y.low) / 2)
    return Range(value=value, low=value * math.exp(-half), high=value * math.exp(half))


def _verdict(found: tuple[GateResult, ...], run: Run, policy: Policy) -> str:
    """The worst of all gates, as the policy counts them."""
    if any(v.error for v in run.variants):
        return "error"
    counted = {
        "inconclusive": ("inconclusive", policy.inconclusive),
        "not measured": ("fail", policy.not_measured),
        "no baseline": ("no baseline", policy.no_baseline),
        "not comparable": ("no baseline", policy.no_baseline),
    }
    seen = set()
    for g in found:
        fails_as, level = counted.get(g.outcome, (g.outcome, "fail"))
        if g.outcome == "not measured" and run.profile is None and _clocked(g.metric):
            level = "warn"  # the clock was not asked
        seen.add(fails_as if level == "fail" else level)
    return next((v for v in ("fail", "no baseline", "inconclusive", "warn") if v in seen), "pass")
