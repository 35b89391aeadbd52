"""Parses and formats quantities with units, in the units of the documents: bytes, ms, dB, shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

Kind = Literal["bytes", "ms", "share", "dB", "ratio", "count", "number"]

_UNITS: Mapping[Kind, Mapping[str, float]] = {
    "bytes": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "ms": {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3},
    "share": {"%": 0.01, "pp": 0.01},
    "dB": {"dB": 1},
    "ratio": {"x": 1},
    "count": {},
    "number": {},
}
_EXAMPLES: Mapping[Kind, str] = {
    "bytes": '"6 MB"',
    "ms": '"15 ms"',
    "share": '"95 %" or 0.95',
    "dB": '"20 dB"',
    "ratio": '"1.2 x" or 1.2',
    "count": "3",
    "number": "0.5",
}
_BARE: frozenset[Kind] = frozenset({"share", "dB", "ratio", "count", "number"})  # no unit needed


def quantity(given: float | int | str, kind: Kind) -> float:
    """`given` converted to the unit of `kind`.

    Raises:
        ValueError: not a number, a missing or wrong unit, or beyond the range of a float.
    """
    if isinstance(given, bool):
        raise ValueError(f"a quantity, e.g. {_EXAMPLES[kind]}, not {given}")
    if not isinstance(given, str):
        if kind not in _BARE:
            raise ValueError(f"{given} has no unit; write e.g. {_EXAMPLES[kind]}")
        given = str(given)
    found = re.fullmatch(r"\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(\S*)\s*", given)
    units = _UNITS[kind]
    if found is None or (found[2] not in units and not (found[2] == "" and kind in _BARE)):
        raise ValueError(f"{given!r} is not understood; write e.g. {_EXAMPLES[kind]}")
    value = float(found[1]) * (units[found[2]] if found[2] else 1.0)
    if not math.isfinite(value):
        raise ValueError(f"{given[:20]!r} is too large; write e.g. {_EXAMPLES[kind]}")
    return value


def shown(value: float | None, kind: Kind) -> str:
    """`value` formatted with its unit."""
    if value is None:
        return "n/a"
    if kind == "bytes":
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.2f} {unit}"
        return f"{value:.0f} B"
    if kind == "ms":
        return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.2f} ms" if value >= 1 else f"{value * 1e3:.0f} us"
    forms = {"share": f"{value:.1%}", "dB": f"{value:.1f} dB", "ratio": f"{value:.2f}x", "count": f"{value:.0f}"}
    return forms.get(kind, f"{value:.4g}")
