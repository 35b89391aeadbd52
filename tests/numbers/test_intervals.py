"""Intervals and verdicts: on machines whose drift, bursts and luck are made up, against enumeration, and their laws."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeopt.numbers.intervals import (
    NEEDED,
    Floats,
    Interval,
    Verdict,
    bootstrap_medians,
    median_absolute_deviation,
    median_interval,
    needed,
    outliers,
    percentile,
    ratio_interval,
    steady,
    unpaired_ratio_interval,
    verdict,
    wilson,
)

LAW = settings(max_examples=40, deadline=None, derandomize=True)
MARGIN = 0.03
UP, DOWN = 1 + MARGIN, 1 / (1 + MARGIN)
TRIALS = 250
PROCESSES, ROUNDS = 5, 20

Arms = tuple[list[Floats], list[Floats]]

times_ms = st.floats(1e-2, 1e2)
ragged = st.lists(st.lists(times_ms, min_size=1, max_size=8).map(np.array), min_size=1, max_size=4)
paired = st.lists(
    st.lists(st.tuples(times_ms, times_ms), min_size=1, max_size=8).map(np.array), min_size=1, max_size=4
).map(lambda processes: ([p[:, 0] for p in processes], [p[:, 1] for p in processes]))
intervals = st.lists(st.floats(0.5, 2), min_size=3, max_size=3).map(sorted).map(lambda x: Interval(x[1], x[0], x[2]))


def machine(rng: np.random.Generator, blocks: int) -> Floats:
    """How much a machine slows each block down, in logarithms; float64 [PROCESSES, blocks].

    AR(1) noise of 2 % (0.7), drift to some 5 % at the end of a process, and bursts of 1 to 7 blocks that take 10 to
    60 % longer.
    """
    slow = np.zeros((PROCESSES, blocks))
    noise = rng.normal(size=PROCESSES) * 0.02
    for i in range(blocks):
        noise = 0.7 * noise + rng.normal(size=PROCESSES) * 0.02 * math.sqrt(1 - 0.7**2)
        slow[:, i] = noise
    slow += rng.normal(size=(PROCESSES, 1)) * 0.05 * np.linspace(0, 1, blocks)
    for process in slow:
        for start in np.flatnonzero(rng.random(blocks) < 0.03):
            process[start : start + rng.integers(1, 8)] += math.log(rng.uniform(1.1, 1.6))
    return slow


def own(rng: np.random.Generator) -> Floats:
    """An arm's own luck: 0.4 % a process (memory layout), 0.8 % a block."""
    return rng.normal(size=(PROCESSES, 1)) * 0.004 + rng.normal(size=(PROCESSES, ROUNDS)) * 0.008


def interleaved(rng: np.random.Generator, effect: float) -> Arms:
    """Block medians of two arms that took turns in random order within rounds; the second takes `effect` times as
    long.
    """
    slow = rng.permuted(machine(rng, 2 * ROUNDS).reshape(PROCESSES, ROUNDS, 2), axis=2)
    return list(np.exp(slow[..., 0] + own(rng))), list(effect * np.exp(slow[..., 1] + own(rng)))


def sequential(rng: np.random.Generator) -> Arms:
    """Block medians of the same model measured twice, one after the other; the machine drifts by some 3 % in
    between.
    """
    first, second = (list(np.exp(machine(rng, ROUNDS) + own(rng))) for _ in range(2))
    drift = math.exp(rng.normal() * 0.03)
    return first, [drift * p for p in second]


@functools.cache
def trials(effect: float) -> tuple[Interval, ...]:
    """What `ratio_interval` says in each trial."""
    rng = np.random.default_rng(0)
    return tuple(ratio_interval(*interleaved(rng, effect)) for _ in range(TRIALS))


def called(found: Sequence[Interval]) -> Counter[Verdict]:
    return Counter(verdict(x, MARGIN) for x in found)


# 250 trials at 95 % have a standard error of 1.4 %: 90 % is more than three of them below


@pytest.mark.parametrize("effect", [1.0, 1.05, 0.95])
def test_on_a_noisy_machine_the_interval_contains_the_true_ratio_as_often_as_it_says(effect: float) -> None:
    assert sum(x.low <= effect <= x.high for x in trials(effect)) >= 0.9 * TRIALS


@pytest.mark.parametrize(("effect", "name"), [(1.05, "regressed"), (0.95, "improved")])
def test_on_a_noisy_machine_a_change_of_five_percent_is_told(effect: float, name: Verdict) -> None:
    assert called(trials(effect))[name] >= 0.9 * TRIALS


def test_taking_turns_a_model_equals_itself_and_one_after_the_other_it_often_does_not() -> None:
    rng = np.random.default_rng(0)
    together = called(trials(1.0))
    apart = called([unpaired_ratio_interval(*sequential(rng)) for _ in range(TRIALS)])
    alarms, alarms_apart = (x["improved"] + x["regressed"] for x in (together, apart))
    assert alarms <= 0.05 * TRIALS
    assert alarms_apart >= 0.15 * TRIALS
    assert alarms_apart >= 5 * alarms
    assert together["equivalent"] >= 0.9 * TRIALS  # it is known, not left open


def test_a_burst_that_hits_every_second_round_does_not_move_the_ratio() -> None:
    quiet = np.linspace(1, 1.01, ROUNDS)
    load = np.where(np.arange(ROUNDS) % 2, 1.6, 1.0)
    found = ratio_interval([quiet * load], [1.05 * quiet * load])
    assert [found.low, found.value, found.high] == pytest.approx([1.05] * 3, rel=1e-12)


def every_median(processes: Sequence[Sequence[float]]) -> Mapping[float, float]:
    """Probability of each median: every way to draw the processes, and the blocks within them."""
    found: dict[float, float] = {}
    n = len(processes)
    for chosen in itertools.product(processes, repeat=n):
        ways = math.prod(len(p) ** len(p) for p in chosen)
        for blocks in itertools.product(*(b for p in chosen for b in [p] * len(p))):
            median = float(np.median(blocks))
            found[median] = found.get(median, 0.0) + 1 / n**n / ways
    return found


@pytest.mark.parametrize(
    "processes",
    [
        [[1.0, 2.0, 4.0]],
        [[1.0], [2.0, 4.0]],
        [[1.0, 8.0], [3.0], [5.0]],
        [[1.0, 2.0, 4.0], [16.0]],
        [[1.0], [2.0], [4.0]],
    ],
    ids=str,
)
def test_bootstrap_medians_are_as_frequent_as_enumeration_says(processes: list[list[float]]) -> None:
    draws = 20_000
    expected = every_median(processes)
    counts = Counter(bootstrap_medians([np.array(p) for p in processes], draws=draws).tolist())
    assert counts.keys() <= expected.keys()  # halves of binary fractions: no rounding
    for x, p in expected.items():
        assert counts[x] / draws == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / draws))


def naive_medians(processes: Sequence[Floats], rng: np.random.Generator, draws: int) -> Floats:
    """One resample after the other."""
    found = []
    for _ in range(draws):
        chosen = [processes[i] for i in rng.integers(0, len(processes), len(processes))]
        found.append(np.median(np.concatenate([rng.choice(p, len(p)) for p in chosen])))
    return np.array(found)


@pytest.mark.parametrize("lengths", [(3, 17, 40), (1, 30), (6, 5, 4, 3, 2), (25,)], ids=str)
def test_bootstrap_medians_of_ragged_processes_are_spread_like_those_of_a_plain_loop(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    processes = [rng.lognormal(rng.normal() * 0.2, 0.1, n) for n in lengths]
    draws = 3000
    ours, plain = np.sort(bootstrap_medians(processes, draws=draws)), np.sort(naive_medians(processes, rng, draws))
    at = np.concatenate([ours, plain])
    gap = np.abs(np.searchsorted(ours, at, "right") - np.searchsorted(plain, at, "right")).max() / draws
    assert gap <= 1.95 * math.sqrt(2 / draws)  # Kolmogorov-Smirnov at 0.1 %


@LAW
@given(ragged)
def test_bootstrap_medians_lie_between_the_smallest_and_the_largest_block(processes: list[Floats]) -> None:
    found = bootstrap_medians(processes, draws=50)
    blocks = np.concatenate(processes)
    assert found.shape == (50,)
    assert blocks.min() <= found.min() and found.max() <= blocks.max()  # NaN, the padding, is neither


@LAW
@given(ragged, st.integers(0, 2**32))
def test_an_interval_is_the_same_every_time_and_leaves_the_blocks_alone(processes: list[Floats], seed: int) -> None:
    before = [p.copy() for p in processes]
    assert median_interval(processes, seed) == median_interval([p.copy() for p in processes], seed)
    assert all(np.array_equal(p, q) for p, q in zip(processes, before, strict=True))


def test_the_seed_decides_what_is_drawn() -> None:
    processes = [np.random.default_rng(0).lognormal(size=30)]
    assert median_interval(processes, 1) != median_interval(processes, 2)


@LAW
@given(ragged, st.floats(1e-3, 1e3))
def test_the_interval_of_c_times_the_blocks_is_c_times_the_interval(processes: list[Floats], c: float) -> None:
    plain, scaled = median_interval(processes), median_interval([c * p for p in processes])
    # each block is rounded once, and quantiles interpolate
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(
        [c * plain.value, c * plain.low, c * plain.high], rel=1e-14
    )


def test_with_one_process_the_interval_is_that_processs_own() -> None:
    blocks = np.random.default_rng(0).lognormal(size=40)
    drawn = np.random.default_rng(1).choice(blocks, (20_000, 40))
    expected = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    found = median_interval([blocks])
    # 1000 draws leave the 2.5 % quantile uncertain by 0.5 percentage points, here less than a tenth of the interval
    assert [found.low, found.high] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_processes_that_disagree_widen_the_interval_however_quiet_each_of_them_is() -> None:
    found = median_interval([np.full(50, x) for x in (1.0, 1.01, 1.02, 1.03, 1.04)])
    assert found.high - found.low >= 0.02


@LAW
@given(ragged)
def test_the_ratio_of_blocks_to_themselves_is_exactly_one(processes: list[Floats]) -> None:
    assert ratio_interval(processes, processes) == Interval(1.0, 1.0, 1.0)


@LAW
@given(paired)
def test_the_ratio_of_b_to_a_is_the_reciprocal_of_a_to_b(arms: Arms) -> None:
    a, b = arms
    there, back = ratio_interval(a, b), ratio_interval(b, a)
    # logarithms up to ln 1e4 are rounded, and e^x makes absolute errors relative
    assert [there.value, there.low, there.high] == pytest.approx(
        [1 / back.value, 1 / back.high, 1 / back.low], rel=1e-13
    )


@LAW
@given(paired, st.integers(0, 2**32))
def test_what_slows_both_blocks_of_a_round_alike_is_not_in_the_ratio(arms: Arms, seed: int) -> None:
    a, b = arms
    rng = np.random.default_rng(seed)
    loads = [rng.uniform(1, 3, len(p)) for p in a]
    plain = ratio_interval(a, b)
    loaded = ratio_interval(
        [x * s for x, s in zip(a, loads, strict=True)], [x * s for x, s in zip(b, loads, strict=True)]
    )
    assert [loaded.value, loaded.low, loaded.high] == pytest.approx([plain.value, plain.low, plain.high], rel=1e-13)


def test_the_ratio_refuses_arms_whose_processes_do_not_pair() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio_interval([np.ones(3)], [np.ones(3), np.ones(3)])


@LAW
@given(ragged, ragged, st.floats(1e-3, 1e3))
def test_the_unpaired_ratio_is_that_of_the_medians_and_scales(a: list[Floats], b: list[Floats], c: float) -> None:
    plain, scaled = unpaired_ratio_interval(a, b), unpaired_ratio_interval(a, [c * p for p in b])
    assert plain.value == np.median(np.concatenate(b)) / np.median(np.concatenate(a))
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(
        [c * plain.value, c * plain.low, c * plain.high], rel=1e-14
    )


def test_the_unpaired_ratio_does_not_draw_the_same_blocks_for_both() -> None:
    blocks = [np.random.default_rng(0).lognormal(size=20)]
    found = unpaired_ratio_interval(blocks, blocks)
    assert found.low < found.value == 1 < found.high


def test_the_half_width_is_relative_to_the_estimate() -> None:
    assert Interval(10, 9, 12).half_width == 0.15
    assert Interval(0, -1, 1).half_width == math.inf


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (1.04, 1.05, 1.06, "regressed"),
        (1.0001, UP + 1e-9, 1.5, "regressed"),
        (1.0, 1.05, 1.06, "inconclusive"),  # 1 is in it
        (1.0001, UP, 1.5, "inconclusive"),  # not beyond the margin
        (0.94, 0.95, 0.96, "improved"),
        (0.5, DOWN - 1e-9, 0.9999, "improved"),
        (0.94, 0.95, 1.0, "inconclusive"),
        (0.5, DOWN, 0.9999, "inconclusive"),
        (0.99, 1.0, 1.01, "equivalent"),
        (1.0, 1.0, 1.0, "equivalent"),
        (DOWN, 1.0, UP, "equivalent"),
        (1.01, 1.02, UP, "equivalent"),  # surely slower, and surely by no more than the margin
        (DOWN - 1e-9, 1.0, UP, "inconclusive"),
        (DOWN, 1.0, UP + 1e-9, "inconclusive"),
        (0.5, 1.0, 2.0, "inconclusive"),
    ],
)
def test_the_verdict_and_its_borders(low: float, value: float, high: float, expected: Verdict) -> None:
    assert verdict(Interval(value, low, high), MARGIN) == expected


@LAW
@given(intervals, st.floats(0.001, 0.5))
def test_the_reciprocal_of_a_ratio_has_the_mirrored_verdict(x: Interval, margin: float) -> None:
    ends = (1, 1 + margin, 1 / (1 + margin))
    # 1 / (1 / x) may be the next number
    assume(all(abs(v - end) > 1e-12 for v in (x.low, x.value, x.high) for end in ends))
    mirror = {"regressed": "improved", "improved": "regressed"}
    found = verdict(x, margin)
    assert verdict(Interval(1 / x.value, 1 / x.high, 1 / x.low), margin) == mirror.get(found, found)


@LAW
@given(intervals, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_change_beyond_a_margin_is_beyond_every_smaller_one(x: Interval, a: float, b: float) -> None:
    small, large = sorted((a, b))
    if verdict(x, large) in ("improved", "regressed"):
        assert verdict(x, small) == verdict(x, large)
    if verdict(x, small) == "equivalent":
        assert verdict(x, large) == "equivalent"


@pytest.mark.parametrize("q", NEEDED)
def test_a_percentile_needs_as_many_times_as_make_it_likely_that_one_is_beyond_it(q: int) -> None:
    # n times all fall below the q-th percentile with probability (q/100)^n
    assert NEEDED[q] == next(n for n in itertools.count(1) if 1 - (q / 100) ** n >= 0.95)


@pytest.mark.parametrize(("q", "needed"), [(90, 29), (95, 59), (99, 299)])
def test_a_percentile_of_one_time_too_few_is_not_known(q: int, needed: int) -> None:
    times = np.random.default_rng(0).permutation(needed).astype(np.float64)
    # of 0, 1, ..., n - 1 it is q % of n - 1, up to the rounding of the interpolation
    assert percentile(times, q) == pytest.approx((needed - 1) * q / 100, rel=1e-14)
    assert percentile(times[1:], q) is None


def test_the_median_absolute_deviation_does_not_mind_half_of_the_times() -> None:
    assert median_absolute_deviation(np.array([1.0, 1, 2, 2, 4, 6, 9])) == 1
    assert median_absolute_deviation(np.array([1.0, 1, 2, 2, 4, 6e6, 9e9])) == 1


@pytest.mark.parametrize(
    ("last", "count"), [(9.0, 0), (13.0, 0), (13.001, 1), (1e9, 1)]
)  # quartiles 3 and 7: fences -3 and 13
def test_blocks_beyond_tukeys_fences_are_counted_on_both_sides(last: float, count: int) -> None:
    blocks = np.array([1, 2, 3, 4, 5, 6, 7, 8, last])
    assert outliers(blocks) == count
    assert outliers(10 - blocks) == count


@LAW
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20), st.integers(-1000, 1000), st.integers(-3, 3))
def test_outliers_do_not_depend_on_unit_or_order(blocks: list[int], shift: int, exponent: int) -> None:
    x = np.array(blocks, np.float64)  # integers and powers of two: nothing is rounded
    assert outliers(x) == outliers(2.0**exponent * x + shift) == outliers(x[::-1])


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 1.0], False),  # too few
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.0199, 1.01], True),
        ([1.0, 1.0201, 1.01], False),  # spread
        ([1.0, 1.005, 1.0099], True),
        ([1.0, 1.005, 1.0101], False),  # keeps rising
        ([1.0101, 1.005, 1.0], False),  # keeps falling
        ([1.0, 1.0, 1.0199], True),  # a step is no trend
        ([9.0, 5.0, 3.0, 1.0, 1.01, 1.0], True),  # only the last three count
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.1], False),
    ],
)
def test_three_windows_are_steady_when_they_are_close_and_go_nowhere(windows: list[float], expected: bool) -> None:
    assert steady(windows) is expected


@LAW
@given(st.lists(st.floats(0.98, 1.02), min_size=3, max_size=3), st.lists(times_ms, max_size=3), st.integers(-20, 20))
def test_steadiness_depends_on_neither_unit_nor_direction_nor_what_was_before(
    windows: list[float], before: list[float], exponent: int
) -> None:
    scaled = [math.ldexp(x, exponent) for x in windows]
    assert steady(windows) == steady(windows[::-1]) == steady([*before, *windows]) == steady(scaled)


@given(st.floats(0.5, 1.0), st.floats(0.05, 0.999))
def test_about_as_many_samples_as_are_needed_show_a_share(share: float, level: float) -> None:
    n = needed(share, level)
    if n is None or share - level < 1e-6:
        assert n is None or share > level
        return
    assert wilson(share, n).low >= level
    assert n <= 5 or wilson(share, int(n / 1.06)).low < level
