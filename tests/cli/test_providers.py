"""`edgeopt providers`: what this interpreter has, what would bring the rest, and interpreters that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.runtime.providers import PROVIDERS
from tests.cli.test_cli import Ended
from tests.profiling import stubs
from tests.profiling.stubs import called


@pytest.fixture(scope="module")
def table() -> Ended:
    return called("providers")


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    """The JSON of `edgeopt providers`."""
    ended = called("providers", "--format", "json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_every_provider_that_has_a_name_is_listed_once(listed: dict[str, Any]) -> None:
    assert sorted(p["name"] for p in listed["providers"]) == sorted(p.name for p in PROVIDERS)


def test_the_cpu_is_present_and_comes_first(listed: dict[str, Any]) -> None:
    cpu = listed["providers"][0]
    assert (cpu["alias"], cpu["state"], cpu["why"]) == ("cpu", "present", "")


def test_what_is_missing_says_what_would_bring_it(listed: dict[str, Any]) -> None:
    missing = [p for p in listed["providers"] if p["state"] == "missing"]
    assert missing  # no machine has them all: CoreML and DirectML exclude each other
    assert all(p["why"] for p in missing)
    assert all(p["state"] in ("present", "plugin", "unusable", "missing") for p in listed["providers"])


def test_the_interpreter_is_told(listed: dict[str, Any], table: Ended) -> None:
    assert "onnxruntime " in listed["interpreter"]
    assert table.out.splitlines()[-1] == listed["interpreter"]


def test_the_table_has_a_line_for_every_provider_and_fits_the_width(table: Ended) -> None:
    assert table.code == 0, table.err
    lines = table.out.splitlines()
    starts = {line.split(" ")[0] for line in lines}
    assert {p.alias for p in PROVIDERS} <= starts
    assert max(map(len, lines[:-1])) <= 120
    assert not table.err


def test_a_program_that_is_not_there_is_2_and_named() -> None:
    ended = called("providers", "--python", "nowhere")
    assert ended.code == 2
    assert "--python nowhere" in ended.err
    assert not ended.out


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat"])
@pytest.mark.skipif(not Path("/bin/true").exists(), reason="no /bin/true here")
def test_a_program_that_is_no_interpreter_is_named(program: str) -> None:
    ended = called("providers", "--python", program)
    assert ended.code in (2, 3)
    assert f"--python {program}" in ended.err
    assert not ended.out


def test_an_interpreter_without_onnxruntime_is_told_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'onnxruntime'\" >&2\nexit 1\n")
    python.chmod(0o755)
    ended = called("providers", "--python", str(python))
    assert ended.code == 3
    assert "No module named 'onnxruntime'" in ended.err
    assert "Traceback" not in ended.err


def test_a_worker_that_is_killed_is_told_with_the_signal(tmp_path: Path) -> None:
    python = stubs.interpreter(tmp_path / "python", stubs.KILLED, blocks=-1, model="")
    ended = called("providers", "--python", str(python))
    assert ended.code == 3
    assert "SIGKILL" in ended.err
