"""Where the keys and headers of a project file stand."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import lines


def prefix(file: Path) -> tuple[str, ...]:
    """The names of the table of `file` that holds the project."""
    return ("tool", "edgeopt") if file.name == "pyproject.toml" else ()


def rows_of(file: Path) -> lines.Rows:
    """(line, names below the project's table) of each key and header of `file`; empty if there is no such file."""
    if not file.is_file():
        return ()
    outer = prefix(file)
    found = lines.rows(file.read_text(encoding="utf-8-sig"))
    return [(line, names[len(outer) :]) for line, names in found if names[: len(outer)] == outer]
