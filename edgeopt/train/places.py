"""Checks the files that a training run reads and writes: no input is overwritten, and no two outputs are the same
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.files import check_place
from edgeopt.options.distill import Distill


def check_places(options: Distill, output: Path | None, read: Iterable[object], *, force: bool) -> None:
    """Refuse output files that would overwrite another one. `read`: the inputs; those that are not paths are ignored.

    Raises:
        UsageError: a file that is read or already written by this run, a missing folder, or an existing output or
          checkpoint.
    """
    if output is not None:
        check_place(output, force)
    if options.checkpoint is not None:
        check_place(options.checkpoint, force=True)
        if options.checkpoint.exists() and not (options.resume or force):
            raise UsageError(
                f"--checkpoint {options.checkpoint} exists: --resume goes on with it, --force begins anew over it"
            )
    if options.log is not None and options.log.is_dir():
        raise UsageError(f"--log {options.log}: is a folder")
    names = (options.labels, options.student_classes, options.teacher_classes, *options.peers)
    taken = {p.resolve(): "is read" for p in map(_path, (*read, *names)) if p is not None}
    written = {"-o": output, "--checkpoint": options.checkpoint, "--log": options.log}
    for option, path in written.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise UsageError(f"{option} {path}: {taken[path.resolve()]} by this run; choose another name")
        taken[path.resolve()] = f"is what {option} writes"


def _path(given: object) -> Path | None:
    return Path(given) if isinstance(given, str | Path) and "\0" not in str(given) else None


def checkpoints(path: Path) -> list[Path]:
    """The checkpoint and those of later generations beside it that exist."""
    others = path.parent.glob("*") if path.parent.is_dir() else ()
    return [p for p in others if p == path or re.fullmatch(re.escape(path.name) + r"\.\d+", p.name)]
