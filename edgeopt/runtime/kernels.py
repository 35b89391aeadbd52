"""The kernels that ONNX Runtime chose for a model: counts of integer kernels, float operators and remaining Q/DQ in the
graph after its optimizations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

_INTEGER = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger",
        "QLinearAdd", "QLinearMul", "QLinearConcat",
        "QLinearWhere", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid",
        "QLinearSoftmax", "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM", "MatMulNBits", "NhwcMaxPool",
    }
)  # fmt: skip
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def kind(op: str) -> Literal["integer", "float", "qdq"]:
    """The kind of an executed operator of type `op`."""
    if op in _INTEGER:
        return "integer"
    return "qdq" if op in _QDQ else "float"


@dataclass(frozen=True)
class Kernels:
    """Operator counts of an optimized graph."""

    integer: Mapping[str, int]
    qdq: Mapping[str, int]
    floating: Mapping[str, int]


def kernels(optimized: Path) -> Kernels:
    """Operator counts of the graph that ONNX Runtime wrote to `optimized`, including bodies of If and Loop."""
    counts = Counter(n.op_type for n in ir.load(optimized, format="protobuf").graph.all_nodes())
    return Kernels(
        {k: n for k, n in counts.most_common() if kind(k) == "integer"},
        {k: n for k, n in counts.most_common() if kind(k) == "qdq"},
        {k: n for k, n in counts.most_common() if kind(k) == "float"},
    )
