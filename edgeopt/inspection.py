"""What is in a model: inputs, operators, parameters, activations, MACs, sizes, and what each target would compute in
integers.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Feed, specs
from edgeopt.errors import EdgeoptError, UsageError, suggestion
from edgeopt.hardware import target
from edgeopt.options import takes
from edgeopt.options.models import Inspect
from edgeopt.passes.simplifying import simplify
from edgeopt.ptq.place import macs, place
from edgeopt.runtime.probe import Probe, probe

Source = str | Path | bytes | onnx.ModelProto | ir.Model
_SPATIAL, _SEQUENCE = 224, 64  # for dimensions that vary and were not said


@dataclass(frozen=True)
class Inspection:
    """Facts about a model. activation_bytes and macs are None when it does not run on made-up inputs of `shapes`; why
    says why.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opsets: Mapping[str, int]
    operators: Mapping[str, int]
    parameters: int
    file_bytes: int
    download_bytes: int
    bytes_by_dtype: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    activation_bytes: int | None
    macs: int | None
    integer_nodes: Mapping[str, Mapping[str, int]]
    why: str


@takes(Inspect)
def inspect(model: Source, options: Inspect) -> Inspection:
    """Facts about `model`; dimensions that vary and have no size are 1 for batches, 224 for images, 64 for sequences.

    Raises:
        ModelError: not readable. UsageError: a size of a dimension that no input has.
    """
    loaded = graph.load(model)
    form = graph.canonical(loaded)
    feed = made_up_feed(form, options.dims)
    bytes_ = b"" if graph.above_protobuf(form) else graph.proto_bytes(form)
    integer: dict[str, dict[str, int]] = {}
    work = activation_bytes = None
    why = ""
    try:
        simple = simplify(form)
        probes = probe(simple, feed)
        work = sum(macs(n, probes) for n in simple.graph if n.op_type in ("Conv", "Gemm", "MatMul"))
        activation_bytes = sum(
            4 * probes[str(v.name)].size for n in simple.graph for v in n.outputs if str(v.name) in probes
        )
        integer = {name: _integer(simple, name, probes) for name in target.names() if name != "host"}
    except EdgeoptError as e:
        why = f"does not run on made-up inputs, so no shapes: {e}"
    return Inspection(
        inputs={s.name: _describe(v) for s, v in zip(specs(form), form.graph.inputs, strict=True)},
        outputs={str(v.name): _describe(v) for v in form.graph.outputs},
        opsets=dict(loaded.opset_imports),
        operators=dict(Counter(n.op_type for n in form.graph.all_nodes()).most_common()),
        parameters=sum(
            v.const_value.size for g in form.graphs() for v in g.initializers.values() if v.const_value is not None
        ),
        file_bytes=Path(model).stat().st_size if isinstance(model, str | Path) else len(bytes_),
        download_bytes=len(zlib.compress(bytes_, 6)),
        bytes_by_dtype=graph.bytes_by_dtype(form),
        shapes={name: x.shape for name, x in feed.items()},
        activation_bytes=activation_bytes,
        macs=work,
        integer_nodes=integer,
        why=why,
    )


def _integer(model: ir.Model, name: str, probes: Mapping[str, Probe]) -> dict[str, int]:
    plan = place(model, target.load(name), probes)
    return dict(Counter(n.op_type for n in model.graph if n.name in plan.integer).most_common())


def _describe(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ", ".join(_dim(d) for d in value.shape)
    return f"{value.dtype.name.lower() if value.dtype is not None else '?'} [{dims}]"


def _dim(d: int | ir.SymbolicDim) -> str:
    return str(d) if isinstance(d, int) else d.value or "?"


def made_up_feed(model: ir.Model, dims: Mapping[str, int]) -> Feed:
    """Normal floats and ones for the inputs of `model` (canonical); see `inspect` for `dims`."""
    rng = np.random.default_rng(0)
    free = [(v, i, d) for v in model.graph.inputs for i, d in enumerate(v.shape or ()) if not isinstance(d, int)]
    names = {d.value for _, _, d in free if d.value} | {f"{v.name}.{i}" for v, i, _ in free}
    for name in dims:
        if name not in names:
            raise UsageError(
                f"--dim {name}: no input has it{suggestion(name, [str(n) for n in names])} Known: {', '.join(sorted(map(str, names))) or 'none'}"
            )
    for name, size in dims.items():
        if size < 1:
            raise UsageError(f"--dim {name}={size}: at least 1")
    feed = {}
    for value, spec in zip(model.graph.inputs, specs(model), strict=True):
        rank = len(value.shape or ())
        shape = [dims.get(f"{spec.name}.{i}") or _size(d, i, rank, dims) for i, d in enumerate(value.shape or ())]
        floats = np.issubdtype(spec.dtype, np.floating)
        feed[spec.name] = np.asarray(rng.standard_normal(shape) if floats else np.ones(shape)).astype(spec.dtype)
    return feed


def _size(d: int | ir.SymbolicDim, axis: int, rank: int, dims: Mapping[str, int]) -> int:
    if isinstance(d, int):
        return d
    if d.value in dims:
        return dims[str(d.value)]
    if axis == 0:
        return 1
    return _SPATIAL if rank == 4 else _SEQUENCE
