"""ONNX operators as plain torch functions: inputs in the specification's order (None if omitted), attributes by the
specification's names, at opset 13 or later (opset 18 and 20 forms included).

    https://onnx.ai/onnx/operators/       tests/train/test_torch_ops.py checks against the operators' node tests

`Unsupported` names the form of an operator that is not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor
from torch.nn import functional as F

from edgeopt.train.network import torch_attention as transformer
from edgeopt.train.network import torch_data as data
from edgeopt.train.network import torch_nn as layers
from edgeopt.train.network.torch_data import Op, Unsupported, ints
from edgeopt.train.network.torch_recurrent import recurrent


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip."""
    least, most = (None if b is None else b.item() for b in (low, high))
    if least is None or most is None or least > most or not x.is_floating_point():
        return x if least is None and most is None else torch.clamp(x, least, most)
    return F.hardtanh(x, least, most)  # one backward kernel instead of clamp's four


def power(a: Tensor, b: Tensor) -> Tensor:
    """Pow; the result has the type of the base."""
    if b.numel() == 1 and b.ndim == 0:
        return torch.pow(a, b.item()).to(a.dtype)
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b).to(a.dtype)


def _reduce(function: Callable[..., Tensor]) -> Op:
    def reduced(
        x: Tensor, axes: Tensor | Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        dims = ints(axes)
        if not dims and noop_with_empty_axes:
            return x
        dims = sorted({d % x.ndim for d in dims} if dims else range(x.ndim))
        return function(x, dims, bool(keepdims)) if dims else function(x.reshape(1), [0], False)

    return reduced


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for d in reversed(dims):
        x = torch.prod(x, d, keepdim=keep)
    return x


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.mean(x, dims, keep) if x.is_floating_point() else torch.mean(x.double(), dims, keep).to(x.dtype)


def _argument(function: Callable[..., Tensor]) -> Op:
    def found(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if select_last_index:
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))
        return function(x, axis, keepdim=bool(keepdims))

    return found


def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumSum."""
    d = int(axis.item())
    y = x.flip(d) if reverse else x
    y = torch.cumsum(y, d) - y if exclusive else torch.cumsum(y, d)
    return (y.flip(d) if reverse else y).to(x.dtype)


def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """TopK."""
    y = torch.sort(x, dim=axis, descending=bool(largest), stable=True)  # torch.topk does not define the order of ties
    count = int(k.item())
    return y.values.narrow(axis, 0, count), y.indices.narrow(axis, 0, count)


def along(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """A per-axis scale or zero point [n], reshaped to broadcast with x."""
    return t if t.numel() == 1 or t.ndim != 1 else t.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Tensor:
    """QuantizeLinear: round half to even, saturating."""
    if block_size:
        raise Unsupported("blocks")
    kind = zero_point.dtype if zero_point is not None else to_torch_dtype(ir.DataType(output_dtype or 2))
    zero = 0 if zero_point is None else along(zero_point.to(torch.int32), x, axis)
    limits = torch.iinfo(kind)
    return (torch.round(x / along(scale, x, axis)) + zero).clamp(limits.min, limits.max).to(kind)


def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """DequantizeLinear."""
    if block_size:
        raise Unsupported("blocks")
    zero = 0 if zero_point is None else along(zero_point.to(scale.dtype), x, axis)
    return (x.to(scale.dtype) - zero) * along(scale, x, axis)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def folded(*x: Tensor) -> Tensor:
        y = x[0]
        for other in x[1:]:
            y = function(y, other)
        return y

    return folded


# those that torch has under the same name
_SAME = (
    "Abs Acos Acosh Add Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor IsNaN Log MatMul Mul Neg Reciprocal Relu"
    " Round Sigmoid Sign Sin Sinh Sqrt Sub Tan Tanh"
)
OPS: dict[str, Op] = {
    **{name: getattr(torch, name.lower()) for name in _SAME.split()},
    "Not": torch.logical_not,
    "IsInf": data.is_inf,
    "Swish": lambda x, alpha=1.0: F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x),
    "Identity": lambda x: x,
    "Softsign": F.softsign,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Div": lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "Pow": power,
    "Mod": lambda a, b, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b),
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Mean": lambda *x: sum(x[1:], x[0]) / len(x),
    "Where": torch.where,
    "Clip": clip,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Celu": lambda x, alpha=1.0: F.celu(x, alpha),
    "Selu": lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: gamma * F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
    "Gelu": F.gelu,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "ReduceMean": _reduce(_mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(d, k)),
    "ReduceL2": _reduce(lambda x, d, k: x.square().sum(d, k).sqrt()),
    "ReduceSumSquare": _reduce(lambda x, d, k: x.square().sum(d, k)),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceLogSum": _reduce(lambda x, d, k: x.sum(d, k).log()),
    "ArgMax": _argument(torch.argmax),
    "ArgMin": _argument(torch.argmin),
    "CumSum": cum_sum,
    "TopK": top_k,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "MaxPool": layers.max_pool,
    "AveragePool": layers.average_pool,
    "GlobalAveragePool": lambda x: x.mean(layers.spatial(x), True),
    "GlobalMaxPool": lambda x: x.amax(layers.spatial(x), True),
    "BatchNormalization": layers.batch_normalization,
    "LayerNormalization": layers.layer_normalization,
    "GroupNormalization": layers.group_normalization,
    "InstanceNormalization": layers.instance_normalization,
    "Gemm": layers.gemm,
    "LpNormalization": lambda x, axis=-1, p=2: F.normalize(x, p, axis),
    "LRN": layers.lrn,
    "MeanVarianceNormalization": layers.mean_variance_normalization,
    "RMSNormalization": transformer.rms_normalization,
    "Attention": transformer.attention,
    "RotaryEmbedding": transformer.rotary_embedding,
    "GridSample": layers.grid_sample,
    "Einsum": lambda *x, equation: torch.einsum(equation, *x),
    "Reshape": data.reshape,
    "Flatten": data.flatten,
    "Transpose": data.transpose,
    "Squeeze": data.squeeze,
    "Unsqueeze": data.unsqueeze,
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "Split": data.split,
    "Slice": data.slice_,
    "Gather": data.gather,
    "GatherElements": data.gather_elements,
    "GatherND": data.gather_nd,
    "ScatterElements": data.scatter_elements,
    "ScatterND": data.scatter_nd,
    "Expand": data.expand,
    "Tile": lambda x, repeats: x.repeat(ints(repeats)),
    "Pad": data.pad,
    "Dropout": data.dropout,
    "Cast": data.cast,
    "CastLike": lambda x, like, saturate=1: x.to(like.dtype),
    "Shape": data.shape,
    "Size": lambda x: torch.tensor(x.numel()),
    "ConstantOfShape": data.constant_of_shape,
    "Range": data.range_,
    "OneHot": data.one_hot,
    "DepthToSpace": data.depth_to_space,
    "SpaceToDepth": data.space_to_depth,
    "Trilu": data.trilu,
    "Resize": layers.resize,
    "LSTM": recurrent("LSTM", (0, 2, 3, 1)),
    "GRU": recurrent("GRU", (1, 0, 2)),
    "RNN": recurrent("RNN", (0,)),
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
