"""Description of a model's inputs for the readers, and types that they share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data.ends import ends
from edgeopt.errors import DataError
from edgeopt.graph.defaults import default_of
from edgeopt.options.reading import Preprocess

Feed = Mapping[str, NDArray[Any]]
Sample = tuple[str, Callable[[], Feed]]
MAX_UNREADABLE = 0.05
LABEL = "label"  # an entry of a feed that only `distill` uses


@dataclass(frozen=True)
class Samples:
    """Samples of a source."""

    samples: list[Sample]
    kind: str = ""  # images, arrays, sound ...
    recipe: str = ""  # how images are turned into inputs, in words
    resolved: Preprocess | None = None  # the same, resolved for the input
    notes: tuple[str, ...] = ()  # remarks for the user


@dataclass(frozen=True)
class InputSpec:
    """A graph input."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    """None as a dimension: dynamic; None: unknown."""
    default: NDArray[Any] | None = field(default=None, compare=False)
    """Its value if a feed omits it."""
    pixels: str = ""
    """The colour, "rgb" or "gray", of an image whose pixels it takes [N, H, W, C]; empty for others."""

    def fixed(self, axis: int) -> int | None:
        """The size of dimension `axis` if it is fixed, else None."""
        return self.shape[axis] if self.shape is not None and -len(self.shape) <= axis < len(self.shape) else None


def specs(model: ir.Model) -> list[InputSpec]:
    """The inputs of `model` (canonical); those on a grid are given as floats."""
    own = ends(model)
    return [
        InputSpec(
            str(v.name),
            np.dtype(v.dtype.numpy() if v.dtype is not None and v.name not in own.inputs else np.float32),
            None if v.shape is None else tuple(d if isinstance(d, int) else None for d in v.shape),
            default_of(v),
            own.images.get(str(v.name), ""),
        )
        for v in model.graph.inputs
    ]


def alike(a: ir.Model, b: ir.Model) -> bool:
    """Whether the same feeds go into both (canonical) models, apart from sizes; float32 is taken as float16 too."""
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    ours, theirs = ([(s.name, single if s.dtype == half else s.dtype, s.pixels) for s in specs(m)] for m in (a, b))
    return ours == theirs


def needed(inputs: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs without a default."""
    return [s for s in inputs if s.default is None]


def optional(inputs: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs with a default."""
    return [s for s in inputs if s.default is not None]


def without_label(feed: Feed, model: ir.Model) -> Feed:
    """`feed` without the label that only `distill` uses."""
    return {k: x for k, x in feed.items() if k != LABEL or any(v.name == LABEL for v in model.graph.inputs)}


def check_feed(feed: Feed, model: ir.Model, sample: str) -> None:
    """Check that a feed fits the inputs of `model`; a label is allowed in addition.

    Raises:
        DataError: an input is missing or unknown, or has another dtype, rank or fixed dimension, or all are empty; the
          message names the sample.
    """
    feed = without_label(feed, model)
    if feed and not any(x.size for x in feed.values()):
        raise DataError(
            f"{sample}: is empty: its arrays have shape {', '.join(str(list(x.shape)) for x in feed.values())}"
        )
    inputs, own = {str(v.name): v for v in model.graph.inputs}, ends(model)
    needed = {name for name, value in inputs.items() if default_of(value) is None}
    missing, unknown = sorted(needed - feed.keys()), sorted(feed.keys() - inputs.keys())
    if missing or unknown:
        raise DataError(
            f"{sample}: the model's inputs are {', '.join(inputs)}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not an input: {', '.join(unknown)}" if unknown else "")
        )
    for name, array in feed.items():
        value = inputs[name]
        as_floats = name in own.inputs and array.dtype == np.float32
        if value.dtype is not None and array.dtype != value.dtype.numpy() and not as_floats:
            raise DataError(f"{sample}: input {name!r} wants {value.dtype.name.lower()}, the sample has {array.dtype}")
        if value.shape is None:
            continue
        want = ["?" if not isinstance(d, int) else d for d in value.shape]
        if len(want) != array.ndim or any(w not in ("?", d) for w, d in zip(want, array.shape, strict=True)):
            raise DataError(f"{sample}: input {name!r} wants shape {want}, the sample has {list(array.shape)}")


def refuse_many(problems: Mapping[Path, str] | Mapping[str, str], total: int, looked_at: int | None = None) -> None:
    """Raise DataError if more than 5 % of `total` samples have a problem; looked_at: how many were read, if not all."""
    if len(problems) > MAX_UNREADABLE * total:
        first = "; ".join(
            f"{f} ({reason.removeprefix(f'{f}: ')})" for f, reason in itertools.islice(problems.items(), 3)
        )
        raise DataError(
            f"{len(problems)} of the {looked_at or total} samples looked at cannot be read "
            f"(the limit is {MAX_UNREADABLE:.0%}): {first}"
        )
