"""Generated inputs: choose sizes for dynamic dimensions and random values that are valid for the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data.spec import Feed, InputSpec, Sample, specs
from edgeopt.errors import UsageError, suggestion

_PASSES = frozenset(
    {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose", "Slice", "Expand", "Concat"}
)
_INDEXED = frozenset({"Gather", "GatherElements"})
_CHANNELS = (1, 3)
_SPATIAL, _SEQUENCE = 224, 64  # for dynamic dimensions without a given size


def shapes(
    model: ir.Model,
    dims: Mapping[str, int],
    batch: int | None = None,
    given: Mapping[str, NDArray[Any]] | None = None,
    *,
    guess: bool = False,
) -> dict[str, tuple[int, ...]]:
    """A shape for every input of `model` (canonical) that is not `given`.

    dims: sizes by name or `input.axis`; sizes are also taken from the given arrays; batch: size of a dynamic first
    dimension (default 1); guess: other dimensions without a size are 224 in images and 64 elsewhere, instead of an
    error.

    Raises:
        UsageError: a name in `dims` that no input has, a dynamic dimension without a size, or a `batch` that differs
          from the model's fixed one.
    """
    given = defaults(model) | dict(given or {})
    free = {
        (str(v.name), i): d for v in model.graph.inputs for i, d in enumerate(v.shape or ()) if not isinstance(d, int)
    }
    _check_names(free, dims)
    implied = {
        str(d.value): given[n].shape[i] for (n, i), d in free.items() if n in given and i < given[n].ndim and d.value
    }
    known = {**implied, **dims}
    inner = {str(d.value) for (_, i), d in free.items() if i and d.value}
    ranks = {str(v.name): len(v.shape or ()) for v in model.graph.inputs}
    sizes: dict[tuple[str, int], int] = {}
    missing: dict[str, str] = {}
    for (name, i), d in free.items():
        size = known.get(f"{name}.{i}") or (known.get(str(d.value)) if d.value else None)
        if size is None and guess:
            size = _guessed(i, ranks[name], batch)
        if size is None and (i or str(d.value) in inner) and name not in given:
            called = d.value if d.value and d.value.isidentifier() else f"{name}.{i}"
            missing.setdefault(called, f"dimension {i} of {name!r}")
        sizes[name, i] = size or batch or 1
    if missing:
        told = ", ".join(f"{dim} ({where})" for dim, where in missing.items())
        raise UsageError(f"these dimensions vary and have no size: {told}; give --dim {next(iter(missing))}=SIZE")
    _check_batch(model, batch)
    return {str(v.name): _shape(v, sizes, guess=guess) for v in model.graph.inputs if str(v.name) not in given}


def _guessed(axis: int, rank: int, batch: int | None = None) -> int:
    if axis == 0:
        return batch or 1
    return _SPATIAL if rank == len("NCHW") else _SEQUENCE


def _shape(value: ir.Value, sizes: Mapping[tuple[str, int], int], *, guess: bool) -> tuple[int, ...]:
    name = str(value.name)
    if value.shape is None and not guess:
        raise UsageError(f"input {name!r} declares no shape; give it as --input {name}=FILE.npy or with --data")
    return tuple(d if isinstance(d, int) else sizes[name, i] for i, d in enumerate(value.shape or ()))


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
    model: ir.Model,
    sized: Mapping[str, tuple[int, ...]],
    given: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
) -> tuple[Feed, list[str]]:
    """(a feed with the shapes `sized`, a description of its values); `given` inputs are used unchanged."""
    rng = np.random.default_rng(seed)
    given = defaults(model) | dict(given or {})
    feed: dict[str, NDArray[Any]] = {}
    told = []
    for value, spec in zip(model.graph.inputs, specs(model), strict=True):
        if spec.name in given:
            feed[spec.name] = given[spec.name]
            continue
        feed[spec.name], words = _values(spec, sized[spec.name], rng, index_bound(value))
        told.append(f"{spec.name}: {words}")
    return feed, told


def defaults(model: ir.Model) -> dict[str, NDArray[Any]]:
    """The inputs of `model` (canonical) that have a default."""
    return {s.name: s.default for s in specs(model) if s.default is not None}


def feed_for(model: ir.Model, dims: Mapping[str, int]) -> Feed:
    """Values for the inputs of `model` (canonical), with sizes from `dims` or guessed ones."""
    return generated(model, shapes(model, dims, guess=True))[0]


def _values(
    spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator, bound: int | None = None
) -> tuple[NDArray[Any], str]:
    """(values, their description) of one input; bound: the size of the axis that it indexes."""
    if np.issubdtype(spec.dtype, np.floating) or spec.dtype.kind == "V":  # V: bfloat16 and the like
        if len(shape) == len("NCHW") and (shape[1] in _CHANNELS or shape[3] in _CHANNELS):
            return rng.random(shape).astype(spec.dtype), "random in [0, 1)"
        return rng.standard_normal(shape).astype(spec.dtype), "random, normal"
    if spec.dtype == np.bool_:
        return np.ones(shape, np.bool_), "true"
    if spec.pixels:
        return rng.integers(0, 256, shape).astype(spec.dtype), "random pixels"
    if re.search("mask", spec.name, re.IGNORECASE):
        return np.ones(shape, spec.dtype), "ones (a mask)"
    if bound is not None:
        return rng.integers(0, bound, shape).astype(spec.dtype), f"random in [0, {bound}), since it is an index"
    return rng.integers(0, 2, shape).astype(spec.dtype), "random, 0 or 1"


def index_bound(value: ir.Value) -> int | None:
    """The smallest size of an axis that `value` indexes, also through operators that only move it; None if it is not an
    index.
    """
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


def random_samples(inputs: Sequence[InputSpec], count: int) -> list[Sample]:
    """`count` random samples of the declared shapes, only for trying out; dynamic dimensions are guessed."""

    def feed(seed: int) -> Feed:
        rng = np.random.default_rng(seed)
        made = {}
        for spec in inputs:
            if spec.default is not None:
                made[spec.name] = spec.default
                continue
            rank = len(spec.shape or ())
            shape = tuple(d or _guessed(i, rank) for i, d in enumerate(spec.shape or ()))
            made[spec.name] = _values(spec, shape, rng)[0]
        return made

    return [(f"random[{i}]", partial(feed, i)) for i in range(count)]
