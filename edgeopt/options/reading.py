"""How samples are turned into inputs: the options of every function that reads samples.

y = (x scale - mean) / std with x in 0 ... 255, after a resize and a centre crop
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, SkipValidation

from edgeopt.options.declare import PYTHON_ONLY, Flag, Options
from edgeopt.options.texts import NUMBERS, SIDE, SIDES, Text, whole

Sizes = Annotated[Mapping[str, Annotated[int, Field(ge=1)]], Flag("--dim", Text("SIZE", whole), example="seq=128")]
DataOption = Annotated[str, PYTHON_ONLY, Field(description="Name of the samples in error messages.")]
AnySamples = Annotated[str | Path | Iterable[Any] | None, SkipValidation]
Samples = Annotated[AnySamples, Flag(text=Text("PATH", str), step=False)]
_MOST_BYTES = 1 << 30
_Side = Annotated[int, Field(ge=1, le=16384)]
_Layout = Annotated[Literal["NCHW", "NHWC"], BeforeValidator(lambda x: x.upper() if isinstance(x, str) else x)]


class Preprocess(Options):
    """How an image becomes an input; None: what the model's input asks for."""

    resize: Annotated[_Side | tuple[_Side, _Side] | None, Flag(text=SIDE)] = Field(
        default=None, description="Shorter side, or height and width."
    )
    crop: Annotated[tuple[_Side, _Side] | None, Flag(text=SIDES)] = Field(
        default=None, description="Height and width of the centre that is kept."
    )
    scale: FiniteFloat = Field(default=1 / 255, description="y = (x * scale - mean) / std, x in 0..255.")
    mean: Annotated[tuple[FiniteFloat, ...], Flag(text=NUMBERS)] = Field(
        default=(0.0,), description="One number, or one a channel in the order of --color."
    )
    std: Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Flag(text=NUMBERS)] = Field(
        default=(1.0,), description="One number, or one a channel in the order of --color."
    )
    layout: _Layout | None = Field(default=None, description="Order of the axes.")
    color: Literal["rgb", "bgr", "gray"] | None = Field(
        default=None, description="Order of the channels; a preset's mean and std follow it."
    )
    exif: Literal["apply", "ignore"] = Field(
        default="apply", description="Whether pictures are turned as their EXIF orientation says."
    )

    def describe(self) -> str:
        """A one-line description."""
        fields = self.image_fields(exclude_none=True)
        return ", ".join(f"{k} {v}" for k, v in fields.items() if (k, v) != ("exif", "apply"))

    def image_fields(self, *, exclude_none: bool = False, only_given: bool = False) -> dict[str, object]:
        """The fields that define how an image is turned into an input."""
        return self.model_dump(include=set(RECIPE), exclude_none=exclude_none, exclude_unset=only_given)


RECIPE = tuple(Preprocess.model_fields)
PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Preprocess(),
    "signed": Preprocess(scale=1 / 127.5, mean=(1.0,)),
    "raw255": Preprocess(scale=1.0),
}


class Reading(Preprocess):
    """How samples are read. What is said of the recipe goes over the preset, the preset over `preprocess.toml` beside
    the samples, and that over a look at the float model.
    """

    preprocess: Literal["imagenet", "unit", "signed", "raw255"] | Preprocess | None = Field(
        default=None, description="Recipe of images. [default: preprocess.toml, or found out]"
    )
    tokenizer: Path | None = Field(default=None, description="tokenizer.json for text.")
    column: str | None = Field(default=None, description="Column of text in .csv or .jsonl. [default: found out]")
    sample_rate: int | None = Field(
        default=None, ge=1, le=768_000, description="Sampling rate of the model in Hz, to which sound is resampled."
    )
    samples: int = Field(default=128, ge=1, description="How many are read.")
    sample_seed: int = Field(default=0, ge=0, description="Seed of the order in which samples are taken.")
    data_option: DataOption = "--data"

    @property
    def most_bytes(self) -> int:
        """The most that one sample may take."""
        return _MOST_BYTES
