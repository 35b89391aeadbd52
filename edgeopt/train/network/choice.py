"""Chooses the trained initializers of an ONNX graph: which float initializers are weights, which are shared by several
nodes, and which are equal copies of each other.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UsageError, suggestion

_MASK = -99.0  # at or below it a constant is an additive mask, not a weight
_ANY = tuple(range(64))
# which inputs of an operator are weights, when they are float constants of more than one element
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "RMSNormalization": (1,),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "PRelu": (1,),
    "Add": _ANY,
    "Sub": _ANY,
    "Mul": _ANY,
    "Div": _ANY,
    "Gather": (0,),
    "Einsum": _ANY,
    "QuantizeLinear": (0,),
}
_MOVES = frozenset(
    {
        "Transpose",
        "Reshape",
        "Flatten",
        "Slice",
        "Concat",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Expand",
        "Tile",
        "Pad",
        "Cast",
        "Gather",
    }
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_STATISTICS = (3, 4)  # BatchNormalization's running mean and variance, not trained
_TWIN = 64  # fewer elements may be equal by chance


@dataclass(frozen=True)
class Choice:
    """What is trained, by initializer name."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    tied: tuple[str, ...]
    """Initializers read by several nodes, which one update changes for all."""
    twins: tuple[tuple[str, str], ...] = ()
    """Pairs of equal (or transposed) matrices in separate initializers: tied weights that an exporter duplicated."""


def choose(
    model: ir.Model, freeze: Sequence[str] = (), train: Sequence[str] = (), more: Set[str] = frozenset()
) -> Choice:
    """Which float initializers of `model` are weights: those that reach a weight input of an operator, directly or
    through data movement. Scalars, masks and normalization statistics are not; `freeze` and `train` (names or globs)
    override this. `more`: others that are trained, such as integer weights and scales.

    Raises:
        UsageError: a name that no float initializer has.
    """
    floats = {
        str(name): v
        for name, v in model.graph.initializers.items()
        if v.const_value is not None and (v.const_value.dtype.is_floating_point() or name in more)
    }
    for pattern in (*freeze, *train):
        if not any(matches(name, pattern) for name in floats):
            raise UsageError(f"no float initializer is called {pattern!r}{suggestion(pattern, floats)}")
    trainable, raw = [], _raw(model)
    for name, value in floats.items():
        asked = [any(matches(name, p) for p in patterns) for patterns in (train, freeze)]
        wanted = name in more or _is_weight(value, raw) or (asked[0] and not _is_statistic(value))
        if wanted and not asked[1]:
            trainable.append(name)
    chosen = set(trainable)
    return Choice(
        tuple(trainable),
        tuple(n for n in floats if n not in chosen),
        tuple(n for n in trainable if len({id(node) for node, _ in _readers(floats[n])}) > 1),
        _twins({n: floats[n] for n in trainable}),
    )


def matches(name: str, pattern: str) -> bool:
    """Whether `name` equals or fits the glob `pattern`."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _is_statistic(value: ir.Value) -> bool:
    return any(n.op_type == "BatchNormalization" and position in _STATISTICS for n, position in _readers(value))


def _twins(values: Mapping[str, ir.Value]) -> tuple[tuple[str, str], ...]:
    seen: dict[bytes, str] = {}
    found = []
    for name, value in values.items():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2 or tensor.size < _TWIN:
            continue
        w = tensor.numpy()
        if w.min() == w.max():
            continue
        keys = {hashlib.sha256(np.ascontiguousarray(x).tobytes() + str(x.shape).encode()).digest() for x in (w, w.T)}
        other = next((seen[k] for k in keys if k in seen), None)
        if other is not None:
            found.append((other, name))
        seen |= dict.fromkeys(keys, name)
    return tuple(found)


def _is_weight(value: ir.Value, raw: Set[ir.Value]) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.size < 2 or float(np.min(tensor.numpy())) <= _MASK or _is_grid(tensor):
        return False
    return any(
        position in _WEIGHTS.get(node.op_type, ()) and not _prepares(node, raw) for node, position in _readers(value)
    )


def _is_grid(tensor: ir.TensorProtocol) -> bool:
    """Whether all values are multiples of 1/2 and not all the same, like the anchors, strides and bins of a detection
    head.
    """
    twice = 2 * tensor.numpy().astype(np.float64)
    return bool((twice == np.round(twice)).all() and twice.min() != twice.max())


def _raw(model: ir.Model) -> Set[ir.Value]:
    """Values computed from the inputs by elementwise arithmetic and data movement only, before the first layer."""
    found = set(model.graph.inputs)
    for node in model.graph:
        values = [v for v in node.inputs if v is not None and v.const_value is None]
        if values and node.op_type in (_ARITHMETIC | _MOVES) - {"Gather"} and all(v in found for v in values):
            found.update(node.outputs)
    return found


def _prepares(node: ir.Node, raw: Set[ir.Value]) -> bool:
    """Whether `node` is preprocessing: mean and standard deviation inside the graph are not weights."""
    return node.op_type in _ARITHMETIC and any(v in raw for v in node.inputs)


def _readers(value: ir.Value) -> set[tuple[ir.Node, int]]:
    """(node, input index) of every node that computes with `value`, directly or through data movement."""
    found: set[tuple[ir.Node, int]] = set()
    for node, position in value.uses():
        if node.op_type == "Concat" or (node.op_type in _MOVES and position == 0 and node.op_type != "Gather"):
            found |= {reader for out in node.outputs for reader in _readers(out)}
        else:
            found.add((node, position))
    return found
