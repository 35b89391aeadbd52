"""`edgeopt shrink` from the command line: files, exit codes, what goes where, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.cli import main
from edgeopt.runtime.session import open_session
from tests import models, tiny
from tests.cli.test_cli import Ended, Run
from tests.models import normal
from tests.pruning.test_width import attention

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
STACK = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"


def stack() -> onnx.ModelProto:
    """x [N,4] -> 8 channels -> y [N,3]."""
    return tiny.proto(STACK, a=normal(4, 8), b=normal(8, 3))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with model.onnx."""
    onnx.save(stack(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(...)` calls `edgeopt shrink` in this process, in the folder `here`."""

    def call(*argv: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(["shrink", *argv])
        out, err = capsys.readouterr()
        return Ended(ended.value.code, out, err)

    return call


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_smaller_model_lies_beside_the_model_and_the_table_says_what_went(here: Path, run: Run) -> None:
    found = run("model.onnx", "--width", "0.5")
    assert found.code == 0 and files(here) == ["model.onnx", "model.small.onnx"]
    lines = found.out.splitlines()
    assert lines[0].startswith("parameters") and lines[0].endswith("(50%)")
    assert lines[1].startswith("MACs") and lines[1].endswith("(50%)")
    assert lines[2] == "channels    1 of 1 groups are narrower"
    assert lines[3].startswith(
        "wrote model.small.onnx; now: edgeopt distill --teacher model.onnx --student model.small"
    )
    assert open_session(here / "model.small.onnx").run({"x": normal(5, 4)})[0].shape == (5, 3)


def test_json_holds_the_facts_and_nothing_else_is_on_stdout(here: Path, run: Run) -> None:
    found = run("model.onnx", "--width", "0.5", "-o", "s.onnx", "--format", "json")
    facts = json.loads(found.out)
    (width,) = facts.pop("widths").values()
    assert width == [8, 4]
    assert facts == {
        "path": "s.onnx",
        "parameters": [56, 28],
        "macs": [56, 28],
        "influence": {},
        "ranks": {},
        "removed": [],
        "curve": [],
    }
    assert files(here) == ["model.onnx", "s.onnx"]


def test_the_same_call_gives_the_same_bytes_and_overwrites_only_when_told(here: Path, run: Run) -> None:
    assert run("model.onnx", "--width", "0.5").code == 0
    first = (here / "model.small.onnx").read_bytes()
    again = run("model.onnx", "--width", "0.75")
    assert again.code == 2 and "model.small.onnx exists" in again.err
    assert (here / "model.small.onnx").read_bytes() == first
    assert run("model.onnx", "--width", "0.75", "--force").code == 0
    assert (here / "model.small.onnx").read_bytes() != first
    assert run("model.onnx", "--width", "0.5", "--force").code == 0
    assert (here / "model.small.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["gone.onnx", "--width", "0.5"], 3, "gone.onnx"),
        (["text.onnx", "--width", "0.5"], 3, "text.onnx"),
        (["model.onnx"], 2, "say what shall go"),
        (["model.onnx", "--width", "half"], 2, "'half' is not a valid float"),
        (["model.onnx", "--width", "0"], 2, "--width 0: above 0 and at most 1"),
        (["model.onnx", "--width", "inf"], 2, "--width inf: above 0 and at most 1"),
        (["model.onnx", "--depth", "2"], 2, "--depth 2: above 0 and at most 1"),
        (["model.onnx", "--depth", "0.5"], 3, "--depth: no residual block"),
        (["model.onnx", "--width", "0.5", "--keep", "MatMull"], 2, "did you mean 'MatMul'"),
        (["model.onnx", "--width", "0.5", "--keep", "MatMul"], 3, "--width: no layer is free"),
        (["model.onnx", "--width", "0.999"], 1, "nothing to shrink: at --width 0.999 every layer keeps all"),
        (["model.onnx", "--width", "0.5", "--importance", "size"], 2, "--importance size: unknown. Known: "),
        (["model.onnx", "--width", "0.5", "--importance", "first-order"], 2, "--importance first-order needs --data"),
        (["model.onnx", "--width", "0.5", "--data", "gone"], 2, "--data gone: no such file or folder"),
        (["model.onnx", "--width", "0.5", "--dim", "M=3"], 2, "--dim M: no input has it"),
        (["model.onnx", "--width", "0.5", "--dim", "N"], 2, "--dim"),
        (["model.onnx", "--width", "0.5", "-o", "gone/s.onnx"], 2, "no folder gone"),
    ],
)
def test_a_wrong_choice_ends_with_2_and_a_wrong_file_with_3(
    argv: list[str], code: int, message: str, here: Path, run: Run
) -> None:
    (here / "text.onnx").write_text("no model")
    found = run(*argv)
    assert (found.code, found.out, message in found.err) == (code, "", True), found.err
    assert files(here) == ["model.onnx", "text.onnx"]


def test_without_torch_the_importance_that_needs_it_says_what_to_install(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(here / "x.npy", normal(6, 4))
    monkeypatch.delitem(sys.modules, "edgeopt.train.first_order", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = run("model.onnx", "--width", "0.5", "--data", "x.npy", "--importance", "first-order")
    assert found.code == 2 and "pip install '.[train]'" in found.err
    assert run("model.onnx", "--width", "0.5").code == 0  # the other does not


REFUSED = {
    "no weights": tiny.proto("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"),
    "a single layer": tiny.proto(models.DENSE, w=normal(4, 4), b=normal(4)),
    "nothing but a cast": tiny.proto("g (float[N,4] x) => (int64[N,4] y) { y = Cast <to = 7> (x) }"),
    "everything in branches": tiny.proto(
        """g (float[N,4] x, bool c) => (float[N,3] y) { y = If <
            then_branch = t () => (float[N,3] u) { h = MatMul(x, a)  r = Relu(h)  u = MatMul(r, b) },
            else_branch = e () => (float[N,3] v) { k = MatMul(x, a)  v = MatMul(k, b) }
        > (c) }""",
        a=normal(4, 8),
        b=normal(8, 3),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_in_which_nothing_can_be_narrower_is_refused_and_nothing_is_written(
    name: str, here: Path, run: Run
) -> None:
    onnx.save(REFUSED[name], here / "other.onnx")
    found = run("other.onnx", "--width", "0.5")
    assert found.code == 3 and "--width: no layer is free to be narrower" in found.err
    assert files(here) == ["model.onnx", "other.onnx"]


BRANCH = """g (float[N,4] x, bool c) => (float[N,3] y) {
    h = MatMul(x, a)  r = Relu(h)  [last] s = MatMul(r, b)
    y = If < then_branch = t () => (float[N,3] u) { u = Neg(s) }, else_branch = e () => (float[N,3] v) { v = Abs(s) } > (c)
}"""  # noqa: E501


def test_layers_before_a_branch_become_narrower_and_what_the_branch_reads_stays(here: Path, run: Run) -> None:
    onnx.save(tiny.proto(BRANCH, a=normal(4, 8), b=normal(8, 3)), here / "branch.onnx")
    found = run("branch.onnx", "--width", "0.5", "--keep", "last", "--format", "json")
    assert found.code == 0 and json.loads(found.out)["parameters"] == [56, 28]
    session = open_session(here / "branch.small.onnx")
    y, z = (session.run({"x": normal(2, 4), "c": np.array(c)})[0] for c in (True, False))
    assert y.shape == (2, 3) and np.array_equal(np.abs(y), z) and not np.array_equal(y, z)


def test_a_quantized_model_is_refused_and_nothing_is_written(here: Path, run: Run) -> None:
    edgeopt.quantize(stack(), [{"x": normal(1, 4, seed=i)} for i in range(20)], output=here / "q.onnx",
                     mode="static", include=("MatMul",), measure=False)  # fmt: skip
    found = run("q.onnx", "--width", "0.5")
    assert found.code == 3 and "--width: no layer is free" in found.err and files(here) == ["model.onnx", "q.onnx"]


def test_a_transformer_of_free_length_is_shrunk_at_the_length_that_is_given(here: Path, run: Run) -> None:
    onnx.save(ir.to_proto(attention()), here / "text.onnx")
    found = run("text.onnx", "--width", "0.5", "--dim", "S=7", "--format", "json")
    facts = json.loads(found.out)
    assert found.code == 0 and facts["macs"][1] < 0.7 * facts["macs"][0]
    session = open_session(here / "text.small.onnx")
    for length in (1, 7, 30):
        assert session.run({"x": normal(2, length, 8)})[0].shape == (2, length, 8)


@pytest.mark.parametrize("width", ["0.01", "0.5", "0.99"])
def test_a_layer_of_one_channel_keeps_it(width: str, here: Path, run: Run) -> None:
    onnx.save(tiny.proto(STACK, a=normal(4, 1), b=normal(1, 3)), here / "thin.onnx")
    found = run("thin.onnx", "--width", width)
    assert found.code == 3 and "no layer is free" in found.err and files(here) == ["model.onnx", "thin.onnx"]


def test_samples_decide_which_channels_go(here: Path, run: Run) -> None:
    a = np.repeat(np.eye(4, dtype=np.float32), 2, 1)  # two channels for each input, of which the last two are always 0
    onnx.save(tiny.proto(STACK, a=a, b=np.float32([0.1] * 4 + [9] * 4).reshape(8, 1) * normal(8, 3)), here / "m.onnx")
    x = np.abs(normal(40, 4)) * np.float32([1, 1, 0, 0])
    np.save(here / "x.npy", x)
    argv = ["m.onnx", "--width", "0.5", "--data", "x.npy"]
    blind, seen = (run(*argv, "--importance", i, "-o", f"{i}.onnx") for i in ("norm", "first-order"))
    assert blind.code == seen.code == 0
    y, by_norm, by_samples = (
        open_session(here / f).run({"x": x})[0] for f in ("m.onnx", "norm.onnx", "first-order.onnx")
    )
    np.testing.assert_allclose(by_samples, y, rtol=1e-5, atol=1e-6)  # what goes was 0 on all samples
    assert np.abs(by_norm - y).max() > 0.01


@pytest.mark.slow
def test_what_the_last_line_says_can_be_done(here: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(DIGITS / "digits.onnx")
    assert run(teacher, "--width", "0.5", "-o", "student.onnx").code == 0
    argv = ["--teacher", teacher, "--student", "student.onnx", "--data", str(DIGITS / "test")]
    with pytest.raises(SystemExit) as ended:
        main(["distill", *argv, "--epochs", "4", "--lr", "3e-3", "--format", "json"])
    facts = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and facts["before"] < 0.3 < facts["after"]  # chance is .1
    assert files(here) == ["model.onnx", "student.distilled.onnx", "student.onnx"]
