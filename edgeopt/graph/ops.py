"""Facts about each ONNX operator, in one table.

`inputs` are the positions of activation inputs that take a grid (`ALL` for variadic operators; none: no integer form);
`weights` are the positions of the weights, of which integer kernels use the first, and `bias` is that of the bias.
`moves` means that the operator only moves or selects data: its output contains values of its input, so both share one
grid and ONNX Runtime drops the Q/DQ pair. `clamp` marks activations that a grid can replace if its range lies inside
theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

ALL: tuple[int, ...] = tuple(range(64))
Shape = Sequence[int]


@dataclass(frozen=True)
class Op:
    """One operator type (see the module docstring for the other fields).

    channels: output channel axis of the weights, None if it depends on attributes or the rank; gates: number of gates
    of a recurrent layer; float_output: the integer kernel can produce a float result, so no output grid is needed;
    elsewhere: ONNX Runtime's CPU provider has no integer kernel, but others have.
    """

    inputs: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    bias: int | None = None
    channels: int | None = None
    gates: int = 0
    moves: bool = False
    clamp: bool = False
    float_output: bool = False
    elsewhere: bool = False

    @property
    def weight(self) -> int | None:
        """The position of the weight that integer kernels use."""
        return self.weights[0] if self.weights and self.inputs else None


_MOVE = Op(inputs=(0,), moves=True)
_UNARY = Op(inputs=(0,))
_UNARY_ELSEWHERE = Op(inputs=(0,), elsewhere=True)
_BINARY_ELSEWHERE = Op(inputs=(0, 1), elsewhere=True)

OPS: dict[str, Op] = {
    "Conv": Op(inputs=(0,), weights=(1,), bias=2, channels=0),
    "ConvTranspose": Op(weights=(1,), bias=2, channels=1),
    "Gemm": Op(inputs=(0,), weights=(1,), bias=2, float_output=True),
    "MatMul": Op(inputs=(0,), weights=(1,), float_output=True),
    "LSTM": Op(weights=(1, 2), channels=1, gates=4),
    "GRU": Op(weights=(1, 2), channels=1, gates=3),
    "RNN": Op(weights=(1, 2), channels=1, gates=1),
    "Add": Op(inputs=(0, 1)),
    "Mul": Op(inputs=(0, 1)),
    "Concat": Op(inputs=ALL),
    "Where": Op(inputs=(1, 2)),
    "GlobalAveragePool": _UNARY,
    "AveragePool": _UNARY,
    "LeakyRelu": _UNARY,
    "Sigmoid": _UNARY,
    "Softmax": _UNARY,
    "Relu": Op(clamp=True),
    "Clip": Op(clamp=True),
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
    "MatMul.dynamic": Op(inputs=(0, 1), float_output=True, elsewhere=True),  # of two activations
    "LayerNormalization": Op(inputs=(0, 1, 2), elsewhere=True),
    "InstanceNormalization": Op(inputs=(0, 1, 2), elsewhere=True),
    "PRelu": _BINARY_ELSEWHERE,
    "Sub": _BINARY_ELSEWHERE,
    "Div": _BINARY_ELSEWHERE,
    "Pow": _BINARY_ELSEWHERE,
    "Min": _BINARY_ELSEWHERE,
    "Max": _BINARY_ELSEWHERE,
    "HardSwish": _UNARY_ELSEWHERE,
    "HardSigmoid": _UNARY_ELSEWHERE,
    "Gelu": _UNARY_ELSEWHERE,
    "Tanh": _UNARY_ELSEWHERE,
    "Elu": _UNARY_ELSEWHERE,
    "Exp": _UNARY_ELSEWHERE,
    "Sqrt": _UNARY_ELSEWHERE,
    "Abs": _UNARY_ELSEWHERE,
    "Neg": _UNARY_ELSEWHERE,
    "Pad": _UNARY_ELSEWHERE,
    "ReduceMean": _UNARY_ELSEWHERE,
    "ReduceSum": _UNARY_ELSEWHERE,
    "ReduceMax": _UNARY_ELSEWHERE,
}
_NONE = Op()
CLAMPS = frozenset(name for name, op in OPS.items() if op.clamp)
LAYERS = frozenset(name for name, op in OPS.items() if op.weights)  # operators with weights
PRODUCTS = frozenset(name for name in LAYERS if OPS[name].inputs)  # layers that have an integer form
# integer operators by which ONNX Runtime replaces a layer, and the position of their weight
_INTEGER = {
    "ConvInteger": ("Conv", 1), "QLinearConv": ("Conv", 3),
    "MatMulInteger": ("MatMul", 1), "QLinearMatMul": ("MatMul", 3),
}  # fmt: skip


def rule(node: ir.Node) -> Op:
    """The row of the table for `node`; an empty row for unknown operators."""
    return OPS.get(node.op_type, _NONE) if node.domain in ("", "ai.onnx") else _NONE


def kernel(node: ir.Node) -> tuple[str, Op]:
    """(name, row) of the integer kernel of `node`: as `rule`, but MatMul.dynamic for a product of two activations."""
    dynamic = node.op_type == "MatMul" and node.domain == "" and not constant(node.inputs[1])
    return ("MatMul.dynamic", OPS["MatMul.dynamic"]) if dynamic else (node.op_type, rule(node))


def constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer, so that it is known before the model runs."""
    return value is not None and value.const_value is not None and value.is_initializer()


def array(value: ir.Value | None) -> NDArray[Any]:
    """The content of a constant."""
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The only element of a constant; None if it is not constant or has several."""
    x = array(value) if constant(value) else None
    return float(x.reshape(-1)[0]) if x is not None and x.size == 1 else None


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The bodies of an If, a Loop or a Scan."""
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def inside(node: ir.Node) -> list[ir.Node]:
    """All nodes in the bodies of `node`."""
    return [n for body in bodies(node) for n in body.all_nodes()]


def activations(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """(input position, value) of the inputs of `node` that take an activation grid; values of unknown type are assumed
    to be float.
    """
    taken, floats = kernel(node)[1].inputs, (ir.DataType.FLOAT, None)
    return [
        (i, v)
        for i, v in enumerate(node.inputs)
        if v is not None and i in taken and not constant(v) and v.dtype in floats
    ]


def constants(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """(input position, value) of the constant operands of element-wise operators, which need their own grids."""
    op = rule(node)
    if op.weights or op.moves:
        return []
    return [(i, v) for i, v in enumerate(node.inputs) if v is not None and i in op.inputs and constant(v)]


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a Conv, Gemm or MatMul; None if it is computed at run time."""
    position = rule(node).weight
    value = node.inputs[position] if position is not None else None
    return value if constant(value) else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The constant bias of a Conv or Gemm, or None."""
    position = rule(node).bias if rule(node).inputs else None
    value = node.inputs[position] if position is not None and len(node.inputs) > position else None
    return value if constant(value) else None


def pixels(node: ir.Node) -> bool:
    """Whether `node` makes floats of the pixels of an image: an input of 8 bits without a sign."""
    given = node.inputs[0] if node.op_type == "Cast" else None
    while given is not None and (maker := given.producer()) is not None and maker.op_type in ("Transpose", "Gather"):
        given = maker.inputs[0]
    return given is not None and given.is_graph_input() and given.dtype == ir.DataType.UINT8


def scaled(node: ir.Node) -> bool:
    """Whether a Gemm multiplies its product or its bias by another number than 1."""
    return node.op_type == "Gemm" and any(node.attributes.get_float(n, 1.0) != 1.0 for n in ("alpha", "beta"))


def channel_axis(node: ir.Node, position: int | None = None) -> int:
    """The output channel axis of a weight of `node`: of the weight at `position`, or of the first."""
    op = rule(node)
    if op.channels is not None:
        return op.channels
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return array(node.inputs[op.weights[0] if position is None else position]).ndim - 1


def macs(node: ir.Node, inputs: Sequence[Shape], output: Shape) -> int:
    """Multiply-accumulate operations of `node`, given the shapes of its inputs and first output; 0 if it is neither a
    layer nor a matrix product.
    """
    op, weight = _INTEGER.get(node.op_type, (node.op_type, 1))
    if len(inputs) <= weight or not inputs[0]:
        return 0
    size, x, w = math.prod(output), inputs[0], inputs[weight]
    if op == "Conv":
        return size * math.prod(w[1:])
    if op == "ConvTranspose":
        return math.prod(x) * math.prod(w[1:])
    if op == "MatMul":
        return size * x[-1]
    if op == "Gemm":
        return size * x[0 if node.attributes.get_int("transA", 0) else 1]
    gates = OPS[op].gates if op in OPS else 0
    if not gates or len(x) != 3:
        return 0
    sequence, batch, features = x
    directions, rows = w[0], w[1]
    return sequence * batch * directions * rows * (features + rows // gates)


def macs_of(node: ir.Node, shapes: Mapping[str, Shape]) -> int:
    """Multiply-accumulate operations of `node` in a run with the given `shapes` of values; 0 if it did not run."""
    out = shapes.get(str(node.outputs[0].name))
    there = [v for v in node.inputs if v is not None]
    inputs = [v.const_value.shape.numpy() if v.const_value is not None else shapes.get(str(v.name)) for v in there]
    known = [x for x in inputs if x is not None]
    return 0 if out is None or len(known) < len(inputs) else macs(node, known, out)


def cost_class(node: ir.Node) -> str:
    """The key of `node` in a target's cost table: its operator type, with a suffix for variants of different speed.

    Conv.thin: one group and at most four input channels; Conv.depthwise: one input and one output channel in each
    group; Conv.grouped: other convolutions with group > 1. MatMul.dynamic: both operands are computed at run time.
    Resize.nearest is separate, since the other modes have no integer kernel.
    """
    if node.op_type == "Resize":
        return "Resize.nearest" if node.attributes.get_string("mode", "nearest") == "nearest" else "Resize"
    if rule(node).weight is None:
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
