"""Format figures for people."""

from __future__ import annotations

import math
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
