"""The options of `simplify`, `shrink`, `export`, `inspect` and `preview`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SkipValidation, model_validator

from edgeopt.listener import Listener
from edgeopt.options.declare import NO_STEP, Callbacks, Flag, Force, Options, Output
from edgeopt.options.devices import Device
from edgeopt.options.distill import Augmentation
from edgeopt.options.quantize import Nodes, Targeted
from edgeopt.options.reading import DataOption, Reading, Samples, Sizes
from edgeopt.options.texts import NAMES, Text, goal, whole_numbers

Dtype = Literal["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


class Simplify(Reading):
    """Options of `simplify`."""

    output: Output = Field(default=None, description="File to write. [default: MODEL.simple.onnx]")
    force: Force = Field(default=False, description="Overwrite the output.")
    data: Samples = Field(default=None, description="Samples to check on. [default: made up]")
    dims: Sizes = Field(default={}, description="Sizes of dimensions that vary, for the check.")
    transformer: Annotated[str | None, Flag(text=Text("TYPE", str))] = Field(
        default=None,
        description="Fuse transformer blocks too (bert, vit, gpt2 ...); the file is for ONNX Runtime only.",
    )
    backend: Literal["onnxruntime", "onnxruntime-tools"] = Field(
        default="onnxruntime", description="Library that fuses them."
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.backend != "onnxruntime" and self.transformer is None:
            raise ValueError(f"{{backend}} {self.backend} fuses transformers: say which with {{transformer}} TYPE")
        return self


class CheckFile(Reading):
    """Options of `check`."""

    target: Targeted = Field(default="host", description="Hardware: a name (edgeopt targets), or a TOML file of yours.")
    data: Annotated[
        str | Path | Iterable[Any] | None, SkipValidation, Flag("--calib", Text("PATH", str), step=False)
    ] = Field(default=None, description="Samples to run it on. [default: made up]")
    float_model: Annotated[Path | None, Flag("--float")] = Field(
        default=None, description="The float model, with which the outputs are compared."
    )
    dims: Sizes = Field(default={}, description="Sizes of dimensions that vary.")
    device: Device = Field(default=None, description="Where it runs, instead of the target's runtime on this machine.")
    python: Annotated[str | None, Flag(text=Text("PATH", str))] = Field(
        default=None, description="Interpreter with the target's runtime. [default: that of `edgeopt env`]"
    )
    data_option: DataOption = "--calib"


class Shrink(Reading):
    """Options of `shrink`."""

    output: Output = Field(default=None, description="File to write. [default: MODEL.small.onnx]")
    force: Force = Field(default=False, description="Overwrite the output.")
    width: float = Field(default=1.0, gt=0, le=1, description="Share of the channels and attention heads that stay.")
    depth: float = Field(default=1.0, gt=0, le=1, description="Share of the residual blocks that stay.")
    rank: float = Field(
        default=1.0, gt=0, le=1, description="Share of matrices and convolutions that stays, as products of two."
    )
    to: str | None = Field(
        default=None, description="Instead of --width: what share stays, such as '30% macs' or '50% parameters'."
    )
    steps: int = Field(default=1, ge=1, le=20, description="Reach --to in so many steps, with teaching after each.")
    widths: Literal["uniform", "global"] = Field(
        default="uniform", description="One share for all layers, or more from those that cost much and tell little."
    )
    cost: Literal["macs", "time"] = Field(
        default="macs", description="What a layer costs, for --widths global: its MACs, or its time measured here."
    )
    minutes: float | None = Field(
        default=None, gt=0, description="Teach the result by the model for so long in all, as `distill` does."
    )
    learning_rate: Annotated[float | None, Flag("--lr")] = Field(
        default=None, gt=0, description="Highest rate of a step of teaching. [default: that of `distill`]"
    )
    augment: Annotated[tuple[Augmentation, ...], Flag(text=NAMES)] = Field(
        default=(), description="Views for teaching, as of `distill`."
    )
    labels: Annotated[bool | Path | None, NO_STEP] = Field(
        default=None, description="Labels for teaching, as of `distill`."
    )
    curve: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="Write the curve of the steps as a picture, an SVG."
    )
    data: Samples = Field(default=None, description="Samples, as `quantize --calib` reads them, to choose by.")
    importance: Literal["norm", "first-order"] = Field(
        default="norm", description="What decides which channels go: their weights, or the outputs' change."
    )
    keep: Nodes = Field(default=(), description="Layers that stay as they are.")
    samples: int = Field(default=64, ge=1, description="Number of samples to choose by.")
    dims: Sizes = Field(default={}, description="Sizes of dimensions that vary.")
    listener: Callbacks = Field(default=Listener(), description="Receives notes and progress.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.width == self.depth == self.rank == 1 and self.to is None:
            raise ValueError(
                "say what shall go: {width} 0.5 for half of the channels, {depth} 0.5 for half of the blocks, {rank}"
                " 0.5 for half of the weights, {to} '30% macs' for what stays"
            )
        if self.to is not None:
            goal(self.to)
        if self.to is not None and self.width < 1:
            raise ValueError("{to} and {width}: one of them")
        if self.to is None and (self.steps > 1 or self.widths == "global"):
            raise ValueError("{steps} and {widths} go with {to}")
        if self.widths == "global" and self.importance != "first-order":
            raise ValueError("{widths} global compares layers: it needs {importance} first-order")
        if self.steps > 1 and self.minutes is None:
            raise ValueError("{steps} needs {minutes}, to teach between")
        if self.minutes is not None and self.data is None:
            raise ValueError("{minutes} needs {data} to teach with")
        if self.curve is not None and self.minutes is None:
            raise ValueError("{curve} needs {minutes}: it shows what teaching gives")
        if self.minutes is None and (self.learning_rate or self.augment or self.labels is not None):
            raise ValueError("{learning_rate}, {augment} and {labels} are of teaching: they need {minutes}")
        if self.cost == "time" and self.widths != "global":
            raise ValueError("{cost} goes with {widths} global")
        if self.importance == "first-order" and self.data is None:
            raise ValueError("{importance} first-order needs {data}")
        return self


class Export(Reading):
    """Options of `export`."""

    output: Annotated[Path, Flag(short="-o", step=False)] = Field(description="File to write.")
    force: Force = Field(default=False, description="Overwrite the output.")
    dynamic: Annotated[Mapping[str, tuple[int, ...]], Flag(text=Text("AXES", whole_numbers), example="x=0")] = Field(
        default={}, description="Axes of an input that may change."
    )
    dtypes: Annotated[Mapping[str, Dtype], Flag("--input", cli=False, step=False)] = Field(
        default={}, description="Types of inputs that are not float32."
    )
    data: Samples = Field(default=None, description="Samples to compare with torch on, besides random inputs.")
    samples: int = Field(default=32, ge=1, description="Number of samples to compare on.")
    trust: Annotated[bool, NO_STEP] = Field(default=False, description="Read pickles (.pt, .pth), which can run code.")


class Inspect(Options):
    """Options of `inspect`."""

    dims: Sizes = Field(default={}, description="Sizes of dimensions that vary, by name or as INPUT.AXIS.")


class PreviewOptions(Reading):
    """Options of `preview`, the command `edgeopt data`."""

    sheet: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="Write a contact sheet of images as the model sees them, a PNG."
    )
    write: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="New folder for the samples as the model reads them, an .npz each."
    )
    force: Force = Field(default=False, description="Overwrite the sheet.")
    data_option: DataOption = "PATH"
