"""The options of `profile`, `compare` and the self-check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgeopt.listener import Listener
from edgeopt.options.declare import PYTHON_ONLY, Callbacks, Flag
from edgeopt.options.devices import DeviceTable
from edgeopt.options.reading import Reading
from edgeopt.options.texts import COUNTS, RATE, SHARE, TIME, Text

RANDOM = "random"
_Count = Annotated[int, Field(ge=1)]
_Threads = Annotated[int, Field(ge=1, le=1024)]


class Profile(Reading):
    """Options of `profile` and `compare`; several providers, threads, batches and sizes are swept."""

    providers: Annotated[tuple[str, ...], Flag("--provider", Text("NAME[:KEY=VALUE,...]", str))] = Field(
        default=("cpu",), min_length=1, description="edgeopt providers lists them."
    )
    threads: Annotated[tuple[_Threads, ...], Flag(text=COUNTS)] = Field(
        default=(1,), min_length=1, description="Threads of an operator; several are swept."
    )
    batch: Annotated[tuple[_Count, ...], Flag(text=COUNTS)] = Field(
        default=(), description="First dimension, where it varies."
    )
    dims: Annotated[
        Mapping[str, Annotated[tuple[_Count, ...], Field(min_length=1)]], Flag("--dim", COUNTS, example="seq=128")
    ] = Field(default={}, description="Sizes of a dimension that varies.")
    inputs: Annotated[Mapping[str, Path], Flag("--input", Text("FILE.npy", Path), example="x=x.npy")] = Field(
        default={}, description="Values of one input."
    )
    data: str | Path | None = Field(
        default=None, description="Samples, as `quantize --calib` reads them. [default: generated]"
    )
    samples: int = Field(default=32, ge=1, description="Number of samples, fed in turn.")
    preset: Literal["quick", "pr", "release", "sustained"] = Field(
        default="quick", description="How long each model is measured."
    )
    seconds: Annotated[float | None, Flag(text=TIME)] = Field(
        default=None, gt=0, description="Timing of each setting, instead of the preset's."
    )
    sustained_s: Annotated[float | None, Flag("--sustained", TIME)] = Field(
        default=None, gt=0, description="A time series, e.g. 10m, and last against first."
    )
    processes: int | None = Field(default=None, ge=1, description="Number of fresh processes, instead of the preset's.")
    rate: Annotated[float, Flag(text=RATE)] = Field(
        default=0.0, ge=0, description="Inferences a second, instead of back to back (0)."
    )
    allow_fallback: bool = Field(default=False, description="Measure even if nodes run on another provider.")
    session: Annotated[Mapping[str, str], Flag(example="session.intra_op.allow_spinning=0")] = Field(
        default={}, description="ONNX Runtime session options."
    )
    level: Literal["all", "extended", "basic", "none"] = Field(default="all", description="Graph optimization.")
    freeze_dims: bool = Field(default=False, description="Tell the runtime the sizes of the dimensions that vary.")
    devices: Annotated[tuple[str, ...], Flag("--device", Text("NAME|ADDRESS", str))] = Field(
        default=("local",),
        min_length=1,
        description="ssh://user@board, exec:COMMAND, or a name in edgeopt.toml.",
    )
    known: Annotated[Mapping[str, DeviceTable] | None, PYTHON_ONLY] = Field(
        default=None, description="Devices by name. [default: those of edgeopt.toml here]"
    )
    python: str | None = Field(default=None, description="Interpreter with the onnxruntime to measure.")
    plugins: Annotated[Mapping[str, str], Flag("--plugin", example="MyExecutionProvider=libmine.so")] = Field(
        default={}, description="A provider's shared library."
    )
    timeout_s: Annotated[float, Flag("--timeout", TIME)] = Field(
        default=120.0, gt=0, description="Of one answer: raise it for providers that compile long."
    )
    margin: Annotated[float, Flag(text=SHARE)] = Field(default=0.03, gt=0, lt=1, description="What counts as a change.")
    report: Path | None = Field(default=None, description="Write results.json, and an .npz of all times beside it.")
    listener: Callbacks = Field(default=Listener(), description="Receives notes and progress.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.data is not None and self.inputs:
            raise ValueError("{data} gives every input of a sample: leave {inputs} out")
        if self.data == RANDOM:
            raise ValueError("{data} random: leave it out")
        return self


class ProfileOne(Profile):
    """Options of `profile` that comparisons have not."""

    trace: Path | None = Field(default=None, description="Write a trace for ui.perfetto.dev.")
    trials: int = Field(default=10, ge=1, description="Number of comparisons of the self-check.")
