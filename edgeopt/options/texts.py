"""Parse values from the command line: `10m`, `30/s`, `3%`, `2G`, `1,2`, `224x224`. An invalid text raises a ValueError
that says what to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Text:
    """How a value is written on the command line. metavar: its name in the help; read: parses it; show: formats a
    default; whole: whether one text contains all items of a tuple, so that the option is not repeated.
    """

    metavar: str
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str
    whole: bool = False


def seconds(text: str) -> float:
    """Parse a time such as `500ms`, `30s`, `10m`, or a plain number, in seconds."""
    found = re.fullmatch(r"([\d.]+)\s*(ms|s|min|m|h)?", text.strip())
    number = _number(found[1]) if found else None
    if found is None or number is None:
        raise ValueError(f"{text!r} is no time; write 30s, 10m or 500ms")
    return number * _SECONDS[found[2] or "s"]


def rate(text: str) -> float:
    """Parse a rate such as `30/s` or `30`, in inferences per second."""
    number = _number(text.strip().removesuffix("/s"))
    if number is None or number <= 0:
        raise ValueError(f"{text!r} is no rate; write 30/s")
    return number


def share(text: str) -> float:
    """Parse a share such as `3%` or `0.03`."""
    number = _number(text.strip().removesuffix("%"))
    if number is None:
        raise ValueError(f"{text!r} is no share; write 3% or 0.03")
    return number / 100 if text.strip().endswith("%") else number


_FEW_BYTES = 1 << 16  # of which a number without a unit is a slip


def size(text: str) -> int:
    """Parse a size such as `2G`, `500MB` or `1000000`, in bytes."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    try:
        found = int(float(number[:-1]) * _BYTES[number[-1]] if number[-1:] in _BYTES else float(number))
    except (ValueError, OverflowError) as e:
        raise ValueError(f"{text!r} is no size; write 500MB or 2G") from e
    if found < 1:
        raise ValueError(f"{text!r}: at least a byte")
    if found < _FEW_BYTES and text.strip()[-1:].isdigit():
        raise ValueError(
            f"{text!r} is {found} bytes; write a unit: {text.strip()}M, {text.strip()}G or {text.strip()}B"
        )
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def counts(text: str) -> tuple[int, ...]:
    """Parse integers such as `1,2,4`, without duplicates."""
    return tuple(dict.fromkeys(whole_numbers(text)))


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse integers such as `1,3,224,224`, with duplicates."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts):
        raise ValueError(f"{text!r}; write numbers, e.g. 1,2,4")
    return tuple(int(p) for p in parts)


def goal(text: str) -> tuple[float, str]:
    """Parse (the share that stays, of what) from `30% macs` or `0.3 parameters`."""
    found = re.fullmatch(r"(\d*\.?\d+)\s*(%?)\s*(macs|parameters)", text.strip().lower())
    kept = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if found is None or not 0 < kept < 1:
        raise ValueError(f"{text!r} is no share that stays; write 30% macs or 50% parameters")
    return kept, found[3]


def whole(text: str) -> int:
    """Parse an integer, which may be negative."""
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    """Parse finite numbers such as `0.485,0.456,0.406`."""
    try:
        found = tuple(float(x) for x in text.split(","))
    except ValueError as e:
        raise ValueError(f"{text!r} is no list of numbers") from e
    if not all(math.isfinite(x) for x in found):
        raise ValueError(f"{text!r}: finite numbers")
    return found


def sides(text: str) -> tuple[int, int]:
    """Parse (height, width) from `224x224` or `224`."""
    parts = [p.strip() for p in text.replace("x", ",").split(",")]
    if len(parts) > len(("height", "width")) or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(f"{text!r}; write 224 or 224x224")
    return int(parts[0]), int(parts[-1])


def side_or_sides(text: str) -> int | tuple[int, int]:
    """Parse the shorter side from `256`, or (height, width) from `256x192`."""
    found = sides(text)
    return found[0] if "x" not in text and "," not in text else found


def names(text: str) -> tuple[str, ...]:
    """Parse names such as `flip,crop`."""
    return tuple(filter(None, (p.strip() for p in text.split(","))))


def pairs(given: Sequence[str], example: str) -> dict[str, str]:
    """Parse repeated `NAME=VALUE` into a dictionary."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"{text!r}; write NAME=VALUE, e.g. {example}")
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = value
    return found


def _time(x: float) -> str:
    return f"{x / 60:g}m" if x >= 60 and x % 60 == 0 else f"{x:g}s"


TIME = Text("TIME", seconds, _time)
RATE = Text("N/s", rate, lambda x: f"{x:g}/s")
SHARE = Text("SHARE", share, lambda x: f"{x:.0%}")
SIZE = Text("SIZE", size)
COUNTS = Text("N[,N]", counts, lambda x: ",".join(map(str, x)), whole=True)
NUMBERS = Text("R,G,B", numbers, lambda x: ",".join(f"{v:g}" for v in x), whole=True)
SIDES = Text("HxW", sides, lambda x: f"{x[0]}x{x[1]}", whole=True)
SIDE = Text("S|HxW", side_or_sides, whole=True)
NAMES = Text("NAME[,NAME]", names, ",".join, whole=True)
