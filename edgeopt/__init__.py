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
    from edgeopt.profiling.profile import compare, profile, self_check
    from edgeopt.profiling.results import Results
    from edgeopt.profiling.stored import compare_stored
    from edgeopt.pruning.shrink import Shrunk, shrink
    from edgeopt.quantization.quantize import Listener, Options, Result, quantize
    from edgeopt.quantization.sensitivity import Sensitivity, sensitivity
    from edgeopt.release.document import Run
    from edgeopt.release.pipeline import run
    from edgeopt.simplification import Simplified, simplify
    from edgeopt.train.distill import Distilled, distill
    from edgeopt.train.export import Exported, export

_LAZY = {
    "Inspection": "inspection",
    "inspect": "inspection",
    "Listener": "listener",
    "Options": "quantization.options",
    "Result": "quantization.options",
    "quantize": "quantization.quantize",
    "Results": "profiling.results",
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
    "Sensitivity": "quantization.sensitivity",
    "sensitivity": "quantization.sensitivity",
    "Shrunk": "pruning.shrink",
    "shrink": "pruning.shrink",
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
