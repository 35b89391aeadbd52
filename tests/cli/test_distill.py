"""`edgeopt distill` from the command line: files, exit codes, what goes where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt import shrink
from edgeopt.cli import main
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.train import toys
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


def test_without_torch_it_says_what_to_install(here: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None\nfrom edgeopt.cli import main\nmain(sys.argv[1:])"
    argv = ["distill", "--student", "student.onnx", "--teacher", str(TEACHER), "--data", str(ROOT / "test")]
    found = subprocess.run(
        [sys.executable, "-c", hidden, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert found.returncode == 2 and "pip install '.[train]'" in found.stderr


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with student.onnx, teacher.onnx and the folders data and labelled."""
    (tmp_path / "student.onnx").write_bytes(toys.perceptron().SerializeToString())
    (tmp_path / "teacher.onnx").write_bytes(toys.perceptron(7).SerializeToString())
    toys.write(tmp_path / "data", toys.samples(30))
    toys.write(tmp_path / "labelled", toys.samples(30, labels=True))
    (tmp_path / "wide.onnx").write_bytes(toys.perceptron(3, classes=5).SerializeToString())
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LABELLED = ("--data", "labelled")
ALONE = ("--kind", "self", *LABELLED)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--hint", "hh=h"], 2, "no value is called 'hh'; did you mean 'h'"),
        (["--hint", "h"], 2, "write NAME=VALUE"),
        (["--hint", "h=h", "--hint", "h=r"], 2, "'h' is given twice"),
        (["--hint", "h=y"], 0, ""),  # any value of the same rank, in other channels
        ([*ALONE, "--hint", "h=h"], 2, "--hint needs a --teacher or a --peer"),
        (["--class-axis", "y=last"], 2, "'last' is no whole number"),
        (["--class-axis", "y=0"], 2, "--class-axis y=0: the output is"),
        (["--class-axis", "y=1"], 0, ""),
        (["--hint-weight", "0"], 2, "--hint-weight 0: above 0"),
        ([*LABELLED, "--heads", "hh"], 2, "no value is called 'hh'; did you mean 'h'"),
        (["--heads", "h"], 2, "learns from labels"),
        ([*LABELLED, "--heads", "h", "--loss", "mse"], 2, "learns from labels"),
        (["--peer", "teacher.onnx"], 2, "--peer goes with --kind online"),
        (["--by", "average"], 2, "--by and --generations go with --kind self"),
        ([*ALONE, "--by", "itself"], 2, "--by itself: unknown. Known: "),
        ([*LABELLED, "--kind", "online", "--peer", "gone.onnx"], 3, "gone.onnx: no such file"),
        (["--labels", "gone.csv"], 3, "--labels gone.csv: cannot be read"),
        (["--labels", "names.txt"], 3, "names.txt: line 1 has not two columns"),
        (["--labels", "names.txt", "--no-labels"], 2, "--labels and --no-labels: one of them"),
        (["--student-classes", "names.txt"], 2, "--student-classes and --teacher-classes go together"),
        (["--student-classes", "names.txt", "--teacher-classes", "gone.txt"], 3, "gone.txt: cannot be read"),
        (["--loss", "similarty"], 2, "did you mean 'similarity'"),
        (["--loss", "dkd"], 2, "--loss dkd needs labels"),
        (["--minutes", "0"], 2, "--minutes 0: above 0"),
        (["--temperature", "nan"], 2, "--temperature nan: above 0"),
        (["--alpha", "1.5"], 2, "--alpha 1.5: from 0 to 1"),
        (["--resume"], 2, "--resume needs --checkpoint FILE"),
        (["--qat"], 3, "--qat trains a quantized student"),
        (["--cache", "names.txt"], 3, "--cache names.txt: cannot be used"),
        (["-o", "names.txt"], 2, "names.txt exists"),
        (["-o", "gone/s.onnx"], 2, "no folder gone"),
        (["--data", "gone"], 2, "--data gone: no such file or folder"),
        (["--generations", "2"], 2, "--by and --generations go with --kind self"),
        ([*ALONE, "--by", "average", "--generations", "2"], 2, "--generations goes with --by generations, not average"),
        (["--cache", "cache", "--augment", "crop"], 2, "--cache keeps answers to fixed views"),
        ([*LABELLED, "--kind", "online", "--cache", "cache"], 2, "not with --augment or --kind online"),
        ([*LABELLED, "--loss", "dkd", "--augment", "mixup"], 2, "--augment mixup has none that fit"),
        (["--hint", "h=hh"], 2, "--hint: the teacher has no value 'hh'; did you mean 'h'"),
        (["--device", "nonsense"], 2, "--device nonsense: "),
        ([*LABELLED, "--kind", "online", "--peer", "wide.onnx"], 2, "the student gives [1, 3], the teacher [1, 5]"),
    ],
)
def test_a_wrong_choice_ends_with_2_and_a_wrong_file_with_3(
    argv: list[str], code: int, message: str, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--student": "student.onnx", "--teacher": "teacher.onnx", "--data": "data", "--epochs": "3"}
    if "self" in argv:
        del given["--teacher"]
    found = called(*(x for pair in given.items() for x in pair), "--lr", "3e-2", *argv)
    err = capsys.readouterr().err
    assert (found, message in err) == (code, True), err
    assert (toy / "student.distilled.onnx").exists() == (code == 0)


def test_labels_of_a_table_are_those_of_the_samples(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feeds = toys.samples(30, labels=True)
    (toy / "labels.csv").write_text("".join(f"{i:03}.npz,{'cba'[int(f['label'][0])]}\n" for i, f in enumerate(feeds)))
    (toy / "order.txt").write_text("c\nb\na\n")
    both = ["--student", "student.onnx", "--teacher", "teacher.onnx", "--epochs", "2", "--lr", "3e-2"]
    more = ["--labels", "labels.csv", "--student-classes", "order.txt", "--teacher-classes", "order.txt"]
    told = []
    for argv in (["--data", "labelled"], ["--data", "data", *more]):
        called(*both, *argv, "--force", "--format", "json")
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["metric"] == "held-out accuracy" and told[0]["teacher"] == 1.0
    assert all(told[0][k] == told[1][k] for k in ("metric", "before", "after", "teacher", "losses"))


SEQUENCE = "g (float[N,S,4] x) => (float[N,S,3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"


def test_sequences_of_many_lengths_are_learnt_from(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("student", 0), ("teacher", 7)):
        weights = {"a": toys.normal(seed, 4, 8), "b": toys.normal(seed + 1, 8, 3)}
        (toy / f"{name}.onnx").write_bytes(tiny.proto(SEQUENCE, **weights).SerializeToString())
    toys.write(toy / "texts", [{"x": toys.normal(i, 1, 1 + i % 25, 4)} for i in range(75)])
    code = called(
        "--student", "student.onnx", "--teacher", "teacher.onnx", "--data", "texts", "--epochs", "3", "--lr", "3e-2",
        "--format", "json",
    )  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    assert code == 0 and facts["losses"] == {"y": "mse"} and facts["before"] < facts["after"] < 0


def test_a_float16_input_that_the_teacher_does_not_take_is_refused(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toys.PERCEPTRON.format(classes=3).replace("float[", "float16[")
    narrow = tiny.proto(
        text, **{k: toys.normal(0, *s).astype(np.float16) for k, s in {"a": (4, 8), "b": (8, 3)}.items()}
    )
    (toy / "student.onnx").write_bytes(narrow.SerializeToString())
    toys.write(toy / "narrow", [{"x": f["x"].astype(np.float16)} for f in toys.samples(20)])
    assert called("--student", "student.onnx", "--teacher", "teacher.onnx", "--data", "narrow") == 3
    assert "x: float16[4, 4]" in capsys.readouterr().err


@pytest.mark.slow
def test_an_int8_file_lies_beside_the_distilled_one_when_it_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink(TEACHER, width=0.5, output=here / "half.onnx")
    code = called(
        "--student", "half.onnx", "--teacher", str(TEACHER), "--data", str(ROOT / "test"), *QUICK,
        "--int8", "ptq", "--format", "json",
    )  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    int8 = facts["int8"]  # stored weights where integers do not pay
    assert code == 0 and int8["mode"] != "float" and int8["output_bytes"] < 0.5 * int8["input_bytes"]
    names = ["half.distilled.int8.onnx", "half.distilled.onnx"]
    assert sorted(p.name for p in here.iterdir()) == [*names, "half.onnx", "student.onnx"]
    x = np.zeros((2, 1, 28, 28), np.float32)
    both = [open_session(here / name).run({"image": x})[0] for name in names]
    assert tiny.sqnr_db(both[1], both[0]) > 15  # 8 bits of a small network, on a picture that is none
