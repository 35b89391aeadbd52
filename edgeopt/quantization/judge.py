"""Acceptance of results: close enough to float by the user's thresholds, else by default ones, and not slower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeopt import graph
from edgeopt.graph.ops import macs_of
from edgeopt.numbers.intervals import needed, wilson
from edgeopt.numbers.scores import GOOD_SQNR_DB, OutputReport, interval_of_agreement, short_db
from edgeopt.quantization.candidates import Draft, Placement
from edgeopt.quantization.check import FASTER, SLOWER, Tried
from edgeopt.quantization.outputs import STEPS
from edgeopt.quantization.prepare import Task

_LOSS_DB = 0.5  # SQNR that a faster result may lose if no threshold was given, and that a search has to gain
_SMALLER = 1.25  # a result must reach this, or be faster
_LEAST_WORK = 0.05  # of all; integers are four times as fast at most, and little else becomes faster with them
_NO_LARGER = 0.99  # scales of weights that were already integers may make it slightly larger
_BEHIND = {
    "balanced": "another one gains more by size and speed together",
    "speed": "another one is faster",
    "size": "another one is smaller",
    "accuracy": "another one is nearer to float",
}
_AS_MUCH = 1.05  # gains within this factor are equal
_HALF = 0.5
_AS_SHORT_DB = 0.2  # figures whose distances to their bars differ by less are as near
_SAME = 1e-6  # metrics with a smaller relative difference are equal


@dataclass(frozen=True)
class Figures:
    """How close a model is to float."""

    score: float
    """The user's metric, 0 without one."""
    sqnr_db: float
    """The lowest SQNR of its outputs."""
    agreement: float | None
    """Top-1 agreement of class scores, None if there are none."""
    short_db: float = 0.0
    """How far what counts of the outputs' kinds is below its bar."""

    @staticmethod
    def of(t: Tried) -> Figures:
        """The figures of a result on the held-out samples."""
        return Figures(t.metric or 0.0, t.worst_sqnr_db, t.agreement, short_db((*t.errors, *t.later)))


def meets(task: Task, f: Figures) -> bool | None:
    """Whether the figures meet the user's thresholds; None if the user gave none."""
    lacking = lacks(task, f)
    return None if lacking is None else not lacking


def lacks(task: Task, f: Figures) -> list[str] | None:
    """The user's bars for nearness that the figures do not reach, in words; None if the user gave none."""
    options, found = task.options, list[str]()
    bars = (("SQNR", " dB", f.sqnr_db, options.min_sqnr), ("agreement", "", f.agreement, options.min_agreement))
    for name, unit, value, bar in bars:
        if bar is not None and (value is None or not value >= bar):
            found.append(f"{name} {'not known' if value is None else f'{value:.3g}{unit}'} is below {bar:g}{unit}")
    if task.metric is not None and options.max_drop is not None:
        drop = task.metric.on_float - f.score
        if not drop <= options.max_drop:
            found.append(f"{task.metric.name} falls by {drop:.4g}, more than {options.max_drop:g}")
    asked = any(x is not None for x in (options.max_drop, options.min_sqnr, options.min_agreement))
    return found if asked else None


def nearer(task: Task, f: Figures, than: Figures, gain_db: float = 0.0) -> bool:
    """Whether `f` is closer to float than `than`: by the user's thresholds, by the metric, without either by the
    distance of the worst figure to its bar, then by SQNR (which must be higher by `gain_db`), then by agreement.
    """
    ours, theirs = (meets(task, x) is not False for x in (f, than))
    if ours != theirs:
        return ours
    if not math.isclose(f.score, than.score, rel_tol=_SAME, abs_tol=_SAME):
        return f.score > than.score
    if _apart(task, f, than):
        return f.short_db < than.short_db
    if f.sqnr_db == than.sqnr_db:  # also if both are infinite
        return gain_db == 0 and (f.agreement or 0.0) > (than.agreement or 0.0)
    return f.sqnr_db >= than.sqnr_db + gain_db


def _apart(task: Task, f: Figures, than: Figures) -> bool:
    """Whether the figures that miss their bars tell the two apart."""
    return not task.options.judged_by_user and abs(than.short_db - f.short_db) > _AS_SHORT_DB


def by_chance(task: Task, t: Tried, than: Tried) -> bool:
    """Whether `t`, which is nearer than another result by SQNR alone, may be so by chance: where the other one meets
    what the user asked for, it must be nearer by what other samples can take back, and on all samples, or on more than
    half by the 95 % interval of their share.
    """
    ours, theirs = Figures.of(t), Figures.of(than)
    if task.metric is not None or meets(task, theirs) is False or _apart(task, ours, theirs):
        return False
    if ours.sqnr_db < theirs.sqnr_db + _LOSS_DB:
        return True
    pairs = [(a, b) for a, b in zip(t.by_sample, than.by_sample, strict=True) if a != b]
    wins = sum(a > b for a, b in pairs)
    return wins < len(pairs) and wilson(wins / len(pairs), len(pairs)).low <= _HALF


def near_enough(task: Task, f: Figures, to: Figures) -> bool:
    """Whether a faster model is close enough to float: by the user's thresholds, else nearly as close as `to`."""
    asked = meets(task, f)
    return asked if asked is not None else f.score >= to.score and f.sqnr_db >= to.sqnr_db - _LOSS_DB


def close(task: Task, t: Tried) -> bool:
    """Whether a result is close enough to float: by the user's thresholds, else by the default bar for each output's
    kind.
    """
    asked = meets(task, Figures.of(t))
    return not far(t) if asked is None else asked


def far(t: Tried) -> list[str]:
    """The figures of outputs below their bar, in words."""
    found = [f"output {o.output}: {text}" for o in t.errors for text in too_far(o)]
    return found + [f"output {o.output} after {STEPS} steps: {text}" for o in t.later for text in too_far(o)]


def too_far(o: OutputReport) -> list[str]:
    """The figures of one output below their bar, in words."""
    if o.figures:
        return [str(f) for f in o.figures if not f.close]
    return [] if o.sqnr_db >= GOOD_SQNR_DB else [f"SQNR {o.sqnr_db:.1f} dB (bar {GOOD_SQNR_DB:.0f} dB)"]


def gains(t: Tried) -> bool:
    """Whether a result is worth having: not larger than float, and at least a fifth smaller or a tenth faster (by the
    lower bound of the interval). If speed is not measured, static int8 counts as faster.
    """
    faster = t.draft.static if t.latency is None else t.latency.speedup_low >= FASTER
    return t.smaller >= _NO_LARGER and (t.smaller >= _SMALLER or faster)


def plenty(task: Task, t: Tried) -> bool:
    """Whether a result is close to float and both smaller and faster, so that no other has to be tried. One that is
    run here without a single kernel of integers is no better than stored weights, and others may be.
    """
    faster = t.draft.static if t.latency is None else t.latency.speedup_low >= FASTER and bool(t.kernels.integer)
    return good(task, t) and t.smaller >= _SMALLER and faster


def pays(task: Task, place: Placement) -> bool:
    """Whether integers placed so may gain more than weights stored as integers do, which are as small, as fast as
    float and nearer to it.
    """
    return place.speedup_high >= (1.0 if task.options.prefer == "speed" else _AS_MUCH)


def may_gain(task: Task, made: Draft) -> bool:
    """Whether a model with some nodes in integers can be worth having by how small it is and by how much of the work
    (multiply-accumulate operations) those nodes do; if that is not known, it can.
    """
    state = made.state
    probes = task.start.resources.cache.probes.get(id(state.source))
    if state.plan is None or probes is None:
        return True
    if graph.size_bytes(task.source) >= _SMALLER * graph.size_bytes(made.model):
        return True
    shapes = {name: p.shape for name, p in probes.items()}
    work = {str(n.name): macs_of(n, shapes) for n in state.source.graph}
    return not state.plan.forms.keys() <= work.keys() or (
        sum(work[n] for n in state.plan.forms) >= _LEAST_WORK * sum(work.values())
    )


def promising(task: Task, t: Tried, others: Sequence[Tried]) -> bool:
    """Whether `t` is worth repairing: none of `others` is good, or its SQNR is at least 0 dB and, under `balanced`, it
    would be preferred to the good ones if it kept all its gains.
    """
    found = [o for o in others if good(task, o)]
    if not found:
        return True
    best = preferred(task, [t, *found])
    return t.worst_sqnr_db >= 0 and (best is t or task.options.prefer != "balanced")


def preferred(task: Task, found: Sequence[Tried]) -> Tried:
    """The best of the good results by `options.prefer`; balanced: by the product of both gains, and among those that
    gain nearly as much as the best and are about as fast by the intervals of their speed, the one closest to float.
    """
    prefer = task.options.prefer
    if prefer == "accuracy":
        return nearest(task, found)

    def worth(t: Tried) -> tuple[float, float]:
        speed = 1.0 if t.latency is None else t.latency.speedup
        product = speed * t.smaller
        return {"balanced": product, "speed": speed, "size": t.smaller}[prefer], product

    best = max(found, key=worth)
    if prefer != "balanced":
        return best
    as_good = [best, *(t for t in found if t is not best and worth(t)[0] * _AS_MUCH >= worth(best)[0])]
    low = max((t.latency.speedup_low for t in as_good if t.latency is not None), default=0.0)
    return nearest(task, [t for t in as_good if t.latency is None or t.latency.speedup_high >= SLOWER * low])


def good(task: Task, t: Tried) -> bool:
    """Whether a result is close enough to float, not slower, has enough gains, and is right on its target as far as
    that was looked at.
    """
    return close(task, t) and not t.slower and gains(t) and (t.there is None or t.there.usable)


def nearest(task: Task, tried: Sequence[Tried]) -> Tried:
    """The result closest to float; the first one of equals."""
    best = tried[0]
    for t in tried[1:]:
        if nearer(task, Figures.of(t), Figures.of(best)):
            best = t
    return best


def why_not(task: Task, t: Tried) -> str:
    """Why `t` was not chosen, in words."""
    if close(task, t):
        if t.slower:
            return "slower than float"
        if t.there is not None and not t.there.usable:
            return f"wrong on {t.there.target} ({'; '.join(t.there.problems[:2])})"
        return _BEHIND[task.options.prefer] if gains(t) else _no_gain(t)
    lacking = lacks(task, Figures.of(t))
    return f"too far from float ({'; '.join(far(t)[:3] if lacking is None else lacking)})"


def _no_gain(t: Tried) -> str:
    speed = "" if t.latency is None else f", {t.latency.speedup:.2f}x as fast"
    size = "larger than float" if t.smaller < _NO_LARGER else f"{1 - 1 / t.smaller:.0%} smaller"
    return f"gains too little ({size}{speed})"


def line(task: Task, t: Tried) -> str:
    """A one-line description of `t`."""
    speed = f", {t.latency.speedup:.2f}x float speed" if t.latency else ""
    return f"{t.mode}: SQNR {t.worst_sqnr_db:.1f} dB{speed}{'' if good(task, t) else ' - ' + why_not(task, t)}"


def undecided(task: Task, t: Tried) -> list[str]:
    """The user's requirements that `t` meets on the held-out samples, but whose 95 % interval reaches below them. A
    demand for all samples, which no number of them can show, is met by those there are.
    """
    options, found = task.options, list[str]()
    if t.mode == "float":  # which agrees with itself, as fast as itself
        return found
    bar, seen = options.min_agreement, interval_of_agreement(t.errors)
    if bar is not None and seen is not None and seen.low < bar <= seen.value and bar < 1:
        enough = needed(seen.value, bar)
        more = "no number of samples" if enough is None else f"about {enough} answers"
        found.append(f"agreement {seen.value:.1%} [{seen.low:.1%}, {seen.high:.1%}]: {more} could show {bar:g}")
    x, bar = t.latency, options.min_speedup
    if bar is not None and x is not None and x.speedup_low < bar <= x.speedup:
        found.append(f"speed-up {x.speedup:.2f}x [{x.speedup_low:.2f}, {x.speedup_high:.2f}] does not show {bar:g}x")
    return found


def missed(task: Task, t: Tried) -> list[str]:
    """The user's requirements that `t` does not meet, in words; a search must also not end slower than float."""
    options, found = task.options, lacks(task, Figures.of(t)) or []
    if options.min_speedup is not None and (t.latency is None or t.latency.speedup < options.min_speedup):
        speedup = "not known" if t.latency is None else f"{t.latency.speedup:.3g}x"
        found.append(f"speed-up {speedup} is below {options.min_speedup:g}x")
    if options.searches and t.latency is not None and t.slower:
        found.append(f"slower than float: {t.latency.speedup:.2f}x")
    return found
