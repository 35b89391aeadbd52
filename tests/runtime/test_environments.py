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
    assert environments.python_of(wanted) is None and list(cache.iterdir()) == []


def test_a_made_one_is_found_again_and_one_that_was_interrupted_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, told = with_packages("nothing"), list[str]()

    def run(command: list[str]) -> None:
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(environments, "_run", run)
    python = environments.make(wanted, told.append)
    assert environments.python_of(wanted) == str(python) and "nothing" in told[0]
    assert environments.make(wanted, told.append) == python and len(told) == 1
    (environments.folder_of(wanted) / "complete").unlink()
    assert environments.python_of(wanted) is None
    assert environments.remove(wanted) and not environments.remove(wanted) and list(cache.iterdir()) == []


def test_a_target_that_is_checked_here_needs_none() -> None:
    with pytest.raises(UsageError, match="needs no environment"):
        environments.make(target.load("cpu-arm64"))
    assert environments.python_of(target.load("cpu-arm64")) is None
