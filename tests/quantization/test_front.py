"""The front: nothing on it is beaten, nothing that belongs there is missing, and the files are what the table says."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import quantize
from edgeopt.errors import UsageError, ValidityError
from edgeopt.quantization import front as front_module
from edgeopt.quantization.candidates import Draft
from edgeopt.quantization.front import front, picture, with_kept, write_front
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.search import Attempt
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import Ears, normal
from tests.quantization.tasks import like, made_of, task_of
from tests.quantization.test_sensitivity import chain

FEEDS = [{"x": normal(2, 16, seed=i)} for i in range(20)]
NOBODY = Draft("static", None)  # type: ignore[arg-type]


def point(score: float, sqnr_db: float, speed: float) -> Attempt:
    return Attempt(f"{score} {sqnr_db} {speed}", NOBODY, score, sqnr_db, speed)


def points(*figures: tuple[float, float]) -> list[Attempt]:
    """Of (sqnr_db, speed)."""
    return [point(0.0, db, speed) for db, speed in figures]


def as_near(p: Attempt, q: Attempt) -> bool:
    return (p.score, p.sqnr_db) >= (q.score, q.sqnr_db)


clouds = st.lists(
    st.builds(
        point,
        st.sampled_from([0.0, 0.5, 0.9]),
        st.one_of(st.floats(-5, 60), st.sampled_from([20.0, math.inf, -math.inf])),
        st.one_of(st.floats(0.3, 4), st.floats(1, 1.1), st.just(1.0)),
    ),
    min_size=1,
    max_size=12,
)


@given(clouds)
def test_no_point_of_the_front_is_beaten_in_one_figure_and_no_worse_in_the_other(cloud: list[Attempt]) -> None:
    found = front(cloud)
    assert found
    for p in found:
        for q in cloud:
            nearer = (q.score, q.sqnr_db) > (p.score, p.sqnr_db)
            assert not (nearer and q.speed >= p.speed)
            assert not (as_near(q, p) and q.speed > p.speed)


@given(clouds)
def test_for_every_point_that_is_left_out_one_is_there_as_near_and_as_fast_as_a_clock_can_tell(
    cloud: list[Attempt],
) -> None:
    found = front(cloud)
    for p in cloud:
        assert any(as_near(q, p) and q.speed * 1.03 >= p.speed * (1 - 1e-9) for q in found)


@given(clouds)
def test_the_front_is_in_order_a_part_of_what_was_given_and_stays_when_it_is_taken_again(cloud: list[Attempt]) -> None:
    found = front(cloud)
    assert all(any(p is q for q in cloud) for p in found)
    assert [p.speed for p in found] == sorted((p.speed for p in found), reverse=True)
    assert front(found) == found


def test_the_nearest_is_always_there() -> None:
    found = front(points((10, 2.0), (30, 1.0), (20, 1.5), (15, 1.4), (30, 0.9)))
    assert [(p.sqnr_db, p.speed) for p in found] == [(10, 2.0), (20, 1.5), (30, 1.0)]


def test_many_small_steps_do_not_hide_that_the_first_is_far_faster_than_the_last() -> None:
    steps = points(*((10.0 + i, 2.0 * 0.98**i) for i in range(30)))
    assert max(p.speed for p in front(steps)) > 1.9


def test_a_metric_counts_before_sqnr() -> None:
    found = front([point(0.9, 10, 1.0), point(0.8, 50, 1.0), point(0.8, 5, 2.0)])
    assert [(p.score, p.speed) for p in found] == [(0.8, 2.0), (0.9, 1.0)]


def test_of_equals_there_is_one() -> None:
    assert len(front(points((20, 1.0), (20, 1.0), (20, 1.0)))) == 1


# files


def front_of(task: Task, speeds: Sequence[float] = (1.0, 2.0, 3.0)) -> list[Attempt]:
    """Real models with figures that put all of them on the front."""
    made = [made_of(task, like(task, rounding=r)) for r in ("gptq", "nearest", "stochastic")]
    names = ("as it was", "a / b: .. <é> & 100%", "x" * 80)
    return [Attempt(n, m, 0.0, 30.0 - 5 * i, v) for i, (n, m, v) in enumerate(zip(names, made, speeds, strict=True))]


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_every_file_is_valid_runs_and_has_a_line_in_the_table(tmp_path: Path) -> None:
    ears = Ears()
    task = task_of(chain(), FEEDS, ears.listener)
    found = write_front(task, front_of(task), tmp_path / "a" / "front")
    folder = tmp_path / "a" / "front"
    rows = strict((folder / "pareto.json").read_text(encoding="utf-8"))
    assert {f.name for f in folder.iterdir()} == {r["file"] for r in rows} | {"pareto.json", "pareto.svg"}
    assert [r["file"][:3] for r in rows] == ["01-", "02-", "03-"]
    assert [r["what"] for r in rows] == ["x" * 80, "a / b: .. <é> & 100%", "as it was"]  # the fastest first
    for row, tried in zip(rows, found, strict=True):
        file = folder / row["file"]
        onnx.checker.check_model(str(file), full_check=True)
        session = open_session(file)
        for feed in FEEDS:
            assert np.isfinite(session.run(feed)[0]).all()
        errors = [
            tiny.sqnr_db(np.concatenate([r[0] for r in task.reference]), np.concatenate(got))
            for got in [[session.run(f)[0] for _, f in task.held]]
        ]
        assert row["sqnr_db"] == pytest.approx(errors[0], abs=0.01)
        assert row["agreement"] == tried.agreement and row["speedup"] is None
        assert ears.told(f"pareto: {row['file']}")
    assert len({r["file"] for r in rows}) == 3


def test_the_picture_is_xml_with_a_point_for_each_row(tmp_path: Path) -> None:
    task = task_of(chain(), FEEDS)
    write_front(task, front_of(task), tmp_path)
    svg = ET.fromstring((tmp_path / "pareto.svg").read_text(encoding="utf-8"))
    titles = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["SQNR against speed", "x" * 80, "a / b: .. <é> & 100%", "as it was"]


def row(**figures: Any) -> dict[str, Any]:
    plain = {"file": "01-a.onnx", "what": "a", "sqnr_db": 20.0, "speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6}
    return {**plain, **figures}


ROWS = {
    "none": [],
    "one": [row()],
    "not timed": [row(speedup=None, speedup_low=None, speedup_high=None)],
    "the same twice": [row(), row()],
    "exact": [row(sqnr_db=math.inf), row()],
    "hopeless": [row(sqnr_db=-math.inf), row()],
    "exact, for JSON": [row(sqnr_db=None)],
}


@pytest.mark.parametrize("case", ROWS)
def test_the_picture_has_numbers_only_and_all_points_within(case: str) -> None:
    text = picture(ROWS[case])
    svg = ET.fromstring(text)
    circles = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == len(ROWS[case])
    assert "nan" not in text and "inf" not in text
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 640 and 0 <= float(circle.attrib["cy"]) <= 400


def test_a_model_that_is_exact_does_not_spoil_the_table(tmp_path: Path) -> None:
    zeros = {"w3": np.zeros((8, 32), np.float32), "b3": np.zeros(8, np.float32)}
    task = task_of(chain(**zeros), FEEDS)  # the output is 0, in integers too
    write_front(task, front_of(task), tmp_path)
    rows = strict((tmp_path / "pareto.json").read_text(encoding="utf-8"))
    assert len(rows) == 3


def test_a_model_that_fails_a_check_is_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ears = Ears()
    task = task_of(chain(), FEEDS, ears.listener)
    real = front_module.verify

    def picky(task: Task, made: Draft, path: Path) -> Any:
        found = real(task, made, path)
        if path.name.startswith("02-"):
            raise ValidityError("broken")
        return found

    monkeypatch.setattr(front_module, "verify", picky)
    found = write_front(task, front_of(task), tmp_path)
    rows = strict((tmp_path / "pareto.json").read_text(encoding="utf-8"))
    assert len(found) == len(rows) == 2
    assert {f.name for f in tmp_path.iterdir()} == {r["file"] for r in rows} | {"pareto.json", "pareto.svg"}
    assert ears.told("broken")


def test_a_second_front_leaves_no_model_of_the_first_that_its_table_does_not_name(tmp_path: Path) -> None:
    task = task_of(chain(), FEEDS)
    all_points = front_of(task)
    write_front(task, all_points, tmp_path)
    write_front(task, all_points[:1], tmp_path)
    rows = strict((tmp_path / "pareto.json").read_text(encoding="utf-8"))
    assert {f.name for f in tmp_path.iterdir() if f.suffix == ".onnx"} == {r["file"] for r in rows}


# by `quantize`


def searched(tmp_path: Path, **choices: Any) -> Any:
    given_ = {"mode": "static", "include": ("Gemm",), "measure": False, "effort": "high", "budget_s": 30.0, **choices}
    return quantize(chain(), FEEDS, **given_)


def test_a_search_leaves_its_front_and_no_journal(tmp_path: Path) -> None:
    found = searched(tmp_path, pareto=tmp_path / "front", output=tmp_path / "small.onnx")
    rows = strict((tmp_path / "front" / "pareto.json").read_text(encoding="utf-8"))
    assert {f.name for f in tmp_path.iterdir()} == {"front", "small.onnx"}
    exact = [r for r in rows if r["what"] == "float"]
    assert len(exact) == 1 and exact[0]["sqnr_db"] is None  # nothing is nearer to float than float
    others = [r["sqnr_db"] for r in rows if r not in exact]
    assert max(others) >= found.report.worst_sqnr_db - 0.2  # by calibration samples, where less is no gain to a search


@pytest.mark.parametrize("place", ["file", "file/front", "nul\0"])
def test_a_folder_that_cannot_be_is_known_before_the_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be"):
        searched(tmp_path, pareto=tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "front"
    folder.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)  # root may write anywhere
    with pytest.raises(UsageError, match="cannot be written"):
        searched(tmp_path, pareto=folder)


@pytest.mark.parametrize("mode", ["fp16", "weights", "dynamic"])
def test_a_front_of_what_has_no_search_is_refused_or_at_least_told(mode: str, tmp_path: Path) -> None:
    try:
        found = searched(tmp_path, mode=mode, pareto=tmp_path / "front", include=())
    except UsageError as e:
        assert "pareto goes with effort high" in str(e)
        return
    assert any("pareto" in n for n in found.report.notes) or (tmp_path / "front" / "pareto.json").exists()


def test_a_job_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        searched(tmp_path, pareto=tmp_path / "front", target="nowhere")
    assert not (tmp_path / "front").exists()


def test_without_listening_the_front_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = task_of(chain(), FEEDS)
    write_front(task, front_of(task)[:1], tmp_path)
    out, err = capfd.readouterr()
    assert not out and not err


def test_the_result_that_held_out_samples_chose_is_on_the_front() -> None:
    made = [Draft("static", None) for _ in range(2)]  # type: ignore[arg-type]
    behind, before = (replace(p, draft=d) for p, d in zip(points((20, 1.0), (30, 1.0)), made, strict=True))
    assert front([behind, before]) == [before]
    assert with_kept([before], [behind, before], made[0]) == [before, behind]
    assert with_kept([before], [behind, before], made[1]) == [before]
    assert with_kept([before], [behind, before], NOBODY) == [before]  # trained after the search: no point of it
