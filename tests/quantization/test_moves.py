"""Moves: what each changes of a recipe, where placements differ, and that every model of one keeps the function."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgeopt.quantization.candidates import draft
from edgeopt.quantization.moves import MOVES, fronts, islands, mixtures, placements, ranges
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe, from_json
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import Grids, Place
from edgeopt.runtime.calibrate import observe
from edgeopt.runtime.costs import Costs, key
from edgeopt.runtime.meter import HereMeter
from edgeopt.runtime.probe import probe
from tests import tiny
from tests.models import normal
from tests.quantization.tasks import like, made_of, placed, task_of
from tests.quantization.test_sensitivity import chain

FEEDS = [{"x": normal(2, 16, seed=i)} for i in range(20)]


def state_of(task: Task, recipe: Recipe | None = None) -> State:
    return made_of(task, recipe).state


@pytest.mark.parametrize("move", MOVES, ids=lambda m: m.name)
def test_a_move_leads_to_other_recipes_in_words_that_can_be_written_down_and_taken(move: Any) -> None:
    task = task_of(chain(), FEEDS)
    start = like(task, rounding="stochastic")
    state = state_of(task, start)
    for what, recipe in move.moves(state, start):
        assert what and recipe != start and from_json(recipe.to_json()) == recipe
        made = draft(task, recipe, "static")
        if made is None:
            assert what == "all products dynamic"  # nothing is left that has a grid
            continue
        assert [*move.moves(made.state, recipe)] != [(what, recipe)]  # it is not offered again
        for _, feed in task.held:
            assert tiny.sqnr_db(tiny.run(task.start.model, feed)[0], tiny.run(made.model, feed)[0]) > 5


def test_all_moves_have_their_own_names_and_lead_elsewhere() -> None:
    assert len({m.name for m in MOVES}) == len(MOVES)
    task = task_of(chain(), FEEDS)
    start = like(task, rounding="stochastic")
    found = [recipe for m in MOVES for _, recipe in m.moves(state_of(task, start), start)]
    assert len(set(found)) == len(found) >= 9


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
CONVS = ("wide", "deep", "last")


def mixed(**choices: Any) -> Task:
    weights = {
        "w": normal(16, 16, 3, 3) / 12,
        "b": normal(16),
        "dw": normal(16, 1, 3, 3, seed=1) / 3,
        "db": normal(16, seed=2),
        "w2": normal(16, 16, 3, 3, seed=3) / 12,
        "b2": normal(16, seed=4),
    }
    feeds = tiny.feeds(12, x=(1, 16, 8, 8))
    return task_of(tiny.proto(MIXED, **weights).SerializeToString(), feeds, **{"include": (), **choices})


def clocked(task: Task, **integer: float) -> Task:
    """`task` with costs as if integers took so many times what floats do, by name of node; crossings are free."""
    found = probe(task.start.model, task.held[0][1])
    times = {key(n, found): (1e6, 1e6 * integer[str(n.name)]) for n in task.start.model.graph if n.name in integer}
    task.cache.costs = Costs("elsewhere", times, (0.0, 0.0, 0.0))
    start = replace(task.start, resources=replace(task.start.resources, timed=True, meter=HereMeter()))
    return replace(task, start=start)


def integer_of(state: State) -> frozenset[str]:
    assert state.plan is not None
    return state.plan.integer


def moved(task: Task) -> list[tuple[str, Recipe]]:
    return [*placements(state_of(task), task.recipe)]


def test_a_placement_by_the_clock_puts_each_node_where_it_is_faster() -> None:
    for fast in CONVS:
        task = clocked(mixed(), **{n: 0.5 if n == fast else 2.0 for n in CONVS})
        ((what, recipe),) = moved(task)
        place = recipe.find(Place)
        assert place is not None and place.measured and what.startswith("placed by measured times")
        assert integer_of(state_of(task, recipe)) & {*CONVS} == {fast}


def test_a_placement_that_changes_nothing_is_none() -> None:
    plain = mixed()
    already = integer_of(state_of(plain))
    assert moved(clocked(mixed(), **{n: 0.1 if n in already else 10.0 for n in CONVS})) == []
    timed = clocked(mixed(), **dict.fromkeys(CONVS, 0.5))
    assert [*placements(state_of(timed), placed(timed.recipe, measured=True))] == []


def test_a_search_without_a_clock_has_no_placement() -> None:
    task = clocked(mixed(), **dict.fromkeys(CONVS, 2.0))
    quiet = replace(task, start=replace(task.start, resources=replace(task.start.resources, timed=False)))
    assert moved(task) and not moved(quiet)


def test_what_the_user_named_stays_where_it_was_put_by_the_clock() -> None:
    task = clocked(mixed(include=("deep",), exclude=("last",)), **{**dict.fromkeys(CONVS, 0.5), "deep": 9.0})
    found = integer_of(state_of(task, placed(task.recipe, measured=True)))
    assert "deep" in found and "last" not in found


def test_nodes_left_in_float_stay_so_by_the_clock() -> None:
    task = clocked(mixed(), **dict.fromkeys(CONVS, 0.5))
    state = state_of(task, placed(task.recipe, measured=True, floats=frozenset({"wide"})))
    assert integer_of(state) & {*CONVS} == {"deep", "last"}
    assert state.plan is not None
    reason = "integers lose most of the accuracy here; its weights are stored as int8"
    assert state.plan.kept_float["wide"] == reason


def test_a_model_of_a_placement_keeps_the_function() -> None:
    task = clocked(mixed(), **{n: 0.5 + i for i, n in enumerate(CONVS)})
    for _, recipe in moved(task):
        made = made_of(task, recipe)
        for _, feed in task.held:
            assert tiny.sqnr_db(tiny.run(task.start.model, feed)[0], tiny.run(made.model, feed)[0]) > 20


def test_samples_are_not_looked_at_again_for_another_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    task = clocked(mixed(), **dict.fromkeys(CONVS, 0.5))
    asked: list[str] = []
    real = observe
    monkeypatch.setattr(
        "edgeopt.runtime.calibrate.observe",
        lambda model, values, *a, **k: asked.extend(values) or real(model, values, *a, **k),
    )
    for measured in (False, True, False):
        state_of(task, placed(task.recipe, measured=measured))
    assert asked and len(asked) == len(set(asked))


# mixtures, ranges, islands


def test_mixtures_make_products_dynamic_from_the_worst_to_all_and_keep_the_function() -> None:
    task = task_of(chain(), FEEDS)
    found = [*mixtures(state_of(task), task.recipe)]
    dynamics = [p.dynamics for _, r in found if (p := r.find(Place)) is not None]
    sizes = [len(d) for d in dynamics]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 3 and found[-1][0] == "all products dynamic"
    assert draft(task, found[-1][1], "static") is None  # nothing is left that has a grid
    for (_, recipe), names in [*zip(found, dynamics, strict=True)][:-1]:
        made = made_of(task, recipe)
        assert made.state.plan is not None and not made.state.plan.integer & names
        assert tiny.operators(made.model).count("MatMulInteger") == len(names)
        feed = task.start.samples[0][1]()
        assert tiny.sqnr_db(tiny.run(task.start.model, feed)[0], tiny.run(made.model, feed)[0]) > 25


def test_a_model_without_products_has_no_mixtures() -> None:
    task = mixed()
    assert [*mixtures(state_of(task), task.recipe)] == []


def test_the_ranges_around_the_worst_nodes_are_tried_by_the_other_rules_and_nothing_else_changes() -> None:
    task = task_of(chain(), FEEDS)
    plain = state_of(task)
    found = [*ranges(plain, task.recipe)]
    rules = [dict(g.rules) for _, r in found if (g := r.find(Grids)) is not None]
    assert len({r for _, r in found}) == len(found) >= 2
    assert {rule for given in rules for rule in given.values()} == {"percentile", "minmax"}  # mse is what they have
    everywhere = {r: state_of(task, like(task, range_rule=r)) for r in ("percentile", "minmax")}
    assert plain.plan is not None
    for (what, recipe), given in zip(found, rules, strict=True):
        assert what.startswith("ranges at ") and recipe.without(Grids) == task.recipe.without(Grids)
        for value in set(plain.plan.grids.values()):
            like_it = everywhere.get(given.get(value, ""), plain)
            assert state_of(task, recipe).params[value] == like_it.params[value]
    again = [g for _, r in ranges(state_of(task, found[-1][1]), found[-1][1]) if (g := r.find(Grids)) is not None]
    assert all(rule != "mse" for g in again for _, rule in g.rules)  # back to the rule of all is no rule


def test_islands_leave_more_and_more_of_the_worst_nodes_in_float() -> None:
    w = normal(32, 32, seed=1)
    w[:, 0] *= 300  # one input of `second` costs every row its grid
    task = task_of(chain(w2=w), FEEDS)
    floats = [p.floats for _, r in islands(state_of(task), task.recipe) if (p := r.find(Place)) is not None]
    assert floats and all(a < b for a, b in pairwise(floats))
    assert all(f <= {"first", "second", "third"} for f in floats)


def test_nothing_is_blamed_before_the_model_is_written() -> None:
    task = task_of(chain(), FEEDS)
    assert not [*islands(task.start, task.recipe)] and not [*ranges(task.start, task.recipe)]
    assert np.isfinite(tiny.run(state_of(task).model, task.held[0][1])[0]).all()


LOGARITHM = """g (float[N,16] x) => (float[N,16] y) {
    [front] f = MatMul(x, a)  s = Mul(f, f)  t = Add(s, least)  [log] l = Log(t)
    [one] c = MatMul(l, b)  r = Relu(c)  [two] d = MatMul(r, b)  q = Relu(d)  [three] y = MatMul(q, b)
}"""


def test_what_is_before_a_logarithm_that_makes_its_errors_larger_is_left_in_float() -> None:
    made = tiny.proto(LOGARITHM, a=normal(16, 16) / 4, b=normal(16, 16, seed=1) / 4, least=np.float32(1e-6))
    task = task_of(made.SerializeToString(), FEEDS, include=("MatMul",), target="cpu-x86-vnni")  # weights of 8 bits
    ((what, recipe),) = fronts(state_of(task), task.recipe)
    place = recipe.find(Place)
    assert place is not None and "front" in place.floats and not {"one", "two", "three"} & place.floats
    assert what.endswith("before a Log left in float")
    before, after = (made_of(task, r).model for r in (task.recipe, recipe))
    near = [
        min(tiny.sqnr_db(tiny.run(task.start.model, f)[0], tiny.run(m, f)[0]) for _, f in task.held)
        for m in (before, after)
    ]
    assert near[1] > near[0] + 1


def test_without_such_a_node_nothing_is_proposed() -> None:
    task = task_of(chain(), FEEDS)
    assert not [*fronts(state_of(task), task.recipe)] and not [*fronts(task.start, task.recipe)]
