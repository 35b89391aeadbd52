"""`edgeopt distill` from the command line: files, exit codes, what goes where."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgeopt.cli import main
from tests.train.test_distill import ROOT, TEACHER, student

QUICK = ("--epochs", "2", "--lr", "3e-3")


def called(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", *argv])
    return ended.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with student.onnx."""
    (tmp_path / "student.onnx").write_bytes(student().SerializeToString())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_better_student_is_0_and_lies_beside_the_student(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = called(
        "--student", "student.onnx", "--teacher", str(TEACHER), "--data", str(ROOT / "test"), *QUICK, "--format", "json"
    )
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert code == 0 and facts["after"] > facts["before"] and facts["path"] == "student.distilled.onnx"
    assert (here / "student.distilled.onnx").is_file()
    assert set(facts["trained"]) == {"w1", "b1", "w2", "b2", "w3", "b3"}
    assert "epoch 2/2" in err


def test_no_better_student_is_1_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = called(
        "--student",
        str(TEACHER),
        "--teacher",
        str(TEACHER),
        "--data",
        str(ROOT / "calib"),
        "-o",
        "s.onnx",
        "--epochs",
        "1",
        "--no-labels",
    )
    assert code == 1
    assert "nothing was written" in capsys.readouterr().out
    assert not (here / "s.onnx").exists()


def test_without_torch_it_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert called("--student", "student.onnx", "--teacher", str(TEACHER), "--data", str(ROOT / "test")) == 2
    assert "pip install 'edgeopt[train]'" in capsys.readouterr().err
