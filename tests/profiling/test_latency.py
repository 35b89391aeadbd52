"""What blocks say of an arm and of two: figures against plain NumPy, pairs by process and round, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import WorkerError
from edgeopt.numbers.intervals import median_interval, outliers, percentile, ratio_interval
from edgeopt.profiling.arms import PRESETS, Arm, Preset
from edgeopt.profiling.latency import (
    Timing,
    cold,
    contended,
    failing,
    paired,
    precise,
    raw,
    series,
    summary,
)
from edgeopt.profiling.results import Block, Latency, Range

LAW = settings(max_examples=40, deadline=None, derandomize=True)
PRESET = replace(PRESETS["quick"], precision=0.02)
Key = tuple[int, int]

keys = st.tuples(st.integers(0, 3), st.integers(0, 5))
rounds = st.dictionaries(keys, st.integers(1, 10**9), max_size=12)
runs_ns = st.lists(st.integers(1, 10**9), min_size=1, max_size=6)


def timing(
    blocks_ns: Mapping[Key, int | Sequence[int]], busy: Collection[Key] = (), starts_s: Sequence[float] | None = None
) -> Timing:
    """An arm whose inferences took `blocks_ns`, by process and round; one number is a block of one inference."""
    t = Timing(Arm(Path("m.onnx"), label="m"), Path("feeds"))
    for key, found in blocks_ns.items():
        times = np.array([found] if isinstance(found, int) else found, np.int64)
        t.times.append(times)
        t.blocks.append(
            Block(
                process=key[0],
                round=key[1],
                runs=len(times),
                median_ms=float(np.median(times)) / 1e6,
                contended=key in busy,
            )
        )
    t.starts_s = [float(i) for i in range(len(t.blocks))] if starts_s is None else list(starts_s)
    return t


def steadily(ms: float, spread: float = 0.0, rounds: int = 20, seed: int = 0) -> Timing:
    """Three processes of blocks that vary by `spread`."""
    rng = np.random.default_rng(seed)
    return timing({(p, r): round(1e6 * ms * math.exp(spread * rng.normal())) for p in range(3) for r in range(rounds)})


def interval_width(a: Timing, b: Timing) -> float:
    pairs = paired(a, b)
    assert pairs is not None
    return ratio_interval(*pairs).half_width


def summed(t: Timing, preset: Preset = PRESET) -> Latency:
    found = summary(t, preset)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wait_ns", "switches", "expected"),
    [(0, 0, False), (20, 0, False), (21, 0, True), (0, 9, False), (None, 0, False), (None, 1, True)],
)
def test_a_block_is_contended_by_its_wait_or_by_its_switches_where_the_wait_is_not_known(
    wait_ns: int | None, switches: int, expected: bool
) -> None:
    assert contended(wait_ns, switches, 1000) is expected


@LAW
@given(rounds)
def test_block_medians_are_grouped_by_process_in_the_order_of_rounds(blocks: dict[Key, int]) -> None:
    found = timing(blocks).medians()
    expected = [
        [ns / 1e6 for (p, _), ns in blocks.items() if p == process] for process in sorted({p for p, _ in blocks})
    ]
    assert [list(x) for x in found] == expected


@LAW
@given(rounds, rounds)
def test_pairs_are_the_rounds_that_both_have(ours: dict[Key, int], theirs: dict[Key, int]) -> None:
    found = paired(timing(ours), timing(theirs))
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        assert found is None
        return
    assert found is not None
    left, right = found
    for side, blocks in ((left, ours), (right, theirs)):
        assert [list(x) for x in side] == [
            [blocks[k] / 1e6 for k in shared if k[0] == process] for process in sorted({p for p, _ in shared})
        ]


@LAW
@given(rounds, rounds, st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_in_which_blocks_ran(
    ours: dict[Key, int], theirs: dict[Key, int], random: Random
) -> None:
    items = list(theirs.items())
    random.shuffle(items)
    found, shuffled = (paired(timing(ours), timing(x)) for x in (theirs, dict(items)))
    assert str(found) == str(shuffled)


def test_a_process_in_which_one_arm_failed_at_once_is_left_out_of_the_pairs() -> None:
    found = paired(timing({(0, 0): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4}), timing({(1, 0): 5, (1, 1): 6, (2, 1): 7}))
    assert found is not None
    left, right = found
    assert [x.tolist() for x in left] == [[2e-6, 3e-6]] and [x.tolist() for x in right] == [[5e-6, 6e-6]]


def test_arms_whose_blocks_do_not_vary_are_precise() -> None:
    assert precise([steadily(1.0), steadily(2.0)], PRESET)


def test_one_arm_that_varies_too_much_is_not_precise() -> None:
    wide = steadily(1.0, spread=0.3)
    assert median_interval(wide.medians()).half_width > PRESET.precision
    assert not precise([wide], PRESET)
    assert not precise([steadily(1.0), wide], PRESET)
    assert not precise([wide, steadily(1.0)], PRESET)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_precise_is_a_half_width_of_at_most_what_the_preset_asks_for(factor: float) -> None:
    t = steadily(1.0, spread=0.05)
    width = median_interval(t.medians()).half_width
    assert precise([t], replace(PRESET, precision=width * factor)) is (factor > 1)


def test_narrow_medians_are_not_enough_when_the_ratio_is_wide() -> None:
    arms = [steadily(1.0, spread=0.05, seed=seed) for seed in (0, 1)]
    preset = replace(PRESET, precision=1.01 * max(median_interval(t.medians()).half_width for t in arms))
    assert all(precise([t], preset) for t in arms)
    assert not precise(arms, preset)  # two independent noises are sqrt(2) as wide


def test_a_wide_ratio_between_two_arms_that_are_not_the_reference_does_not_matter() -> None:
    reference, *others = (steadily(1.0, spread=0.05, seed=seed) for seed in (0, 1, 2))
    preset = replace(PRESET, precision=1.01 * max(interval_width(reference, t) for t in others))
    assert interval_width(*others) > preset.precision
    assert precise([reference, *others], preset)


def test_arms_without_a_common_round_are_not_precise() -> None:
    assert not precise([timing({(0, 0): 10}), timing({(0, 1): 10})], PRESET)


def test_a_short_run_is_told_in_tenths() -> None:
    t = timing(
        {(0, i): ns for i, ns in enumerate([[1, 3], [5], [2, 2, 2], [8], [4]])},
        starts_s=[7.0, 7.0625, 7.125, 7.9375, 8.0],
    )
    found = series(t, 1.0)
    assert [p.at_s for p in found] == pytest.approx([0, 0.1, 0.9, 1.0], rel=1e-15)  # multiples of 0.1 are rounded
    assert [(p.p50_ms, p.runs) for p in found] == [(3e-6, 3), (2e-6, 3), (8e-6, 1), (4e-6, 1)]


def test_a_long_run_is_told_in_stretches_of_ten_seconds() -> None:
    t = timing({(0, i): 1000 for i in range(600)})
    found = series(t, 600.0)
    assert [p.at_s for p in found] == [10.0 * i for i in range(60)]
    assert {p.runs for p in found} == {10}


@LAW
@given(st.lists(st.tuples(st.floats(0, 5), runs_ns), min_size=1, max_size=10), st.floats(1, 100))
def test_a_series_has_every_inference_once_in_order(blocks: list[tuple[float, list[int]]], seconds: float) -> None:
    starts = np.cumsum([gap for gap, _ in blocks]).tolist()
    t = timing({(0, i): times for i, (_, times) in enumerate(blocks)}, starts_s=starts)
    found = series(t, seconds)
    assert sum(p.runs for p in found) == sum(len(times) for _, times in blocks)
    assert found[0].at_s == 0
    assert [p.at_s for p in found] == sorted({p.at_s for p in found})
    assert max(p.at_s for p in found) <= starts[-1] - starts[0] + 1e-9


@LAW
@given(st.dictionaries(keys, runs_ns, min_size=1, max_size=12), st.sets(keys))
def test_a_summary_is_what_numpy_says_of_the_times(blocks: dict[Key, list[int]], busy: set[Key]) -> None:
    t = timing(blocks, busy)
    found = summed(t)
    times = np.concatenate([np.array(x) for x in blocks.values()]) / 1e6
    medians = {k: float(np.median(x)) / 1e6 for k, x in blocks.items()}
    calm = [m for k, m in medians.items() if k not in busy]
    assert found.p50_ms == Range.of(median_interval(t.medians()))
    # a mean of two, or a sum in the same order, may be rounded once more
    assert found.p50_ms.value == pytest.approx(np.median([*medians.values()]), rel=1e-15)
    assert found.min_ms == times.min()
    assert found.mean_ms == pytest.approx(times.mean(), rel=1e-15)
    assert found.mad_ms == pytest.approx(np.median(np.abs(times - np.median(times))), rel=1e-15)
    assert found.throughput_per_s == pytest.approx(1e3 * len(times) / times.sum(), rel=1e-14)
    assert (found.runs, found.processes) == (len(times), len({p for p, _ in blocks}))
    assert found.contended == len(busy & blocks.keys())
    assert found.p50_uncontended_ms == (pytest.approx(np.median(calm), rel=1e-15) if calm else None)
    assert found.outliers == outliers(np.array([*medians.values()]))
    assert found.blocks == tuple(t.blocks)


@pytest.mark.parametrize(("runs", "known"), [(28, ""), (29, "90"), (59, "90 95"), (298, "90 95"), (299, "90 95 99")])
def test_a_summary_tells_the_percentiles_that_the_number_of_runs_allows(runs: int, known: str) -> None:
    times = list(range(1, runs + 1))
    found = summed(timing({(0, 0): times[: runs // 2], (0, 1): times[runs // 2 :]}))
    told = {90: found.p90_ms, 95: found.p95_ms, 99: found.p99_ms}
    assert " ".join(str(q) for q, x in told.items() if x is not None) == known
    assert told == {q: percentile(np.array(times) / 1e6, q) for q in told}


def test_nothing_measured_has_no_summary_and_no_cold_start() -> None:
    t = timing({})
    assert summary(t, PRESET) is None and cold(t) is None and raw({"m": t}) == {}


@pytest.mark.parametrize(("spread", "expected"), [(0.0, True), (0.3, False)])
def test_a_summary_says_whether_it_is_as_precise_as_was_asked_for(spread: float, expected: bool) -> None:
    assert summed(steadily(1.0, spread)).precise is expected


@pytest.mark.parametrize("steady", [True, False])
def test_a_summary_says_whether_the_warm_up_became_steady(steady: bool) -> None:
    t = steadily(1.0)
    t.steady = steady
    assert summed(t).steady is steady


def test_a_sustained_run_is_told_as_a_series_and_last_against_first() -> None:
    t = timing({(0, i): 1_000_000 + 10_000 * i for i in range(100)})
    found = summed(t, replace(PRESETS["sustained"], sustained_s=100.0))
    assert found.series == series(t, 100.0) and len(found.series) == 10
    assert found.last_to_first == pytest.approx(1.945 / 1.045, rel=1e-15)
    plain = summed(t)
    assert (plain.series, plain.last_to_first) == ((), None)


def test_a_sustained_run_that_ended_in_its_first_stretch_has_no_last_against_first() -> None:
    found = summed(timing({(0, 0): 1000}), replace(PRESETS["sustained"], sustained_s=100.0))
    assert len(found.series) == 1 and found.last_to_first is None


def test_cold_start_is_the_median_over_processes_of_each_figure() -> None:
    t = timing({})
    t.cold_ns = [
        (9_000_000, 2_000_000, 1_000_000),
        (7_000_000, 8_000_000, 3_000_000),
        (8_000_000, 3_000_000, 2_000_000),
    ]
    found = cold(t)
    assert found is not None
    assert (found.create_ms, found.first_ms, found.second_ms, found.processes) == (8, 3, 2, 3)


@LAW
@given(st.dictionaries(keys, runs_ns, min_size=1, max_size=6), st.dictionaries(keys, runs_ns, max_size=6))
def test_the_raw_times_can_be_divided_into_the_blocks_again(
    ours: dict[Key, list[int]], theirs: dict[Key, list[int]]
) -> None:
    arms = {"a": timing(ours), "b x": timing(theirs)}
    found = raw(arms)
    assert found.keys() == {f"{label}/{what}" for label, t in arms.items() if t.times for what in ("times_ns", "block")}
    for label, blocks in (("a", ours), ("b x", theirs)):
        for i, times in enumerate(blocks.values()):
            assert found[f"{label}/times_ns"][found[f"{label}/block"] == i].tolist() == times
    assert all(x.dtype == np.int64 for x in found.values())


def test_a_workers_failure_is_kept_as_the_arms() -> None:
    t = steadily(1.0)
    before = list(t.blocks)
    with failing(t):
        raise WorkerError("died")
    assert t.error == "died" and t.blocks == before


def test_a_failure_that_is_no_workers_is_not_hidden() -> None:
    t = steadily(1.0)
    with pytest.raises(ZeroDivisionError), failing(t):
        raise ZeroDivisionError
    assert t.error is None
