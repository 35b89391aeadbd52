"""Stored results judged again: by the gates and the baseline as they are now, at their lines, without measuring or
building.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import edgeopt
from edgeopt.release.document import Run, load
from edgeopt.release.project.file import load as project_of
from edgeopt.release.verdict.baseline import promote, save
from edgeopt.release.verdict.judging import judged_again
from tests.release.projects import Clock, edited, project
from tests.release.verdict.test_baseline import GATES, SHORT, TIMES, outcomes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project with one variant, lean."""
    return project(tmp_path / "p", SHORT + GATES)


def again(file: Path) -> Run:
    return judged_again(project_of(file), file, load(file.parent / "build" / "edgeopt" / "results.json"))


def test_gates_are_those_of_the_file_now_at_their_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = edgeopt.run(file)
    monkeypatch.setattr("edgeopt.release.build.building.actions.run_step", lambda *args: pytest.fail("built"))
    assert again(file).gates == before.gates
    edited(file, ('"1 MB"', '"1 B"'), ("[gates.lean]", "\n\n[gates.lean]"))
    found = again(file)
    assert found.exit_code == 1
    lines = file.read_text().splitlines()
    assert all(g.metric.split(".")[-1] in lines[g.line - 1] for g in found.gates)


def test_what_was_measured_beside_a_baseline_counts_as_long_as_that_is_current(file: Path, clock: Clock) -> None:
    clock()
    edgeopt.run(file, measure=True)
    found = project_of(file)
    save(found, file.parent, "v1", models=True)
    clock(cpu="another machine")
    edgeopt.run(file, measure=True)
    assert {outcomes(again(file))[name] for name in TIMES} == {"pass"}
    save(found, file.parent, "v2", models=True)
    assert {outcomes(again(file))[name] for name in TIMES} == {"pass"}
    promote(found, file.parent, "v2")
    told = [g.message for g in again(file).gates if g.metric in TIMES]
    assert len(told) == len(TIMES) and not any("side by side" in m for m in told)
    promote(found, file.parent, "v1")
    assert all("side by side" in g.message for g in again(file).gates if g.metric in TIMES)


def test_a_baseline_of_the_same_name_from_another_run_is_another_baseline(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock()
    edgeopt.run(file, measure=True)
    found = project_of(file)
    save(found, file.parent, "v1", models=True)
    last = edgeopt.run(file, measure=True)
    assert last.measured_against is not None
    shutil.rmtree(file.parent / "edgeopt-baseline")
    results = file.parent / "build" / "edgeopt" / "results.json"
    text = results.read_text()
    results.write_text(last.model_copy(update={"created": "2024-01-01T00:00:00+00:00"}).to_json())
    save(found, file.parent, "v1")
    results.write_text(text)
    assert not any("side by side" in g.message for g in again(file).gates)


def test_stored_times_are_only_looked_at_where_nothing_was_measured_again(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock()
    edgeopt.run(file, measure=True)
    save(project_of(file), file.parent, "v1", models=True)
    edgeopt.run(file, measure=True)
    monkeypatch.setattr("edgeopt.release.verdict.baseline.refusal", lambda *args: pytest.fail("compared stored times"))
    assert again(file).exit_code == 0


def test_a_baseline_that_is_gone_counts_as_none(file: Path) -> None:
    edgeopt.run(file)
    edited(file, ("[gates.lean]", '[gates.lean]\nsize.file = { max_regression = "5 %" }'))
    save(project_of(file), file.parent, "v1")
    assert outcomes(again(file))["size.file"] == "pass"
    shutil.rmtree(file.parent / "edgeopt-baseline" / "v1")
    (gate,) = [g for g in again(file).gates if g.metric == "size.file" and g.bound == "max_regression"]
    assert gate.outcome == "no baseline" and "v1 is gone" in gate.message
