"""Line numbers of the keys and headers of a TOML document.

tomllib gives no line numbers, so keys and headers are matched line by line; a place has its own line, else that of the
first key inside it, else that of the nearest enclosing table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

Rows = Sequence[tuple[int, tuple[str, ...]]]
_HEADER = re.compile(r"\[(\[?)\s*([^\]]+?)\s*\]?\]\s*(?:#.*)?")
_WORD = r"(?:\"(?:[^\"\\]|\\.)*\"|'[^']*'|[A-Za-z0-9_-]+)"
_KEY = re.compile(rf"({_WORD}(?:\s*\.\s*{_WORD})*)\s*=")


def line_of(found: Rows, place: Sequence[str]) -> int:
    """The line of `place` or of the nearest entry; 1 if there is none."""
    return _nearest(found, place)[0]


def has(found: Rows, place: Sequence[str]) -> bool:
    """Whether `place` itself is in the file."""
    return _nearest(found, place)[1] == len(_split(place))


def _nearest(found: Rows, place: Sequence[str]) -> tuple[int, int]:
    """(line, how many names of `place` match there)."""
    place = _split(place)
    best, depth = 1, 0
    for line, names in found:
        same = 0
        while same < min(len(names), len(place)) and names[same] == place[same]:
            same += 1
        if same > depth and same in (len(names), len(place)):
            best, depth = line, same
    return best, depth


def rows(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, names) of each key and header."""
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        header, key = _HEADER.fullmatch(raw.strip()), _KEY.match(raw.strip())
        if header:
            table = _split(_names(header[2]))
            if header[1]:  # array of tables: the index is part of the place
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            yield number, table
        elif key:
            yield number, (*table, *_split(_names(key[1])))


def _names(dotted: str) -> list[str]:
    """The names of a dotted key; empty if it is not valid TOML."""
    try:
        inner: Any = tomllib.loads(f"{dotted} = 0")
    except (ValueError, RecursionError):
        return []
    found: list[str] = []
    while isinstance(inner, dict):
        ((name, inner),) = inner.items()
        found.append(name)
    return found


def _split(place: Sequence[str]) -> tuple[str, ...]:
    """`place` with names split at dots, since "size.file" and size.file are the same metric."""
    return tuple(part for name in place for part in name.split("."))
