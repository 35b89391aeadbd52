"""Protect float nodes of the plan from being quantized by ONNX Runtime.

ONNX Runtime (`WeightBiasQuantization`, part of its basic optimizations) quantizes a float Conv, ConvTranspose or Gemm
between a DequantizeLinear and a QuantizeLinear (with Relu or Clip in between), with one weight scale for all channels.
It does not change a node whose bias is not an initializer, and the output of a DequantizeLinear is not one, even if it
is constant. So the bias of such a node is stored as int32 with its own scale, accurate to 2^-31 of its largest element.

`QDQPropagationTransformer` moves a QuantizeLinear above a float MaxPool, which then runs on uint8 in NCHW: slower than
in float, and so are the layout changes around it. It cannot move one above Max, so Max(x, lowest) stands between.

`MatMulAddFusion` makes a float Gemm of a product of integers with three or more axes and the Add of a bias [channels]
where sizes are fixed. It leaves a bias alone that has all the axes of the product.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import CLAMPS, array, constant

_TAKEN = frozenset({"Conv", "ConvTranspose", "Gemm"})
_LARGEST = 2.0**31 - 1
_AXES = 3
_LOWEST = np.float32(-3e38)  # below whatever a pool can give


def shield(model: ir.Model, ranks: Mapping[str, int] | None = None) -> ir.Model:
    """A clone of `model` (with Q/DQ) that ONNX Runtime runs as it is written; the model itself if it does so already.

    ranks: number of axes by value.
    """
    known = ranks or {}
    if not any(_exposed(n) or _float_pool(n) or _bias(n, known) is not None for n in model.graph):
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        if _exposed(node):
            _protect(copy, names, node)
        elif _float_pool(node):
            _stop(copy, names, node)
        elif (found := _bias(node, known)) is not None:
            _spread(copy, names, node, *found)
    copy.graph.sort()
    drop_unused(copy)
    return copy


def _exposed(node: ir.Node) -> bool:
    if node.op_type not in _TAKEN:
        return False
    x, w = node.inputs[:2]
    before = x.producer() if x is not None else None
    if before is None or before.op_type != "DequantizeLinear" or w is None or w.const_value is None:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return False
    while True:
        uses = tuple(node.outputs[0].uses())
        if len(uses) != 1 or node.outputs[0].is_graph_output():
            return False
        node = uses[0].node
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in CLAMPS:
            return False


def _float_pool(node: ir.Node) -> bool:
    """Whether a node is a MaxPool that reads floats and whose output is quantized."""
    if node.op_type != "MaxPool":
        return False
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is not None and before.op_type == "DequantizeLinear":
        return False
    return any(user.op_type == "QuantizeLinear" for user in node.outputs[0].consumers())


def _bias(add: ir.Node, ranks: Mapping[str, int]) -> tuple[int, int] | None:
    """(position of a bias [channels] that is added to a product of integers, number of axes of the product)."""
    for i, bias in enumerate(add.inputs if add.op_type == "Add" else ()):
        other = add.inputs[1 - i]
        product = None if other is None else other.producer()
        if product is None or product.op_type != "MatMul" or not constant(bias) or bias is None:
            continue
        x, rank = product.inputs[0], ranks.get(str(product.outputs[0].name), 0)
        before = None if x is None else x.producer()
        if before is None or before.op_type != "DequantizeLinear" or rank < _AXES:
            continue
        if bias.const_value is not None and len(bias.const_value.shape) == 1:
            return i, rank
    return None


def _spread(model: ir.Model, names: Names, add: ir.Node, i: int, rank: int) -> None:
    """Give the bias at position `i` one axis of size 1 for each other axis of the product."""
    bias = add.inputs[i]
    assert bias is not None
    b = array(bias)
    add.replace_input_with(i, initializer(model, names, f"{bias.name}_{rank}d", b.reshape((1,) * (rank - 1) + b.shape)))


def _stop(model: ir.Model, names: Names, pool: ir.Node) -> None:
    out = pool.outputs[0]
    lowest = initializer(model, names, f"{pool.name}_lowest", np.asarray(_LOWEST))
    stop = make(names, "Max", [out, lowest], f"{pool.name}_Max", outputs=[f"{out.name}_float"])
    stop.outputs[0].shape, stop.outputs[0].type = out.shape, out.type
    model.graph.insert_after(pool, stop)
    for use in tuple(out.uses()):
        if use.node.op_type == "QuantizeLinear":
            use.node.replace_input_with(use.idx, stop.outputs[0])


def _protect(model: ir.Model, names: Names, node: ir.Node) -> None:
    old = node.inputs[2] if len(node.inputs) > 2 else None
    b = np.zeros(_channels(node), np.float32) if old is None else array(old)
    scale = np.float32(max(float(np.abs(b).max(initial=0.0)) / (_LARGEST / 2), float(np.finfo(np.float32).tiny)))
    name = f"{node.name}_bias"
    parts = {"integers": np.rint(b / scale).astype(np.int32), "scale": np.asarray(scale)}
    values = [initializer(model, names, f"{name}_{part}", x) for part, x in parts.items()]
    made = make(names, "DequantizeLinear", values, f"{name}_DequantizeLinear", outputs=[f"{name}_float"])
    made.outputs[0].shape, made.outputs[0].type = ir.Shape(b.shape), ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(node, made)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, made.outputs[0])


def _channels(node: ir.Node) -> int:
    shape: tuple[int, ...] = array(node.inputs[1]).shape
    if node.op_type == "Gemm":
        return shape[0 if node.attributes.get_int("transB", 0) else 1]
    return shape[0] if node.op_type == "Conv" else shape[1] * node.attributes.get_int("group", 1)
