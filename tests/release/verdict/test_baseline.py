"""The baseline: what is kept is of one run, what is measured again is compared with what it was measured against,
and one that is gone or broken stops nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edgeopt
from edgeopt.errors import DataError, UsageError
from edgeopt.files import locked
from edgeopt.release.document import Run
from edgeopt.release.project.file import load
from edgeopt.release.verdict import baseline
from edgeopt.release.verdict.baseline import kept, names, promote, save
from tests import models
from tests.release.projects import TOML, Clock, edited, project

SHORT = TOML.partition("[variants.half]")[0].replace("simplify", "fp16")
TIMES = ("latency.p50", "latency.p90", "cold.session_create", "cold.first_inference", "memory.peak_rss", "speedup")
GATES = '[gates."*"]\nsize.file = { max = "1 MB" }\n[gates.lean]\n' + "".join(
    f'{name} = {{ max_regression = "5 %" }}\n' for name in TIMES
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project with one variant, lean, and gates on the regression of all that a clock tells."""
    return project(tmp_path / "p", SHORT + GATES)


def out(file: Path) -> Path:
    return file.parent / "build" / "edgeopt"


def place(file: Path) -> Path:
    return file.parent / "edgeopt-baseline"


def keep(file: Path, name: str, *, models: bool = False) -> None:
    assert save(load(file), file.parent, name, models=models) == name


def outcomes(found: Run) -> dict[str, str]:
    return {g.metric: g.outcome for g in found.gates}


# saving


def test_the_first_that_is_kept_is_current_and_another_only_when_it_is_promoted(file: Path) -> None:
    edgeopt.run(file)
    found = load(file)
    for name in ("v1", "v2"):
        keep(file, name)
        assert kept(found, file.parent).name == "v1"
    promote(found, file.parent, "v2")
    assert kept(found, file.parent).name == "v2" and names(found, file.parent) == ["v1", "v2"]
    with pytest.raises(UsageError, match="did you mean 'v1'"):
        promote(found, file.parent, "v11")


@pytest.mark.parametrize("name", ["current", "../x", "a b", ".x", "v1"])
def test_a_name_that_cannot_be_or_is_taken_is_refused(name: str, file: Path) -> None:
    edgeopt.run(file)
    keep(file, "v1")
    with pytest.raises(UsageError, match=r"cannot be a baseline's name|exists"):
        save(load(file), file.parent, name)
    assert names(load(file), file.parent) == ["v1"]


def test_without_a_run_there_is_nothing_to_keep(file: Path) -> None:
    with pytest.raises(DataError, match="edgeopt run makes it"):
        save(load(file), file.parent)


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_results_are_not_kept_with_files_of_another_run(how: str, file: Path) -> None:
    edgeopt.run(file)
    model = out(file) / "lean.onnx"
    _ = model.write_bytes(models.dense()) if how == "changed" else model.unlink()
    with pytest.raises(DataError, match=r"lean\.onnx: not the file that .*results\.json tells of"):
        save(load(file), file.parent, "v1", models=True)
    assert names(load(file), file.parent) == [] and not list(place(file).iterdir())
    keep(file, "v1")


def test_nothing_is_kept_while_a_run_is_at_work(file: Path) -> None:
    edgeopt.run(file)
    with locked(out(file)), pytest.raises(UsageError, match="another run is at work"):
        save(load(file), file.parent, "v1")


def test_a_disk_that_is_full_leaves_no_half_baseline(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edgeopt.run(file)

    def full(*args: object, **more: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match="No space left"):
        save(load(file), file.parent, "v1")
    monkeypatch.undo()
    assert not list(place(file).iterdir())


# gone or broken


def spoilt(how: str, folder: Path) -> None:
    if how == "no folder":
        shutil.rmtree(folder)
    elif how == "no baseline":
        shutil.rmtree(folder / "v1")
    elif how == "no results":
        (folder / "v1" / "results.json").write_text("{")
    elif how == "no name":
        (folder / "current").write_bytes(b"\xff\xfe")
    else:
        (folder / "current").unlink()
        (folder / "current").mkdir()


@pytest.mark.parametrize("how", ["no folder", "no baseline", "no results", "no name", "a folder"])
def test_a_baseline_that_is_gone_or_broken_counts_as_none_and_says_why(how: str, file: Path, clock: Clock) -> None:
    clock()
    edgeopt.run(file, measure=True)
    keep(file, "v1")
    spoilt(how, place(file))
    found = edgeopt.run(file, measure=True)
    assert set(outcomes(found).values()) == {"pass", "no baseline"} and found.exit_code == 0
    problem = kept(load(file), file.parent).problem
    assert problem is not None and all(problem in g.message for g in found.gates if g.outcome == "no baseline")
    assert "edgeopt baseline" in problem


# comparing


@pytest.mark.parametrize("slower", [1.0, 2.0])
def test_what_a_clock_tells_is_judged_by_measuring_the_kept_model_again_on_whatever_machine(
    slower: float, file: Path, clock: Clock
) -> None:
    clock(cpu="a machine of long ago")
    edgeopt.run(file, measure=True)
    keep(file, "v1", models=True)
    clock(**{".next/lean": slower})
    found = edgeopt.run(file, measure=True)
    want = "pass" if slower == 1.0 else "fail"
    assert {name: outcomes(found)[name] for name in TIMES} == dict.fromkeys(TIMES, want)
    assert all("measured again side by side" in g.message for g in found.gates if g.metric in TIMES)
    assert found.measured_against == f"v1 {found.baseline}"


def test_without_models_another_machine_cannot_be_compared_and_the_policy_says_what_that_is(
    file: Path, clock: Clock
) -> None:
    clock(cpu="a machine of long ago")
    edgeopt.run(file, measure=True)
    keep(file, "v1")
    clock()
    found = edgeopt.run(file, measure=True)
    assert {outcomes(found)[name] for name in TIMES} == {"not comparable"} and found.exit_code == 0
    assert all("save --models" in g.message for g in found.gates if g.metric in TIMES)
    edited(file, ("[gates.lean]", '[policy]\nno_baseline = "fail"\n[gates.lean]'))
    assert edgeopt.run(file, measure=True).exit_code == 5


def test_without_models_the_same_machine_can_be_compared(file: Path, clock: Clock) -> None:
    clock()
    edgeopt.run(file, measure=True)
    keep(file, "v1")
    clock(lean=2.0)
    found = edgeopt.run(file, measure=True)
    assert {outcomes(found)[name] for name in TIMES} == {"fail"}
    assert all("(stored)" in g.message for g in found.gates if g.metric in TIMES)


def test_a_speed_against_another_float_model_is_not_read_off_the_two_files(file: Path, clock: Clock) -> None:
    clock(cpu="a machine of long ago")
    edgeopt.run(file, measure=True)
    keep(file, "v1", models=True)
    (file.parent / "model.onnx").write_bytes(models.dense(b=models.normal(4, seed=9)))
    clock()
    found = edgeopt.run(file, measure=True)
    assert outcomes(found)["speedup"] == "not comparable" and outcomes(found)["latency.p50"] == "pass"
    (gate,) = [g for g in found.gates if g.metric == "speedup"]
    assert "same float model" in gate.message and "save --models" not in gate.message


def test_nothing_is_measured_again_where_no_gate_asks_for_it(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock()
    file.write_text(SHORT)
    edgeopt.run(file, measure=True)
    keep(file, "v1", models=True)
    monkeypatch.setattr(baseline, "_again", lambda *args: pytest.fail("measured again"))
    assert edgeopt.run(file, measure=True).exit_code == 0


def test_a_kept_model_that_cannot_be_measured_is_told_and_stored_times_count(file: Path, clock: Clock) -> None:
    clock()
    edgeopt.run(file, measure=True)
    keep(file, "v1", models=True)
    stored = json.loads((place(file) / "v1" / "results.json").read_text())
    assert stored["profile"]["measured"]

    def refused(*args: object, **how: object) -> object:
        raise DataError("not this one")

    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeopt.release.build.measuring.again", refused)
        run = edgeopt.run(file, measure=True, listener=edgeopt.Listener(note=found.append))
    assert "baseline: lean.onnx cannot be measured again: not this one" in found
    assert all("(stored)" in g.message for g in run.gates if g.metric in TIMES)


def test_of_several_settings_the_first_ones_are_compared(file: Path, clock: Clock) -> None:
    clock()
    run = edgeopt.run(file, measure=True)
    assert run.profile is not None

    def with_threads(*threads: int) -> edgeopt.Run:
        (first, *_) = run.profile.measured if run.profile is not None else ()
        found = [first.model_copy(update={"setting": first.setting.model_copy(update={"threads": n})}) for n in threads]
        return run.model_copy(update={"profile": run.profile.model_copy(update={"measured": tuple(found)})})

    assert baseline.refusal(with_threads(1), with_threads(1, 4)) is None
    assert "threads 1 and 2" in str(baseline.refusal(with_threads(1, 4), with_threads(2, 4)))
