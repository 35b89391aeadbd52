"""Chooses the trained initializers of an ONNX graph: which float initializers are weights, which are shared by several
nodes, and which are equal copies of each other.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UsageError, suggestion
from edgeopt.graph.ops import ALL, OPS
from edgeopt.passes.tie import repeated

_MASK = -99.0  # at or below it a constant is an additive mask, not a weight
# which inputs of an operator are weights, when they are float constants of more than one element
_GROUPS: dict[tuple[int, ...], str] = {
    (1, 2): "Conv ConvTranspose BatchNormalization LayerNormalization GroupNormalization InstanceNormalization",
    (0, 1, 2): "Gemm",
    (0, 1): "MatMul",
    (1, 2, 3): "LSTM GRU RNN",
    (1,): "RMSNormalization PRelu",
    (0,): "Gather QuantizeLinear",
    ALL: "Add Sub Mul Div Einsum",
}
_WEIGHTS = {name: positions for positions, names in _GROUPS.items() for name in names.split()}
_MOVES = frozenset(n for n, op in OPS.items() if op.moves) | {"Concat", "Identity", "Pad", "Cast"}
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_STATISTICS = (3, 4)  # BatchNormalization's running mean and variance, not trained


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
        tuple((a, b) for b, (a, _) in repeated(model).items() if {a, b} <= chosen),
    )


def matches(name: str, pattern: str) -> bool:
    """Whether `name` equals or fits the glob `pattern`."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _is_statistic(value: ir.Value) -> bool:
    return any(n.op_type == "BatchNormalization" and position in _STATISTICS for n, position in _readers(value))


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
