"""The label rule of each operator, as one table; operators that are not in it freeze their inputs."""

from __future__ import annotations

from edgeopt.pruning import layers, rearranging
from edgeopt.pruning.tracker import Rule

_GROUPS: dict[Rule, str] = {
    rearranging.same: (
        "Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Erf Gelu Softplus Softsign Elu Selu Celu Exp Log Sqrt Neg"
        " Abs Floor Ceil Round Reciprocal Sign Not Identity Cast Clip Dropout Mish Swish IsNaN IsInf Sin Cos"
        " ThresholdedRelu QuickGelu"
    ),
    rearranging.spatial: "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool Resize Upsample",
    layers.along: "Softmax LogSoftmax Hardmax LpNormalization",
    layers.elementwise: (
        "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Mod"
    ),
    layers.conv: "Conv ConvTranspose",
    layers.gemm: "Gemm",
    layers.matmul: "MatMul",
    layers.per_channel: "BatchNormalization InstanceNormalization",
    layers.layer_norm: "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
    layers.reduce: "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceSumSquare ReduceProd",
    rearranging.transpose: "Transpose",
    rearranging.concat: "Concat",
    rearranging.split: "Split",
    rearranging.slice_: "Slice",
    rearranging.gather: "Gather",
    rearranging.pad: "Pad",
    layers.recurrent: "LSTM GRU RNN",
    rearranging.reshape: "Reshape Flatten Squeeze Unsqueeze",
    rearranging.expand: "Expand",
    rearranging.shape: "Shape",
    rearranging.nothing: "Size",
}
# rules that label the weights they read; weights read by other operators are frozen
READERS = {
    *(layers.elementwise, layers.conv, layers.gemm, layers.matmul, layers.per_channel, layers.layer_norm),
    *(layers.recurrent, rearranging.gather, rearranging.expand),
}
RULES = {name: rule for rule, names in _GROUPS.items() for name in names.split()}
