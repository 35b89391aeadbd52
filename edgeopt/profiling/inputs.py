"""Inputs for a measurement: dimensions that vary get sizes, and values are generated within what the graph can take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed, InputSpec, specs
from edgeopt.data.source import BROKEN_ARRAY
from edgeopt.errors import DataError, UsageError, suggestion

_PASSES = frozenset(
    {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose", "Slice", "Expand", "Concat"}
)
_INDEXED = frozenset({"Gather", "GatherElements"})
_CHANNELS = (1, 3)


def shapes(
    model: ir.Model, dims: Mapping[str, int], batch: int | None = None, given: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, tuple[int, ...]]:
    """A shape for every input of `model` (canonical) that is not `given`.

    dims: sizes by name or `input.axis`, also known from the given arrays; a first dimension that varies is a batch of
    `batch` (1).

    Raises:
        UsageError: a name in `dims` that no input has, a dimension that varies and got no size, or a batch that the model
          fixes.
    """
    given = given or {}
    free = {
        (str(v.name), i): d for v in model.graph.inputs for i, d in enumerate(v.shape or ()) if not isinstance(d, int)
    }
    _check_names(free, dims)
    implied = {
        str(d.value): given[n].shape[i] for (n, i), d in free.items() if n in given and i < given[n].ndim and d.value
    }
    known = {**implied, **dims}
    inner = {str(d.value) for (_, i), d in free.items() if i and d.value}
    sizes: dict[tuple[str, int], int] = {}
    missing: dict[str, str] = {}
    for (name, i), d in free.items():
        size = known.get(f"{name}.{i}") or (known.get(str(d.value)) if d.value else None)
        if size is None and (i or str(d.value) in inner) and name not in given:
            called = d.value if d.value and d.value.isidentifier() else f"{name}.{i}"
            missing.setdefault(called, f"dimension {i} of {name!r}")
        sizes[name, i] = size or batch or 1
    if missing:
        told = ", ".join(f"{dim} ({where})" for dim, where in missing.items())
        raise UsageError(f"these dimensions vary and have no size: {told}; give --dim {next(iter(missing))}=SIZE")
    _check_batch(model, batch)
    found = {}
    for v in model.graph.inputs:
        name = str(v.name)
        if name in given:
            continue
        if v.shape is None:
            raise UsageError(f"input {name!r} declares no shape; give it as --input {name}=FILE.npy or with --data")
        found[name] = tuple(d if isinstance(d, int) else sizes[name, i] for i, d in enumerate(v.shape))
    return found


def _check_names(free: Mapping[tuple[str, int], ir.SymbolicDim], dims: Mapping[str, int]) -> None:
    names = {str(d.value) for d in free.values() if d.value} | {f"{name}.{i}" for name, i in free}
    for name in dims:
        if name not in names:
            known = ", ".join(sorted(names)) or "none: every dimension is fixed"
            raise UsageError(f"--dim {name}: no input has it{suggestion(name, names)} Known: {known}")


def _check_batch(model: ir.Model, batch: int | None) -> None:
    first = {str(v.name): v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)}
    fixed = {name: d for name, d in first.items() if isinstance(d, int)}
    if batch is not None and len(fixed) == len(first) and any(d != batch for d in fixed.values()):
        told = ", ".join(f"{name}: {d}" for name, d in fixed.items())
        raise UsageError(
            f"--batch {batch}: the model fixes its first dimensions ({told}); export it with a batch that varies"
        )


def generated(
    model: ir.Model, sized: Mapping[str, tuple[int, ...]], given: Mapping[str, NDArray[Any]]
) -> tuple[Feed, list[str]]:
    """(a feed of shapes `sized`, what it holds in words); `given` inputs are taken as they are."""
    rng = np.random.default_rng(0)
    feed: dict[str, NDArray[Any]] = {}
    told = []
    for value, spec in zip(model.graph.inputs, specs(model), strict=True):
        if spec.name in given:
            feed[spec.name] = given[spec.name]
            continue
        feed[spec.name], words = _values(value, spec, sized[spec.name], rng)
        told.append(f"{spec.name}: {words}")
    return feed, told


def _values(
    value: ir.Value, spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[NDArray[Any], str]:
    if np.issubdtype(spec.dtype, np.floating) or spec.dtype.kind == "V":  # V: bfloat16 and the like
        if len(shape) == len("NCHW") and (shape[1] in _CHANNELS or shape[3] in _CHANNELS):
            return rng.random(shape).astype(spec.dtype), "random in [0, 1)"
        return rng.standard_normal(shape).astype(spec.dtype), "random, normal"
    if spec.dtype == np.bool_:
        return np.ones(shape, np.bool_), "true"
    if re.search("mask", spec.name, re.IGNORECASE):
        return np.ones(shape, spec.dtype), "ones (a mask)"
    bound = index_bound(value)
    if bound is not None:
        return rng.integers(0, bound, shape).astype(spec.dtype), f"random in [0, {bound}), since it is an index"
    return rng.integers(0, 2, shape).astype(spec.dtype), "random, 0 or 1"


def index_bound(value: ir.Value) -> int | None:
    """The smallest size of what `value` indexes, through operators that only move it; None if it is no index."""
    bounds, seen, todo = [], {value}, [value]
    while todo:
        for node, position in tuple(todo.pop().uses()):
            if node.op_type in _INDEXED and position == 1:
                data = node.inputs[0]
                axis = node.attributes.get_int("axis", 0)
                size = data.shape[axis] if data is not None and data.shape is not None and len(data.shape) else None
                if isinstance(size, int):
                    bounds.append(size)
            elif node.op_type in _PASSES and position == 0:
                todo += [v for v in node.outputs if v not in seen]
                seen.update(node.outputs)
    return min(bounds, default=None)


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
                f"--input {name}: the model has no such input{suggestion(name, inputs)} Known: {', '.join(sorted(inputs))}"
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


def write_feeds(feeds: list[Feed], path: Path) -> None:
    """An .npz as the worker reads it: entries `index/input`."""
    np.savez(path, **{f"{i}/{name}": x for i, feed in enumerate(feeds) for name, x in feed.items()})  # type: ignore[arg-type]
