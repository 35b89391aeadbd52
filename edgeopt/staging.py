"""Folders to write and check in before anything is put in its place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import UsageError


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone at the end.

    Raises:
        UsageError: the disk for temporary files is full.
    """
    try:
        folder = tempfile.mkdtemp(prefix="edgeopt.")
    except OSError as e:
        raise UsageError(f"no room for a temporary folder ({e}); set TMPDIR to one with space") from e
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write and check in; what it holds at the end is moved to the folder of `path`, or
    removed after an error.

    Raises:
        UsageError: the folder of `path` cannot be written.
    """
    try:
        _sweep(path)
        stage = Path(tempfile.mkdtemp(prefix=f"{_prefix(path)}{os.getpid()}.", dir=path.parent))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {path.parent} cannot be written ({e}); choose another place with -o") from e
    try:
        yield stage
        _move(stage, path)
    except OSError as e:
        raise UsageError(f"{path}: cannot be written ({e.strerror or e}); nothing was left there") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def empty(stage: Path) -> None:
    """Take out what a stage holds, so that nothing of it is moved."""
    for file in stage.iterdir():
        file.unlink()


def _prefix(path: Path) -> str:
    owner = hashlib.sha256(f"{platform.node()}/{path.name}".encode()).hexdigest()[:12]
    return f".{path.name[:40]}.{owner}-"


def _sweep(path: Path) -> None:
    """Remove the stages beside `path` of processes of this machine that were killed."""
    for found in path.parent.iterdir():
        owner = re.fullmatch(re.escape(_prefix(path)) + r"(\d+)\..+", found.name)
        if owner is not None and not _alive(int(owner[1])):
            shutil.rmtree(found, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _move(stage: Path, path: Path) -> None:
    """Move what `stage` holds beside `path`, the file called so last; after an error, what is new is taken back."""
    made: list[Path] = []
    try:
        for file in sorted(stage.iterdir(), key=lambda f: f.name == path.name):
            _sync(file)
            target = path.parent / file.name
            if not target.exists():
                made.append(target)
            file.replace(target)
    except BaseException:
        for target in made:
            target.unlink(missing_ok=True)
        raise


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def free_bytes() -> int:
    """Memory that can be had without swapping; 4 GB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30
