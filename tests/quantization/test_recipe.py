"""Recipes: what options ask for in steps, what is the same when it is written down, and what a user's own step may
do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import quantize
from edgeopt.errors import EdgeoptError, ModelError, UsageError
from edgeopt.numbers.ranges import RANGES
from edgeopt.options.quantize import Quantize
from edgeopt.ptq.reconstruct import ROUNDERS
from edgeopt.quantization.candidates import draft
from edgeopt.quantization.recipe import Recipe, from_json, load, own_step
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import (
    ORDER,
    STEPS,
    Clip,
    Equalize,
    Grids,
    Observe,
    Own,
    Place,
    Refit,
    Round,
    Smooth,
    Step,
    Write,
)
from tests import models, tiny
from tests.models import normal
from tests.quantization.tasks import like, made_of, placed, task_of
from tests.quantization.test_sensitivity import chain

FEEDS = [{"x": normal(2, 16, seed=i)} for i in range(20)]

# what options ask for


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
    step = Recipe.of(Quantize(**choices)).find(Round)
    assert (step.how if step is not None else "nearest") == rounding


def test_a_recipe_takes_what_the_options_ask_for() -> None:
    found = Recipe.of(Quantize(range_rule="minmax", clip_weights=True, equalize=True, smooth=0.25, refit=True))
    assert found.steps == (
        Equalize(),
        Smooth(alpha=0.25),
        Place(),
        Observe(),
        Grids(rule="minmax"),
        Clip(),
        Refit(how="gptq"),
        Write(),
    )
    place = Recipe.of(Quantize(costs=Path("board.json"))).find(Place)
    assert place is not None and place.measured


@pytest.mark.parametrize(
    ("choices", "form"),
    [
        ({"mode": "dynamic"}, "int8 dynamic"),
        ({"mode": "fp16"}, "fp16"),
        ({"mode": "weights"}, "int8 stored"),
        ({"mode": "weights", "bits": 4}, "int4 stored"),
    ],
)
def test_a_mode_that_is_not_static_is_one_form_everywhere(choices: Mapping[str, Any], form: Any) -> None:
    rounded = (Round(),) if form in ("int8 stored", "int4 stored") else ()
    assert Recipe.of(Quantize(**choices)).steps == (Place(form=form), *rounded, Write())


# laws

sets = st.frozensets(st.text(max_size=5), max_size=3)
kinds: dict[type[Step], st.SearchStrategy[Step]] = {
    Equalize: st.builds(Equalize),
    Smooth: st.builds(Smooth, alpha=st.floats(0, 1)),
    Place: st.builds(Place, exclude=sets, include=sets, floats=sets, dynamics=sets, measured=st.booleans()),
    Observe: st.builds(Observe),
    Grids: st.builds(
        Grids,
        rule=st.sampled_from(sorted(RANGES)),
        rules=st.frozensets(st.tuples(st.text(max_size=5), st.sampled_from(sorted(RANGES))), max_size=3),
    ),
    Clip: st.builds(Clip, samples=st.integers(1, 99)),
    Round: st.builds(Round, how=st.sampled_from(sorted(ROUNDERS)), samples=st.integers(1, 99)),
    Refit: st.builds(Refit, how=st.sampled_from(sorted(ROUNDERS))),
    Write: st.builds(Write, io_types=st.sampled_from(["keep", "fp16"])),
}
recipes = st.builds(
    lambda wanted, given: Recipe(tuple(g for w, g in zip(wanted, given, strict=True) if w)),
    st.tuples(*(st.booleans() for _ in ORDER)),
    st.tuples(*(kinds[kind] for kind in ORDER)),
)


@given(recipes)
def test_what_is_written_down_is_read_back_as_it_was(recipe: Recipe) -> None:
    found = from_json(json.loads(json.dumps(recipe.to_json())))
    assert found == recipe and found.digest == recipe.digest
    hash(recipe)


@given(recipes, recipes)
def test_recipes_are_the_same_exactly_where_their_digests_are(one: Recipe, two: Recipe) -> None:
    assert (one == two) == (one.digest == two.digest)


@given(recipes, st.sampled_from(ORDER).flatmap(lambda kind: kinds[kind]))
def test_a_step_takes_the_place_of_its_kind_or_comes_where_its_kind_belongs(recipe: Recipe, step: Step) -> None:
    found = recipe.having(step)
    assert found.find(type(step)) == step
    assert found.without(type(step)) == recipe.without(type(step))
    assert [ORDER.index(type(s)) for s in found.steps] == sorted(ORDER.index(type(s)) for s in found.steps)
    assert found.having(step) == found


# models


@pytest.mark.parametrize(
    "choices",
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
def test_every_recipe_is_near_the_float_model_and_says_what_it_is(choices: Mapping[str, Any], target: str) -> None:
    task = task_of(chain(), FEEDS, target=target)
    before = tiny.frozen(task.start.model)
    recipe = like(task, **choices)
    made = made_of(task, recipe)
    assert made.recipe == recipe and made.state.plan is not None and made.state.written
    assert made.state.plan.integer == {"first", "second", "third"}
    want, found = (np.concatenate([tiny.run(m, f)[0] for _, f in task.held]) for m in (task.start.model, made.model))
    assert tiny.sqnr_db(want, found) > 10  # few samples: some of those held out are beyond the ranges
    assert tiny.frozen(task.start.model) == before


@pytest.mark.parametrize("rounding", ROUNDERS)
def test_a_model_made_twice_has_the_same_bytes(rounding: str) -> None:
    made = [
        made_of(task, like(task, rounding=rounding, clip_weights=True))
        for task in (task_of(chain(), FEEDS) for _ in range(2))
    ]
    assert tiny.frozen(made[0].model) == tiny.frozen(made[1].model)


def test_what_recipes_share_changes_none_of_them() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"range_rule": "minmax", "rounding": "adaround", "clip_weights": True},
        {"equalize": True},
        {"smooth": 0.5, "refit": True},
    ]
    alone = []
    for given_ in choices:
        task = task_of(chain(), FEEDS)
        alone.append(tiny.frozen(made_of(task, like(task, **given_)).model))
    task = task_of(chain(), FEEDS)
    for order in (range(len(choices)), reversed(range(len(choices)))):
        for i in order:
            assert tiny.frozen(made_of(task, like(task, **choices[i])).model) == alone[i]


def test_each_rounding_gives_other_weights() -> None:
    task = task_of(chain(), FEEDS)
    assert len({tiny.frozen(made_of(task, like(task, rounding=r)).model) for r in ROUNDERS}) == len(ROUNDERS)


@pytest.mark.parametrize("choices", [{"equalize": True}, {"smooth": 0.5}, {"clip_weights": True}], ids=str)
def test_a_model_with_nothing_to_quantize_has_no_static_form(choices: Mapping[str, Any]) -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { a = Sin(x)  y = Cos(a) }"
    task = task_of(tiny.proto(text).SerializeToString(), FEEDS, include=())
    assert draft(task, like(task, **choices), "static") is None


def test_nodes_get_the_form_that_their_placement_says_and_others_none() -> None:
    task = task_of(chain(), FEEDS)
    made = made_of(task, placed(task.recipe, floats=frozenset({"first"}), dynamics=frozenset({"second"})))
    assert made.state.plan is not None
    assert {n: f for n, f in made.state.plan.forms.items() if n in ("first", "second", "third")} == {
        "first": "int8 stored",  # computes in floats, of weights that take no more space than the others'
        "second": "int8 dynamic",
        "third": "int8 static",
    }
    operators = tiny.operators(made.model)
    assert operators.count("MatMulInteger") == 1 and "Gemm" in operators


# order


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((Observe(),), "step observe: there is nothing in `plan` yet; place comes before it"),
        ((Place(), Grids(), Write()), "step grids: there is nothing in `statistics` yet; observe comes before it"),
        ((Grids(),), "step grids: there is nothing in `plan` yet"),
        ((Place(), Observe(), Round()), "step round: there is nothing in `params` yet; grids comes before it"),
        ((Write(), Place()), "step write: there is nothing in `plan` yet"),
    ],
)
def test_a_step_that_comes_too_early_is_told_with_what_it_lacks(steps: tuple[Step, ...], words: str) -> None:
    task = task_of(chain(), FEEDS)
    with pytest.raises(UsageError, match=words):
        Recipe(steps)(task.start)


# files

TOML = """
[[steps]]
step = "place"
include = ["first", "second", "third"]
[[steps]]
step = "observe"
[[steps]]
step = "grids"
rule = "minmax"
[[steps]]
step = "write"
"""


def test_a_recipe_of_a_file_makes_the_model_of_the_same_steps_in_python(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML, encoding="utf-8")
    steps = (Place(include=frozenset({"first", "second", "third"})), Observe(), Grids(rule="minmax"), Write())
    assert load(tmp_path / "mine.toml") == Recipe(steps)
    found, same = (quantize(chain(), FEEDS, recipe=r, measure=False) for r in (tmp_path / "mine.toml", Recipe(steps)))
    assert tiny.frozen(found.model) == tiny.frozen(same.model)
    assert found.report.mode == "recipe" and from_json(found.report.recipe) == Recipe(steps)


def test_the_recipe_of_a_report_makes_the_model_again() -> None:
    options: dict[str, Any] = {"mode": "static", "include": ("Gemm",), "measure": False, "clip_weights": True}
    first = quantize(chain(), FEEDS, **options)
    again = quantize(chain(), FEEDS, recipe=from_json(first.report.recipe), measure=False)
    assert tiny.frozen(again.model) == tiny.frozen(first.model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[steps]]\nstep = "plaice"', r"step 1: no step 'plaice'; did you mean 'place'\? Known: equalize"),
        ('[[steps]]\nrule = "mse"', r"step 1: no step ''"),
        ('[[steps]]\nstep = "grids"\nrul = "mse"', r"step 1 \(grids\): no option 'rul'; did you mean 'rule'"),
        ('[[steps]]\nstep = "grids"\nrule = "best"', r"step 1 \(grids\): rule 'best': unknown.* Known: mse"),
        ('[[steps]]\nstep = "smooth"\nalpha = 3', r"step 1 \(smooth\): alpha 3: from 0 to 1"),
        ("steps = 3", r"a list of steps"),
        ("", r"a list of steps"),
        ("[[steps]", r"mine.toml: "),
        ('[[steps]]\nstep = "place"', r"ends with the step `write`"),
        ('[[steps]]\nstep = "write"', r"step write: there is nothing in `plan` yet"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_the_step_and_what_was_meant(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        quantize(chain(), FEEDS, recipe=tmp_path / "mine.toml", output=tmp_path / "y.onnx", measure=False)
    assert {f.name for f in tmp_path.iterdir()} == {"mine.toml"}


# a step of the user's


def negated(state: State) -> State:
    """The grids and weights as they are, one bias turned round."""
    model = state.model.clone()
    bias = model.graph.initializers["b3"]
    assert bias.const_value is not None
    bias.const_value = ir.tensor(-bias.const_value.numpy(), name="b3")
    return replace(state, model=model)


def only_third(state: State) -> State:
    """A plan of fewer nodes: what was placed by hand stays."""
    assert state.plan is not None
    forms = {n: f for n, f in state.plan.forms.items() if n == "third"}
    return replace(state, plan=replace(state.plan, forms=forms))


def raises(state: State) -> State:
    raise KeyError("no such layer")


def gives_nothing(state: State) -> None:
    return None


def no_model(state: State) -> State:
    return replace(state, model="model.onnx")  # type: ignore[arg-type]


def renames(state: State) -> State:
    model = state.model.clone()
    model.graph.outputs[0].name = "other"
    return replace(state, model=model)


def refuses(state: State) -> State:
    raise ModelError("this model has no head")


OPTIONS: dict[str, Any] = {"mode": "static", "include": ("Gemm",), "measure": False, "min_sqnr": -100.0}
HERE = "tests.quantization.test_recipe"


@pytest.mark.parametrize("step", [negated, f"{HERE}:negated"])
def test_a_step_of_the_users_does_its_part(step: Any) -> None:
    plain, found = quantize(chain(), FEEDS, **OPTIONS), quantize(chain(), FEEDS, steps=(step,), **OPTIONS)
    bias, turned = (r.model.graph.initializers for r in (plain, found))
    changed = [
        n for n, v in bias.items() if v.const_value is not None and turned[n].const_value is not None
        if not np.array_equal(v.const_value.numpy(), turned[n].const_value.numpy())  # type: ignore[union-attr]
    ]  # fmt: skip
    assert changed and all("b3" in n for n in changed)
    assert found.report.recipe[-2] == {"step": "python", "call": f"{HERE}:negated"}


def test_a_plan_that_a_users_step_made_is_what_is_written() -> None:
    found = quantize(chain(), FEEDS, steps=(f"{HERE}:only_third@place",), **OPTIONS)
    assert found.report.integer_nodes == ("third",)
    assert tiny.operators(found.model).count("QuantizeLinear") <= 3


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (raises, UsageError, r"step .*:raises \(.*test_recipe.py:\d+\): KeyError: 'no such layer'"),
        (gives_nothing, UsageError, r":gives_nothing \(.*\): gives NoneType, and not the State after it"),
        (no_model, UsageError, r":no_model \(.*\): the state's model is a str, and not an onnx_ir.Model"),
        (renames, ModelError, r":renames \(.*\): changes the model's outputs from \[\('y', .*'other'"),
        (refuses, ModelError, r"this model has no head"),
        (f"{HERE}:nothing_here", UsageError, r"nothing_here"),
        ("no.such.module:f", UsageError, r"no.such.module"),
        ("raises", UsageError, r"package.module:function"),
        ("steps.py:raises", UsageError, r"as steps:raises"),
        (f"{HERE}:negated@plaice", UsageError, r"no such step; did you mean 'place'\? Known: place"),
        (3, UsageError, r"steps 3: "),
    ],
)
def test_a_step_that_goes_wrong_is_named_with_its_place_and_nothing_is_written(
    step: Any, error: type[EdgeoptError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        quantize(chain(), FEEDS, steps=(step,), output=tmp_path / "y.onnx", **OPTIONS)
    assert not [*tmp_path.iterdir()]


def test_a_users_step_comes_behind_the_one_it_names_and_has_a_name_in_all_forms() -> None:
    recipe = Recipe.of(Quantize(steps=(f"{HERE}:negated@grids", f"{HERE}:negated")))
    assert [s.step for s in recipe.steps] == ["place", "observe", "grids", "python", "round", "python", "write"]
    assert from_json(recipe.to_json()) == recipe
    assert own_step(negated).call is negated and set(STEPS) == {s.step for s in recipe.steps} | {
        "equalize", "smooth", "clip", "refit",
    }  # fmt: skip
    given_ = Own(call=negated, after="grids")
    assert own_step(given_) is given_
    assert recipe.own == (Own(call=f"{HERE}:negated", after="grids"), Own(call=f"{HERE}:negated"))


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
