"""What quantization must know of each ONNX operator, as one table.

`inputs` names the activation inputs that take a grid (`ALL` for variadic operators); `weight` and `bias` are the
positions of the constants. `same_grid` says that the operator only moves or selects data: its output holds values of
its input, so both share one grid and ONNX Runtime drops the Q/DQ pair. `clamp` marks activations that a grid can take
over when its range lies inside theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

ALL: tuple[int, ...] = tuple(range(64))


@dataclass(frozen=True)
class Op:
    """The quantization rule of one operator type."""

    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    same_grid: bool = False
    float_output: bool = False  # the integer kernel may give a float result, so no output grid is needed


_MOVE = Op(same_grid=True)

OPS: dict[str, Op] = {
    "Conv": Op(weight=1, bias=2),
    "Gemm": Op(weight=1, bias=2, float_output=True),
    "MatMul": Op(weight=1, float_output=True),
    "Add": Op(inputs=(0, 1)),
    "Mul": Op(inputs=(0, 1)),
    "Concat": Op(inputs=ALL),
    "Where": Op(inputs=(1, 2)),
    "GlobalAveragePool": Op(),
    "AveragePool": Op(),
    "LeakyRelu": Op(),
    "Sigmoid": Op(),
    "Softmax": Op(),
    "MaxPool": _MOVE,
    "Reshape": _MOVE,
    "Flatten": _MOVE,
    "Squeeze": _MOVE,
    "Unsqueeze": _MOVE,
    "Transpose": _MOVE,
    "Slice": _MOVE,
    "Split": _MOVE,
    "Gather": _MOVE,
    "Expand": _MOVE,
    "Tile": _MOVE,
    "DepthToSpace": _MOVE,
    "Resize": _MOVE,
}

CLAMPS = frozenset({"Relu", "Clip"})


def constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer, known before the model runs."""
    return value is not None and value.const_value is not None and value.is_initializer()


def activations(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """(input position, value) of the inputs of `node` that take an activation grid (a type that the file does not state
    may be float).
    """
    rule, floats = OPS[node.op_type], (ir.DataType.FLOAT, None)
    return [
        (i, v)
        for i, v in enumerate(node.inputs)
        if v is not None and i in rule.inputs and not constant(v) and v.dtype in floats
    ]


def constants(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """(input position, value) of the constant operands of element-wise operators, which need a grid of their own."""
    rule = OPS[node.op_type]
    if rule.weight is not None or rule.same_grid:
        return []
    return [(i, v) for i, v in enumerate(node.inputs) if v is not None and i in rule.inputs and constant(v)]


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a Conv, Gemm or MatMul, or None when it is computed at run time."""
    position = OPS[node.op_type].weight if node.op_type in OPS else None
    value = node.inputs[position] if position is not None else None
    return value if constant(value) else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias of a Conv or Gemm, or None."""
    position = OPS[node.op_type].bias if node.op_type in OPS else None
    value = node.inputs[position] if position is not None and len(node.inputs) > position else None
    return value if constant(value) else None


def channel_axis(node: ir.Node) -> int:
    """The axis of the weight of `node` that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    return len(weight.const_value.shape) - 1


def cost_class(node: ir.Node) -> str:
    """The row of a target's cost table for `node`: its type, with what decides the speed of a convolution or product.

    Conv.thin: at most four input channels a group and more than one output a channel; Conv.depthwise: one in, one out;
    Conv.grouped: the rest of group > 1. MatMul.dynamic: both operands computed at run time; Resize.nearest apart from
    the others, which have no integer kernel.
    """
    if node.op_type == "Resize":
        return "Resize.nearest" if node.attributes.get_string("mode", "nearest") == "nearest" else "Resize"
    if OPS[node.op_type].weight is None:
        return node.op_type
    weight = weight_of(node)
    if weight is None or weight.const_value is None:
        return f"{node.op_type}.dynamic"
    if node.op_type != "Conv":
        return node.op_type
    out, per_group = weight.const_value.shape[0], weight.const_value.shape[1]
    group = node.attributes.get_int("group", 1)
    if group > 1:
        return "Conv.depthwise" if per_group == 1 and out == group else "Conv.grouped"
    assert isinstance(per_group, int)
    return "Conv.thin" if per_group <= 4 else "Conv"
