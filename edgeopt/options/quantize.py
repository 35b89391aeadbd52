"""The options of `quantize` and `sensitivity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SkipValidation, model_validator

from edgeopt.errors import UsageError
from edgeopt.hardware.target import TargetLike, is_file, load
from edgeopt.listener import Listener
from edgeopt.numbers.kinds import KINDS, Kind
from edgeopt.options.declare import (
    NO_STEP,
    PYTHON_ONLY,
    Callbacks,
    ChoiceTable,
    Flag,
    Force,
    Output,
    Spreading,
)
from edgeopt.options.devices import OF_DEVICE, Device
from edgeopt.options.reading import DataOption, Reading, Sizes
from edgeopt.options.texts import SIZE, TIME, Text, whole

_SEARCH_S, _REPAIR_S = 600.0, 60.0
TABLE = "table"  # in place of a file of costs
Bits = Literal[4, 8]


def _known(target: TargetLike) -> TargetLike:
    try:
        if not is_file(target):  # where a file is looked for is known later
            load(target)
    except UsageError as e:
        raise ValueError(str(e)) from e
    return target


Targeted = Annotated[TargetLike, AfterValidator(_known)]
Nodes = Annotated[tuple[str, ...], Flag(text=Text("NODE|GLOB|OP", str))]


class Placing(Reading):
    """Where a model may compute in integers."""

    target: Targeted = Field(default="host", description="Hardware: a name (edgeopt targets), or a TOML file of yours.")
    exclude: Nodes = Field(default=(), description="Nodes that stay float.")
    include: Nodes = Field(default=(), description="Nodes that become integer even if it does not pay.")
    range_rule: Annotated[str, ChoiceTable("edgeopt.numbers.ranges:RANGES"), Flag("--range", key="range")] = Field(
        default="mse", description="How ranges are chosen."
    )
    data_option: DataOption = "--calib"
    listener: Callbacks = Field(default=Listener(), description="Receives notes and progress.")


class Quantize(Placing, Spreading):
    """Options of `quantize`. Without a bar of the user's a result has to be close to float by edgeopt's own."""

    output: Output = Field(default=None, description="File to write. [default: MODEL.int8.onnx]")
    force: Force = Field(default=False, description="Overwrite the output.")
    mode: Literal["auto", "static", "dynamic", "fp16", "weights"] = Field(
        default="auto", description="auto: static, else what is close and no slower."
    )
    effort: Literal["fast", "normal", "high"] = Field(
        default="normal",
        description="fast: round weights to the nearest; normal: by what layers read (GPTQ), biases too; "
        "high: with more samples, and a search.",
    )
    budget_s: Annotated[float | None, Flag("--budget", TIME)] = Field(
        default=None,
        gt=0,
        description="Of a search [default: 10m], or of the repair of what misses its bar [default: 1m].",
    )
    costs: Path | None = Field(
        default=None,
        description="Place nodes by the measured times in this file; what it lacks is measured here and added. "
        "table: by the target's table alone. [default: for --mode auto a file in your cache]",
    )
    book: Annotated[Path | None, PYTHON_ONLY] = Field(
        default=None, description="The file of measured times that is kept if `costs` names none."
    )
    pareto: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="Folder for the models of the search that no other beats in both accuracy and speed."
    )
    dims: Sizes = Field(
        default={}, description="Sizes of dimensions that vary, by name or as INPUT.AXIS, for the file too."
    )
    samples: Annotated[int, NO_STEP] = Field(
        default=128, ge=1, description="Samples to calibrate with; others are held out."
    )
    rounding: Annotated[str | None, ChoiceTable("edgeopt.ptq.reconstruct:ROUNDERS")] = Field(
        default=None, description="How weights are rounded. [default: gptq, nearest with --effort fast]"
    )
    clip_weights: bool = Field(default=False, description="Scales of weights by what layers give, not by the peak.")
    equalize: bool = Field(default=False, description="Cross-layer equalization before all else.")
    smooth: Annotated[float | None, Flag(text=Text("ALPHA", float))] = Field(
        default=None,
        ge=0,
        le=1,
        description="SmoothQuant: 0 leaves all ranges in the activations, 1 moves all to the weights.",
    )
    refit: bool = Field(default=False, description="Weights fitted to what layers read in integers, one by one; slow.")
    keep: Nodes = Field(default=(), description="Nodes that stay float32 in fp16 mode.")
    bits: Annotated[Bits, Flag(text=Text("[4|8]", whole))] = Field(default=8, description="Of --mode weights.")
    io_types: Literal["keep", "fp16"] = Field(default="keep", description="Inputs and outputs of --mode fp16.")
    io: Literal["float", "quantized"] = Field(
        default="float",
        description="Inputs and outputs; quantized: integers where they are on a grid, which the file's metadata tell.",
    )
    input_image: Literal["uint8"] | None = Field(
        default=None,
        description="The file takes an image's pixels, [N, H, W, C], red first, and prepares them itself.",
    )
    max_ram: Annotated[int | None, Flag(text=SIZE, step=False)] = Field(
        default=None,
        ge=1,
        description="Memory beside 300 MB for Python itself, e.g. 2G. [default: what the model needs]",
    )
    recipe: Annotated[
        Path | Callable[[Any], Any] | None, SkipValidation, Flag(text=Text("FILE.toml", Path), step=False)
    ] = Field(default=None, description="Steps of your own choice: a file of [[steps]], in Python a `Recipe`.")
    steps: Annotated[
        tuple[str | Callable[..., Any], ...], Flag("--step", Text("MODULE:FUNCTION[@STEP]", str), step=False)
    ] = Field(default=(), description="A function of yours, State -> State, behind a step of the recipe.")
    qat: bool = Field(default=False, description="Train the static result on through its Q/DQ (needs torch).")
    qat_minutes: float | None = Field(default=10.0, gt=0, description="Time limit of --qat, in minutes.")
    qat_epochs: int = Field(default=4, ge=1, description="Largest number of epochs of --qat.")
    device: Device = Field(default=None, description=OF_DEVICE)
    measure: Annotated[bool, NO_STEP] = Field(default=True, description="Time the result against float.")
    kinds: Annotated[Mapping[str, Kind], Flag("--kind", example="scores=classes")] = Field(
        default={}, description="What an output is, where edgeopt sees it wrongly: " + ", ".join(KINDS) + "."
    )
    prefer: Literal["balanced", "speed", "size", "accuracy"] = Field(
        default="balanced", description="Which of the results that are close to float is kept, of --mode auto."
    )
    metric: Annotated[
        str | Callable[[Any], float] | None,
        SkipValidation,
        Flag("--eval", Text("MODULE:FUNCTION", str), step=False),
    ] = Field(
        default=None,
        description="Your metric, a function of run(feed), higher is better; or agreement, cosine or kl with float.",
    )
    max_drop: Annotated[float | None, Flag(text=Text("X", float), step=False)] = Field(
        default=None, ge=0, description="Exit 1 when that metric falls by more."
    )
    min_sqnr: Annotated[float | None, Flag(text=Text("DB", float), step=False)] = Field(
        default=None, description="Exit 1 when an output is further from float."
    )
    min_agreement: Annotated[float | None, Flag(text=Text("SHARE", float), step=False)] = Field(
        default=None, le=1, description="Exit 1 when top-1 agrees less often."
    )
    min_speedup: Annotated[float | None, Flag(text=Text("X", float), step=False)] = Field(
        default=None, description="Exit 1 when it is not so much faster."
    )

    @property
    def judged_by_user(self) -> bool:
        """Whether a metric or a threshold of the user's says what is near enough."""
        return any(x is not None for x in (self.metric, self.min_sqnr, self.min_agreement))

    @property
    def most_bytes(self) -> int:
        """The most that one sample may take: what is allowed for calibration."""
        return min(super().most_bytes, self.max_ram or super().most_bytes)

    @property
    def costs_file(self) -> Path | None:
        """The user's file of measured times."""
        return None if self.by_table else self.costs

    @property
    def by_table(self) -> bool:
        """Whether nodes are placed by the target's table alone."""
        return str(self.costs) == TABLE

    @property
    def by_clock(self) -> bool:
        """Whether placement by measured times is among what is tried by itself."""
        return self.costs is None and self.mode == "auto" and self.effort != "fast" and self.recipe is None

    @property
    def search_s(self) -> float:
        """Time in seconds for a search, or for the repair of a result that misses its threshold."""
        return self.budget_s if self.budget_s is not None else _SEARCH_S if self.effort == "high" else _REPAIR_S

    @property
    def searches(self) -> bool:
        """Whether a search is run from the static result."""
        return self.effort == "high" and self.mode in ("auto", "static")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.qat and self.mode not in ("auto", "static"):
            raise ValueError(f"{{qat}} trains a static result, not {{mode}} {self.mode}")
        if self.pareto is not None and not self.searches:
            raise ValueError(
                "{pareto} goes with {effort} high and {mode} static or auto: it is the front of what the search tried"
            )
        if self.prefer != "balanced" and self.mode != "auto":
            raise ValueError(f"{{prefer}} chooses among the results of {{mode}} auto, not of {self.mode}")
        if self.recipe is not None and self.mode not in ("auto", "static"):
            raise ValueError("{recipe} says how the model is made, {mode} too: one of them")
        for field, mode in (("bits", "weights"), ("io_types", "fp16")):
            if self.mode != mode and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{{{field}}} is of {{mode}} {mode}, not of {self.mode}")
        if self.max_drop is not None and self.metric is None:
            raise ValueError("{max_drop} goes with {metric} package.module:function (or agreement, cosine, kl)")
        return self


class SensitivityOptions(Placing, Spreading):
    """Options of `sensitivity`."""

    device: Device = Field(default=None, description=OF_DEVICE)
    samples: int = Field(default=8, ge=1, description="Held-out samples that it is measured on.")
    budget_s: Annotated[float, Flag("--budget", TIME)] = Field(
        default=60.0, ge=0, description="How long it may take, about; then figures are left out."
    )
