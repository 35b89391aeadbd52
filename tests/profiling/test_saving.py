"""What a measurement leaves on disk: the document reads back, raw times lie beside it, a trace opens; or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import UsageError
from edgeopt.profiling.results import Environment, Results, load
from edgeopt.profiling.saving import Files, write_trace

RAW = {"a/process 0": np.arange(5, dtype=np.int64), "b": np.arange(7, dtype=np.int64)}


def document() -> Results:
    here = Environment(cpu="c", features=("avx2",), cores=2, system="s", edgeopt="0")
    return Results(kind="profile", created="2026-01-01T00:00:00+00:00", environment=here, preset="quick", measured=())


def test_without_a_report_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Files().written(document(), RAW) == document()
    assert not list(tmp_path.iterdir())


def test_the_report_reads_back_as_it_was_and_the_times_lie_beside_it(tmp_path: Path) -> None:
    found = Files(tmp_path / "out.json").written(document(), RAW)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out.json", "out.npz"]
    assert load(tmp_path / "out.json") == found and found.raw == "out.npz"
    assert found.model_copy(update={"raw": None}) == document()
    with np.load(tmp_path / "out.npz") as archive:
        assert sorted(archive.files) == sorted(RAW)
        for name, times in RAW.items():
            np.testing.assert_array_equal(archive[name], times)


def test_without_times_there_is_no_file_of_times(tmp_path: Path) -> None:
    found = Files(str(tmp_path / "out.json")).written(document(), {})
    assert [f.name for f in tmp_path.iterdir()] == ["out.json"] and found.raw is None


def test_a_report_is_written_over_an_older_one(tmp_path: Path) -> None:
    for notes in ((), ("second",)):
        Files(tmp_path / "out.json").written(document().model_copy(update={"notes": notes}), RAW)
    assert load(tmp_path / "out.json").notes == ("second",)


@pytest.mark.parametrize(("report", "trace"), [("out.npz", None), ("out.json", "out.npz")])
def test_a_file_called_like_that_of_the_times_is_refused(report: str, trace: str | None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out\.npz"):
        Files(tmp_path / report, tmp_path / trace if trace else None)


@pytest.mark.parametrize(("report", "trace"), [("in.json", None), ("x.json", "in.json"), ("times.json", None)])
def test_a_file_that_is_read_is_not_overwritten_under_whatever_name(
    report: str, trace: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.json", "times.npz"):
        (tmp_path / name).write_text("kept")
    kept = (tmp_path / "." / "in.json", tmp_path / "times.npz")
    with pytest.raises(UsageError, match="would overwrite"):
        Files(report, trace, kept)


@pytest.mark.parametrize("which", ["report", "trace"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(which: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        Files(**{which: tmp_path / "nowhere" / "out.json"})
    with pytest.raises(UsageError, match="is a folder"):
        Files(**{which: tmp_path})


def test_a_report_and_a_trace_in_the_same_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Files(tmp_path / "out.json", tmp_path / "out.json")


def test_a_trace_has_a_process_for_each_setting_by_its_label(tmp_path: Path) -> None:
    events = {
        "a": [{"name": "Conv", "ph": "X", "ts": 1, "dur": 2, "pid": 99}],
        "b": [{"name": "Relu", "ph": "X", "ts": 1, "dur": 1, "pid": 99}] * 2,
    }
    write_trace(events, tmp_path / "trace.json")
    assert [f.name for f in tmp_path.iterdir()] == ["trace.json"]
    found = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in found if e["ph"] == "M"}
    assert sorted(names.values()) == ["a", "b"]
    assert [(names[e["pid"]], e["name"]) for e in found if e["ph"] == "X"] == [
        ("a", "Conv"),
        ("b", "Relu"),
        ("b", "Relu"),
    ]
    assert events["a"][0]["pid"] == 99  # the arguments keep their form


def test_a_trace_of_nothing_is_still_a_trace(tmp_path: Path) -> None:
    write_trace({}, tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == {"traceEvents": []}
