"""edgeopt: optimize trained ONNX models for edge hardware and verify the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeopt.errors import (
    CalibrationError,
    ComparabilityError,
    DataError,
    EdgeoptError,
    LostError,
    ModelError,
    UnchangedError,
    UntoldError,
    UsageError,
    ValidityError,
    WorkerError,
    extra,
)

if TYPE_CHECKING:
    from edgeopt import passes
    from edgeopt.data.preview import Preview
    from edgeopt.hardware.target import Target
    from edgeopt.inspection import Inspection, inspect, preview
    from edgeopt.listener import Listener
    from edgeopt.options.distill import Distill
    from edgeopt.options.models import CheckFile, Export, Inspect, PreviewOptions, Shrink, Simplify
    from edgeopt.options.profile import Profile, ProfileOne
    from edgeopt.options.quantize import Quantize, SensitivityOptions
    from edgeopt.options.quantize import Quantize as Options
    from edgeopt.options.reading import Preprocess, Reading
    from edgeopt.profiling.profile import compare, profile, self_check
    from edgeopt.profiling.results import Results
    from edgeopt.profiling.stored import compare_stored
    from edgeopt.pruning.shrink import Shrunk, shrink
    from edgeopt.quantization import steps
    from edgeopt.quantization.on_target import Checked, check
    from edgeopt.quantization.quantize import quantize
    from edgeopt.quantization.recipe import Recipe
    from edgeopt.quantization.report import Result
    from edgeopt.quantization.sensitivity import Sensitivity, sensitivity
    from edgeopt.quantization.state import State
    from edgeopt.release.document import Run
    from edgeopt.release.pipeline import run
    from edgeopt.simplification import Simplified, simplify
    from edgeopt.train.distill import Distilled, distill
    from edgeopt.train.export import Exported, export

_NAMES = {  # by module
    "data.preview": ("Preview",),
    "hardware.target": ("Target",),
    "inspection": ("Inspection", "inspect", "preview"),
    "listener": ("Listener",),
    "options.distill": ("Distill",),
    "options.models": ("CheckFile", "Export", "Inspect", "PreviewOptions", "Shrink", "Simplify"),
    "options.profile": ("Profile", "ProfileOne"),
    "options.quantize": ("Quantize", "SensitivityOptions"),
    "options.reading": ("Preprocess", "Reading"),
    "profiling.profile": ("compare", "profile", "self_check"),
    "profiling.results": ("Results",),
    "profiling.stored": ("compare_stored",),
    "pruning.shrink": ("Shrunk", "shrink"),
    "quantization.on_target": ("Checked", "check"),
    "quantization.quantize": ("quantize",),
    "quantization.recipe": ("Recipe",),
    "quantization.report": ("Result",),
    "quantization.sensitivity": ("Sensitivity", "sensitivity"),
    "quantization.state": ("State",),
    "release.document": ("Run",),
    "release.pipeline": ("run",),
    "simplification": ("Simplified", "simplify"),
    "train.distill": ("Distilled", "distill"),
    "train.export": ("Exported", "export"),
}
_LAZY = {name: module for module, names in _NAMES.items() for name in names}

_MODULES = {"passes": "passes", "steps": "quantization.steps"}

__version__ = "0.1.0"
__all__ = [
    "CalibrationError",
    "CheckFile",
    "Checked",
    "ComparabilityError",
    "DataError",
    "Distill",
    "Distilled",
    "EdgeoptError",
    "Export",
    "Exported",
    "Inspect",
    "Inspection",
    "Listener",
    "LostError",
    "ModelError",
    "Options",
    "Preprocess",
    "Preview",
    "PreviewOptions",
    "Profile",
    "ProfileOne",
    "Quantize",
    "Reading",
    "Recipe",
    "Result",
    "Results",
    "Run",
    "Sensitivity",
    "SensitivityOptions",
    "Shrink",
    "Shrunk",
    "Simplified",
    "Simplify",
    "State",
    "Target",
    "UnchangedError",
    "UntoldError",
    "UsageError",
    "ValidityError",
    "WorkerError",
    "__version__",
    "check",
    "compare",
    "compare_stored",
    "distill",
    "export",
    "inspect",
    "passes",
    "preview",
    "profile",
    "quantize",
    "run",
    "self_check",
    "sensitivity",
    "shrink",
    "simplify",
    "steps",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    """Import functions and modules that need onnxruntime only on first use."""
    if name == "Options":  # the old name, from before every function had its own options
        name = "Quantize"
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"edgeopt.{_MODULES[name]}")
    if name in _LAZY:
        try:
            return getattr(importlib.import_module(f"edgeopt.{_LAZY[name]}"), name)
        except ModuleNotFoundError as e:
            if e.name != "torch":
                raise
            raise UsageError(f"edgeopt.{name} needs torch: {extra('train')}") from e
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
