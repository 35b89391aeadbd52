"""Inputs of a measurement: arrays given by the user, and feeds in the file format of the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed
from edgeopt.data.arrays import BROKEN_ARRAY
from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.runtime.tensor_file import NPZ, Wire


def read_arrays(given: Mapping[str, Path], model: ir.Model) -> dict[str, NDArray[Any]]:
    """The arrays of `--input NAME=FILE.npy`, checked against the model's inputs.

    Raises:
        UsageError: no such input. DataError: not a readable .npy, or it does not fit.
    """
    inputs = {str(v.name) for v in model.graph.inputs}
    found = {}
    for name, path in given.items():
        if name not in inputs:
            raise UsageError(
                f"--input {name}: the model has no such input{suggestion(name, inputs)} Known:"
                f" {', '.join(sorted(inputs))}"
            )
        try:
            with path.open("rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
        except BROKEN_ARRAY as e:
            raise DataError(f"--input {name}: {path} is no readable .npy ({e}); pickled objects are refused") from e
        if not isinstance(loaded, np.ndarray):
            raise DataError(f"--input {name}: {path} holds several arrays; give one .npy")
        found[name] = loaded
    return found


def write_feeds(feeds: Sequence[Feed], path: Path, wire: Wire = NPZ) -> None:
    """Write the feeds for a worker, with entries `index/input`."""
    wire.save(path, {f"{i}/{name}": x for i, feed in enumerate(feeds) for name, x in feed.items()})
