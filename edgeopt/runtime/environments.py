"""What files are checked with in their targets' runtimes: a Python environment, npm packages, or the build for another
processor under an emulator; each in the user's cache, with the versions that the target names.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeopt.errors import UsageError, WorkerError
from edgeopt.files import cache_folder, temporary_folder
from edgeopt.hardware import target as targets
from edgeopt.hardware.target import Target
from edgeopt.runtime import emulated
from edgeopt.runtime.providers import Requested, parse
from edgeopt.runtime.worker.with_chromium import BROWSERS

_INSTALL_S = 1800.0
_LAST_LINES = 3
_INSTALLED = "complete"  # the file that says so, and what is in it


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


def home_of(target: Target) -> Path | None:
    """The folder of the target's environment; None if it was not made yet or none is needed."""
    if not target.check.packages or cache_folder() is None:
        return None
    folder = folder_of(target)
    return folder if (folder / _INSTALLED).is_file() else None


def lacking(target: Target) -> str:
    """The program that files for `target` need and that is not there, in words; empty if none is missing."""
    wanted = {"node": ("node",), "chromium": BROWSERS, "emulated": (emulated.EMULATOR,)}.get(target.check.kind, ())
    if not wanted or any(map(shutil.which, wanted)):
        return ""
    return f"{wanted[0]} is needed to run it, and not there"


def python_with(provider: str) -> tuple[str, Requested] | None:
    """(the interpreter of an environment that was made for a target with this provider of ONNX Runtime, the provider
    with the options that the target always gives).
    """
    for target in map(targets.load, targets.names()):
        home = home_of(target) if target.check.kind in ("provider", "openvino") else None
        if home is not None and target.check.provider:
            known = parse(target.check.provider)
            if known.name == provider:
                return str(_python(home)), known
    return None


def make(target: Target, told: Callable[[str], None] = lambda line: None) -> Path:
    """Make the environment of `target`, or find it; returns its folder.

    Raises:
        UsageError: the target needs none, or a program that makes it is missing. WorkerError: it cannot be made;
          nothing is left of it.
    """
    folder, packages = folder_of(target), target.check.packages
    if home_of(target) is not None:
        return folder
    told(f"making {folder} with {', '.join(packages)}")
    shutil.rmtree(folder, ignore_errors=True)
    with _nothing_left(folder):
        installed = _MAKERS.get(target.check.kind, _venv)(folder, packages)
        (folder / _INSTALLED).write_text(installed, encoding="utf-8")
    return folder


def _venv(folder: Path, packages: tuple[str, ...]) -> str:
    run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(_python(folder)), "-m", "pip"]
    run([*pip, "install", "--quiet", "--disable-pip-version-check", *packages])
    return run([*pip, "freeze"])


def _npm(folder: Path, packages: tuple[str, ...]) -> str:
    _needed("npm", "node")
    folder.mkdir(parents=True)
    quiet = ("--no-audit", "--no-fund", "--silent", "--ignore-scripts")
    run(["npm", "install", *quiet, "--prefix", str(folder), *packages])
    return (folder / "package-lock.json").read_text(encoding="utf-8")


def _emulated(folder: Path, packages: tuple[str, ...]) -> str:
    _needed(emulated.EMULATOR, "apt-get", "dpkg-deb")
    with temporary_folder() as work:
        emulated.make(folder, packages, work, run)
    return "\n".join(sorted(p.name for p in (folder / emulated.SITE).glob("*.dist-info")))


_MAKERS = {"node": _npm, "chromium": _npm, "emulated": _emulated}


def remove(target: Target) -> bool:
    """Remove the environment of `target`; returns whether there was one."""
    folder = folder_of(target)
    there = folder.is_dir()
    shutil.rmtree(folder, ignore_errors=True)
    return there


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _needed(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed for that, and not there"
        )


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")


def run(command: list[str]) -> str:
    """Run a program that installs; returns what it printed.

    Raises:
        WorkerError: it fails or takes too long.
    """
    words = " ".join([Path(command[0]).name, *command[1:4]])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise WorkerError(f"{words}: {e}") from e
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise WorkerError(f"{words} ended with {done.returncode}: {last}")
    return done.stdout
