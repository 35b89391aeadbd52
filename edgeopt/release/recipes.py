"""What a step of a variant can be: its table in the project file.

Choices are written down here, so that the schema tells them and nothing is imported for it; a test compares them with the
tables that they are from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgeopt.errors import UsageError


class Table(BaseModel):
    """Of the types that TOML tells apart: true is no number and 7 no text, but 7 may stand for 7.0."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _known_target(name: str) -> str:
    from edgeopt import target  # with NumPy: only where a target is named

    try:
        target.load(name)
    except UsageError as e:
        raise ValueError(str(e)) from e
    return name


Place = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[int, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]


class Simplify(Table):
    """Fewer nodes, the same numbers."""

    step: Literal["simplify"]


class Quantize(Table):
    """int8 with calibration; see `edgeopt quantize`."""

    step: Literal["quantize"]
    mode: Literal["auto", "static", "dynamic"] = "auto"
    effort: Literal["fast", "normal", "high"] = "normal"
    target: Annotated[str, AfterValidator(_known_target)] = "host"
    range_rule: Literal["mse", "minmax", "percentile", "entropy"] = Field(default="mse", alias="range")
    rounding: Literal["nearest", "gptq", "adaround", "stochastic"] | None = None
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = Field(default=None, ge=0, le=1)
    exclude: Names = ()
    include: Names = ()
    budget_s: float = Field(default=600.0, gt=0)
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
    """Better weights by the answers of a teacher; the project's model unless another is named."""

    step: Literal["distill"]
    teacher: Place | None = None
    loss: Literal["auto", "kd", "dkd", "dist", "mse", "cosine", "bce", "probabilities", "similarity"] = "auto"
    epochs: Count = 20
    minutes: float | None = Field(default=None, gt=0)
    batch_size: Count = 32
    learning_rate: float | None = Field(default=None, gt=0)
    seed: int = 0


Step = Annotated[Simplify | Quantize | Fp16 | Weights | Shrink | Distill, Field(discriminator="step")]
STEPS: Mapping[str, type[Table]] = {
    "simplify": Simplify, "quantize": Quantize, "fp16": Fp16, "weights": Weights, "shrink": Shrink, "distill": Distill,
}  # fmt: skip
