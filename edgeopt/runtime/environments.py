"""Python environments in which files are checked in their targets' runtimes: each in the user's cache, with the
versions that the target names.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edgeopt.errors import UsageError, WorkerError
from edgeopt.files import cache_folder
from edgeopt.hardware.target import Target

_INSTALL_S = 1800.0
_LAST_LINES = 3


def folder_of(target: Target) -> Path:
    """Where the environment of `target` is, or would be; its variants share it.

    Raises:
        UsageError: the target needs none, or the user has no folder for caches.
    """
    packages = target.check.packages
    if not packages:
        raise UsageError(f"target {target.name}: its check needs no environment of its own")
    cache = cache_folder()
    if cache is None:
        raise UsageError("no home, so no folder for environments; set XDG_CACHE_HOME")
    key = hashlib.sha256("\n".join((*sorted(packages), platform.python_version())).encode()).hexdigest()[:12]
    return cache / "environments" / f"{target.name.partition(':')[0]}-{key}"


def python_of(target: Target) -> str | None:
    """The interpreter of the target's environment; None if it was not made yet or none is needed."""
    if not target.check.packages or cache_folder() is None:
        return None
    python = _python(folder_of(target))
    return str(python) if python.is_file() and (folder_of(target) / "complete").is_file() else None


def make(target: Target, told: Callable[[str], None] = lambda line: None) -> Path:
    """Make the environment of `target`, or find it; returns its interpreter.

    Raises:
        UsageError: the target needs none. WorkerError: it cannot be made; nothing is left of it.
    """
    folder = folder_of(target)
    known = python_of(target)
    if known is not None:
        return Path(known)
    told(f"making {folder} with {', '.join(target.check.packages)}")
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(_python(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([*install, *target.check.packages])
        (folder / "complete").write_text("\n".join(target.check.packages), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _python(folder)


def remove(target: Target) -> bool:
    """Remove the environment of `target`; returns whether there was one."""
    folder = folder_of(target)
    there = folder.is_dir()
    shutil.rmtree(folder, ignore_errors=True)
    return there


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise WorkerError(f"{' '.join(command[1:4])}: {e}") from e
    if done.returncode:
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise WorkerError(f"{' '.join(command[1:4])} ended with {done.returncode}: {words}")
