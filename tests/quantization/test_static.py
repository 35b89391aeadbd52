"""Static models of a tuning: what options ask for, what moves change, where placements differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import graph, quantize
from edgeopt.errors import EdgeoptError
from edgeopt.listener import Listener
from edgeopt.numbers.ranges import RANGES
from edgeopt.options.quantize import Quantize
from edgeopt.ptq.reconstruct import ROUNDERS
from edgeopt.quantization.prepare import Job, prepare
from edgeopt.quantization.static import LAST, MOVES, Statics, Tuning
from edgeopt.runtime.calibrate import observe
from edgeopt.runtime.costs import Costs, key
from edgeopt.runtime.probe import probe
from tests import models, tiny
from tests.models import normal
from tests.quantization.test_sensitivity import chain

FEEDS = [{"x": normal(2, 16, seed=i)} for i in range(20)]


def job_of(model: bytes, feeds: Any = FEEDS, **choices: Any) -> Job:
    options = Quantize(**{"mode": "static", "include": ("Gemm",), "measure": False, **choices})
    return prepare(graph.load(model), feeds, options, Listener())


# tunings


@pytest.mark.parametrize(
    ("choices", "rounding"),
    [
        ({}, "gptq"),
        ({"effort": "fast"}, "nearest"),
        ({"effort": "high"}, "gptq"),
        ({"effort": "fast", "rounding": "adaround"}, "adaround"),
        ({"rounding": "stochastic"}, "stochastic"),
    ],
)
def test_the_rounding_goes_by_effort_where_none_is_asked_for(choices: Mapping[str, Any], rounding: str) -> None:
    assert Tuning.of(Quantize(**choices)).rounding == rounding


def test_a_tuning_takes_what_the_options_ask_for() -> None:
    found = Tuning.of(Quantize(range_rule="minmax", clip_weights=True, equalize=True, smooth=0.25, refit=True))
    assert found == Tuning("minmax", "gptq", True, True, 0.25, True, frozenset(), False)
    assert Tuning.of(Quantize(costs=Path("board.json"))).measured


@pytest.mark.parametrize("move", [*MOVES, *LAST], ids=lambda m: m[0])
def test_a_move_changes_fields_of_a_tuning_to_values_that_options_take(move: tuple[str, Mapping[str, Any]]) -> None:
    what, changes = move
    assert what and changes
    assert changes.keys() <= {f.name for f in fields(Tuning)}
    Quantize(**changes)
    assert changes.get("range_rule", "mse") in RANGES
    assert replace(Tuning(rounding="nearest"), **changes) != Tuning(rounding="nearest")
    hash(replace(Tuning(), **changes))


def test_all_moves_are_different() -> None:
    assert (
        len({what for what, _ in (*MOVES, *LAST)})
        == len({repr(c) for _, c in (*MOVES, *LAST)})
        == len(MOVES) + len(LAST)
    )


# models


@pytest.mark.parametrize(
    "changes",
    [
        *({"rounding": r} for r in ROUNDERS),
        {"clip_weights": True},
        {"clip_weights": True, "rounding": "nearest"},
        {"equalize": True},
        {"smooth": 0.5},
        {"equalize": True, "smooth": 1.0, "clip_weights": True, "rounding": "adaround"},
        {"refit": True},
        {"refit": True, "clip_weights": True, "rounding": "nearest", "equalize": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["cpu-x86-avx2", "cpu-x86-vnni"])
def test_every_tuning_is_near_the_float_model_and_says_what_it_is(changes: Mapping[str, Any], target: str) -> None:
    job = job_of(chain(), target=target)
    before = tiny.frozen(job.model)
    tuning = replace(Tuning(), **changes)
    made = Statics(job).made(tuning)
    assert made is not None and made.tuning == tuning and made.plan is not None
    assert made.plan.integer == {"first", "second", "third"}
    want, found = (np.concatenate([tiny.run(m, f)[0] for _, f in job.held]) for m in (job.model, made.model))
    assert tiny.sqnr_db(want, found) > 10  # few samples: some of those held out are beyond the ranges
    assert tiny.frozen(job.model) == before


@pytest.mark.parametrize("rounding", ROUNDERS)
def test_a_model_made_twice_has_the_same_bytes(rounding: Any) -> None:
    made = [Statics(job_of(chain())).made(Tuning(rounding=rounding, clip_weights=True)) for _ in range(2)]
    assert made[0] is not None and made[1] is not None
    assert tiny.frozen(made[0].model) == tiny.frozen(made[1].model)


def test_each_rounding_gives_other_weights() -> None:
    statics = Statics(job_of(chain()))
    found = {r: statics.made(Tuning(rounding=r)) for r in ROUNDERS}
    assert len({tiny.frozen(m.model) for m in found.values() if m is not None}) == len(ROUNDERS)


def test_what_several_tunings_need_is_found_once() -> None:
    statics = Statics(job_of(chain()))
    first, second = statics.ground(Tuning()), statics.ground(Tuning("minmax", "adaround", clip_weights=True))
    assert first is second
    assert statics.ground(Tuning(equalize=True)) is not first
    statics.made(Tuning())
    assert statics.ground(Tuning()) is first


@pytest.mark.parametrize("changes", [{"equalize": True}, {"smooth": 0.5}, {"clip_weights": True}], ids=str)
def test_a_model_with_nothing_to_quantize_has_no_static_form(changes: Mapping[str, Any]) -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = Sin(x)  y = Cos(a) }"
    job = job_of(tiny.proto(text).SerializeToString(), include=())
    statics = Statics(job)
    assert statics.made(replace(Tuning(), **changes)) is None
    assert not list(statics.placements(replace(Tuning(), **changes)))


# placements

SIDE = "g (float[N,16,8,8] x) => (float[N,16,8,8] y)"
MIXED = f"""{SIDE} {{
    [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(a)
    [deep] d = Conv <group = 16, pads = [1, 1, 1, 1]> (r, dw, db)
    s = Relu(d)
    [last] c = Conv <pads = [1, 1, 1, 1]> (s, w2, b2)
    y = Add(c, r)
}}"""


def mixed(**choices: Any) -> Job:
    weights = {
        "w": normal(16, 16, 3, 3) / 12,
        "b": normal(16),
        "dw": normal(16, 1, 3, 3, seed=1) / 3,
        "db": normal(16, seed=2),
        "w2": normal(16, 16, 3, 3, seed=3) / 12,
        "b2": normal(16, seed=4),
    }
    feeds = tiny.feeds(12, x=(1, 16, 8, 8))
    return job_of(tiny.proto(MIXED, **weights).SerializeToString(), feeds, **{"include": (), **choices})


def clocked(statics: Statics, **integer: float) -> Statics:
    """`statics` with costs as if integers took so many times what floats do, by name of node; crossings are free."""
    job = statics.job
    found = probe(job.model, job.held[0][1])
    times = {key(n, found): (1e6, 1e6 * integer[str(n.name)]) for n in job.model.graph if n.name in integer}
    statics.costs = Costs("elsewhere", times, (0.0, 0.0, 0.0))
    return statics


def test_a_placement_by_the_clock_puts_each_node_where_it_is_faster() -> None:
    names = [str(n.name) for n in mixed().model.graph if n.op_type == "Conv"]
    for fast in names:
        statics = clocked(Statics(mixed()), **{n: 0.5 if n == fast else 2.0 for n in names})
        ((what, tuning),) = statics.placements(Tuning())
        made = statics.made(tuning)
        assert tuning.measured and made is not None and made.plan is not None
        assert made.plan.integer & set(names) == {fast}
        assert what.startswith("placed by measured times")


def test_a_placement_that_changes_nothing_is_none() -> None:
    base = Statics(mixed()).ground(Tuning())
    assert base is not None
    convs = {str(n.name) for n in base.model.graph if n.op_type == "Conv"}
    same = {n: 0.1 if n in base.plan.integer else 10.0 for n in convs}
    assert [*clocked(Statics(mixed()), **same).placements(Tuning())] == []
    assert [*Statics(mixed()).placements(Tuning(measured=True))] == []


def test_what_the_user_named_stays_where_it_was_put_by_the_clock() -> None:
    names = [str(n.name) for n in mixed().model.graph if n.op_type == "Conv"]
    statics = clocked(
        Statics(mixed(include=("deep",), exclude=("last",))), **{**dict.fromkeys(names, 0.5), "deep": 9.0}
    )
    base = statics.ground(Tuning(measured=True))
    assert base is not None and "deep" in base.plan.integer and "last" not in base.plan.integer


def test_nodes_left_in_float_stay_so_by_the_clock() -> None:
    names = [str(n.name) for n in mixed().model.graph if n.op_type == "Conv"]
    statics = clocked(Statics(mixed()), **dict.fromkeys(names, 0.5))
    made = statics.made(Tuning(measured=True, floats=frozenset({names[0]})))
    assert made is not None and made.plan is not None
    assert made.plan.integer & set(names) == set(names[1:])


def test_a_model_of_a_placement_keeps_the_function() -> None:
    names = [str(n.name) for n in mixed().model.graph if n.op_type == "Conv"]
    statics = clocked(Statics(mixed()), **{n: 0.5 + i for i, n in enumerate(names)})
    for _, tuning in statics.placements(Tuning()):
        made = statics.made(tuning)
        assert made is not None
        for _, feed in statics.job.held:
            assert tiny.sqnr_db(tiny.run(statics.job.model, feed)[0], tiny.run(made.model, feed)[0]) > 20


def test_samples_are_not_looked_at_again_for_another_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(n.name) for n in mixed().model.graph if n.op_type == "Conv"]
    statics = clocked(Statics(mixed()), **dict.fromkeys(names, 0.5))
    asked: list[int] = []
    real = observe
    monkeypatch.setattr(
        "edgeopt.quantization.static.observe",
        lambda model, values, *a, **k: asked.append(len(values)) or real(model, values, *a, **k),
    )
    first, second = (statics.ground(Tuning(measured=m)) for m in (False, True))
    assert first is not None and second is not None and len(asked) >= 1
    assert sum(asked) == len(first.statistics.keys() | second.statistics.keys())


def test_mixtures_make_products_dynamic_from_the_worst_to_all_and_keep_the_function() -> None:
    job = job_of(chain())
    statics = Statics(job)
    made = statics.made(Tuning())
    assert made is not None
    found = [*statics.mixtures(made)]
    sizes = [len(t.dynamics) for _, t in found]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 3 and found[-1][0] == "all products dynamic"
    for _, tuning in found[:-1]:
        mixed_one = statics.made(tuning)
        assert mixed_one is not None and mixed_one.plan is not None
        assert not mixed_one.plan.integer & tuning.dynamics
        operators = tiny.operators(mixed_one.model)
        assert operators.count("MatMulInteger") == len(tuning.dynamics)
        feed = job.calibration[0][1]()
        assert tiny.sqnr_db(tiny.run(job.model, feed)[0], tiny.run(mixed_one.model, feed)[0]) > 25


def test_the_ranges_around_the_worst_nodes_are_tried_by_the_other_rules_and_nothing_else_changes() -> None:
    statics = Statics(job_of(chain()))
    made = statics.made(Tuning())
    assert made is not None and made.plan is not None
    found = [*statics.ranges(made)]
    assert len({t for _, t in found}) == len(found) >= 2
    assert {rule for _, t in found for _, rule in t.rules} == {"percentile", "minmax"}  # mse is what they have
    everywhere = {r: statics.made(Tuning(range_rule=r)) for r in ("percentile", "minmax")}
    for what, tuning in found:
        other = statics.made(tuning)
        assert other is not None and what.startswith("ranges at ") and replace(tuning, rules=frozenset()) == Tuning()
        rules = dict(tuning.rules)
        for value, seen in other.activations.items():
            like = everywhere.get(rules.get(made.plan.grids[value], ""), made)
            assert like is not None and seen == like.activations[value]
    again = [*statics.ranges(replace(made, tuning=found[-1][1]))]
    assert found[-1][1] not in [t for _, t in again]
    assert all(rule != "mse" for _, t in again for _, rule in t.rules)  # back to the rule of all is no rule


def test_a_model_without_products_has_no_mixtures() -> None:
    statics = Statics(mixed())
    made = statics.made(Tuning())
    assert made is not None and [*statics.mixtures(made)] == []


# bad samples and odd layers

STATIC = {"mode": "static", "measure": False}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "choices",
    [{"equalize": True}, {"smooth": 0.5}, {"rounding": "adaround"}, {"clip_weights": True}, {"rounding": "stochastic"}],
    ids=str,
)
def test_a_sample_that_is_not_finite_is_refused_in_words(choices: Mapping[str, Any], bad: float) -> None:
    feeds = [dict(f) for f in FEEDS]
    feeds[-1] = {"x": np.full((2, 16), bad, np.float32)}
    with pytest.raises(EdgeoptError, match="not finite"):
        quantize(chain(), feeds, include=("Gemm",), **STATIC, **choices)


ODD = [{"equalize": True}, {"smooth": 0.5}, {"rounding": "adaround", "clip_weights": True}, {"rounding": "stochastic"}]


@pytest.mark.parametrize("choices", ODD, ids=str)
@pytest.mark.parametrize("value", [0.0, 2.0], ids=["zero", "constant"])
def test_samples_that_never_change_do_no_harm(choices: Mapping[str, Any], value: float) -> None:
    feeds = [{"x": np.full((2, 16), value, np.float32)} for _ in range(10)]
    found = quantize(chain(), feeds, include=("Gemm",), **STATIC, **choices)
    assert found.report.worst_sqnr_db > 20


@pytest.mark.parametrize("choices", ODD, ids=str)
def test_layers_of_one_channel_do_no_harm(choices: Mapping[str, Any]) -> None:
    text = """g (float[N,1,8,8] x) => (float[N,3,8,8] y) {
        a = Conv (x, s, b)
        r = Relu(a)
        c = Conv (r, t)
        q = Relu(c)
        y = Conv <pads = [1, 1, 1, 1]> (q, w)
    }"""
    weights = {"s": np.float32([[[[1.5]]]]), "b": np.float32([0.1]), "t": np.float32([[[[0.01]]]])}
    model = tiny.proto(text, w=normal(3, 1, 3, 3), **weights).SerializeToString()
    feeds = tiny.feeds(10, x=(1, 1, 8, 8))
    found = quantize(model, feeds, include=("Conv",), **STATIC, **choices)
    assert found.report.worst_sqnr_db > 20


@pytest.mark.parametrize("choices", [{"equalize": True}, {"smooth": 0.5}, {"equalize": True, "smooth": 0.5}], ids=str)
def test_weights_that_are_all_zero_do_no_harm(choices: Mapping[str, Any]) -> None:
    zeros = np.zeros((32, 32), np.float32)
    found = quantize(chain(w2=zeros), FEEDS, include=("Gemm",), **STATIC, **choices)
    assert found.report.worst_sqnr_db > 20


def test_a_classifier_of_images_takes_all_of_it_at_once() -> None:
    feeds = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(20)]
    choices = {"equalize": True, "smooth": 0.5, "clip_weights": True, "rounding": "adaround"}
    found = quantize(models.convolution(), feeds, include=("Conv", "Gemm"), **STATIC, **choices)
    assert found.report.worst_sqnr_db > 20
