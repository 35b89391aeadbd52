"""The files of a folder of samples: links are followed, hidden files are skipped, unreadable folders are reported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import DataError, UsageError

_HIDDEN = (".", "__MACOSX")


def files_of(path: Path, option: str) -> tuple[list[Path], list[str]]:
    """(the regular files of `path`, sorted; notes on folders that cannot be read). A file yields itself.

    Raises:
        UsageError: `path` is a device, a pipe or a socket.
        DataError: a folder that cannot be read at all.
    """
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise UsageError(f"{option} {path}: neither a file nor a folder")
    problems: list[OSError] = []
    found = sorted(_walk(path, problems))
    notes = [f"{e.filename}: cannot be read ({e.strerror}); its samples are missing" for e in problems]
    if notes and not found:
        raise DataError(f"{option} {notes[0]}")
    return found, notes


def exists(path: Path) -> bool:
    """Whether `path` exists; False for text that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _walk(path: Path, problems: list[OSError]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(path, followlinks=True, onerror=problems.append):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(n for n in inner if not n.startswith(_HIDDEN))
        for file in (Path(folder, n) for n in names if not n.startswith(_HIDDEN)):
            try:
                if file.is_file():
                    yield file
            except OSError as e:  # for all files of a folder that may be listed but not entered
                problems.append(e)
