"""Fold constant scales and shifts before and after a convolution into it, including scalars, which ONNX Runtime's own
fusion does not handle.

    (W * x + b) c + d  =  (c W) * x + (c b + d)              Mul, Div, Add, Sub after a Conv; c, d: one number, or one
      for each output channel
    max(W * x + b) c + d  =  max((c W) * x + (c b + d))      the same behind a MaxPool where c > 0; BatchNormalization
    W * (c x + d) + b  =  (c W) * x + (b + sum_k W_k d)      Mul, Div, Add, Sub before it; d only without zero padding

They are frequent in exported networks: learned affine blocks (PP-OCR), input normalization, LayerScale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, take_over
from edgeopt.graph.ops import array, bias_of, constant, weight_of
from edgeopt.numbers.grid import Array

_SCALES, _SHIFTS = ("Mul", "Div"), ("Add", "Sub")


def fold_affine(model: ir.Model) -> ir.Model:
    """A clone in which every foldable Mul, Div, Add and Sub with a constant next to a Conv is folded into the Conv;
    the model itself if it has no such Conv.
    """
    if not any(_convolution(n) for n in model.graph):
        return model
    copy = model.clone()
    names = Names(copy)
    changed = True
    while changed:
        changed = False
        for node in tuple(copy.graph):
            if node.graph is not None and _convolution(node):
                changed |= _fold_behind(copy, names, node) or _fold_before(copy, names, node)
    drop_unused(copy)
    return copy


def _convolution(conv: ir.Node) -> bool:
    if conv.op_type != "Conv" or conv.domain:
        return False
    weight = weight_of(conv)
    fixed_bias = len(conv.inputs) < 3 or conv.inputs[2] is None or bias_of(conv) is not None
    return weight is not None and weight.dtype == ir.DataType.FLOAT and fixed_bias


def _operand(node: ir.Node, value: ir.Value, channels: int, rank: int) -> Array | None:
    """The constant operand of the element-wise `node` beside `value`, as [1] or [channels], inverted for Div and
    negated for Sub; None if it has another shape or cannot be folded.
    """
    other = next((v for v in node.inputs if v is not value), None)
    if len(node.inputs) != 2 or not constant(other):
        return None
    if node.op_type in ("Div", "Sub") and node.inputs[0] is not value:
        return None
    c = array(other)
    shape = (1,) * (rank - c.ndim) + c.shape
    if (
        c.dtype != np.float32
        or len(shape) != rank
        or shape[1] not in (1, channels)
        or any(d != 1 for i, d in enumerate(shape) if i != 1)
    ):
        return None
    if node.op_type == "Div" and not c.all():
        return None
    if node.op_type in ("Div", "Sub"):
        c = 1 / c if node.op_type == "Div" else -c
    return np.asarray(c, np.float32).reshape(-1)


def _fold_behind(model: ir.Model, names: Names, conv: ir.Node) -> bool:
    out, w, b = conv.outputs[0], *_numbers(conv)
    node = _only_reader(out)
    pooled = node is not None and node.op_type == "MaxPool"
    if node is not None and pooled:
        out = node.outputs[0]
        node = _only_reader(out)
    if node is None:
        return False
    c, d = _affine(node, out, w.shape[0], w.ndim)
    if not (np.isfinite(c).all() and np.isfinite(d).all()) or c.size * d.size == 0 or (pooled and (c <= 0).any()):
        return False
    if node.op_type not in _SHIFTS:
        w, b = w * c.reshape(-1, *[1] * (w.ndim - 1)), b * c
    _set(model, names, conv, w, b if node.op_type in _SCALES else b + d)
    take_over(model.graph, node, out)
    return True


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`, in the same graph."""
    uses, producer = tuple(value.uses()), value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None or len(producer.outputs) != 1:
        return None
    node = uses[0].node
    return node if node.graph is producer.graph and not node.domain else None


def _affine(node: ir.Node, value: ir.Value, channels: int, rank: int) -> tuple[Array, Array]:
    """(c, d) of `node` = c `value` + d, each [1] or [channels]; empty if it is no such node."""
    one, zero, nothing = np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(0, np.float32)
    if node.op_type in _SCALES + _SHIFTS:
        found = _operand(node, value, channels, rank)
        if found is None:
            return nothing, nothing
        return (found, zero) if node.op_type in _SCALES else (one, found)
    numbers = node.inputs[1:5]
    if node.op_type != "BatchNormalization" or node.inputs[0] is not value or not all(map(constant, numbers)):
        return nothing, nothing
    training = node.attributes.get_int("training_mode", 0)
    if len(node.outputs) > 1 or training:
        return nothing, nothing
    scale, shift, mean, variance = (array(v).astype(np.float64) for v in numbers)
    c = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return c.astype(np.float32), (shift - mean * c).astype(np.float32)


def _fold_before(model: ir.Model, names: Names, conv: ir.Node) -> bool:
    source = conv.inputs[0]
    node = source.producer() if source is not None else None
    if source is None or node is None or node.domain or node.op_type not in _SCALES + _SHIFTS:
        return False
    if len(tuple(source.uses())) != 1 or source.is_graph_output() or node.graph is not conv.graph:
        return False
    w, b = _numbers(conv)
    group = conv.attributes.get_int("group", 1)
    value = next((v for v in node.inputs if v is not None and not constant(v)), None)
    c = _operand(node, value, w.shape[1] * group, w.ndim) if value is not None else None
    if c is None or value is None or not np.isfinite(c).all():
        return False
    if c.size > 1 and _channels(value, w.ndim) != c.size:  # the constant may broadcast one channel to many
        return False
    per_group = np.broadcast_to(c, w.shape[1] * group).reshape(group, 1, w.shape[1])
    inputs = np.broadcast_to(per_group, (group, w.shape[0] // group, w.shape[1])).reshape(
        w.shape[0], w.shape[1], *[1] * (w.ndim - 2)
    )
    if node.op_type in _SCALES:
        _set(model, names, conv, w * inputs, b)
    elif _unpadded(conv):
        _set(
            model,
            names,
            conv,
            w,
            b + (w * inputs).sum(axis=tuple(range(1, w.ndim)), dtype=np.float64).astype(np.float32),
        )
    else:
        return False
    conv.replace_input_with(0, value)
    model.graph.remove(node, safe=True)
    return True


def _channels(value: ir.Value, rank: int) -> int | ir.SymbolicDim | None:
    """Number of channels of `value` [n, channels, ...] of `rank`, also through element-wise nodes; None if unknown."""
    if value.shape is not None and len(value.shape) == rank:
        return value.shape[1]
    node = value.producer()
    operands = [v for v in node.inputs if v is not None and not constant(v)] if node is not None else []
    if node is None or node.domain or node.op_type not in _SCALES + _SHIFTS or len(operands) != 1:
        return None
    return _channels(operands[0], rank)


def _unpadded(conv: ir.Node) -> bool:
    padded = any(conv.attributes.get_ints("pads", [0]) or [0])
    return not padded and conv.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _numbers(conv: ir.Node) -> tuple[Array, Array]:
    w, bias = array(weight_of(conv)), bias_of(conv)
    return w, np.zeros(w.shape[0], np.float32) if bias is None else array(bias)


def _set(model: ir.Model, names: Names, conv: ir.Node, w: Array, b: Array) -> None:
    """Set the weight and bias of `conv` to new initializers with the contents `w` and `b`."""
    for i, (part, x) in enumerate((("weight", w), ("bias", b)), 1):
        content = np.ascontiguousarray(x, dtype=np.float32)
        old = conv.inputs[i] if len(conv.inputs) > i else None
        if old is not None and str(old.name).startswith(f"{conv.name}_{part}_folded") and len(old.uses()) == 1:
            old.const_value = ir.Tensor(content, name=old.name)
            continue
        value = initializer(model, names, f"{conv.name}_{part}_folded", content)
        if len(conv.inputs) <= i:
            conv.resize_inputs(i + 1)
        conv.replace_input_with(i, value)
