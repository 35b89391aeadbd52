"""Efforts: each is at least as near to float as the one before it, and the search says what it tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import quantize
from edgeopt.data import Feed
from edgeopt.errors import DataError, EdgeoptError, ValidityError
from edgeopt.listener import Listener
from edgeopt.quantization.candidates import Draft, draft, settled
from edgeopt.quantization.check import Tried, verify
from edgeopt.quantization.front import front
from edgeopt.quantization.journal import journal, journal_of
from edgeopt.quantization.moves import MOVES, Move
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.report import Report
from edgeopt.quantization.search import Attempt, Search, own_time, start
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import Grids, Round
from edgeopt.runtime.measure import PairedLatency
from tests import tiny
from tests.models import Ears, normal
from tests.quantization.tasks import like, made_of, task_of
from tests.quantization.test_sensitivity import chain

CORRELATED = normal(16, 16, seed=9)
FEEDS = [{"x": normal(16, 16, seed=i) @ CORRELATED + 1} for i in range(80)]


def report(effort: str, **more: object) -> Report:
    # the portable target gives the same integers on every machine
    choices = {"mode": "static", "include": ("Gemm",), "measure": False, "target": "cpu-portable", **more}
    return quantize(chain(), FEEDS, effort=effort, samples=48, **choices).report


def test_what_layers_read_makes_rounding_better_than_the_nearest() -> None:
    # correlated inputs with a mean: what GPTQ and bias correction are for
    assert report("normal").worst_sqnr_db > report("fast").worst_sqnr_db + 1


def test_the_same_samples_give_the_same_bytes() -> None:
    made = [quantize(chain(), FEEDS, mode="static", include=("Gemm",), measure=False).model for _ in range(2)]
    weights = [
        {n: v.const_value.numpy() for n, v in m.graph.initializers.items() if v.const_value is not None} for m in made
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(a, weights[1][n]) for n, a in weights[0].items())


def test_a_search_is_never_further_off_and_its_log_tells_every_move() -> None:
    found = report("high", budget_s=20.0)
    assert found.worst_sqnr_db >= report("normal").worst_sqnr_db - 0.5  # more samples for GPTQ may cost a little here
    moves = [n for n in found.notes if n.startswith("search: ") and " dB (" in n]
    assert any("ranges by minmax" in m for m in moves)
    assert all(m.endswith(("kept", "no gain", "slower", "no faster", "too far from float")) for m in moves)


def test_without_time_the_first_result_stands() -> None:
    found = report("high", budget_s=1e-6)
    assert found.mode == "static" and not any("ranges by" in n for n in found.notes)


@pytest.mark.parametrize(
    ("choices", "message"), [({"effort": "hi"}, "did you mean 'high'"), ({"budget_s": 0.0}, "budget_s 0: above 0")]
)
def test_a_wrong_choice_is_refused(choices: dict[str, object], message: str) -> None:
    with pytest.raises(EdgeoptError, match=message):
        quantize(chain(), FEEDS, **choices)


# what is kept


def searching(listener: Listener | None = None, model: bytes | None = None, **choices: Any) -> Task:
    return task_of(model or chain(), FEEDS, listener, samples=48, budget_s=30.0, **choices)


def begun(task: Task, **first: Any) -> Search:
    """A search from what the recipe with the choices `first` makes."""
    found = start(task, made_of(task, like(task, **first)))
    assert found is not None
    return found


def changed(**options: Any) -> Task:
    return replace(TASK, options=TASK.options.model_copy(update=options))


def overheard() -> tuple[Task, Ears]:
    """A task whose notes are heard."""
    ears = Ears()
    return searching(ears.listener), ears


TASK = searching()


@pytest.fixture
def search() -> Search:
    return begun(TASK)


def figures(search: Search, **given: tuple[float, float, float]) -> Callable[[str, Draft], Attempt]:
    """Points of (score, sqnr_db, speed) by what they are called, in place of what the clock and the samples say."""
    return lambda what, made: Attempt(what, made, *given[what])


@pytest.mark.parametrize(
    ("first", "new", "verdict"),
    [
        ((0, 20, 1), (0, 21, 1), "kept"),
        ((0, 20, 1), (0, 20.1, 1), "no gain"),
        ((0, 20, 1), (0, 19, 3), "no gain"),
        ((0, 20, 1), (0, 30, 0.98), "kept"),
        ((0, 20, 1), (0, 30, 0.9), "slower"),
        ((0.8, 20, 1), (0.9, 5, 1), "kept"),
        ((0.8, 20, 1), (0.7, 50, 1), "no gain"),
        ((0.8, 20, 1), (0.8, 50, 1), "kept"),
        ((0, math.inf, 1), (0, math.inf, 1), "no gain"),
        ((0, -math.inf, 1), (0, -math.inf, 1), "no gain"),
        ((0, -math.inf, 1), (0, 3, 1), "kept"),
        ((0, 20, 1), (0, math.inf, 1), "kept"),
    ],
)
def test_what_is_nearer_and_no_slower_is_kept(
    first: Any, new: Any, verdict: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.best = Attempt("first", search.first, *first)
    monkeypatch.setattr(search, "_attempt", figures(search, new=new))
    made = replace(search.first)
    assert search.consider("new", made) == verdict
    assert (search.best.draft is made) == (verdict == "kept")
    assert search.attempts[-1].what == "new"


@pytest.mark.parametrize(
    ("options", "new", "verdict"),
    [
        ({}, (0, 19.6, 1.1), "kept"),
        ({}, (0, 19.4, 1.1), "too far from float"),
        ({}, (0, 25, 1.01), "no faster"),
        ({"min_sqnr": 10.0}, (0, 12, 1.1), "kept"),
        ({"min_sqnr": 10.0}, (0, 9, 1.1), "too far from float"),
        ({"min_sqnr": 0.0}, (0, 12, 1.1), "kept"),
        ({"min_sqnr": -5.0}, (0, -3, 1.1), "kept"),
    ],
)
def test_what_is_faster_is_kept_while_it_is_near_enough(
    options: dict[str, Any], new: Any, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begun(changed(**options))
    search.best = Attempt("first", search.first, 0.0, 20.0, 1.0)
    monkeypatch.setattr(search, "_attempt", figures(search, new=new))
    assert search.consider("new", replace(search.first), faster=True) == verdict


def test_climbing_gives_models_each_nearer_than_the_one_before() -> None:
    weak = begun(TASK, range_rule="minmax", rounding="stochastic")
    before = weak.best.sqnr_db
    kept = [weak.best.sqnr_db for _ in weak.kept()]
    assert kept and kept == sorted(kept) and kept[0] > before
    assert len({a.draft.recipe for a in weak.attempts}) == len(weak.attempts)
    assert all(a.speed == 1 for a in weak.attempts)
    assert weak.best.sqnr_db == max(kept)


def test_a_model_that_is_kept_is_what_its_recipe_makes_again() -> None:
    weak = begun(TASK, range_rule="minmax", rounding="stochastic")
    for found in weak.kept():
        assert tiny.frozen(made_of(TASK, found.recipe).model) == tiny.frozen(found.model)


def test_without_time_nothing_is_tried(search: Search) -> None:
    search.deadline = -math.inf
    assert list(search.kept()) == []
    assert len(search.attempts) == 1


def test_there_is_no_search_from_what_is_not_static() -> None:
    assert start(TASK, Draft("fp16", TASK.start)) is None


def test_there_is_no_search_without_samples_to_select_by(search: Search) -> None:
    assert start(replace(TASK, start=replace(TASK.start, samples=())), search.first) is None


ARGMAX = """g (float[N,16] x) => (int64[N] y) {
    [first] a = Gemm <transB = 1> (x, w1, b1)
    r = Relu(a)
    [second] b = Gemm <transB = 1> (r, w2, b2)
    y = ArgMax <axis = 1, keepdims = 0> (b)
}"""


def test_where_no_output_is_a_float_no_move_is_better_than_another() -> None:
    weights = {"w1": normal(32, 16), "w2": normal(32, 32, seed=1), "b1": normal(32, seed=3), "b2": normal(32, seed=4)}
    # of exact sums: with weights of 7 bits a class is another here and there, which a move mends
    search = begun(searching(model=tiny.proto(ARGMAX, **weights).SerializeToString(), target="cpu-x86-vnni"))
    assert list(search.kept()) == []
    assert search.best.draft is search.first


# samples and metrics that fail


def torn(bad: set[int], count: int = 128) -> Iterator[Feed]:
    for i in range(count):
        yield {"x": np.zeros((16, 3), np.float32)} if i in bad else FEEDS[i % len(FEEDS)]


@pytest.mark.parametrize("effort", ["normal", "high"])
def test_a_few_samples_that_cannot_be_read_are_no_obstacle_wherever_they_lie(effort: str) -> None:
    held = 25
    feeds = list(torn({held + 3, held + 5}))  # 2 of 103 that calibrate, but 2 of the first 32
    options = {"mode": "static", "include": ("Gemm",), "measure": False, "samples": 128, "budget_s": 20.0}
    found = quantize(chain(), feeds, effort=effort, **options)
    assert found.report.mode.startswith("static")


@dataclass
class Fickle:
    """A metric that raises from its call number `last` on."""

    last: int
    calls: int = 0

    def __call__(self, run: Any) -> float:
        self.calls += 1
        if self.calls > self.last:
            raise ValueError("out of paper")
        return -float(np.abs(run(FEEDS[0])[0]).mean())


@pytest.mark.parametrize("last", [3, 4, 6])
def test_a_metric_that_raises_in_the_search_is_told_and_the_best_so_far_is_written(last: int, tmp_path: Path) -> None:
    found = report("high", metric=Fickle(last), output=tmp_path / "small.onnx", budget_s=20.0)
    assert any("out of paper" in m for m in found.missed)
    assert {f.name for f in tmp_path.iterdir()} == {"small.onnx"}


def test_a_metric_that_raises_at_the_first_result_is_an_error_in_words_and_no_model_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValidityError, match="out of paper"):
        report("high", metric=Fickle(2), output=tmp_path / "small.onnx")
    assert not [*tmp_path.iterdir()]


@dataclass
class Drifting:
    """A metric that says the same twice and rises from then on."""

    calls: int = 0

    def __call__(self, run: Any) -> float:
        self.calls += 1
        return float(max(0, self.calls - 2))


def test_a_metric_that_drifts_is_found_out_at_the_end() -> None:
    assert any("seed what is random" in m for m in report("high", metric=Drifting(), budget_s=5.0).missed)


def test_a_move_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Search._attempt

    def fails(self: Search, what: str, made: Draft) -> Attempt:
        if what == "ranges by minmax":
            raise ValidityError("output 'y' is not finite")
        return real(self, what, made)

    monkeypatch.setattr(Search, "_attempt", fails)
    task, ears = overheard()
    assert [*begun(task, rounding="stochastic").kept()]
    assert ears.told("passed over: output 'y' is not finite") and ears.told("layers equalized")


def test_many_moves_that_are_a_little_slower_do_not_add_up(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter(0.98**i for i in range(1, 9))
    accuracy = iter(range(21, 29))
    monkeypatch.setattr(
        search, "_attempt", lambda what, made: Attempt(what, made, 0.0, float(next(accuracy)), next(speeds))
    )
    search.best = Attempt("first", search.first, 0.0, 20.0, 1.0)
    verdicts = [search.consider("new", replace(search.first)) for _ in range(8)]
    assert verdicts == ["kept"] + 7 * ["slower"]


@pytest.mark.parametrize(("speed", "verdict"), [(0.9, "kept"), (0.5, "kept"), (0.4, "slower")])
def test_a_repair_may_cost_speed_as_long_as_the_result_beats_float(
    speed: float, verdict: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.enough = 0.5  # of the first model, which is twice as fast as float
    search.best = Attempt("first", search.first, 0.0, 8.0, 1.0)
    monkeypatch.setattr(search, "_attempt", lambda what, made: Attempt(what, made, 0.0, 18.0, speed))
    assert search.consider("new", replace(search.first)) == verdict


@pytest.mark.parametrize(
    ("options", "figures", "verdict"),
    [
        ({"min_agreement": 0.9}, (0.0, 5.0, 1.1, 0.95), "kept"),
        ({"min_agreement": 0.9}, (0.0, 50.0, 1.1, 0.85), "too far from float"),
        ({"min_agreement": 0.9, "min_sqnr": 10.0}, (0.0, 5.0, 1.1, 0.95), "too far from float"),
    ],
)
def test_the_users_bars_decide_how_far_a_faster_model_may_be(
    options: dict[str, Any], figures: Any, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begun(changed(**options))
    monkeypatch.setattr(search, "_attempt", lambda what, made: Attempt(what, made, *figures))
    assert search.consider("new", replace(search.first), faster=True) == verdict


# what becomes of the result


def stubbed(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> None:
    """Latencies by the end of the mode, in place of the clock."""
    real = verify

    def timed(task: Task, made: Draft, path: Path) -> Tried:
        found = real(task, made, path)
        speed = next((v for k, v in speeds.items() if made.mode.endswith(k)), 1.0)
        return replace(found, latency=PairedLatency(1.0, speed, speed, speed))

    for module in ("quantize", "trials", "improve"):
        monkeypatch.setattr(f"edgeopt.quantization.{module}.verify", timed)


def found_by_search(monkeypatch: pytest.MonkeyPatch, speed: float, sqnr_db: float) -> None:
    """A search whose best is the model by minmax, said to be of this speed."""

    def run(self: Search) -> None:
        made = made_of(self.task, like(self.task, range_rule="minmax", rounding="nearest"))
        self.best = Attempt("by minmax", made, 0.0, sqnr_db, speed)

    monkeypatch.setattr(Search, "run", run)


def test_a_search_that_ends_slower_than_float_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch, {"static": 1.2, "search": 0.5})
    found_by_search(monkeypatch, 0.5, 99.0)
    found = report("high", rounding="stochastic")
    assert found.latency is not None and found.latency.speedup == 1.2 and not found.missed
    assert found.candidates[-1].verdict == "slower than float"


def test_a_result_that_stays_slower_than_float_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch, {"static": 0.5})
    found = report("high", budget_s=1e-3)
    assert found.missed == ("slower than float: 0.50x",)


@pytest.mark.parametrize(("bar", "taken"), [(20.0, True), (60.0, False), (None, False)])
def test_a_faster_model_is_taken_if_it_meets_the_bar(
    bar: float | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch, {"static": 1.2, "search": 1.7})
    found_by_search(monkeypatch, 1.4, 30.0)
    choices = {} if bar is None else {"min_sqnr": bar}
    assert (report("high", **choices).mode == "static, then search") == taken


def test_a_result_below_the_users_bar_is_repaired_in_static_mode_too() -> None:
    plain = report("fast")
    found = report("fast", min_sqnr=plain.worst_sqnr_db + 1)
    assert found.worst_sqnr_db >= plain.worst_sqnr_db + 1 and not found.missed
    assert found.mode.startswith("static, ") and any("looking for what helps" in n for n in found.notes)


def test_a_bar_that_nothing_reaches_gives_the_nearest_and_says_so() -> None:
    found = report("fast", min_sqnr=500.0, budget_s=10.0)
    assert found.worst_sqnr_db > report("fast").worst_sqnr_db and found.missed


def test_without_a_static_result_the_search_says_why_there_is_none() -> None:
    found = report("high", mode="dynamic", include=())
    assert found.mode == "dynamic" and any("search: none" in n for n in found.notes)


# a search that was killed


@dataclass
class Killed:
    """`draft` that notes each recipe, and is interrupted at call number `last`."""

    last: int
    recipes: list[Recipe]

    def __call__(self, task: Task, recipe: Recipe, mode: str) -> Draft | None:
        if len(self.recipes) == self.last:
            raise KeyboardInterrupt
        self.recipes.append(recipe)
        return draft(task, recipe, mode)


def watched(monkeypatch: pytest.MonkeyPatch, last: int) -> list[Recipe]:
    """The recipes that a search takes from now on."""
    made = Killed(last, [])
    monkeypatch.setattr("edgeopt.quantization.search.draft", made)
    return made.recipes


def high(output: Path, **more: Any) -> Any:
    choices = {"mode": "static", "include": ("Gemm",), "measure": False, "samples": 48, "budget_s": 40.0}
    return quantize(chain(), FEEDS, effort="high", range_rule="minmax", output=output, **{**choices, **more})


@pytest.mark.parametrize("last", [1, 3, 6])
def test_a_search_that_was_killed_goes_on_where_it_was_and_ends_the_same(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watched(monkeypatch, -1)
    want = high(tmp_path / "whole.onnx")
    assert {f.name for f in tmp_path.iterdir()} == {"whole.onnx"}

    before = watched(monkeypatch, last)
    part = high(tmp_path / "small.onnx").report
    assert part.interrupted and any("interrupted" in m for m in part.missed)
    assert {f.name for f in tmp_path.iterdir()} == {"whole.onnx", "small.onnx", "small.onnx.search.jsonl"}

    after = watched(monkeypatch, -1)
    ears = Ears()
    found = high(tmp_path / "small.onnx", listener=ears.listener)
    assert {f.name for f in tmp_path.iterdir()} == {"whole.onnx", "small.onnx"}
    assert (tmp_path / "small.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert found.report.worst_sqnr_db == want.report.worst_sqnr_db
    # what was kept is made again to go on from it; a few islands are the same already in one run
    known = len(ears.told("(known from before)")) - sum("(known from before)" in n for n in want.report.notes)
    kept = [n for n in want.report.notes if n.startswith("search: ") and n.endswith(", kept")]
    assert known >= last - 1 - len(kept)
    assert len(after) == len(whole) - known
    assert before == whole[: len(before)]


def test_what_was_tried_before_is_on_the_front_of_the_search_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With speeds that make every model of the first search one of the front: the less accurate the faster."""

    def timed(self: Search, what: str, made: Draft) -> Attempt:
        found = real(self, what, made)
        return replace(found, speed=1.0 if made is self.first else 2.0 - found.sqnr_db / 50)

    real = Search._attempt
    monkeypatch.setattr(Search, "_attempt", timed)
    shown: list[list[str]] = []
    monkeypatch.setattr(
        "edgeopt.quantization.improve.write_front",
        lambda task, attempts, folder, kept: shown.append([a.what for a in front(attempts)]),
    )
    high(tmp_path / "whole.onnx", pareto=tmp_path / "front")
    watched(monkeypatch, 6)
    assert high(tmp_path / "small.onnx", pareto=tmp_path / "front").report.interrupted
    watched(monkeypatch, -1)
    high(tmp_path / "small.onnx", pareto=tmp_path / "front")
    assert len(shown) == 3 and shown[0]
    assert shown[2] == shown[0]


def test_a_move_that_was_kept_is_made_again_and_one_that_was_not_is_only_told(tmp_path: Path) -> None:
    task, ears = overheard()
    first = made_of(task, like(task, range_rule="minmax", rounding="nearest"))
    one = start(task, first, tmp_path / "y.onnx")
    assert one is not None
    kept = [found.recipe for found in one.kept()]
    two = start(task, first, tmp_path / "y.onnx")
    assert two is not None
    assert two.journal.entries == one.journal.entries
    assert [found.recipe for found in two.kept()] == kept
    assert len(two.attempts) == 1 + len(kept)
    assert len(ears.told("(known from before)")) == len(one.journal.entries) - len(kept)
    assert journal(task, tmp_path / "y.onnx").entries == one.journal.entries


# the user's bars, and what goes wrong late


@pytest.mark.parametrize(
    ("best", "new", "verdict"),
    [
        ((0.0, 20.0, 1.0, 0.95), (0.0, 25.0, 1.0, 0.5), "no gain"),
        ((0.0, 20.0, 1.0, 0.5), (0.0, 19.0, 1.0, 0.95), "kept"),
        ((0.0, 20.0, 1.0, 0.95), (0.0, 25.0, 1.0, 0.92), "kept"),
        ((0.5, 20.0, 1.0, 0.95), (0.5 + 1e-12, 5.0, 1.0, 0.95), "no gain"),
    ],
)
def test_the_users_bars_go_before_everything_else(
    best: Any, new: Any, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begun(changed(min_agreement=0.9))
    search.best = Attempt("first", search.first, *best)
    monkeypatch.setattr(search, "_attempt", lambda what, made: Attempt(what, made, *new))
    assert search.consider("new", replace(search.first)) == verdict


def test_moves_that_cannot_even_be_listed_are_told_and_the_best_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(state: State, recipe: Recipe) -> Iterator[Any]:
        raise DataError("no sample can be read")
        yield

    monkeypatch.setattr("edgeopt.quantization.search.MOVES", (Move("broken", broken), *MOVES))
    found = report("high", output=tmp_path / "small.onnx", rounding="stochastic", budget_s=20.0)
    assert any("some moves cannot be tried" in n for n in found.notes) and found.mode == "static, then search"
    assert {f.name for f in tmp_path.iterdir()} == {"small.onnx"}


def test_an_output_beside_a_journal_of_another_job_is_not_written_over(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    for leftover in ('{"job": "other"}', ""):
        output.write_bytes(b"mine")
        journal_of(output).write_text(leftover, encoding="utf-8")
        for effort in ("fast", "high"):
            with pytest.raises(EdgeoptError, match="exists"):
                report(effort, output=output)
        assert output.read_bytes() == b"mine"


def test_a_search_that_goes_on_leaves_what_is_there_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, real = tmp_path / "small.onnx", Search.run
    monkeypatch.setattr(Search, "run", stopped)
    assert report("high", output=output, rounding="stochastic").interrupted
    output.write_bytes(b"the better one")
    seen: list[bytes] = []

    def look(self: Search) -> None:
        seen.append(output.read_bytes())
        stopped(self)

    monkeypatch.setattr(Search, "run", look)
    assert report("high", output=output, rounding="stochastic").interrupted
    assert seen == [b"the better one"] and output.read_bytes() == b"the better one"
    monkeypatch.setattr(Search, "run", real)
    assert report("high", output=output, rounding="stochastic", budget_s=10.0).mode == "static, then search"
    assert output.read_bytes() != b"the better one" and not journal_of(output).exists()


def stopped(self: Search) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_search_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "run", stopped)
    found = report("high", qat=True)
    assert found.interrupted and "QAT" not in found.mode and found.missed


def test_a_front_that_fails_does_not_cost_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise DataError("no")

    monkeypatch.setattr("edgeopt.quantization.improve.write_front", fails)
    before = report("high", rounding="stochastic", budget_s=10.0)
    with pytest.raises(DataError):
        report("high", rounding="stochastic", budget_s=10.0, output=tmp_path / "small.onnx", pareto=tmp_path / "front")
    assert (tmp_path / "small.onnx").stat().st_size == before.output_bytes


@pytest.mark.parametrize("name", ["0", "1", ".onnx"])
def test_an_output_may_have_any_name(name: str, tmp_path: Path) -> None:
    report("fast", mode="auto", output=tmp_path / name, min_sqnr=500.0, budget_s=1.0)
    assert {f.name for f in tmp_path.iterdir()} == {name}


# the rule of the ranges


TAIL = """g (float[N,16] x) => (float[N,8] y) {
    [first] a = Gemm <transB = 1> (x, w1, b1)
    [second] b = Gemm <transB = 1> (a, w2, b2)
    r = Relu(b)
    [third] y = Gemm <transB = 1> (r, w3)
}"""


def tail() -> bytes:
    """Only what is above 8 counts, in samples with heavy tails: just what `mse` clips."""
    weights = {"w1": np.eye(32, 16, dtype=np.float32), "w2": np.eye(32, dtype=np.float32), "w3": normal(8, 32, seed=2)}
    biases = {"b1": np.zeros(32, np.float32), "b2": np.full(32, -8, np.float32)}
    return tiny.proto(TAIL, **weights, **biases).SerializeToString()


def test_the_rule_is_the_one_by_which_outputs_are_nearer_where_it_wins_clearly() -> None:
    rng = np.random.default_rng(0)
    task = task_of(tail(), [{"x": rng.standard_t(2, (64, 16)).astype(np.float32)} for _ in range(60)])
    assert settled_db(task, like(task, range_rule="minmax")) > settled_db(task, like(task, range_rule="mse")) + 10
    for what, rule in ((task, "minmax"), (searching(), "mse")):
        grids = settled(what)[0].find(Grids)
        assert grids is not None and grids.rule == rule
    assert settled(task)[0].without(Grids) == task.recipe.without(Grids)


def settled_db(task: Task, recipe: Recipe) -> float:
    made = made_of(task, recipe.without(Round))
    feeds = [read() for _, read in task.start.samples[:16]]
    want, found = (np.concatenate([tiny.run(m, f)[0] for f in feeds]) for m in (task.start.model, made.model))
    return tiny.sqnr_db(want, found)


@pytest.mark.parametrize("choices", [{"range_rule": "percentile"}, {"effort": "fast"}])
def test_a_rule_that_was_asked_for_stays(choices: dict[str, Any]) -> None:
    task = searching(**choices)
    assert settled(task) == (task.recipe, None)


def test_the_time_of_other_programs_does_not_count_for_a_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = [0.0], [0.0]
    monkeypatch.setattr("time.monotonic", lambda: wall[0])
    monkeypatch.setattr("time.process_time", lambda: cpu[0])
    monkeypatch.setattr("edgeopt.quantization.search.cores", lambda: 3)
    clock = own_time()
    found = []
    for real, own in ((10, 20), (20, 30), (30, 30), (60, 30), (60, 120)):
        wall[0], cpu[0] = real, own
        found.append(clock())
    assert found == [10, 15, 15, 20, 60]
