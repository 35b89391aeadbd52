"""The judge: `nearer` is a strict order, bars are monotone, and what is said of a result is what decided."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.numbers.figure import Figure
from edgeopt.numbers.intervals import wilson
from edgeopt.numbers.kinds import Kind
from edgeopt.numbers.scores import OutputReport
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.check import Tried
from edgeopt.quantization.judge import (
    Figures,
    by_chance,
    close,
    gains,
    good,
    meets,
    missed,
    near_enough,
    nearer,
    nearest,
    plenty,
    preferred,
    promising,
    undecided,
    why_not,
)
from edgeopt.runtime.kernels import Kernels
from edgeopt.runtime.measure import PairedLatency


@dataclass(frozen=True)
class OwnMetric:
    name: str = "top-1"
    on_float: float = 0.9


@dataclass(frozen=True)
class Bench:
    """What the judge reads of a task."""

    options: Quantize
    metric: OwnMetric | None


def bench(own: bool = False, **bars: Any) -> Any:
    return Bench(Quantize(**bars, **({"metric": "cosine"} if own else {})), OwnMetric() if own else None)  # type: ignore[arg-type]


def tried(
    sqnr_db: float,
    agreement: float | None = None,
    speedup: float | None = None,
    metric: float | None = None,
    smaller: float = 3.0,
    static: bool = True,
    kind: Kind | None = None,
    figures: tuple[Figure, ...] = (),
) -> Any:
    latency = None if speedup is None else PairedLatency(1.0, speedup, speedup - 0.01, speedup + 0.01)
    errors = (OutputReport("y", sqnr_db, 1.0, 0.0, agreement, None, kind, figures),)
    draft: Any = type("Of", (), {"mode": "static", "static": static})()
    return Tried(draft, Path("y.onnx"), errors, latency, Kernels({}, {}, {}), smaller, metric)


def test_what_is_short_of_its_bar_counts_before_sqnr_unless_the_user_says_what_counts() -> None:
    far, near = (tried(db, figures=(Figure("weakest channel", x, 10.0, "dB"),)) for db, x in ((34.0, 5.0), (30.0, 8.0)))
    better, worse = Figures.of(near), Figures.of(far)
    assert nearer(bench(), better, worse) and not nearer(bench(), worse, better)
    many = tuple(float(x) for x in range(32))
    ours, theirs = replace(near, by_sample=many), replace(far, by_sample=tuple(x + 4 for x in many))
    assert not by_chance(bench(), ours, theirs)  # it is no matter of SQNR
    asked = bench(min_sqnr=25.0)
    assert nearer(asked, worse, better) and not nearer(asked, better, worse)
    good, best = (tried(db, figures=(Figure("weakest channel", 12.0, 10.0, "dB"),)) for db in (30.0, 34.0))
    assert nearer(bench(), Figures.of(best), Figures.of(good))


# scores are equal or differ by more than what counts as equal; so are decibels
figures = st.builds(
    Figures,
    st.sampled_from([0.0, 0.5, 0.8, 0.9]),
    st.sampled_from([-math.inf, -3.0, 0.0, 9.0, 12.0, 20.0, math.inf]),
    st.sampled_from([None, 0.2, 0.8, 1.0]),
)
tasks = st.builds(
    bench,
    st.booleans(),
    **{
        "min_sqnr": st.sampled_from([-5.0, 10.0]),
        "min_agreement": st.sampled_from([0.5, 0.9]),
    },
) | st.builds(bench, st.booleans())


@given(tasks, figures)
def test_nothing_is_nearer_than_itself(task: Any, f: Figures) -> None:
    assert not nearer(task, f, f)


@given(tasks, figures, figures)
def test_of_two_at_most_one_is_nearer(task: Any, f: Figures, g: Figures) -> None:
    assert not (nearer(task, f, g) and nearer(task, g, f))


@given(tasks, figures, figures, figures)
def test_what_is_nearer_than_the_nearer_is_nearer(task: Any, f: Figures, g: Figures, h: Figures) -> None:
    if nearer(task, f, g) and nearer(task, g, h):
        assert nearer(task, f, h)


@given(tasks, figures, figures, st.floats(0.01, 5))
def test_a_gain_that_is_asked_for_only_takes_away(task: Any, f: Figures, g: Figures, gain_db: float) -> None:
    if nearer(task, f, g, gain_db):
        assert nearer(task, f, g)


def better(f: Figures, g: Figures) -> bool:
    """Whether `f` is no worse than `g` in any figure."""
    agreement = g.agreement is None or (f.agreement is not None and f.agreement >= g.agreement)
    return f.score >= g.score and f.sqnr_db >= g.sqnr_db and agreement


@given(tasks, figures, figures, figures)
def test_what_is_no_worse_in_any_figure_meets_every_bar_that_the_other_meets(
    task: Any, f: Figures, g: Figures, of: Figures
) -> None:
    if better(f, g):
        assert meets(task, f) or not meets(task, g)
        assert near_enough(task, f, of) or not near_enough(task, g, of)


@given(figures)
def test_without_bars_everything_is_near_enough_to_itself(f: Figures) -> None:
    assert near_enough(bench(), f, f) and meets(bench(), f) is None


@given(tasks, st.lists(figures, min_size=1, max_size=5))
def test_nothing_is_nearer_than_the_nearest_in_whatever_order(task: Any, given_: list[Figures]) -> None:
    results = [tried(f.sqnr_db, f.agreement, metric=f.score) for f in given_]
    kept = [nearest(task, order) for order in itertools.islice(itertools.permutations(results), 6)]
    for best in kept:
        assert not any(nearer(task, Figures.of(t), Figures.of(best)) for t in results)
    assert len({Figures.of(k) for k in kept}) == 1 or not any(
        nearer(task, Figures.of(a), Figures.of(b)) for a, b in itertools.permutations(kept, 2)
    )


NEAR, FAR = Figure("order of neighbours", 0.95, 0.9), Figure("order of neighbours", 0.85, 0.9)


@pytest.mark.parametrize(
    ("sqnr_db", "kind", "figures", "is_close"),
    [
        (math.inf, None, (), True),
        (10.0, None, (), True),
        (9.9, None, (), False),
        (-math.inf, None, (), False),
        (5.0, "embedding", (NEAR,), True),  # what counts of it is near
        (30.0, "embedding", (FAR,), False),
        (30.0, "mask", (NEAR, FAR), False),
        (9.9, "embedding", (), False),  # too few samples for its figure
        (12.0, "state", (), True),  # judged by what comes out when it is fed back, too
        (-3.0, "state", (), False),
    ],
)
def test_without_bars_close_is_by_the_figures_of_the_kind_and_else_by_decibels(
    sqnr_db: float, kind: Kind | None, figures: tuple[Figure, ...], is_close: bool
) -> None:
    result = tried(sqnr_db, None, 1.5, kind=kind, figures=figures)
    assert close(bench(), result) == good(bench(), result) == is_close
    assert ("too far from float (output y: " in why_not(bench(), result)) == (not is_close)
    assert close(bench(min_sqnr=-1000.0), result) == (sqnr_db >= -1000)  # a demand of the user's goes before


def test_outputs_after_states_were_fed_back_have_to_be_close_too() -> None:
    result = tried(30.0, None, 1.5)
    later = OutputReport("y", 3.0, 1.0, 0.0, None, None, "signal", (Figure("SI-SNR", 3.0, 10.0, "dB"),))
    far = replace(result, later=(later,))
    assert close(bench(), result) and not close(bench(), far)
    assert "output y after 20 steps: SI-SNR 3.0 dB (bar 10.0 dB)" in why_not(bench(), far)


gained = st.tuples(st.sampled_from([1.0, 1.2, 2.0]), st.sampled_from([1.3, 2.0, 3.9]), st.sampled_from([12.0, 20.0]))


@given(st.lists(gained, min_size=1, max_size=5))
def test_what_is_preferred_is_behind_no_other_in_what_was_asked(found: list[tuple[float, float, float]]) -> None:
    results = [tried(db, None, speed, smaller=smaller) for speed, smaller, db in found]
    kept = {p: preferred(bench(prefer=p), results) for p in ("balanced", "speed", "size", "accuracy")}  # type: ignore[arg-type]
    speed = [t.latency.speedup for t in results]
    assert kept["speed"].latency.speedup == max(speed) and kept["size"].smaller == max(t.smaller for t in results)
    assert kept["accuracy"].worst_sqnr_db == max(t.worst_sqnr_db for t in results)
    both = kept["balanced"].latency.speedup * kept["balanced"].smaller
    assert both * 1.05 >= max(t.latency.speedup * t.smaller for t in results)


def test_a_repair_pays_if_something_is_left_of_the_signal_and_more_could_be_gained_than_by_what_is_good() -> None:
    stored = tried(40.0, None, 1.0, smaller=3.7)
    fast, slow, gone = tried(8.0, None, 2.5), tried(8.0, None, 1.0, smaller=3.8), tried(-6.0, None, 2.5)
    assert [promising(bench(), t, [t, stored]) for t in (fast, slow, gone)] == [True, False, False]
    assert promising(bench(), gone, [gone])  # nothing else is good
    assert promising(bench(prefer="speed"), slow, [slow, stored])


def test_of_equal_gains_the_nearest_is_kept_and_of_more_gain_the_one_that_has_it() -> None:
    far, near = tried(12.0, None, 1.0, smaller=3.9), tried(40.0, None, 1.0, smaller=3.8)
    assert preferred(bench(), [far, near]) is near and preferred(bench(prefer="size"), [far, near]) is far
    assert preferred(bench(), [replace(far, smaller=4.5), near]).worst_sqnr_db == 12.0


@given(
    st.sampled_from([-3.0, 9.0, 20.0]), st.sampled_from([None, 0.4, 0.95]), st.sampled_from([None, 5.0, 10.0]),
    st.sampled_from([None, 0.5, 0.9]),
)  # fmt: skip
def test_a_demand_is_told_as_missed_exactly_where_it_is_not_met(
    sqnr_db: float, agreement: float | None, min_sqnr: float | None, min_agreement: float | None
) -> None:
    given_ = {"min_sqnr": min_sqnr, "min_agreement": min_agreement}
    task = bench(**{k: v for k, v in given_.items() if v is not None})
    result = tried(sqnr_db, agreement)
    assert bool(missed(task, result)) == (meets(task, Figures.of(result)) is False)
    assert close(task, result) == (meets(task, Figures.of(result)) is not False) or not any(given_.values())


@pytest.mark.parametrize(
    ("right", "of", "bar", "shown"),
    [(8, 8, 0.99, False), (500, 500, 0.99, True), (8, 8, 0.5, True), (95, 100, 0.95, False), (990, 1000, 0.95, True)],
)
def test_a_share_of_few_answers_shows_no_high_demand(right: int, of: int, bar: float, shown: bool) -> None:
    (output,) = tried(50.0, right / of).errors
    result = replace(tried(50.0), errors=(replace(output, agreement_interval=wilson(right / of, of)),))
    task = bench(min_agreement=bar)
    assert not missed(task, result) and bool(undecided(task, result)) == (not shown)
    assert not undecided(bench(), result)
    below = bench(min_agreement=right / of + 0.001) if right < of else task
    assert right == of or (missed(below, result) and not undecided(below, result))


def test_float_agrees_with_itself_without_samples_to_show_it() -> None:
    draft: Any = type("Of", (), {"mode": "float", "static": False})()
    (output,) = tried(50.0, 1.0).errors
    errors = (replace(output, agreement_interval=wilson(1.0, 8)),)
    kept = replace(tried(50.0, speedup=1.0), draft=draft, errors=errors)
    assert not undecided(bench(min_agreement=0.99, min_speedup=1.0), kept)


def test_a_speed_up_whose_interval_reaches_below_the_demand_is_not_shown() -> None:
    (line,) = undecided(bench(min_speedup=1.5), tried(50.0, speedup=1.505))
    assert "1.50x [1.49, 1.51]" in line or "1.50x [1.50, 1.51]" in line
    assert not undecided(bench(min_speedup=1.4), tried(50.0, speedup=1.505))
    assert not undecided(bench(min_speedup=1.6), tried(50.0, speedup=1.505))  # that is missed


@pytest.mark.parametrize(("score", "met"), [(0.9, True), (0.89, True), (0.87, False), (0.95, True)])
def test_a_metric_may_fall_by_as_much_as_was_said(score: float, met: bool) -> None:
    task = bench(own=True, max_drop=0.02)
    assert meets(task, Figures(score, 0.0, None)) is met
    assert bool(missed(task, tried(50.0, metric=score))) == (not met)
    assert ("top-1 falls by" in why_not(task, tried(50.0, metric=score))) == (not met)


def test_slower_than_float_is_not_good_however_near_it_is_and_unmeasured_is() -> None:
    fast, slow, unknown = tried(50.0, speedup=1.2), tried(50.0, speedup=0.9), tried(50.0)
    assert [good(bench(), t) for t in (fast, slow, unknown)] == [True, False, True]
    assert (
        why_not(bench(), slow) == "slower than float"
        and why_not(bench(prefer="speed"), fast) == "another one is faster"
    )
    within = replace(slow, latency=PairedLatency(1.0, 0.99, 0.95, 1.02))
    assert good(bench(), within)  # the interval does not say that float is faster


@pytest.mark.parametrize(
    ("smaller", "speedup", "static", "worth"),
    [
        (3.0, 1.0, True, True),
        (1.02, 0.99, True, False),  # close and no slower, and nothing won
        (1.02, 1.2, True, True),
        (1.02, 1.105, True, False),  # the lower bound of the interval is below
        (1.24, 1.0, True, False),
        (1.26, 0.98, True, True),
        (0.98, 3.0, True, False),  # larger than what came in
        (1.02, None, True, True),  # not measured: integers are taken for faster
        (1.02, None, False, False),
        (1.3, None, False, True),
    ],
)
def test_a_result_is_worth_having_for_its_size_or_its_speed(
    smaller: float, speedup: float | None, static: bool, worth: bool
) -> None:
    result = tried(30.0, None, speedup, smaller=smaller, static=static)
    assert gains(result) == good(bench(), result) == worth
    words = why_not(bench(), result)
    assert (
        words == "another one gains more by size and speed together"
        if worth
        else words.startswith("gains too little (")
    )
    assert ("larger than float" in words) == (smaller < 1)


@pytest.mark.parametrize("integer", [{}, {"QLinearConv": 2}])
def test_a_result_without_a_kernel_of_integers_does_not_end_the_trials(integer: dict[str, int]) -> None:
    result = replace(tried(30.0, None, 1.5), kernels=Kernels(integer, {}, {}))
    assert good(bench(), result) and plenty(bench(), result) == bool(integer)
    elsewhere = tried(30.0, None, None)  # whose kernels are not those of this machine
    assert plenty(bench(), elsewhere)


def test_what_is_nearer_is_not_kept_for_as_much_gain_where_it_is_slower() -> None:
    fast, small = tried(28.0, None, 1.1, smaller=3.5), tried(42.0, None, 1.0, smaller=3.82)
    assert preferred(bench(), [small, fast]) is fast and preferred(bench(), [fast, small]) is fast
    assert fast.latency is not None
    far, small = tried(11.0, None, 1.02, smaller=3.95), tried(42.0, None, 1.0, smaller=4.2)
    assert preferred(bench(), [far, small]) is small  # which is as good as as fast
    small = tried(42.0, None, 1.0, smaller=3.82)
    unsure = replace(fast, latency=replace(fast.latency, speedup_low=0.95))
    assert preferred(bench(), [unsure, small]) is small


@pytest.mark.parametrize(
    ("wins", "of", "chance"), [(8, 11, True), (10, 11, False), (3, 3, False), (2, 3, True), (1, 1, False)]
)
def test_what_is_nearer_on_hardly_more_than_half_of_the_samples_may_be_so_by_chance(
    wins: int, of: int, chance: bool
) -> None:
    before = replace(tried(20.0, None, 1.5), by_sample=(20.0,) * (of + 2))
    after = replace(tried(21.0, None, 1.5), by_sample=(22.0,) * wins + (19.0,) * (of - wins) + (20.0,) * 2)
    assert by_chance(bench(), after, before) == chance
    assert not by_chance(bench(min_sqnr=30.0), after, before)  # which was asked for, and not met


def test_what_is_nearer_by_less_than_half_a_decibel_may_be_so_by_chance_on_all_samples() -> None:
    before = replace(tried(20.0, None, 1.5), by_sample=(20.0,) * 40)
    found = [replace(tried(db, None, 1.5), by_sample=(db,) * 40) for db in (20.3, 20.7)]
    assert [by_chance(bench(), after, before) for after in found] == [True, False]
