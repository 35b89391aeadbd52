"""What a step of a variant can be: its table in the project file.

Choices are written down here, so that the schema tells them and nothing is imported for it; a test compares them with the
tables that they are from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edgeopt.errors import UsageError


class Table(BaseModel):
    """Of the types that TOML tells apart: true is no number and 7 no text, but 7 may stand for 7.0."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _known_target(name: str) -> str:
    from edgeopt.hardware import target  # with NumPy: only where a target is named

    try:
        target.load(name)
    except UsageError as e:
        raise ValueError(str(e)) from e
    return name


Place = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[int, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Target = Annotated[str, AfterValidator(_known_target)]


class Simplify(Table):
    """Fewer nodes, the same numbers."""

    step: Literal["simplify"]


class Quantize(Table):
    """int8 with calibration; see `edgeopt quantize`."""

    step: Literal["quantize"]
    mode: Literal["auto", "static", "dynamic"] = "auto"
    effort: Literal["fast", "normal", "high"] = "normal"
    target: Target = "host"
    range_rule: Literal["mse", "minmax", "percentile", "entropy"] = Field(default="mse", alias="range")
    rounding: Literal["nearest", "gptq", "adaround", "best", "stochastic"] | None = None
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = Field(default=None, ge=0, le=1)
    refit: bool = False
    exclude: Names = ()
    include: Names = ()
    budget_s: float | None = Field(default=None, gt=0)
    costs: Place | None = Field(default=None, description="measured times that place nodes; read, and not added to")
    qat: bool = False


class Fp16(Table):
    """Half precision."""

    step: Literal["fp16"]
    keep: Names = ()
    io_types: Literal["keep", "fp16"] = "keep"


class Weights(Table):
    """Weights alone in integers."""

    step: Literal["weights"]
    bits: Literal[4, 8] = 8
    exclude: Names = ()


class Shrink(Table):
    """Fewer channels or blocks; to be distilled."""

    step: Literal["shrink"]
    width: float = Field(default=1.0, gt=0, le=1)
    depth: float = Field(default=1.0, gt=0, le=1)
    keep: Names = ()


class Distill(Table):
    """Better weights by the answers of a teacher (the project's model unless another is named), or by its own with kind "self";
    see `edgeopt distill`.
    """

    step: Literal["distill"]
    kind: Literal["offline", "self"] = "offline"
    teacher: Place | None = None
    by: Literal["generations", "average", "heads"] = "generations"
    generations: Count = 1
    heads: Names = ()
    loss: Literal["auto", "kd", "dkd", "dist", "mse", "cosine", "bce", "probabilities", "similarity"] = "auto"
    temperature: float = Field(default=2.0, gt=0)
    alpha: Share = 0.9
    match: Mapping[str, str] = {}
    class_axes: Mapping[str, int] = {}
    hints: Mapping[str, str] = {}
    hint_weight: float = Field(default=1.0, gt=0)
    student_classes: Place | None = None
    teacher_classes: Place | None = None
    epochs: Count = 20
    minutes: float | None = Field(default=None, gt=0)
    patience: int = Field(default=0, ge=0)
    batch_size: Count = 32
    accumulate: Count = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    warm_up: Share = 0.05
    clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    ema: Share = 0.0
    augment: Annotated[tuple[Literal["flip", "crop", "mixup"], ...], Field(strict=False)] = ()
    freeze: Names = ()
    train: Names = ()
    samples: Count = 1_000_000
    quantized: bool = Field(default=False, alias="qat", description="the input is int8: trained through its Q/DQ")
    target: Target = "host"
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Distill:
        if self.kind == "self" and self.teacher is not None:
            raise ValueError('kind = "self" has no teacher but the model itself: leave teacher out')
        return self


Step = Annotated[Simplify | Quantize | Fp16 | Weights | Shrink | Distill, Field(discriminator="step")]
STEPS: Mapping[str, type[Table]] = {
    "simplify": Simplify, "quantize": Quantize, "fp16": Fp16, "weights": Weights, "shrink": Shrink, "distill": Distill,
}  # fmt: skip
