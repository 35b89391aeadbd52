"""Placements are tried in the order of their speed, and those that cannot gain are not made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgeopt.hardware.target import load
from edgeopt.quantization.candidates import placements
from edgeopt.quantization.judge import pays
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.quantize import quantize
from edgeopt.quantization.steps import Place
from edgeopt.runtime.measure import PairedLatency
from tests import tiny
from tests.models import normal
from tests.quantization.test_moves import clocked, mixed

TABLE, CLOCK, WHOLE = "static", "static, placed by measured times", "static, integers everywhere"


def of_speed(monkeypatch: pytest.MonkeyPatch, speed: Mapping[str, float]) -> None:
    """The clock says that placements are so many times as fast as that by the table, within a thousandth."""

    def told(sessions: Mapping[str, Any], *args: Any, **more: Any) -> dict[str, PairedLatency]:
        return {n: PairedLatency(1.0, speed[n], speed[n] - 0.001, speed[n] + 0.001) for n in sessions}

    monkeypatch.setattr("edgeopt.quantization.candidates.interleaved", told)


def three(**choices: Any) -> Task:
    """A task in which the table places all but `deep` in integers, and the clock nothing but `deep`."""
    known = load("cpu-x86-vnni")
    thin = {name: cost for name, cost in known.cost.items() if not name.startswith("Conv.")}
    target = known.model_copy(update={"cost": thin})
    return clocked(mixed(mode="auto", target=target, **choices), wide=2.0, deep=0.1, last=2.0)


@pytest.mark.parametrize(
    ("by_clock", "whole", "order"),
    [
        (1.2, 1.1, [CLOCK, WHOLE, TABLE]),
        (1.1, 1.2, [WHOLE, CLOCK, TABLE]),
        (1.0, 1.2, [WHOLE, TABLE]),
        (0.9, 0.8, [TABLE]),
    ],
)
def test_the_fastest_placement_is_first_and_none_is_behind_the_tables(
    by_clock: float, whole: float, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_speed(monkeypatch, {TABLE: 1.0, CLOCK: by_clock, WHOLE: whole, "float": 0.5})
    found = placements(three())
    assert [p.name for p in found] == order
    speeds = {TABLE: 1.0, CLOCK: by_clock, WHOLE: whole}
    assert all(p.speedup == pytest.approx(speeds[p.name] / 0.5) for p in found)


def test_by_the_table_alone_no_times_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    of_speed(monkeypatch, {TABLE: 1.0, CLOCK: 9.0, WHOLE: 1.2, "float": 0.5})
    assert [p.name for p in placements(three(costs="table"))] == [WHOLE, TABLE]


def test_without_a_clock_the_recipe_is_the_only_placement() -> None:
    task = mixed(mode="auto")
    (only,) = placements(task)
    assert only.name == TABLE and only.place == task.recipe.find(Place) and only.speedup is None and pays(task, only)


@pytest.mark.parametrize(("of_float", "prefer", "worth"), [(0.9, "balanced", True), (0.98, "balanced", False),
                                                           (0.98, "speed", True), (1.1, "speed", False)])  # fmt: skip
def test_a_placement_pays_if_it_is_faster_than_stored_weights_can_be(
    of_float: float, prefer: str, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_speed(monkeypatch, {TABLE: 1.0, CLOCK: 0.5, WHOLE: 0.5, "float": of_float})
    task = three(prefer=prefer)
    (only,) = placements(task)
    assert pays(task, only) == worth


def test_placements_no_faster_than_float_are_told_and_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    of_speed(monkeypatch, {TABLE: 1.0, CLOCK: 1.3, WHOLE: 1.2, "float": 2.0})
    report = quantize(mixed().source, tiny.feeds(12, x=(1, 16, 8, 8)), costs="table").report
    passed = [c.mode for c in report.candidates if c.verdict == "no faster than float, so not made"]
    assert report.mode == "weights" and passed and {*passed} <= {TABLE, WHOLE}


def test_four_bits_are_rounded_by_what_layers_read() -> None:
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((64, 64)).astype(np.float32)
    model = tiny.proto("g (float[N,64] x) => (float[N,48] y) { y = MatMul(x, w) }", w=normal(64, 48))
    feeds = [{"x": rng.standard_normal((8, 64)).astype(np.float32) @ mix} for _ in range(40)]
    db = {}
    for how in ("nearest", "gptq"):
        report = quantize(model, feeds, mode="weights", bits=4, rounding=how, measure=False).report
        assert 64 * 48 / 2 <= report.bytes_after["int4"] < 64 * 48
        db[how] = report.worst_sqnr_db
    assert db["gptq"] > db["nearest"] + 1.5
