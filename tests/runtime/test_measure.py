"""The latency comparison on sessions whose speed is known, and the coverage of its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.numbers.intervals import median_interval
from edgeopt.runtime import measure
from edgeopt.runtime.measure import interleaved


def bootstrap_interval(x: np.ndarray, seed: int = 0) -> tuple[float, float]:
    found = median_interval([x], seed)
    return found.low, found.high


class Machine:
    """A clock that runs of sessions move, by more or less as the machine is busy; no real time passes."""

    def __init__(self, seconds: Mapping[str, float], busy: Callable[[float], float]) -> None:
        self.now, self.log, self.busy = 0.0, list[str](), busy
        self.sessions = {name: SimpleNamespace(run=partial(self.run, name, s)) for name, s in seconds.items()}

    def run(self, name: str, seconds: float, feed: object) -> None:
        self.log.append(name)
        self.now += seconds * self.busy(self.now)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    seconds: Mapping[str, float],
    *,
    total: float = 2.0,
    busy: Callable[[float], float] = lambda now: 1.0,
) -> tuple[dict[str, measure.PairedLatency], list[str]]:
    machine = Machine(seconds, busy)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    return interleaved(machine.sessions, "float", {name: {} for name in seconds}, seconds=total), machine.log


def test_speed_ups_are_ratios_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, {"float": 2e-3, "half": 4e-3, "double": 1e-3})
    for name, ms, speedup in (("float", 2, 1), ("half", 4, 0.5), ("double", 1, 2)):
        ours = found[name]
        # the clock is a float64 sum of many steps
        assert ours.latency_ms == pytest.approx(ms, rel=1e-6)
        assert [ours.speedup_low, ours.speedup, ours.speedup_high] == pytest.approx([speedup] * 3, rel=1e-6)


def test_a_machine_that_becomes_slow_for_a_while_hits_all_models_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, {"float": 2e-3, "double": 1e-3}, busy=lambda now: 3.0 if now % 1.7 < 0.6 else 1.0)
    ours = found["double"]
    assert ours.speedup == pytest.approx(2, rel=0.02)
    assert ours.speedup_low <= 2 <= ours.speedup_high and ours.speedup_high / ours.speedup_low < 1.5
    assert ours.reference_ms / ours.latency_ms == pytest.approx(ours.speedup)  # what is printed agrees with its ratio
    assert 0.99 <= ours.latency_ms <= 3.01


def test_the_models_take_turns_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, log = measured(monkeypatch, {"float": 1e-2, "b": 1e-2})
    blocks = log[20 + 2 :]  # behind the warm-up: a tenth of a second each, and what rounds up
    pairs = {tuple(blocks[i : i + 4 : 2]) for i in range(0, len(blocks) - 4, 4)}
    assert {("float", "b"), ("b", "float")} <= pairs


def test_a_slow_model_is_still_measured_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    _, log = measured(monkeypatch, {"float": 5.0, "b": 5.0}, total=0.5)
    assert log.count("float") >= 3 + 1 and log.count("b") >= 3 + 1
    assert len(log) <= 2 * (7 + 2)


@pytest.mark.parametrize("seconds", [1e-4, 1e-2])
def test_there_are_at_least_seven_rounds_as_many_for_each(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    inner = measure._latency
    count = lambda blocks, reference: (seen.append((len(blocks), len(reference))), inner(blocks, reference))[1]  # noqa: E731
    monkeypatch.setattr(measure, "_latency", count)
    measured(monkeypatch, {"float": seconds, "b": seconds}, total=0.1)
    assert len(set(seen)) == 1 and min(seen[0]) >= 7


def test_the_ratio_is_a_median_over_rounds_and_its_interval_holds_it() -> None:
    found = measure._latency([0.001, 0.001, 0.004], [0.002, 0.002, 0.002])
    assert found.latency_ms == pytest.approx(1)
    assert found.speedup == pytest.approx(2)
    assert found.speedup_low == pytest.approx(0.5) and found.speedup_high == pytest.approx(2)


def test_the_interval_of_equal_numbers_is_that_number() -> None:
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_the_interval_is_the_same_every_time() -> None:
    x = np.random.default_rng(0).standard_normal(500)
    assert bootstrap_interval(x) == bootstrap_interval(x.copy())
    assert bootstrap_interval(x, seed=1) != bootstrap_interval(x, seed=2)  # and drawn, so that this says something


@pytest.mark.parametrize("rounds", [7, 15, 40])
def test_the_interval_covers_the_median_about_as_often_as_it_says(rounds: int) -> None:
    rng = np.random.default_rng(0)
    trials = 200
    hits = 0
    for _ in range(trials):
        low, high = bootstrap_interval(rng.standard_normal(rounds) + 0.3)
        hits += low <= 0.3 <= high
    # the percentile bootstrap of 7 rounds reaches from the second to the sixth: 1 - 16 / 128 = 87.5 %; three standard
    # errors of 200 trials are 7 %, and 5 % of 95
    assert hits / trials >= {7: 0.80, 15: 0.88, 40: 0.88}[rounds]


def test_the_interval_narrows_with_more_rounds() -> None:
    rng = np.random.default_rng(0)
    widths = [np.subtract(*bootstrap_interval(rng.standard_normal(n))[::-1]) for n in (10, 1000)]
    assert widths[1] < widths[0] / 3


def test_what_an_interval_does_not_decide_is_measured_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(levels: tuple[float, ...], speed: float) -> tuple[int, measure.PairedLatency]:
        rng = np.random.default_rng(4)
        machine = Machine({"float": 2e-3, "other": 2e-3 / speed}, lambda now: 1 + float(rng.exponential(0.5)))
        monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: machine.now))
        feeds: dict[str, dict[str, np.ndarray]] = {"float": {}, "other": {}}
        found = interleaved(machine.sessions, "float", feeds, seconds=0.5, levels=levels)  # type: ignore[arg-type]
        return len(machine.log), found["other"]

    short, first = runs((), 1.04)
    assert first.speedup_low < 1.01 < first.speedup_high
    long, later = runs((0.9, 1.01), 1.04)
    assert short * 1.5 < long < short * 5
    assert later.speedup_high / later.speedup_low < first.speedup_high / first.speedup_low
    assert runs((1.01,), 2.0)[0] == runs((), 2.0)[0]
