"""`edgeopt run`, `gate`, `baseline` and `init` from the command line: every exit code, what is said where, and
paths.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgeopt.files import locked
from edgeopt.release.evidence.manifest import verify
from tests import models
from tests.cli.test_cli import Ended, Run, here, run
from tests.release.projects import edited

__all__ = ["here", "run"]
TOML = """\
model = "model.onnx"
[data]
path = "x.npy"
[profile]
measure = false
[variants.half]
steps = [{ step = "fp16" }]
[gates.half]
size.file = { max = "1 MB" }
"""
OUT = Path("build/edgeopt")
CODES = {
    0: ("[gates.half]", "[gates.half]"),
    1: ('"1 MB"', '"1 B"'),
    2: ("[gates.half]", "[gates.haf]"),
    3: ('{ step = "fp16" }', '{ step = "weights" }'),
    4: ("[gates.half]", '[policy]\ninconclusive = "fail"\n[gates.half]\naccuracy.agreement = { min = "99 %" }'),
    5: ("[gates.half]", '[policy]\nno_baseline = "fail"\n[gates.half]\nsize.download = { max_regression = "5 %" }'),
}


@pytest.fixture
def file(here: Path) -> Path:
    """The project file in the working folder."""
    (here / "edgeopt.toml").write_text(TOML)
    return here / "edgeopt.toml"


@pytest.mark.parametrize("code", list(CODES))
def test_each_exit_code_means_one_thing_and_the_verdict_is_on_stdout(code: int, file: Path, run: Run) -> None:
    edited(file, CODES[code])
    found = run("run")
    assert found.code == code
    if code == 2:
        assert "edgeopt.toml:8: gates.haf: no such variant; did you mean 'half'?" in found.err and found.out == ""
        return
    verdict = {0: "pass", 1: "fail", 3: "error", 4: "inconclusive", 5: "no baseline"}[code]
    assert f"verdict: {verdict}" in found.out and f"evidence in {OUT}" in found.out and "half: " in found.err
    assert json.loads((OUT / "results.json").read_text())["exit_code"] == code
    assert run("gate", str(OUT / "results.json")).code == code


def test_sigterm_ends_a_run_with_130_in_words_and_the_next_goes_on(file: Path) -> None:
    (file.parent / "slow_feeds.py").write_text(
        "import time, pathlib, numpy as np\n\ndef feeds():\n    if not pathlib.Path('go').exists():\n       "
        " pathlib.Path('begun').touch()\n        time.sleep(60)\n    return [{'x': np.ones((1, 4), np.float32) * i} for"
        " i in range(20)]\n"
    )
    edited(
        file,
        ('"x.npy"', '"slow_feeds:feeds"'),
        ("[variants.half]", '[variants.lean]\nsteps = [{ step = "simplify" }]\n[variants.half]'),
    )
    command = [sys.executable, "-m", "edgeopt", "run"]
    process = subprocess.Popen(command, cwd=file.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in process.stderr or ():
        if "half: fp16 ..." in line:
            break
    while not Path("begun").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGTERM)
    said, told = process.communicate(timeout=30)
    assert process.returncode == 130 and said == ""
    assert f"interrupted; finished steps are kept and the next run goes on; {OUT} is as it was" in told
    assert not (OUT / "results.json").exists()
    Path("go").touch()
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "lean: simplify: from the cache" in done.stderr and verify(OUT)


def test_two_runs_at_once_are_told_with_the_process_that_was_first(file: Path, run: Run) -> None:
    OUT.mkdir(parents=True)
    with locked(OUT):
        found = run("run")
    assert found.code == 2 and f"another run is at work there (process {os.getpid()})" in found.err


def test_annotations_are_on_stdout_under_github_of_run_and_of_gate_from_the_root_of_the_checkout(
    file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(file, CODES[1])
    assert "::error" not in run("run").out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    want = "::error file=edgeopt.toml,line=9,title=half%3A size.file::"
    for command in (["run"], ["gate", str(OUT / "results.json")]):
        assert want in run(*command).out
    monkeypatch.setenv("GITHUB_WORKSPACE", str(file.parent.parent))
    assert want.replace("file=", f"file={file.parent.name}/") in run("run").out
    assert f"file={file.parent.name}/" in (OUT / "annotations.txt").read_text()
    monkeypatch.setenv("GITHUB_WORKSPACE", str(file.parent / "elsewhere"))
    assert want in run("run").out


def test_the_summary_is_where_github_wants_it(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file.parent / "told.md"))
    run("run")
    assert "| half |" in (file.parent / "told.md").read_text()


# other folders


def test_a_project_in_another_folder_has_its_paths_and_functions_there(
    file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "own_score.py").write_text("def score(run):\n    return 0.5\n")
    edited(file, ("[gates.half]", '[accuracy]\neval = "own_score:score"\n[gates.half]\naccuracy.eval = { min = 0.5 }'))
    monkeypatch.chdir("/")
    found = run("run", "--project", str(file))
    assert found.code == 0 and (file.parent / OUT / "half.onnx").is_file()


# baseline


def test_a_baseline_is_kept_shown_and_promoted(file: Path, run: Run) -> None:
    assert run("baseline", "save").code == 3
    run("run")
    assert "kept edgeopt-baseline/v1; current: v1" in run("baseline", "save", "v1", "--models").out
    assert "kept edgeopt-baseline/v2; current: v1" in run("baseline", "save", "v2").out
    shown = run("baseline", "show")
    assert shown.code == 0 and "v1   <- current" in shown.out and "verdict: pass" in shown.out
    assert run("baseline", "promote", "v2").code == 0 and "v2   <- current" in run("baseline", "show").out
    assert run("baseline", "promote", "v3").code == 2
    assert run("baseline", "save", "v1").code == 2


def test_gate_and_show_survive_a_baseline_that_is_gone(file: Path, run: Run) -> None:
    run("run")
    run("baseline", "save", "v1")
    shutil.rmtree("edgeopt-baseline/v1")
    edited(file, CODES[5])
    assert run("gate", str(OUT / "results.json")).code == 5
    shown = run("baseline", "show")
    assert shown.code == 0 and "v1 is gone; edgeopt baseline promote NAME" in shown.out
    shutil.rmtree("edgeopt-baseline")
    assert "edgeopt baseline save makes one" in run("baseline", "show").out


# init


def made(found: Ended, file: str = "edgeopt.toml") -> tuple[str, str]:
    """The model and the data that the project file names."""
    assert found.code == 0, found.err
    table = tomllib.loads(Path(file).read_text())
    return table["model"], table["data"]["path"]


def test_a_starter_names_model_and_samples_from_where_it_lies(here: Path, run: Run) -> None:
    sub = here / "sub"
    (sub / "calibration_data").mkdir(parents=True)
    (sub / "model.onnx").write_bytes(models.dense())
    np.save(sub / "calibration_data" / "x.npy", models.normal(30, 4))
    assert made(run("init", "model.onnx")) == ("model.onnx", "random")
    assert made(run("init", "sub/model.onnx", "--force")) == ("sub/model.onnx", "sub/calibration_data")
    assert made(run("init", str(sub / "model.onnx"), "--calib", "x.npy", "--force")) == ("sub/model.onnx", "x.npy")
    found = run("init", "sub/model.onnx", "-o", "sub/edgeopt.toml")
    assert made(found, "sub/edgeopt.toml") == ("model.onnx", "calibration_data")
    assert "edgeopt run --project sub/edgeopt.toml" in found.out
    assert made(run("init", "model.onnx", "--calib", "mine:feeds", "--force")) == ("model.onnx", "mine:feeds")


@pytest.mark.slow
def test_a_starter_runs_as_it_is(here: Path, run: Run) -> None:
    assert run("init", "model.onnx", "--calib", "x.npy").code == 0
    found = run("run", "--no-measure")
    assert found.code in (0, 3) and "verdict" in found.out  # weights are too few in one Gemm


def test_remedies_of_init_are_options_that_it_has(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = run("init", "--help").out
    assert "beside the model" in options
    found = run("init", "model.onnx")
    assert found.code == 2 and all(o in options and o in found.err for o in ("-o", "--force"))

    def refused(*args: object, **more: object) -> str:
        raise PermissionError(13, "Permission denied")

    before = Path("edgeopt.toml").read_bytes()
    monkeypatch.setattr("pathlib.Path.write_text", refused)
    found = run("init", "model.onnx", "--force")
    assert found.code == 2 and "cannot be written" in found.err and Path("edgeopt.toml").read_bytes() == before


def several(file: Path, **codes: int) -> list[str]:
    """Projects in folders of their own, each of which ends with a code."""
    files = []
    for name, code in codes.items():
        shutil.copytree(file.parent, file.parent / name, ignore=shutil.ignore_patterns(*codes))
        edited(file.parent / name / "edgeopt.toml", CODES[code])
        files.append(f"{name}/edgeopt.toml")
    return files


@pytest.mark.parametrize(
    ("codes", "ends"),
    [({"a": 0, "b": 0}, 0), ({"a": 0, "b": 1}, 1), ({"a": 4, "b": 1, "c": 0}, 1), ({"a": 1, "b": 2, "c": 3}, 3)],
)
def test_several_projects_are_all_run_and_have_one_page_and_the_gravest_code(
    codes: dict[str, int], ends: int, file: Path, run: Run
) -> None:
    files = several(file, **codes)
    found = run("run", *files, "--summary", "all.html")
    page = (file.parent / "all.html").read_text(encoding="utf-8")
    assert found.code == ends and f"exit code {ends}" in page and all(f in page for f in files)
    for name, code in codes.items():
        assert (f'href="{name}/build/edgeopt/report.html"' in page) == (code != 2)


def test_a_project_is_named_once(file: Path, run: Run) -> None:
    assert run("run", "edgeopt.toml").code == 0
    assert run("run", "edgeopt.toml", "--project", "edgeopt.toml").code == 2
    assert run("run", "edgeopt.toml", "--summary", "all.html").code == 2
