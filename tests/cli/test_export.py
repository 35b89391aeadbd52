"""`edgeopt export` from the command line: what it says, its exit codes, and what it refuses."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from edgeopt.cli import main
from edgeopt.runtime.session import open_session
from tests.cli.test_cli import Ended, Run
from tests.models import normal

_NUMBERS = itertools.count()
CODE = (
    "from torch import nn\ndef small():\n    return nn.Linear(3, 2)\ndef tokens():\n    return nn.Embedding(10, 2)\ndef"
    " broken():\n    raise ValueError('no weights')\n"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module in the working folder."""
    name = f"shownet{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def run(source: str, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run(...)` calls `edgeopt export` in this process; M stands for the module."""

    def call(*argv: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(["export", *(a.replace("M:", f"{source}:") for a in argv)])
        out, err = capfd.readouterr()
        return Ended(ended.value.code, out, err)

    return call


def test_a_module_becomes_a_file_and_one_line_says_how_near_it_is(run: Run, tmp_path: Path) -> None:
    found = run("M:small", "--input", "x=1,3", "--dynamic", "x=0", "-o", "m.onnx")
    assert found.code == 0 and found.out.startswith("wrote m.onnx; largest difference from torch ") and found.err == ""
    assert len(found.out.splitlines()) == 1
    assert open_session(tmp_path / "m.onnx").run({"x": normal(5, 3)})[0].shape == (5, 2)


def test_whole_numbers_and_samples_are_given_by_name(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", ids=np.array([[7, 9]]))
    found = run("M:tokens", "--input", "ids=1,2:int64", "--data", "s.npz", "-o", "m.onnx")
    assert found.code == 0 and "(random inputs and 1 sample)" in found.out


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ([], 2, "MODULE:FACTORY"),
        (["M:small", "--input", "x=1,3"], 2, "-o"),
        (["M:small", "-o", "m.onnx"], 2, "no --input"),
        (["M:small", "--input", "1,3", "-o", "m.onnx"], 2, "NAME=VALUE"),
        (["M:small", "--input", "x=1,3:float", "-o", "m.onnx"], 2, "did you mean 'float"),
        (["M:small", "--input", "x=1,3:", "-o", "m.onnx"], 2, "--input x : unknown. Known: float32"),
        (["M:small", "--input", "x=1,3", "--data", "none", "-o", "m.onnx"], 2, "--data none: no such file"),
        (["M:small", "--input", "x=1,a", "-o", "m.onnx"], 2, "--input"),
        (["M:small", "--input", "x=1,-3", "-o", "m.onnx"], 2, "--input"),
        (["M:small", "--input", "x=1,,3", "-o", "m.onnx"], 2, "--input"),
        (["M:small", "--input", "x=1,3", "--input", "x=1,3", "-o", "m.onnx"], 2, "twice"),
        (["M:small", "--input", "x=1,3", "--dynamic", "x=b", "-o", "m.onnx"], 2, "--dynamic"),
        (["M:small", "--input", "x=1,3", "--dynamic", "y=0", "-o", "m.onnx"], 2, "no such input"),
        (["M:small", "--input", "x=1,3", "-o", "none/m.onnx"], 2, "no folder"),
        (["M:none", "--input", "x=1,3", "-o", "m.onnx"], 2, "none"),
        (["./M:small", "--input", "x=1,3", "-o", "m.onnx"], 2, "module:function"),
        (["none.pt2", "--input", "x=1,3", "-o", "m.onnx"], 2, "no such file"),
        (["M:broken", "--input", "x=1,3", "-o", "m.onnx"], 3, "no weights"),
        (["M:small", "--input", "x=1,4", "-o", "m.onnx"], 3, "torch cannot export it"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_is_refused_with_its_option_and_nothing_is_written(
    argv: list[str], code: int, says: str, run: Run, tmp_path: Path
) -> None:
    found = run(*argv)
    assert found.code == code and says in found.err and found.out == "" and "Traceback" not in found.err
    assert not list(tmp_path.glob("**/*.onnx"))


def test_a_file_that_is_there_is_kept_unless_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"mine")
    found = run("M:small", "--input", "x=1,3", "-o", "m.onnx")
    assert found.code == 2 and "--force" in found.err and (tmp_path / "m.onnx").read_bytes() == b"mine"
    assert run("M:small", "--input", "x=1,3", "-o", "m.onnx", "--force").code == 0


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_without_torch_or_its_exporter_it_says_what_to_install(package: str, source: str, tmp_path: Path) -> None:
    hidden = f"import sys; sys.modules['{package}'] = None\nfrom edgeopt.cli import main\nmain(sys.argv[1:])"
    argv = [sys.executable, "-c", hidden, "export", f"{source}:small", "--input", "x=1,3", "-o", "m.onnx"]
    found = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert found.returncode == 2 and "pip install '.[train]'" in found.stderr
