"""Placements are tried in the order of their speed, and those that cannot gain are not made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.hardware.target import load
from edgeopt.numbers.scores import lowest_sqnr_db
from edgeopt.quantization.candidates import Sketches, placements, whole
from edgeopt.quantization.judge import may_gain, pays
from edgeopt.quantization.looking import affordable
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.quantize import quantize
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.report import Report
from edgeopt.quantization.steps import Clip, Place, Refit, Round, Step, Write
from edgeopt.quantization.trials import Trials, _by_constants, _try_placements
from edgeopt.runtime.measure import PairedLatency
from edgeopt.runtime.probe import Probe
from tests import tiny
from tests.models import normal
from tests.quantization.tasks import task_of
from tests.quantization.test_moves import clocked, mixed

TABLE, CLOCK, WHOLE = "static", "static, placed by measured times", "static, integers everywhere"


def of_speed(monkeypatch: pytest.MonkeyPatch, speed: Mapping[str, float]) -> None:
    """The clock says that placements are so many times as fast as that by the table, within a thousandth."""

    def told(sessions: Mapping[str, Any], *args: Any, **more: Any) -> dict[str, PairedLatency]:
        return {n: PairedLatency(1.0, x := speed.get(n, 1.0), x - 0.001, x + 0.001) for n in sessions}

    monkeypatch.setattr("edgeopt.runtime.meter.interleaved", told)


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


def test_a_placement_with_all_integers_of_one_that_is_too_far_is_not_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_speed(monkeypatch, {TABLE: 1.0, CLOCK: 1.2, WHOLE: 1.1, "float": 0.5})
    for module in ("judge", "trials"):
        monkeypatch.setattr(f"edgeopt.quantization.{module}.close", lambda task, t: False)
    task = three()
    trials = Trials(task, tmp_path / "m.onnx")
    _try_placements(task, trials, placements(task))
    assert [t.mode for t in trials.tried] == [CLOCK, TABLE]
    (passed,) = trials.refused
    assert passed.mode == WHOLE and CLOCK in passed.verdict and "too far from float, so not made" in passed.verdict


ALIKE = "[one] a = Gemm(r, w)  [two] b = Gemm(r, v)  y = Sub(a, b) }"


def of_a_small_difference(text: str) -> Report:
    """What becomes of a model that ends in the difference of two layers that are nearly the same."""
    w = normal(64, 64)
    weights = {"u": normal(64, 64, seed=2), "w": w, "v": w + np.float32(1e-3) * normal(64, 64, seed=1)}
    model = tiny.proto(text, **{n: x for n, x in weights.items() if f", {n})" in text})
    options = {"measure": False, "exclude": (), "target": load("cpu-x86-vnni")}
    return quantize(model, tiny.feeds(20, x=(4, 64)), **options).report  # type: ignore[arg-type]


def test_weights_are_not_rounded_by_what_layers_read_where_the_error_is_larger_than_the_signal() -> None:
    report = of_a_small_difference(f"g (float[N,64] x) => (float[N,64] y) {{ h = Gemm(x, u)  r = Relu(h)  {ALIKE}")
    assert report.mode == "weights, 2 nodes in float"
    (static,) = [c for c in report.candidates if c.mode == "static"]
    assert static.worst_sqnr_db is not None and static.worst_sqnr_db < 0
    assert "error is larger than the signal" in static.verdict


def test_where_nothing_else_is_good_it_is_made_to_be_repaired() -> None:
    report = of_a_small_difference(f"g (float[N,64] x) => (float[N,64] y) {{ r = Relu(x)  {ALIKE}")
    (made,) = [c.verdict for c in report.candidates if c.mode == "static"]
    assert "too far from float" in made  # and no longer said to be not made
    assert any("static: not made: " in n and "error is larger than the signal" in n for n in report.notes)


def test_a_metric_of_the_user_decides_what_is_hopeless_and_chance_does_not() -> None:
    text = """g (float[N,64] x) => (float[N,256] y, float[4,256] z) {
        y = Gemm(x, w)  r = RandomNormal <shape = [4, 256]> ()  z = Add(y, r)  }"""
    model = tiny.proto(text, w=np.float32(0.01) * normal(64, 256))
    options = {"measure": False, "exclude": (), "target": load("cpu-x86-vnni")}
    random = quantize(model, tiny.feeds(24, x=(4, 64)), **options).report
    assert [c.verdict for c in random.candidates if c.mode == "static"] == ["kept"]
    difference = f"g (float[N,64] x) => (float[N,64] y) {{ r = Relu(x)  {ALIKE}"
    w = normal(64, 64)
    model = tiny.proto(difference, w=w, v=w + np.float32(1e-3) * normal(64, 64, seed=1))
    judged = quantize(model, tiny.feeds(24, x=(4, 64)), metric=lambda run: 1.0, max_drop=0.5, **options).report
    assert judged.candidates[0].mode == "static" and "not made" not in judged.candidates[0].verdict


def test_layers_that_read_the_same_weights_are_spared_together() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { [a] h = MatMul(x, w)  [b] r = MatMul(h, w)  [c] y = MatMul(r, v) }"
    model = tiny.model(text, w=normal(8, 8), v=normal(8, 8, seed=1))
    assert _by_constants(model, {"a", "b", "c"}) == {frozenset("ab"), frozenset("c")}


@pytest.mark.parametrize(("columns", "worth"), [(32, False), (4096, True)])
def test_products_in_integers_are_worth_trying_by_their_size_and_their_work(columns: int, worth: bool) -> None:
    text = """g (float[N,16,16,16] x) => (float[N,M] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)  p = GlobalAveragePool(c)  f = Flatten(p)  y = MatMul(f, m) }"""
    model = tiny.proto(text, w=normal(16, 16, 3, 3), m=normal(16, columns)).SerializeToString()
    task = task_of(model, tiny.feeds(8, x=(1, 16, 16, 16)), mode="auto", include=())
    placements(task)
    task.recipe.find(Place)(task.start)  # type: ignore[misc]
    made = whole(task, "int8 dynamic")
    assert made is not None and may_gain(task, made) == worth


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


def four_bits(text: str, *more: str, **weights: np.ndarray) -> dict[str, float]:
    """SQNR of each output with four bits, rounded by what layers read; more: nodes that are left out."""
    model = tiny.proto(text, **weights)
    feeds = [{"x": normal(8, 64, seed=i) @ normal(64, 64, seed=99)} for i in range(24)]
    found = quantize(model, feeds, mode="weights", bits=4, exclude=more, measure=False).report
    return {o.output: o.sqnr_db for o in found.outputs}


def test_four_bits_leave_a_shared_bias_to_each_of_its_readers() -> None:
    text = "g (float[N,64] x) => (float[N,96] y, float[N,96] z) { y = Gemm(x, w, b)  z = Gemm(x, v, b) }"
    together = four_bits(text, w=normal(64, 96), v=normal(64, 96, seed=1), b=normal(96, seed=2))
    alone = {}
    for name in "wv":
        one = f"g (float[N,64] x) => (float[N,96] y) {{ y = Gemm(x, {name}, b) }}"
        alone[name] = four_bits(one, **{name: normal(64, 96, seed=name == "v"), "b": normal(96, seed=2)})["y"]
    assert together == pytest.approx({"y": alone["w"], "z": alone["v"]}, abs=0.5)


def test_four_bits_do_not_change_the_weight_of_who_is_left_out() -> None:
    text = """g (float[N,64] x) => (float[N,64] y, float[N,64] z, float[64,64] s) {
        [a] y = MatMul(x, w)  [b] z = MatMul(x, w)  [c] s = Add(w, w) }"""
    found = four_bits(text, "b", w=normal(64, 64))
    assert found["y"] < 60 and found["z"] == found["s"] == math.inf


@pytest.mark.parametrize("choices", [{"mode": "weights", "bits": 4}, {"prefer": "size"}])
def test_an_autoencoder_with_one_weight_both_ways_is_stored(choices: dict[str, Any]) -> None:
    text = "g (float[N,128] x) => (float[N,128] y) { h = Gemm <transB = 1> (x, w)  r = Relu(h)  y = MatMul(r, w) }"
    feeds = tiny.feeds(20, x=(4, 128))
    report = quantize(tiny.proto(text, w=normal(64, 128)), feeds, measure=False, **choices).report
    assert report.worst_sqnr_db > 10 and report.mode != "float"


@pytest.mark.parametrize("later", [Clip(), Refit()])
def test_a_recipe_of_four_bits_may_have_steps_of_integer_layers(later: Step) -> None:
    steps = Recipe((Place(form="int4 stored"), Round(), later, Write()))
    text = "g (float[N,64] x) => (float[N,96] y) { y = MatMul(x, w) }"
    report = quantize(tiny.proto(text, w=normal(64, 96)), tiny.feeds(20, x=(4, 64)), recipe=steps, measure=False).report
    assert report.worst_sqnr_db > 12


def test_by_the_table_alone_nothing_is_timed_by_node_in_repairs_either() -> None:
    feeds = tiny.feeds(12, x=(1, 16, 8, 8))
    report = quantize(
        mixed().source, feeds, mode="static", include=("Conv",), costs="table", min_sqnr=90.0, budget_s=2.0
    ).report
    assert any("looking for what helps" in n for n in report.notes)
    assert not any("timed in floats" in n or "measured times" in n for n in report.notes)


def test_stored_weights_are_tried_without_the_layer_that_loses_all() -> None:
    text = "g (float[N,64] x) => (float[N,256] y) { [bad] a = MatMul(x, w)  r = Relu(a)  [fine] y = MatMul(r, v) }"
    w = normal(64, 64)
    w[:8] *= 2e3  # of inputs that are never above 0: they leave the others no levels
    feeds = [
        {"x": np.concatenate([np.zeros((4, 8)), normal(4, 56, seed=i)], axis=1).astype(np.float32)} for i in range(24)
    ]
    model = tiny.proto(text, w=w, v=normal(64, 256, seed=1))
    report = quantize(model, feeds, measure=False, exclude=(), rounding="nearest", target=load("cpu-portable")).report
    assert report.mode == "weights, 1 node in float" and report.worst_sqnr_db > 30
    weights = next(c for c in report.candidates if c.mode == "weights")
    assert weights.worst_sqnr_db is not None and weights.worst_sqnr_db < 10
    assert report.output_bytes < report.input_bytes / 1.5


def test_a_model_with_much_work_is_looked_at_on_fewer_samples_but_on_some() -> None:
    def count(side: int, samples: int) -> int:
        image = f"float[1,64,{side},{side}]"
        model = tiny.model(
            f"g ({image} x) => ({image} y) {{ y = Conv <pads = [1,1,1,1]> (x, w) }}",
            w=np.zeros((64, 64, 3, 3), np.float32),
        )
        shape = Probe((1, 64, side, side), 0.0, 1.0)
        return affordable(model, {"x": shape, "y": shape}, samples)

    assert [count(side, 16) for side in (28, 240, 2000)] == [16, 15, 6]
    assert [count(2000, samples) for samples in (2, 6, 16)] == [2, 6, 6]


def test_ranges_alone_lose_less_than_ranges_and_weights_and_an_unknown_plan_nothing() -> None:
    task = mixed()
    sketches = Sketches(task)
    alone, both = sketches.by_activations(task.recipe), sketches.errors(task.recipe)
    assert alone is not None and both is not None
    assert lowest_sqnr_db(both) < lowest_sqnr_db(alone) < 80  # ONNX Runtime rounds float weights itself, if it may
    nothing = task.recipe.having(Place(exclude=frozenset(str(n.name) for n in task.start.source.graph)))
    assert sketches.by_activations(nothing) is None
