"""The pipeline examples in scripts/examples: their commands are run, on the digit classifier."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent.parent
EXAMPLES = HERE / "scripts" / "examples"
DIGITS = HERE / "calibration_data" / "digits"


def loaded(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


def commands(name: str) -> list[str]:
    """What the example runs, in order, without the installation."""
    found = loaded(name)
    if name == "gitlab.yml":
        lines = found["edgeopt"]["script"]
    else:
        steps = found["runs"]["steps"] if name == "action.yml" else found["jobs"]["edgeopt"]["steps"]
        lines = [with_inputs(s, found) for s in steps if "run" in s]
    assert lines[0] in (
        'python -m pip install "$EDGEOPT"',
        "python -m pip install edgeopt @ git+https://HOST/OWNER/edgeopt",
    )
    return lines[1:]


def with_inputs(step: Any, action: Any) -> str:
    """The command of a step, with the defaults of the inputs that it gets through its environment."""
    line = str(step["run"])
    for key, value in step.get("env", {}).items():
        if given := re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value):
            line = line.replace(f'"${key}"', str(action["inputs"][given[1]]["default"]))
    return line


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(DIGITS / "digits.onnx", folder / "digits.onnx")
    shutil.copytree(DIGITS / "calib", folder / "calib")
    shutil.copy(DIGITS / "preprocess.toml", folder / "preprocess.toml")
    run = [sys.executable, "-m", "edgeopt", "init", "digits.onnx", "--calib", "calib"]
    subprocess.run(run, cwd=folder, check=True, capture_output=True)
    file = folder / "edgeopt.toml"
    # a bound that no machine meets, and only warns: there is something to annotate
    file.write_text(file.read_text().replace("[gates.int8]", '[gates.int8]\nlatency.p50 = { warn = "1 ns" }'))
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Where `edgeopt` is the command of this interpreter and measuring is short."""
    path = folder / "bin"
    path.mkdir(exist_ok=True)
    script = path / "edgeopt"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeopt "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", **more}


@pytest.mark.slow
def test_the_workflow_builds_judges_annotates_and_checks(project: Path) -> None:
    told = project / "step_summary.md"
    env = environment(project, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(told))
    said = ""
    for line in commands("github.yml"):
        line = line.replace("--preset pr", "--preset quick")
        done = subprocess.run(["bash", "-e", "-c", line], cwd=project, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert "::warning file=edgeopt.toml,line=" in said and "verdict: warn" in said and "sha256 holds" in said
    assert "| int8 |" in told.read_text()


@pytest.mark.slow
def test_the_shell_script_ends_with_the_exit_code_of_the_run(project: Path) -> None:
    env = environment(project, EDGEOPT_PRESET="quick")
    done = subprocess.run([EXAMPLES / "pipeline.sh"], cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "released files are in build/edgeopt" in done.stdout, done.stderr
    broken = project / "broken"
    broken.mkdir()
    (broken / "edgeopt.toml").write_text("modle = 1\n")
    done = subprocess.run([EXAMPLES / "pipeline.sh"], cwd=broken, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "has a mistake" in done.stdout


def test_every_example_runs_the_same_commands() -> None:
    assert commands("github.yml") == commands("gitlab.yml") == commands("action.yml")


def test_no_input_of_the_action_is_part_of_a_command() -> None:
    assert all("${{" not in s["run"] for s in loaded("action.yml")["runs"]["steps"])


def test_what_examples_publish_is_what_a_run_writes() -> None:
    from edgeopt.release.evidence import artefacts, manifest

    source = Path(artefacts.__file__).read_text() + Path(manifest.__file__).read_text()
    reports = loaded("gitlab.yml")["edgeopt"]["artifacts"]["reports"]
    for path in reports.values():
        assert f'"{Path(path).name}"' in source
