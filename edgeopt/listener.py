"""Callbacks for notes and progress; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Listener:
    """Callbacks for the user: `note` gets lines of text, `progress` gets (stage, done, total)."""

    note: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
