"""Costs by measurement: of real kernels, by what decides them, and as a file that another machine reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgeopt import quantize
from edgeopt.errors import DataError, UsageError
from edgeopt.graph.ops import OPS
from edgeopt.hardware.target import load as target_of
from edgeopt.ptq.place import place
from edgeopt.runtime import costs
from edgeopt.runtime.costs import Costs, book, document, here, key, load, measured, merged, parsed, save
from edgeopt.runtime.probe import probe
from tests import tiny
from tests.models import normal
from tests.static import static

TEXT = """g (float[1,32,14,14] x) => (float[1,32,14,14] y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [clamp] r = Relu(a)
    [second] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b)
    [other] d = Relu(c)
    [sum] s = Add(d, r)
    [last] y = Conv(s, k)
}"""
MODEL = tiny.model(
    TEXT,
    w=normal(32, 32, 3, 3),
    w2=normal(32, 32, 3, 3, seed=1),
    b=normal(32, seed=2),
    k=normal(32, 32, 1, 1, seed=3),
)
FEED = tiny.feeds(1, x=(1, 32, 14, 14))[0]
PROBES = probe(MODEL, FEED)
TARGET = target_of("cpu-x86-vnni")
NODES = [n for n in MODEL.graph if n.op_type in OPS and OPS[n.op_type].inputs]
TABLE = Costs("a board", {"Conv 1,2 aa": (2e6, 1e6), "Add 1,2 bb": (3e6, math.inf)}, (1.0, 2.0, 3.0))


@pytest.fixture(scope="module")
def found() -> Costs:
    made = static(MODEL, [FEED], TARGET)
    return measured(MODEL, made.result, NODES, made.plan.clamps, FEED, PROBES)


def test_every_node_has_a_time_in_both_forms(found: Costs) -> None:
    for node in NODES:
        times = found.of(node, PROBES)
        assert times is not None and times[1] > 0 and math.isfinite(times[1])
        assert times[0] > 0 or node.op_type == "Add"  # which float convolutions take over
    assert found.crossings is not None and min(found.crossings) > 0
    assert found.host == costs.here()


def test_nine_times_the_products_take_longer(found: Costs) -> None:
    by_name = {str(n.name): found.of(n, PROBES) for n in NODES}
    assert by_name["first"][0] > by_name["last"][0]  # type: ignore[index]


def test_nodes_alike_have_one_key_and_others_have_others() -> None:
    by_name = {str(n.name): key(n, PROBES) for n in NODES}
    assert by_name["first"] == by_name["second"]
    assert len(set(by_name.values())) == 3
    other = tiny.model(
        TEXT.replace("pads = [1, 1, 1, 1]> (x", "pads = [1, 1, 1, 1], group = 1> (x"), **tiny.weights_of(MODEL)
    )
    changed = {str(n.name): key(n, PROBES) for n in other.graph if OPS[n.op_type].inputs}
    assert changed["first"] != by_name["first"] and changed["last"] == by_name["last"]
    bare = tiny.model(TEXT.replace("[clamp] r = Relu(a)", "[clamp] r = Sigmoid(a)"), **tiny.weights_of(MODEL))
    assert key(next(iter(bare.graph)), PROBES) != by_name["first"]


def test_measured_times_go_before_the_table() -> None:
    free = {key(n, PROBES): (1e9, 1.0) for n in NODES}
    dear = {key(n, PROBES): (1.0, 1e9) for n in NODES}
    none = {key(n, PROBES): (1e9, math.inf) for n in NODES}
    names = {str(n.name) for n in NODES}
    for times, want in ((free, names), (dear, set()), (none, set())):
        assert set(place(MODEL, TARGET, PROBES, costs=Costs("x", times, (0.0, 0.0, 0.0))).integer) == want
    empty = Costs("x", {}, None)
    assert place(MODEL, TARGET, PROBES, costs=empty) == place(MODEL, TARGET, PROBES)


def test_a_dear_crossing_keeps_all_on_one_side() -> None:
    times = {key(n, PROBES): (100.0, 1.0) if n.name == "second" else (1.0, 2.0) for n in NODES}
    assert place(MODEL, TARGET, PROBES, costs=Costs("x", times, (0.0, 0.0, 0.0))).integer >= {"second"}
    assert not place(MODEL, TARGET, PROBES, costs=Costs("x", times, (0.0, 0.0, 1.0))).integer


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    save(TABLE, tmp_path / "costs.json")
    assert load(tmp_path / "costs.json") == TABLE
    assert {f.name for f in tmp_path.iterdir()} == {"costs.json"}
    assert load(tmp_path / "none.json") is None


def test_what_is_known_stays() -> None:
    known = Costs("here", {key(NODES[0], PROBES): (9.0, 8.0), "Conv 1,2 aa": (2e6, 1e6)}, (1.0, 2.0, 3.0))
    made = static(MODEL, [FEED], TARGET)
    both = measured(MODEL, made.result, NODES, made.plan.clamps, FEED, PROBES, known)
    assert both.host == "here" and both.crossings == (1.0, 2.0, 3.0)
    assert known.times.items() <= both.times.items()
    assert all(both.of(n, PROBES) is not None for n in NODES)


BROKEN: list[Any] = [
    "", "[]", "{}", "7", "\0", '{"schema": "edgeopt.costs/2", "host": "", "times": {}, "crossings": [1, 2, 3]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": [], "crossings": [1, 2, 3]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": {"a": [1]}, "crossings": [1, 2, 3]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": {"a": ["x", 1]}, "crossings": [1, 2, 3]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": {"a": [-1, 1]}, "crossings": [1, 2, 3]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": {}, "crossings": [1, 2]}',
    '{"schema": "edgeopt.costs/1", "host": "", "times": {}, "crossings": [1, 2, NaN]}',
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_another_file_is_refused_in_words(text: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="no file of costs"):
        load(file)


def test_a_document_is_json_and_comes_back() -> None:
    assert parsed(json.loads(json.dumps(document(TABLE), allow_nan=False))) == TABLE


# with a whole job

CHOICES: dict[str, Any] = {"mode": "static", "include": ("Conv",), "samples": 8, "effort": "fast"}
FEEDS = tiny.feeds(10, x=(1, 32, 14, 14))


def test_a_file_is_made_where_this_machine_is_the_target_and_serves_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    first = quantize(tiny.frozen(MODEL), FEEDS, costs=file, **CHOICES).report
    assert any("timed in floats" in n for n in first.notes) and load(file) is not None
    before = file.read_bytes()
    second = quantize(tiny.frozen(MODEL), FEEDS, costs=file, **CHOICES).report
    assert not any("timed in floats" in n for n in second.notes) and file.read_bytes() == before
    assert second.integer_nodes == first.integer_nodes


def test_costs_of_another_machine_are_used_and_left_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    save(TABLE, file)
    before = file.read_bytes()
    found = quantize(tiny.frozen(MODEL), FEEDS, costs=file, **CHOICES).report
    assert any("nodes are not in the file" in n for n in found.notes) and file.read_bytes() == before


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        quantize(tiny.frozen(MODEL), FEEDS, costs=tmp_path / "no" / "costs.json", **CHOICES)


def test_costs_that_can_neither_be_read_nor_measured_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make it on a machine that is one"):
        quantize(tiny.frozen(MODEL), FEEDS, costs=tmp_path / "none.json", target="cpu-arm64", **CHOICES)


# the book that edgeopt keeps

AUTO: dict[str, Any] = {"mode": "auto", "include": ("Conv",), "samples": 8}


def test_a_book_that_cannot_be_replaced_is_told_and_the_result_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path) -> None:
        if file.name == "book.json":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeopt.files._sync", full)
    found = quantize(tiny.frozen(MODEL), FEEDS, book=tmp_path / "book.json", **AUTO).report
    assert any("the times are not kept" in n and "No space left" in n for n in found.notes)


def test_auto_keeps_a_book_and_needs_no_second_look(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "book.json"
    first = quantize(tiny.frozen(MODEL), FEEDS, book=file, **AUTO).report
    assert any(f"kept in {file}" in n for n in first.notes)
    before = file.read_bytes()
    again = quantize(tiny.frozen(MODEL), FEEDS, book=file, **AUTO).report
    assert not any("timed in floats" in n for n in again.notes) and file.read_bytes() == before


@pytest.mark.parametrize("choices", [{"costs": "table"}, {"measure": False}, {"mode": "static"}, {"effort": "fast"}])
def test_without_a_clock_or_by_the_table_there_is_no_book(choices: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "book.json"
    report = quantize(tiny.frozen(MODEL), FEEDS, book=file, **{**AUTO, **choices}).report
    assert not file.exists() and not any("timed in floats" in n for n in report.notes)


def test_a_broken_book_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "book.json"
    file.write_text("{", encoding="utf-8")
    report = quantize(tiny.frozen(MODEL), FEEDS, book=file, **AUTO).report
    assert any("begun anew" in n for n in report.notes) and load(file) is not None


def test_a_book_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    report = quantize(tiny.frozen(MODEL), FEEDS, book=tmp_path / "file" / "book.json", **AUTO).report
    assert any("the times are not kept" in n for n in report.notes)


def test_the_book_lies_in_the_users_cache_by_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (place := book(here())) is not None and place.parent == tmp_path / "edgeopt" / "costs"
    assert book("another machine") != place == book(here())


def test_a_node_that_cannot_be_timed_is_tried_once(tmp_path: Path) -> None:
    fused = tiny.proto("g (float[64,N] x) => (float[N,64] y) { t = Transpose <perm = [1,0]> (x)  y = MatMul(t, v) }",
                       v=normal(64, 64))  # fmt: skip
    feeds = [{"x": normal(64, 8, seed=i)} for i in range(20)]
    counts = []
    for _ in range(2):
        report = quantize(fused, feeds, book=tmp_path / "book.json").report
        counts.append(sum("timed in floats" in n for n in report.notes))
    assert counts == [1, 0]


def test_two_books_are_merged(tmp_path: Path) -> None:
    first, second = Costs("a", {"x": (1.0, 2.0), "y": None}, (1, 1, 1)), Costs("a", {"x": (9.0, 9.0), "z": None})
    both = merged(first, second)
    assert both.times == {"x": (1.0, 2.0), "y": None, "z": None} and both.crossings == (1, 1, 1)
    assert parsed(json.loads(json.dumps(document(both)))) == both


def test_a_user_without_a_home_has_no_book(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert book(here()) is None
    assert quantize(tiny.frozen(MODEL), FEEDS, **AUTO).report.mode


def test_a_book_that_has_grown_too_long_is_begun_anew_and_a_file_of_the_users_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeopt.quantization.costing._MOST_TIMES", 2)
    many = Costs(costs.here(), {str(i): (1.0, 1.0) for i in range(3)}, (1.0, 1.0, 1.0))
    for name in ("book", "costs"):
        save(many, tmp_path / name)
        quantize(tiny.frozen(MODEL), FEEDS, **{name: tmp_path / name}, **AUTO)
    book_now, users = load(tmp_path / "book"), load(tmp_path / "costs")
    assert book_now is not None and users is not None
    assert not many.times.keys() & book_now.times.keys() and many.times.items() <= users.times.items()
