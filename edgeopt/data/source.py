"""Open a path or a function as samples, and split them into calibration and held-out samples.

The order is deterministic: names are sorted, then permuted with a fixed seed, so that calibration does not use only the
first class of a folder that is sorted by class.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgeopt.data import arrays, audio, images, text
from edgeopt.data.foreign import foreign, named
from edgeopt.data.listing import exists, files_of
from edgeopt.data.readers import Readers
from edgeopt.data.spec import Feed, InputSpec, Sample, Samples, needed, optional, refuse_many
from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.options.reading import PRESETS, Preprocess, Reading

HELD_OUT = 32
_TENSORS = "input_0.pb"


def open_data(source: str | Path, inputs: Sequence[InputSpec], reading: Reading) -> Samples:
    """The samples of `source`, in a fixed random order.

    Raises:
        UsageError: no such path or function, or a tokenizer is missing. DataError: it contains nothing usable, or more
          than 5 % of the images are unreadable.
    """
    path = Path(source)
    if not exists(path):
        if ":" in str(source) and os.sep not in str(source):
            return Samples(_function(str(source), inputs, reading), "function")
        raise UsageError(f"{reading.data_option} {source}: no such file or folder{_nearest(path)}")
    files, problems = files_of(path, reading.data_option)
    files = files if files == [path] else [f for f in files if not text.is_about(f)]
    kind = kind_of(files, needed(inputs))
    found = _samples(path, kind, files, inputs, reading)
    if not found.samples:
        if kind == "text":
            raise DataError(f"{reading.data_option} {path}: no text in it, or no column of text (--column)")
        there = ", ".join(f"{n} of {s or 'no suffix'}" for s, n in Counter(f.suffix for f in files).most_common(3))
        raise DataError(
            f"{reading.data_option} {path}: no images, .npz/.npy, test_data_set_*, sound, .jsonl, .csv or .txt in it"
            + (f"; its files are {there}" if there else "")
        )
    order = np.random.default_rng(reading.sample_seed).permutation(len(found.samples))
    notes = (*problems, *_mixture(kind, files), *found.notes)
    return Samples([found.samples[i] for i in order], kind, notes=notes)


def _nearest(path: Path) -> str:
    try:
        return suggestion(path.name, [f.name for f in path.parent.iterdir()])
    except (OSError, ValueError):
        return "."


def of_kind(file: Path) -> str:
    """The kind of sample that a file may be by its name, "" if none."""
    suffix = file.suffix.lower()
    if file.name == _TENSORS:
        return "ONNX test data"
    kinds = {"arrays": arrays.SUFFIXES, "images": images.SUFFIXES, "sound": audio.SUFFIXES, "text": text.SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "")


def kind_of(files: Sequence[Path], inputs: Sequence[InputSpec]) -> str:
    """The kind of the samples in `files`: arrays where they fit the inputs, else what there is, images first."""
    of = {kind: f for f in reversed(files) if (kind := of_kind(f))}
    ranked = ["images", "arrays", "ONNX test data", "sound", "text"]
    if "arrays" in of and (arrays.fit(of["arrays"], inputs) or ("images" in of and not images.image_input(inputs))):
        return "arrays"
    return next((kind for kind in ranked if kind in of), "")


def _mixture(kind: str, files: Sequence[Path]) -> list[str]:
    """A note on files that are samples of another kind."""
    others = [f for f in files if of_kind(f) not in ("", kind)]
    if not others:
        return []
    counts = ", ".join(f"{n} of {other}" for other, n in Counter(of_kind(f) for f in others).items())
    return [f"samples: {kind}; files of other kinds are not read: {counts} ({others[0].name} ...)"]


def _samples(path: Path, kind: str, files: list[Path], inputs: Sequence[InputSpec], reading: Reading) -> Samples:
    mine = [f for f in files if of_kind(f) == kind and kind]
    most, everything, inputs = reading.most_bytes, inputs, needed(inputs)
    if kind == "images":
        return _images(mine, inputs, _recipe(reading))
    if kind == "arrays":
        return Samples([s for f in mine for s in arrays.samples(f, inputs, everything, most)], kind)
    if kind == "ONNX test data":
        return Samples([(str(f.parent), partial(arrays.protobufs, f.parent, inputs, most)) for f in mine], kind)
    if kind == "sound":
        return audio.samples(mine, inputs, reading)
    if kind == "text":
        text.check(inputs)
        if reading.tokenizer is None:
            raise UsageError(
                f"{reading.data_option} {path}: text needs --tokenizer tokenizer.json "
                "(the file that came with the model)"
            )
        return text.samples(mine, reading.tokenizer, inputs, reading.column)
    return Samples([])


def _recipe(reading: Reading) -> Preprocess:
    """The given recipe; without one, pixels are scaled to 0 ... 1."""
    said = reading.preprocess
    return PRESETS[said] if isinstance(said, str) else said or PRESETS["unit"]


def _images(files: list[Path], inputs: Sequence[InputSpec], recipe: Preprocess) -> Samples:
    spec = images.image_input(inputs)
    if spec is None:
        shapes = ", ".join(f"{s.name} {list(s.shape or [])}" for s in inputs)
        raise DataError(
            f"images fit one input of rank 4 with 1 or 3 channels; this model has {shapes}: "
            "give its feeds as .npz or package.module:function"
        )
    headers = {f: images.header(f) for f in files}
    problems = {f: h.problem for f, h in headers.items() if h.problem is not None}
    refuse_many(problems, len(files))
    resolved = images.resolve(recipe, spec)
    found: list[Sample] = [
        (str(f), partial(refused, f, problems[f]) if f in problems else partial(images.read_image, f, resolved, spec))
        for f in files
    ]
    return Samples(found, "images", notes=tuple(images.told(headers.values(), resolved)))


def refused(file: Path | str, reason: str) -> Feed:
    """The reader of a file known to be unusable: it raises when read, so that the file is skipped and reported."""
    raise DataError(f"{file}: {reason}")


def _function(source: str, inputs: Sequence[InputSpec], reading: Reading) -> list[Sample]:
    function = named(source, reading.data_option)
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as e:
        raise UsageError(
            f"{reading.data_option} {source}: not a function that can be called without arguments ({e})"
        ) from e
    with foreign(f"{reading.data_option} {source}", DataError):
        readers = Readers(needed(inputs), source, reading.samples + HELD_OUT, reading.sample_seed, optional(inputs))
        return readers.samples(function())


def split(samples: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """(calibration samples, held-out samples): at most `count` and 32; of few samples a fifth is held out; a single
    sample is used as both.
    """
    if len(samples) < 2:
        return list(samples), list(samples)
    held = min(HELD_OUT, max(1, len(samples) - count, len(samples) // 5))
    return list(samples[held : held + count]), list(samples[:held])


def readable(samples: Sequence[Sample], *, total: int | None = None) -> tuple[list[tuple[str, Feed]], dict[str, str]]:
    """(feeds of the `samples` that can be read, reasons for the others).

    total: number of all samples, if these are only some of them; the 5 % are counted from it.

    Raises:
        DataError: more than 5 % cannot be read.
    """
    feeds: list[tuple[str, Feed]] = []
    problems: dict[str, str] = {}
    for name, read in samples:
        try:
            feeds.append((name, read()))
        except DataError as e:
            problems[name] = str(e)
    refuse_many(problems, max(len(samples), total or 0), len(samples))
    return feeds, problems
