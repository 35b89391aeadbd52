"""Format figures for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


def megabytes(size: int) -> str:
    """`5.12 MB`."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def decibels(x: float) -> str:
    """`22.3 dB`, or `exact`."""
    return "exact" if math.isinf(x) and x > 0 else f"{x:.1f} dB"


def counts(found: Mapping[str, int]) -> str:
    """`43 QLinearConv, 9 QLinearAdd`."""
    return ", ".join(f"{n} {k}" for k, n in found.items()) or "none"


def printable(text: str, longest: int | None = None) -> str:
    """`text` without what moves a cursor, colours a screen or is a command to a build service; lines stay lines, unless
    `longest` makes it one cell of at most so many characters.
    """
    kept = "".join(c if c.isprintable() or (c == "\n" and longest is None) else "?" for c in text)
    kept = re.sub(r"^(\s*):(?=:)", r"\1?", kept, flags=re.MULTILINE)
    if longest is not None and len(kept) > longest:
        half = longest // 2 - 1
        return f"{kept[:half]}...{kept[-half:]}"
    return kept


def markdown(text: str) -> str:
    """`text` on one line of Markdown, with nothing that ends a cell, is HTML or makes a link."""
    line = " ".join(printable(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
