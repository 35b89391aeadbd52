"""Preview of what a model is given: statistics of each input over the first samples, a contact sheet of images, tokens
of text.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgeopt.data.spec import Feed, InputSpec, Samples
from edgeopt.data.text import load
from edgeopt.errors import DataError, UsageError
from edgeopt.options.reading import Preprocess

_SIDE = 128  # pixels of an image on the sheet
_GAP = 4
_ON_SHEET = 24
_TEXTS = 3
_SHOWN = 5  # most shapes, and skipped samples, that are listed


@dataclass
class InputFacts:
    """Statistics of one input over all samples that were read; None if it is not numeric, or has NaN or infinity."""

    dtype: str
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    ends: float | None = None
    """Share of elements at the minimum or the maximum; high with padding or clipping."""
    constant: int = 0
    """Number of samples in which all elements are equal."""

    def describe(self, count: int) -> str:
        """A one-line description; `count`: the number of samples."""
        sizes = " or ".join("x".join(map(str, s)) or "scalar" for s in self.shapes[:_SHOWN])
        more = f" ({len(self.shapes)} shapes)" if len(self.shapes) > _SHOWN else ""
        constant = f"; {self.constant} of {count} samples are constant" if self.constant else ""
        given = (self.mean, self.std, self.low, self.high)
        if self.ends is None or any(x is None for x in given):
            return f"{self.dtype} {sizes}{more}; no figures: no numbers, or NaN among them{constant}"
        mean, std, low, high = (f"{x:.4g}" for x in given)
        figures = f"mean {mean}, std {std}, {low} ... {high}, {self.ends:.1%} at these ends"
        return f"{self.dtype} {sizes}{more}; {figures}{constant}"


@dataclass(frozen=True)
class Preview:
    """The samples of a source as a model gets them."""

    kind: str
    """Kind of the samples: images, arrays, sound ..."""
    count: int
    """Number of samples."""
    read: int
    """Number of samples read."""
    skipped: Mapping[str, str]
    """Sample name -> why it cannot be read."""
    recipe: str
    """How images are turned into inputs, in words."""
    notes: tuple[str, ...]
    inputs: Mapping[str, InputFacts]
    texts: tuple[str, ...] = ()
    """Tokens of the first text samples."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """(label, text) of everything, for a table."""
        looked = "" if self.read + len(self.skipped) == self.count else f"; {self.read} looked at (--samples)"
        yield "samples", f"{self.count}, {self.kind}{looked}"
        for note in self.notes:
            yield "note", note
        for name, facts in self.inputs.items():
            yield f"input {name}", facts.describe(self.read)
        for i, text in enumerate(self.texts, 1):
            yield f"tokens {i}", text
        for name, reason in list(self.skipped.items())[:_SHOWN]:
            yield "skipped", reason if name in reason else f"{name}: {reason}"
        if len(self.skipped) > _SHOWN:
            yield "", f"... and {len(self.skipped) - _SHOWN} more"


def preview(found: Samples, feeds: Mapping[str, Feed], skipped: Mapping[str, str], tokenizer: Path | None) -> Preview:
    """Statistics of `feeds`, those samples of `found` that were read, by name."""
    names = dict.fromkeys(name for feed in feeds.values() for name in feed)
    return Preview(
        kind=found.kind,
        count=len(found.samples),
        read=len(feeds),
        skipped=skipped,
        recipe=found.recipe,
        notes=found.notes,
        inputs={n: _facts([feed[n] for feed in feeds.values() if n in feed]) for n in names},
        texts=() if tokenizer is None or found.kind != "text" else _texts(list(feeds.values())[:_TEXTS], tokenizer),
    )


def _facts(arrays: Sequence[NDArray[Any]]) -> InputFacts:
    facts = InputFacts(arrays[0].dtype.name, sorted({x.shape for x in arrays}))
    if arrays[0].dtype.kind not in "fiub":
        return facts
    filled = [x.astype(np.float64) for x in arrays if x.size]
    if not filled or not all(np.isfinite(x).all() for x in filled):
        return facts
    low, high = min(float(x.min()) for x in filled), max(float(x.max()) for x in filled)
    count = sum(x.size for x in filled)
    mean = sum(float(x.sum()) for x in filled) / count
    facts.low, facts.high, facts.mean = low, high, mean
    facts.std = math.sqrt(sum(float(((x - mean) ** 2).sum()) for x in filled) / count)
    facts.ends = sum(int(((x == low) | (x == high)).sum()) for x in filled) / count
    facts.constant = sum(x.size > 1 and float(x.min()) == float(x.max()) for x in filled)
    return facts


def _texts(feeds: Sequence[Feed], tokenizer: Path) -> tuple[str, ...]:
    encoder = load(tokenizer)
    ids = [feed["input_ids"].reshape(-1).tolist() for feed in feeds if "input_ids" in feed]
    return tuple(" ".join(encoder.id_to_token(i) or f"<{i}>" for i in row) for row in ids)


def sheet(feeds: Sequence[Feed], spec: InputSpec, recipe: Preprocess) -> Image.Image:
    """A contact sheet of the first samples as the model sees them: cropped and resized, with the recipe's scale, mean
    and std inverted; values are clipped to 0 ... 255.

    Raises:
        UsageError: there is nothing to show.
    """
    pictures = [_picture(feed[spec.name][0], recipe) for feed in feeds[:_ON_SHEET] if spec.name in feed]
    if not pictures:
        raise UsageError("--sheet: there are no images to show")
    columns = min(len(pictures), math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    step = _SIDE + _GAP
    made = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), (96, 96, 96))
    for i, picture in enumerate(pictures):
        small = max(picture.size) < _SIDE  # whose pixels are to be seen
        shown = ImageOps.contain(
            picture, (_SIDE, _SIDE), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
        )
        made.paste(shown, (_GAP + i % columns * step, _GAP + i // columns * step))
    return made


def _picture(x: NDArray[Any], recipe: Preprocess) -> Image.Image:
    wide = x.astype(np.float64)
    wide = wide if recipe.layout == "NHWC" else wide.transpose(1, 2, 0)
    pixels = (wide * np.asarray(recipe.std) + np.asarray(recipe.mean)) / recipe.scale
    bytes_ = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if bytes_.shape[-1] == 1:
        return Image.fromarray(bytes_[..., 0])
    return Image.fromarray(np.ascontiguousarray(bytes_[..., ::-1] if recipe.color == "bgr" else bytes_))


def write(feeds: Mapping[str, Feed], folder: Path) -> None:
    """Write every feed to its own .npz in `folder`, which `open_data` can read.

    Raises:
        DataError: it cannot be written.
    """
    try:
        for i, feed in enumerate(feeds.values()):
            with zipfile.ZipFile(folder / f"{i:05d}.npz", "w") as archive:
                for name, x in feed.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                        npy.write_array(stream, x, allow_pickle=False)
    except OSError as e:
        raise DataError(f"{folder}: cannot be written ({e.strerror or e})") from e
