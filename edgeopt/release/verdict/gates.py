"""Gates: bounds on metrics, judged with their confidence intervals.

A metric with a 95 % interval [low, high] passes `max` if high <= max, fails if low > max, and is inconclusive in
between; `min` likewise. A metric without an interval has low = high. `warn` is a bound of the same side whose violation
only warns. A regression is judged by the interval of the relative change for the worse against the baseline. How
undecided gates count is the project's policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from edgeopt.profiling.results import Range
from edgeopt.release.document import GateResult, Level, Outcome, Run, VariantResult
from edgeopt.release.project.file import FLOAT, Gate, Policy, Project
from edgeopt.release.project.metrics import AGAINST_FLOAT, MetricRow, metric, on_device
from edgeopt.release.project.quantities import quantity, shown

EXIT = {"pass": 0, "warn": 0, "fail": 1, "error": 3, "inconclusive": 4, "no baseline": 5}
_FAILS_AS: Mapping[Outcome, str] = {
    "inconclusive": "inconclusive", "no baseline": "no baseline", "not comparable": "no baseline",
}  # fmt: skip
_CLOCKED = ("latency.", "cold.", "memory.", "speedup")  # metrics that depend on the machine
_ROUNDING = 1e-12
_REMEDIES = {  # whether the baseline's model was measured again
    False: "keep the models (edgeopt baseline save --models) to have them measured again",
    True: "measuring it again did not tell this figure, which takes a longer preset or the same float model",
}
_LINE = Callable[[str, str, str], int]


@dataclass(frozen=True)
class Against:
    """What regressions are judged against."""

    run: Run | None = None
    """The baseline's run; None without a baseline."""
    ratios: Mapping[str, Mapping[str, Range]] | None = None
    """New over baseline, measured again, by variant and metric."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why stored times cannot be compared, by device; those of this machine by an empty name."""
    problem: str | None = None
    """Why there is no baseline."""


def clocked(name: str) -> bool:
    """Whether the metric depends on the machine."""
    return on_device(name)[1].startswith(_CLOCKED)


def judge(project: Project, run: Run, against: Against, line: _LINE = lambda variant, metric, bound: 1) -> Run:
    """`run` with every gate of `project` judged, the verdict and the exit code."""
    absent = [VariantResult(name=n, parent="") for n in project.gates if n != "*" and run.variant(n) is None]
    judged = [
        g
        for variant in (*run.variants, *absent)
        for name, gate in sorted(_gates(project, variant.name).items())
        for g in _judged(run, variant, name, gate, against, line)
    ]
    judged += _unreached(run, {on_device(g.metric)[0] for g in judged})
    found = tuple(g.model_copy(update={"level": _level(g, run, project.policy)}) for g in judged)
    verdict = _verdict(found, run)
    return run.model_copy(update={"gates": found, "verdict": verdict, "exit_code": EXIT[verdict]})


def _unreached(run: Run, gated: set[str]) -> Iterator[GateResult]:
    """Devices without a gate of their own on which nothing could be measured: none is passed over in silence."""
    for device in sorted({device for v in run.variants for device in v.on_devices} - gated):
        v = next(v for v in run.variants if device in v.on_devices)
        yield GateResult(
            variant=v.name,
            metric=f"{device}.latency.p50",
            bound="measured",
            limit=0.0,
            value=None,
            outcome="not measured",
            message=f"{device}: not measured ({v.on_devices[device]})",
        )


def _gates(project: Project, variant: str) -> Mapping[str, Gate]:
    own = dict(project.gates.get(variant, {}))
    return own if variant == FLOAT else {**project.gates.get("*", {}), **own}


def _judged(
    run: Run, variant: VariantResult, name: str, gate: Gate, against: Against, line: _LINE
) -> Iterator[GateResult]:
    row, value = metric(name), variant.metrics.get(name)
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
    row, value = metric(name), variant.metrics.get(name)
    if value is None:
        why = "" if variant.error is None else f" ({variant.error})"
        device = on_device(name)[0]
        if device and variant.error is None:
            why = f" ({variant.on_devices.get(device, 'nothing was measured there')})"
        if name.startswith("target.") and variant.error is None:
            why = f" ({'; '.join(variant.on_target[:2]) or 'no step of it names a target'})"
        return ("warn" if bound == "warn" else "not measured"), f"{row.title}: not measured{why}"
    interval = variant.intervals.get(name) or Range(value=value, low=value, high=value)
    if bound == "max_regression":
        return _regression(variant, name, limit, against)
    if bound == "max_drop":
        return _drop(run, variant, name, limit)
    upper = bound == "max" or (bound == "warn" and not row.higher)
    outcome = _bounded(interval, limit, upper)
    sign = "<=" if upper else ">="
    wish = "wanted" if bound == "warn" else "demanded"
    text = f"{row.title} {_with_interval(value, interval, row)}, {wish} {sign} {shown(limit, row.kind)}"
    if name == "accuracy.close" and outcome != "pass":
        text += f" ({'; '.join(variant.far[:2])})" if variant.far else ""
    if name.startswith("target.") and outcome != "pass":
        text += f" ({'; '.join(variant.on_target[:3])})"
    if bound == "warn":
        return ("pass" if outcome == "pass" else "warn"), text
    return outcome, text


def _bounded(x: Range, limit: float, upper: bool) -> Outcome:
    best, worst = (x.low, x.high) if upper else (-x.high, -x.low)
    limit = limit if upper else -limit
    return "pass" if worst <= limit else "fail" if best > limit else "inconclusive"


def _with_interval(value: float, x: Range, row: MetricRow) -> str:
    if x.low == x.high:
        return shown(value, row.kind)
    return f"{shown(value, row.kind)} [{shown(x.low, row.kind)}, {shown(x.high, row.kind)}]"


def _points(x: float, row: MetricRow) -> str:
    return f"{100 * x:.2f} pp" if row.kind == "share" else f"{x:.4g}"


def _drop(run: Run, variant: VariantResult, name: str, limit: float) -> tuple[Outcome, str]:
    row, on_float = metric(name), run.variant(FLOAT)
    before = on_float.metrics.get(name) if on_float else None
    before = 1.0 if before is None and name in AGAINST_FLOAT else before
    if before is None:
        return "not measured", f"{row.title}: the float model's is not known"
    drop = before - variant.metrics[name]
    x = variant.drops.get(name) or Range(value=drop, low=drop, high=drop)
    spread = "" if x.low == x.high else f" [{_points(x.low, row)}, {_points(x.high, row)}]"
    text = f"{row.title} falls by {_points(drop, row)}{spread}, allowed {_points(limit, row)}"
    return _bounded(x, limit + _ROUNDING, upper=True), text


def _regression(variant: VariantResult, name: str, limit: float, against: Against) -> tuple[Outcome, str]:
    row = metric(name)
    if against.run is None:
        return "no baseline", f"{row.title}: no baseline; {against.problem or 'edgeopt baseline save makes one'}"
    old = against.run.variant(variant.name)
    ratios = (against.ratios or {}).get(variant.name, {})
    if name in ratios:
        x, how = ratios[name], "measured again side by side"
        worse = Range(value=x.value - 1, low=x.low - 1, high=x.high - 1)
        if row.higher:
            worse = Range(value=-worse.value, low=-worse.high, high=-worse.low)
    elif (device := on_device(name)[0]) in against.refused and clocked(name):
        return "not comparable", f"{row.title}: {against.refused[device]}; {_REMEDIES[bool(ratios)]}"
    elif old is None or name not in old.metrics:
        return "no baseline", f"{row.title}: the baseline has no {variant.name}"
    else:
        worse, how = _worse(variant, old, name), "stored"
    text = (
        f"{row.title} {worse.value:+.1%} [{worse.low:+.1%}, {worse.high:+.1%}]{' worse' if row.higher else ''}"
        f" against the baseline ({how}), allowed {limit:+.1%}"
    )
    return _bounded(worse, limit + _ROUNDING, upper=True), text


def _worse(new: VariantResult, old: VariantResult, name: str) -> Range:
    """Relative change for the worse against the old value; negative: better."""
    a, b = old.metrics[name], new.metrics[name]
    sign = -1.0 if metric(name).higher else 1.0
    value = sign * (b - a) / abs(a) if a else sign * math.copysign(math.inf, b) if b else 0.0
    # other metrics are on the same samples: their errors are not independent
    x, y = (v.intervals.get(name) if clocked(name) else None for v in (old, new))
    if x is None or y is None or min(x.low, y.low) <= 0:
        return Range(value=value, low=value, high=value)
    # intervals of independent medians, on the log scale
    half = math.hypot(math.log(x.high / x.low) / 2, math.log(y.high / y.low) / 2)
    ends = sorted(sign * (b / a * math.exp(h) - 1) for h in (-half, half))
    return Range(value=value, low=ends[0], high=ends[1])


def _level(g: GateResult, run: Run, policy: Policy) -> Level:
    """Severity of a gate under the policy; a missing metric of the profile only warns when nothing was profiled."""
    levels: Mapping[Outcome, Level] = {
        "inconclusive": policy.inconclusive,
        "not measured": policy.not_measured,
        "no baseline": policy.no_baseline,
        "not comparable": policy.no_baseline,
    }
    level = levels.get(g.outcome, g.severity)
    unasked = (
        g.outcome == "not measured" and run.profile is None and on_device(g.metric)[1].startswith((*_CLOCKED, "ep."))
    )
    return "warn" if unasked and level == "fail" else level


def _verdict(found: tuple[GateResult, ...], run: Run) -> str:
    """The most severe outcome over all variants and gates."""
    if any(v.error for v in run.variants):
        return "error"
    seen = {_FAILS_AS.get(g.outcome, "fail") if g.severity == "fail" else g.severity for g in found}
    return next((v for v in ("fail", "no baseline", "inconclusive", "warn") if v in seen), "pass")
