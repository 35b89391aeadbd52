"""Files of named arrays by which feeds and outputs are handed over: .npz for Python, and for any other language the
format of safetensors, which it reads in a few lines: eight bytes with the length of a JSON header, the header, and the
bytes of the arrays.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError

_CODES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bool": "BOOL", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()}


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `arrays` to `path`.

    Raises:
        DataError: an array has no numbers.
    """
    header, offset = dict[str, Any](), 0
    for name, x in arrays.items():
        if x.dtype.name not in _CODES:
            raise DataError(f"{name}: values of type {x.dtype} cannot be handed to another runtime")
        ends = [offset, offset + x.nbytes]
        header[name] = {"dtype": _CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": ends}
        offset += x.nbytes
    words = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(words)) + words)
        for x in arrays.values():
            f.write(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes())


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file.

    Raises:
        DataError: it is no such file.
    """
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        found = {}
        for name, entry in json.loads(data[8 : 8 + length]).items():
            begin, end = (8 + length + i for i in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return found
    except (struct.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise DataError(f"{path}: no file of tensors ({e})") from e


def _save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


@dataclass(frozen=True)
class Wire:
    """A format of files of arrays."""

    suffix: str
    save: Callable[[Path, Mapping[str, NDArray[Any]]], None]
    read: Callable[[Path], Mapping[str, NDArray[Any]]]


NPZ = Wire(".npz", _save_npz, _load_npz)
TENSORS = Wire(".safetensors", save, load)
