"""Passes that need only the graph, `ir.Model -> ir.Model`; the given model is not changed.

dynamic, embedding, fold_affine, fp16, gated, qdq, rescale, shield, simplifying, static_sizes, weights
"""

from __future__ import annotations

import importlib
from pathlib import Path

_MODULES = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")


def __dir__() -> list[str]:
    return _MODULES


def __getattr__(name: str) -> object:
    """The module `name`, imported on first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
