"""Environments of targets: where they are, what is left of one that cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeopt.errors import UsageError, WorkerError
from edgeopt.hardware import target
from edgeopt.hardware.target import Target
from edgeopt.runtime import environments


def with_packages(*packages: str) -> Target:
    base = target.load("openvino")
    return base.model_copy(update={"check": base.check.model_copy(update={"packages": packages})})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgeopt" / "environments"


def test_targets_with_the_same_packages_share_an_environment_and_others_do_not() -> None:
    folders = [environments.folder_of(with_packages(*p)) for p in (("a==1", "b"), ("b", "a==1"), ("a==2", "b"))]
    assert folders[0] == folders[1] != folders[2]
    variants = [environments.folder_of(target.load(name)) for name in ("qnn-htp", "qnn-htp:a16")]
    assert variants[0] == variants[1]


def test_an_environment_that_cannot_be_made_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted = with_packages("edgeopt-no-such-package==0.0.1")
    with pytest.raises(WorkerError, match=r"-m pip install.*edgeopt-no-such-package"):
        environments.make(wanted)
    assert environments.home_of(wanted) is None and list(cache.iterdir()) == []


def test_a_made_one_is_found_again_and_one_that_was_interrupted_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, told = with_packages("nothing"), list[str]()

    def run(command: list[str]) -> str:
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").symlink_to(sys.executable)
        return "nothing==1.2\n" if "freeze" in command else ""

    monkeypatch.setattr(environments, "run", run)
    home = environments.make(wanted, told.append)
    assert environments.home_of(wanted) == home and "nothing" in told[0]
    assert (home / "complete").read_text() == "nothing==1.2\n"  # what is in it
    assert environments.make(wanted, told.append) == home and len(told) == 1
    (environments.folder_of(wanted) / "complete").unlink()
    assert environments.home_of(wanted) is None
    assert environments.remove(wanted) and not environments.remove(wanted) and list(cache.iterdir()) == []


def test_a_target_that_is_checked_here_needs_none() -> None:
    with pytest.raises(UsageError, match="needs no environment"):
        environments.make(target.load("cpu-portable"))
    assert environments.home_of(target.load("cpu-portable")) is None


def test_a_program_that_an_environment_needs_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name, program in (("wasm", "npm and node are needed"), ("cpu-arm64", "qemu-aarch64-static")):
        with pytest.raises(UsageError, match=program):
            environments.make(target.load(name))
    assert not cache.is_dir()


def test_the_interpreter_with_a_provider_is_that_of_the_target_which_names_it(cache: Path) -> None:
    assert environments.python_with("QNNExecutionProvider") is None
    folder = environments.folder_of(target.load("qnn-htp"))
    folder.mkdir(parents=True)
    (folder / "complete").write_text("")
    found = environments.python_with("QNNExecutionProvider")
    assert found is not None and found[0] == str(folder / "bin" / "python")
    assert found[1].options["backend_type"] == "htp"  # as the target always gives it
    assert environments.python_with("CUDAExecutionProvider") is None


def test_a_program_that_running_a_file_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name, program in (("wasm", "node"), ("webgpu", "chromium"), ("cpu-arm64", "qemu-aarch64-static")):
        assert environments.lacking(target.load(name)).startswith(program)
    assert environments.lacking(target.load("openvino")) == environments.lacking(target.load("host")) == ""
