"""The label rule of each operator, as one table; operators that are not in it freeze their inputs."""

from __future__ import annotations

from edgeopt.pruning.layers import (
    along,
    conv,
    conv_transpose,
    elementwise,
    gemm,
    layer_norm,
    matmul,
    per_channel,
    recurrent,
    reduce,
)
from edgeopt.pruning.rearranging import (
    concat,
    expand,
    gather,
    nothing,
    pad,
    reshape,
    same,
    shape,
    slice_,
    spatial,
    split,
    transpose,
)
from edgeopt.pruning.tracker import Rule

_GROUPS: dict[Rule, str] = {
    same: (
        "Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Erf Gelu Softplus Softsign Elu Selu Celu Exp Log Sqrt Neg"
        " Abs Floor Ceil Round Reciprocal Sign Not Identity Cast Clip Dropout Mish Swish IsNaN IsInf Sin Cos"
        " ThresholdedRelu QuickGelu"
    ),
    spatial: "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool Resize Upsample",
    along: "Softmax LogSoftmax Hardmax LpNormalization",
    elementwise: (
        "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Mod"
    ),
    conv: "Conv",
    conv_transpose: "ConvTranspose",
    gemm: "Gemm",
    matmul: "MatMul",
    per_channel: "BatchNormalization InstanceNormalization",
    layer_norm: "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
    reduce: "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceSumSquare ReduceProd",
    transpose: "Transpose",
    concat: "Concat",
    split: "Split",
    slice_: "Slice",
    gather: "Gather",
    pad: "Pad",
    recurrent: "LSTM GRU RNN",
    reshape: "Reshape Flatten Squeeze Unsqueeze",
    expand: "Expand",
    shape: "Shape",
    nothing: "Size",
}
# rules that label the weights they read; weights read by other operators are frozen
READERS = {elementwise, conv, conv_transpose, gemm, matmul, per_channel, layer_norm, gather, recurrent, expand}
RULES = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
