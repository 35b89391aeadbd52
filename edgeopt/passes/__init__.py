"""Passes over a graph alone, `ir.Model -> ir.Model`: the model that is given stays as it is.

dynamic, embedding, fold_affine, fp16, hardswish, qdq, rescale, shield, simplifying, static_sizes, weights
"""

from __future__ import annotations

import importlib
from pathlib import Path

_MODULES = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")


def __dir__() -> list[str]:
    return _MODULES


def __getattr__(name: str) -> object:
    """The module `name`, loaded when it is asked for."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
