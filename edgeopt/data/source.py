"""Open a path or a function as samples, and split them into calibration and held-out samples.

The order is deterministic: names are sorted, then permuted with a fixed seed, so that calibration does not use only the
first class of a folder that is sorted by class.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from edgeopt.data import audio, text
from edgeopt.data.images import SUFFIXES, check_header, image_input, read_image, resolve
from edgeopt.data.readers import Readers
from edgeopt.data.spec import Feed, InputSpec, Sample, specs
from edgeopt.errors import DataError, UsageError
from edgeopt.options.reading import PRESETS, Preprocess, Reading

__all__ = [
    "Feed",
    "InputSpec",
    "Sample",
    "open_data",
    "readable",
    "specs",
    "split",
]

MAX_UNREADABLE = 0.05
HELD_OUT = 32
_TEXT = frozenset({".jsonl", ".csv", ".txt"})
_ARRAYS = frozenset({".npz", ".npy"})
BROKEN_ARRAY = (
    OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def open_data(source: str | Path, inputs: Sequence[InputSpec], reading: Reading) -> list[Sample]:
    """The samples of `source`, in a fixed random order.

    Raises:
        UsageError: no such path or function, or a tokenizer is missing. DataError: it contains nothing usable, or more
          than 5 % of the images are unreadable.
    """
    path = Path(source)
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        if ":" in str(source) and os.sep not in str(source):
            return _function(str(source), inputs, reading)
        raise UsageError(f"{reading.data_option} {source}: no such file or folder")
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    found = _samples(path, files, inputs, reading)
    if not found:
        raise DataError(
            f"{reading.data_option} {path}: no images, .npz/.npy, test_data_set_*, .wav, .jsonl, .csv or .txt in it"
        )
    order = np.random.default_rng(reading.sample_seed).permutation(len(found))
    return [found[i] for i in order]


def _samples(path: Path, files: list[Path], inputs: Sequence[InputSpec], reading: Reading) -> list[Sample]:
    kinds = {f.suffix.lower() for f in files}
    if kinds & SUFFIXES:
        return _images([f for f in files if f.suffix.lower() in SUFFIXES], inputs, _recipe(reading))
    if kinds & _ARRAYS:
        return [s for f in files if f.suffix.lower() in _ARRAYS for s in _arrays(f, inputs)]
    if any(f.name == "input_0.pb" for f in files):
        return [(str(f.parent), partial(_protobufs, f.parent, inputs)) for f in files if f.name == "input_0.pb"]
    if ".wav" in kinds:
        return [(str(f), partial(audio.read, f, inputs)) for f in files if f.suffix.lower() == ".wav"]
    if kinds & _TEXT:
        if reading.tokenizer is None:
            raise UsageError(
                f"{reading.data_option} {path}: text needs --tokenizer tokenizer.json "
                "(the file that came with the model)"
            )
        return text.samples([f for f in files if f.suffix.lower() in _TEXT], reading.tokenizer, inputs)
    return []


def _recipe(reading: Reading) -> Preprocess:
    """The given recipe; without one, pixels are scaled to 0 ... 1."""
    said = reading.preprocess
    return PRESETS[said] if isinstance(said, str) else said or PRESETS["unit"]


def _images(files: list[Path], inputs: Sequence[InputSpec], recipe: Preprocess) -> list[Sample]:
    spec = image_input(inputs)
    if spec is None:
        shapes = ", ".join(f"{s.name} {list(s.shape or [])}" for s in inputs)
        raise DataError(
            f"images fit one input of rank 4 with 1 or 3 channels; this model has {shapes}: "
            "give its feeds as .npz or package.module:function"
        )
    problems = {f: reason for f in files if (reason := check_header(f)) is not None}
    refuse_many(problems, len(files))
    resolved = resolve(recipe, spec)
    return [
        (str(f), partial(_refuse, f, problems[f]) if f in problems else partial(read_image, f, resolved, spec))
        for f in files
    ]


def _refuse(file: Path, reason: str) -> Feed:
    """The reader of a file known to be unusable: it raises when read, so that the file is skipped and reported."""
    raise DataError(f"{file}: {reason}")


def refuse_many(problems: Mapping[Path, str] | Mapping[str, str], total: int) -> None:
    """Raise DataError if more than 5 % of `total` samples have a problem."""
    if len(problems) > MAX_UNREADABLE * total:
        first = "; ".join(f"{f} ({reason})" for f, reason in itertools.islice(problems.items(), 3))
        raise DataError(
            f"{len(problems)} of {total} samples cannot be read (the limit is {MAX_UNREADABLE:.0%}): {first}"
        )


def _arrays(file: Path, inputs: Sequence[InputSpec]) -> list[Sample]:
    """Samples of a NumPy file: an .npz is one feed by input names; an .npy contains samples of the only input along
    axis 0, or one sample if it has one dimension less.
    """
    try:
        loaded = np.load(file, allow_pickle=False, mmap_mode="r" if file.suffix == ".npy" else None)
    except BROKEN_ARRAY as e:
        raise DataError(f"{file}: not a readable NumPy file ({e}); pickled objects are refused") from e
    if isinstance(loaded, np.ndarray):
        return _rows(file, loaded.shape, inputs)
    loaded.close()
    return [(str(file), partial(_npz, file))]


def _rows(file: Path, shape: tuple[int, ...], inputs: Sequence[InputSpec]) -> list[Sample]:
    """Samples of an .npy [samples, ...]; the file is memory-mapped anew for each, so that data read earlier do not stay
    in memory.
    """
    spec = _only(inputs, str(file))
    if spec.shape is not None and len(shape) == len(spec.shape) - 1:
        return [(str(file), partial(_whole, file, spec))]
    step = spec.fixed(0) or 1
    if not shape or shape[0] < step:
        raise DataError(f"{file}: an array of shape {list(shape)} holds no samples for input {spec.name!r}")
    return [(f"{file}[{i}]", partial(_mapped, file, spec, i, step)) for i in range(0, shape[0] - step + 1, step)]


def _mapped(file: Path, spec: InputSpec, start: int, step: int) -> Feed:
    return {spec.name: np.array(np.load(file, allow_pickle=False, mmap_mode="r")[start : start + step])}


def _whole(file: Path, spec: InputSpec) -> Feed:
    return {spec.name: np.load(file, allow_pickle=False)[None]}


def _only(inputs: Sequence[InputSpec], name: str) -> InputSpec:
    if len(inputs) != 1:
        raise DataError(
            f"{name}: one array for inputs {', '.join(s.name for s in inputs)}; give an .npz with these names"
        )
    return inputs[0]


def _npz(file: Path) -> Feed:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except BROKEN_ARRAY as e:
        raise DataError(f"{file}: not a readable NumPy file ({e}); pickled objects are refused") from e


def _protobufs(folder: Path, inputs: Sequence[InputSpec]) -> Feed:
    feed = {}
    for i, spec in enumerate(inputs):
        file = folder / f"input_{i}.pb"
        try:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError("it points to another file, which is refused")
            feed[spec.name] = onnx.numpy_helper.to_array(tensor)
        except (OSError, DecodeError, ValueError, TypeError, KeyError) as e:
            raise DataError(f"{file}: not a readable tensor ({e})") from e
    return feed


def named(source: str, option: str, root: Path | None = None) -> Any:
    """Import the object `package.module:name`; modules are also searched in `root` (default: the working directory).

    Raises:
        UsageError: it cannot be imported; the message names the `option`.
    """
    module, _, name = source.partition(":")
    here = str(root or Path.cwd())
    if root is not None:
        _forget(module.partition(".")[0], root)
    sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as e:  # the user's module, which may raise anything
        raise UsageError(f"{option} {source}: {e}; write package.module:function") from e
    finally:
        if here in sys.path:  # the module may have changed sys.path
            sys.path.remove(here)


def _forget(name: str, root: Path) -> None:
    """Remove the module `name` from `sys.modules` if it was imported from elsewhere and `root` has one of that name."""
    known, own = sys.modules.get(name), root / name
    if known is None or not (own.is_dir() or own.with_name(f"{name}.py").is_file()):
        return
    places = [known.__file__] if getattr(known, "__file__", None) else list(getattr(known, "__path__", ()))
    if not any(Path(str(p)).resolve().is_relative_to(root.resolve()) for p in places):
        for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[loaded]
    importlib.invalidate_caches()


def _function(source: str, inputs: Sequence[InputSpec], reading: Reading) -> list[Sample]:
    function = named(source, reading.data_option)
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as e:
        raise UsageError(
            f"{reading.data_option} {source}: not a function that can be called without arguments ({e})"
        ) from e
    feeds = function()
    return Readers(inputs, source, reading.samples + HELD_OUT, reading.sample_seed).samples(feeds)


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
    refuse_many(problems, max(len(samples), total or 0))
    return feeds, problems
