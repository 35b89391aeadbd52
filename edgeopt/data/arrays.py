"""Samples in NumPy files and in ONNX test data, whose declared sizes are checked before they are read."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.lib import format as npy

from edgeopt.data.spec import LABEL, Feed, InputSpec, Sample
from edgeopt.errors import DataError

SUFFIXES = frozenset({".npz", ".npy"})
BROKEN_ARRAY = (
    OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, RecursionError, OverflowError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
)  # fmt: skip


def samples(file: Path, inputs: Sequence[InputSpec], everything: Sequence[InputSpec], most_bytes: int) -> list[Sample]:
    """Samples of a NumPy file: an .npz is one feed by input names; an .npy contains samples of the only input along
    axis 0, or one sample if it has one dimension less.

    `everything`: the inputs, including those with a default; `most_bytes`: size limit of one sample.

    Raises:
        DataError: it is not a NumPy file, or holds no samples for the inputs.
    """
    if file.suffix.lower() == ".npz":
        return [(str(file), partial(_npz, file, frozenset(s.name for s in everything), most_bytes))]
    try:
        loaded = np.load(file, allow_pickle=False, mmap_mode="r")
    except BROKEN_ARRAY as e:
        raise _unreadable(file, e) from e
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{file}: an archive, which is called .npz")
    return _rows(file, loaded, inputs, most_bytes)


def fit(file: Path, inputs: Sequence[InputSpec]) -> bool:
    """Whether a NumPy file has arrays for all inputs: by name, or by type and rank for a single input."""
    try:
        if file.suffix.lower() != ".npz":
            return len(inputs) == 1 and _fits(np.load(file, allow_pickle=False, mmap_mode="r"), inputs[0])
        with zipfile.ZipFile(file) as archive:
            return {s.name for s in inputs} <= {n.removesuffix(".npy") for n in archive.namelist()}
    except BROKEN_ARRAY:
        return False


def _fits(rows: object, spec: InputSpec) -> bool:
    """Whether an array has the type of the input, and its rank or one less."""
    if not isinstance(rows, np.ndarray) or rows.dtype != spec.dtype:
        return False
    return spec.shape is None or 0 <= len(spec.shape) - rows.ndim <= 1


def protobufs(folder: Path, inputs: Sequence[InputSpec], most_bytes: int) -> Feed:
    """The feed in input_0.pb, input_1.pb ... of a folder.

    Raises:
        DataError: a file is missing, too large, or no tensor.
    """
    feed = {}
    for i, spec in enumerate(inputs):
        file = folder / f"input_{i}.pb"
        try:
            _check_size(file, spec.name, file.stat().st_size, most_bytes)
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError("it points to another file, which is refused")
            feed[spec.name] = onnx.numpy_helper.to_array(tensor)
        except (OSError, DecodeError, ValueError, TypeError, KeyError) as e:
            raise DataError(f"{file}: not a readable tensor ({e})") from e
    return feed


def _rows(file: Path, loaded: np.ndarray, inputs: Sequence[InputSpec], most_bytes: int) -> list[Sample]:
    """Samples of an .npy [samples, ...]; the file is memory-mapped again for each, so that data read earlier do not
    stay in memory.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{file}: one array for inputs {', '.join(s.name for s in inputs)}; give an .npz with these names"
        )
    spec, shape = inputs[0], loaded.shape
    whole = spec.shape is not None and len(shape) == len(spec.shape) - 1
    step = spec.fixed(0) or 1
    if not whole and (not shape or shape[0] < step):
        raise DataError(f"{file}: an array of shape {list(shape)} holds no samples for input {spec.name!r}")
    _check_size(file, spec.name, loaded.nbytes if whole else loaded.nbytes // shape[0] * step, most_bytes)
    if whole:
        return [(str(file), partial(_whole, file, spec))]
    return [(f"{file}[{i}]", partial(_mapped, file, spec, i, step)) for i in range(0, shape[0] - step + 1, step)]


def _mapped(file: Path, spec: InputSpec, start: int, step: int) -> Feed:
    return {spec.name: np.array(np.load(file, allow_pickle=False, mmap_mode="r")[start : start + step])}


def _whole(file: Path, spec: InputSpec) -> Feed:
    return {spec.name: np.load(file, allow_pickle=False)[None]}


def _npz(file: Path, inputs: frozenset[str], most_bytes: int) -> Feed:
    """The arrays of an .npz; arrays that are not inputs are returned empty instead of unpacked."""
    feed = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name not in inputs and name != LABEL:
                    feed[name] = np.empty(0, np.float32)
                    continue
                with archive.open(entry) as stream:
                    _check_size(file, name, max(_declared(stream), entry.file_size), most_bytes)
                with archive.open(entry) as stream:
                    feed[name] = npy.read_array(stream, allow_pickle=False)
    except DataError:
        raise
    except BROKEN_ARRAY as e:
        raise _unreadable(file, e) from e
    return feed


def _declared(stream: IO[bytes]) -> int:
    """The size in bytes that the header of a .npy declares."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return math.prod(shape) * int(dtype.itemsize)


def _check_size(file: Path, name: str, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise DataError(
            f"{file}: {name!r} takes {size / 1e6:.0f} MB; a sample may take {most_bytes / 1e6:.0f} MB at most"
        )


def _unreadable(file: Path, e: BaseException) -> DataError:
    return DataError(f"{file}: not a readable NumPy file ({e}); pickled objects are refused")
