"""Nothing that a training run reads is written over, and what it would cost is told before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeopt.errors import UsageError
from edgeopt.options.distill import Distill
from edgeopt.train.distill import distill
from edgeopt.train.places import check_places, checkpoints
from tests.train import toys


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a student, a teacher and a table of labels."""
    for name in ("student.onnx", "teacher.onnx"):
        onnx.save(toys.perceptron(), tmp_path / name)
    (tmp_path / "labels.csv").write_text("a,0\nb,1\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("option", ["checkpoint", "log", "output"])
@pytest.mark.parametrize("name", ["student.onnx", "teacher.onnx", "data.npy", "labels.csv", "x/../student.onnx"])
def test_what_is_read_is_not_written_over(option: str, name: str, here: Path) -> None:
    (here / "x").mkdir()
    (here / "data.npy").touch()
    before = {f: f.read_bytes() for f in here.iterdir() if f.is_file()}
    read = (here / "student.onnx", str(here / "teacher.onnx"), here / "data.npy")
    choices: dict[str, Any] = {} if option == "output" else {option: here / name}
    options = Distill(labels=here / "labels.csv", **choices)
    with pytest.raises(UsageError, match="is read by this run"):
        check_places(options, here / name if option == "output" else None, read, force=True)
    assert {f: f.read_bytes() for f in before} == before


def test_two_files_in_one_place_are_refused(here: Path) -> None:
    options = Distill(checkpoint=here / "a", log=here / "a")
    with pytest.raises(UsageError, match="is what --checkpoint writes"):
        check_places(options, None, (), force=False)


@pytest.mark.parametrize("place", ["nosuch/state.pt", "."])
def test_a_checkpoint_without_a_place_is_refused_before_the_work(place: str, here: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder|is a folder"):
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(5), checkpoint=here / place)


def test_a_checkpoint_that_is_there_is_kept_unless_told(here: Path) -> None:
    (here / "state.pt").write_bytes(b"of a killed run")
    with pytest.raises(UsageError, match="--resume goes on with it, --force begins anew"):
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(5), checkpoint=here / "state.pt")
    assert (here / "state.pt").read_bytes() == b"of a killed run"


def test_checkpoints_are_those_of_generations_and_no_other_file(tmp_path: Path) -> None:
    for name in ("s.pt", "s.pt.2", "s.pt.10", "s.pt.txt", "s.pt.1st", "s2pt", "other"):
        (tmp_path / name).touch()
    assert {p.name for p in checkpoints(tmp_path / "s.pt")} == {"s.pt", "s.pt.2", "s.pt.10"}
    assert checkpoints(tmp_path / "no" / "s.pt") == []
