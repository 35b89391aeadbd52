"""edgeopt: make a trained ONNX model fit for edge hardware, with proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.errors import (
    CalibrationError,
    ComparabilityError,
    DataError,
    EdgeoptError,
    ModelError,
    UsageError,
    ValidityError,
    WorkerError,
)

if TYPE_CHECKING:
    from edgeopt.inspection import Inspection, inspect
    from edgeopt.optimize import Listener, Options, Result, quantize
    from edgeopt.profiling.profile import compare, profile, self_check
    from edgeopt.profiling.stored import compare_stored
    from edgeopt.release.document import Run
    from edgeopt.release.pipeline import run
    from edgeopt.results import Results
    from edgeopt.sensitivities import Sensitivity, sensitivity
    from edgeopt.shrinking import Shrunk, shrink
    from edgeopt.simplification import Simplified, simplify
    from edgeopt.train.distill import Distilled, distill
    from edgeopt.train.export import Exported, export

_LAZY = {
    "Inspection": "inspection",
    "inspect": "inspection",
    "Listener": "options",
    "Options": "options",
    "Result": "options",
    "quantize": "optimize",
    "Results": "results",
    "compare": "profiling.profile",
    "profile": "profiling.profile",
    "self_check": "profiling.profile",
    "compare_stored": "profiling.stored",
    "Run": "release.document",
    "run": "release.pipeline",
    "Distilled": "train.distill",
    "distill": "train.distill",
    "Exported": "train.export",
    "export": "train.export",
    "Sensitivity": "sensitivities",
    "sensitivity": "sensitivities",
    "Shrunk": "shrinking",
    "shrink": "shrinking",
    "Simplified": "simplification",
    "simplify": "simplification",
}

__version__ = "0.1.0"
__all__ = [
    "CalibrationError",
    "ComparabilityError",
    "DataError",
    "Distilled",
    "EdgeoptError",
    "Exported",
    "Inspection",
    "Listener",
    "ModelError",
    "Options",
    "Result",
    "Results",
    "Run",
    "Sensitivity",
    "Shrunk",
    "Simplified",
    "UsageError",
    "ValidityError",
    "WorkerError",
    "__version__",
    "compare",
    "compare_stored",
    "distill",
    "export",
    "inspect",
    "profile",
    "quantize",
    "run",
    "self_check",
    "sensitivity",
    "shrink",
    "simplify",
]


def __getattr__(name: str) -> Any:
    """Load what needs onnxruntime only when it is asked for."""
    if name in _LAZY:
        import importlib

        try:
            return getattr(importlib.import_module(f"edgeopt.{_LAZY[name]}"), name)
        except ModuleNotFoundError as e:
            if e.name != "torch":
                raise
            raise UsageError(f"edgeopt.{name} needs torch: pip install 'edgeopt[train]'") from e
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
