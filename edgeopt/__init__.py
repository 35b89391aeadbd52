"""edgeopt: make a trained ONNX model fit for edge hardware, with proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.errors import CalibrationError, DataError, EdgeoptError, ModelError, UsageError, ValidityError

if TYPE_CHECKING:
    from edgeopt.optimize import Listener, Options, Result, quantize

__version__ = "0.1.0"
__all__ = [
    "CalibrationError",
    "DataError",
    "EdgeoptError",
    "Listener",
    "ModelError",
    "Options",
    "Result",
    "UsageError",
    "ValidityError",
    "__version__",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Load what needs onnxruntime only when it is asked for."""
    if name in ("Listener", "Options", "Result", "quantize"):
        from edgeopt import optimize

        return getattr(optimize, name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
