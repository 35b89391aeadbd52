"""The journal of a search: what was written is read again, of the same job only, whatever became of the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.data import Feed
from edgeopt.files import temporary_folder
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.journal import Journal, Verdict, journal
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.steps import Clip, Equalize, Grids, Observe, Place, Refit, Smooth, Write
from edgeopt.runtime.costs import Costs
from tests import tiny
from tests.models import Ears, dense, normal
from tests.quantization.tasks import task_of
from tests.quantization.test_recipe import recipes

FEEDS = [{"x": normal(2, 4, seed=i)} for i in range(12)]
PLAIN = Recipe.of(Quantize())
RICH = Recipe(
    (
        Equalize(),
        Smooth(alpha=0.25),
        Place(exclude=frozenset({"b", "a", "é"}), dynamics=frozenset({"c"}), measured=True),
        Observe(),
        Grids(rule="minmax", rules=frozenset({("v", "minmax"), ("a", "mse")})),
        Clip(),
        Refit(how="adaround"),
        Write(),
    )
)
ENTRIES = [
    Verdict(RICH, PLAIN, "ranges by minmax", "no gain"),
    Verdict(PLAIN, RICH, "as it was", "kept"),
    Verdict(RICH, RICH, 'a "name" \\ with\nlines\u2028', "no node in integers"),
]


def journaled(model: bytes = b"", feeds: list[Feed] = FEEDS, **choices: Any) -> Task:
    return task_of(model or dense(), feeds, **choices)


TASK = journaled()


def entries(found: Journal) -> set[Verdict]:
    return {*found.entries.values()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the result would be, with a journal of all `ENTRIES` beside it."""
    path = tmp_path / "small.onnx"
    made = journal(TASK, path)
    for entry in ENTRIES:
        made.add(entry)
    return path


def beside(output: Path) -> Path:
    return output.with_name(output.name + ".search.jsonl")


def test_what_was_added_is_found_again(output: Path) -> None:
    again = journal(TASK, output)
    assert entries(again) == set(ENTRIES)
    for entry in ENTRIES:
        assert again.find(entry.recipe, entry.against) == entry
    assert again.find(PLAIN, PLAIN) is None
    assert [e.kept for e in ENTRIES] == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.builds(Verdict, recipes, recipes, st.text(), st.text()), max_size=4))
def test_any_entries_come_back_as_they_were(given_: list[Verdict]) -> None:
    with temporary_folder() as folder:
        made = journal(TASK, folder / "y.onnx")
        for entry in given_:
            made.add(entry)
        assert journal(TASK, folder / "y.onnx").entries == made.entries


def test_the_costs_that_were_measured_come_back(output: Path) -> None:
    costs = Costs("a board", {"Conv 1x2 aa": (2.0, 1.0), "Add 1x2 bb": (3.0, math.inf)}, (1.0, 2.0, 3.0))
    journal(TASK, output).keep(costs)
    found = journal(TASK, output)
    assert found.costs == costs and entries(found) == set(ENTRIES)


def test_without_an_output_it_is_in_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = journal(TASK, None)
    made.add(ENTRIES[0])
    assert made.find(RICH, PLAIN) == ENTRIES[0]
    made.remove()
    assert not list(tmp_path.iterdir())


def test_removing_deletes_the_file_and_does_so_twice(output: Path) -> None:
    made = journal(TASK, output)
    made.remove()
    made.remove()
    assert not list(output.parent.iterdir())


# another job


def alpha(value: float) -> bytes:
    text = f"g (float[N,4] x) => (float[N,4] y) {{ a = Gemm(x, w, b)  y = LeakyRelu <alpha = {value:g}> (a) }}"
    return tiny.proto(text, w=normal(4, 4), b=normal(4, seed=1)).SerializeToString()


def swapped() -> list[Feed]:
    """`FEEDS` with other samples to calibrate with and the same held out."""
    held = len(TASK.held)
    return [f if i < held else {"x": f["x"] * 3 + 1} for i, f in enumerate(FEEDS)]


OTHERS = {
    "other weights": (dense(), dense(w=normal(4, 4, seed=5)), FEEDS, {}),
    "other samples": (dense(), dense(), [{"x": f["x"] + 1} for f in FEEDS], {}),
    "fewer samples": (dense(), dense(), FEEDS[:-2], {}),
    "other samples to calibrate with": (dense(), dense(), swapped(), {}),
    "another attribute": (alpha(0.1), alpha(0.2), FEEDS, {}),
    "another target": (dense(), dense(), FEEDS, {"target": "cpu-arm64"}),
    "another range rule": (dense(), dense(), FEEDS, {"range_rule": "minmax"}),
    "another rounding": (dense(), dense(), FEEDS, {"rounding": "nearest"}),
    "a metric": (dense(), dense(), FEEDS, {"metric": lambda run: float(run(FEEDS[0])[0].mean())}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_journal_of_another_job_counts_for_nothing_and_is_written_anew(case: str, tmp_path: Path) -> None:
    mine, other, feeds, choices = OTHERS[case]
    made = journal(journaled(mine), tmp_path / "y.onnx")
    made.add(ENTRIES[0])
    ears = Ears()
    task = journaled(other, feeds, listener=ears.listener, **choices)
    assert not journal(task, tmp_path / "y.onnx").entries
    assert ears.told("the journal of another job, or of another version of edgeopt: begun anew")
    assert not journal(task, tmp_path / "y.onnx").entries
    assert len(beside(tmp_path / "y.onnx").read_text().splitlines()) == 1


def test_a_longer_budget_and_a_front_are_the_same_job(output: Path, tmp_path: Path) -> None:
    task = journaled(budget_s=77.0, effort="normal")
    assert entries(journal(task, output)) == set(ENTRIES)
    assert entries(journal(replace(task, options=task.options.model_copy(update={"budget_s": 5.0})), output)) == set(
        ENTRIES
    )


# what becomes of a file


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_last_line_that_was_cut_off_is_forgotten_and_the_rest_is_not(cut: int, output: Path) -> None:
    file = beside(output)
    file.write_bytes(file.read_bytes()[:-cut])
    assert set(ENTRIES[:2]) <= entries(journal(TASK, output)) <= set(ENTRIES)


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_what_is_added_behind_a_line_that_was_cut_off_is_not_lost(cut: int, output: Path) -> None:
    file = beside(output)
    file.write_bytes(file.read_bytes()[:-cut])
    new = Verdict(PLAIN.having(Smooth(alpha=0.75)), PLAIN, "inputs of layers smoothed", "no gain")
    journal(TASK, output).add(new)
    assert new in entries(journal(TASK, output))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_in_its_place_are_no_journal(content: bytes) -> None:
    with temporary_folder() as folder:
        beside(folder / "y.onnx").write_bytes(content)
        made = journal(TASK, folder / "y.onnx")
        assert not made.entries
        made.add(ENTRIES[0])
        assert entries(journal(TASK, folder / "y.onnx")) == {ENTRIES[0]}


LINES = [
    "",
    "{}",
    "[]",
    "null",
    "7",
    '"kept"',
    "\x00\x7f",
    "{" * 50,
    json.dumps({"recipe": None, "against": [], "what": "", "verdict": "kept"}),
    json.dumps({"recipe": {}, "against": [], "what": "", "verdict": "kept"}),
    json.dumps({"recipe": [{"step": "plaice"}], "against": [], "what": "", "verdict": "kept"}),
    json.dumps({"recipe": [{"step": "smooth", "later": 1}], "against": [], "what": "", "verdict": "kept"}),
    json.dumps({"recipe": [{"step": "smooth", "alpha": []}], "against": [], "what": "", "verdict": "kept"}),
    json.dumps({"recipe": [], "against": [], "what": ""}),
    json.dumps({"tuning": {"floats": [], "dynamics": []}, "against": None, "what": "", "verdict": "kept"}),
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_says_nothing_is_passed_over(line: str, output: Path) -> None:
    file = beside(output)
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, rest[0], line, *rest[1:]]) + "\n")
    assert entries(journal(TASK, output)) == set(ENTRIES)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_that_were_turned_over_spoil_their_line_at_the_most(data: st.DataObject) -> None:
    with temporary_folder() as folder:
        made = journal(TASK, folder / "y.onnx")
        for entry in ENTRIES:
            made.add(entry)
        file = beside(folder / "y.onnx")
        content = bytearray(file.read_bytes())
        start = content.index(b"\n") + 1
        at = data.draw(st.integers(start, len(content) - 2))
        content[at] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
        again = entries(journal(TASK, folder / "y.onnx"))
        assert len(set(ENTRIES) - again) <= 2  # a line end that goes takes two lines with it


def test_a_name_with_no_room_for_the_suffix_is_no_obstacle(tmp_path: Path) -> None:
    output = tmp_path / ("n" * 245 + ".onnx")
    output.write_bytes(b"")  # as long as a name may be
    made = journal(TASK, output)
    made.add(ENTRIES[0])
    assert made.find(RICH, PLAIN) == ENTRIES[0]


def test_the_file_is_one_json_object_a_line(output: Path) -> None:
    lines = beside(output).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(ENTRIES)
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert np.unique([len(json.loads(line)) for line in lines[1:]]).tolist() == [4]
