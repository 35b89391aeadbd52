"""What ONNX Runtime made of a model: the graph after its optimizations, as counts of integer kernels, float operators and left-over Q/DQ."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeopt.runtime.session import open_session

_INTEGER = frozenset(
    {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "QLinearAdd", "QLinearMul", "QLinearConcat",
        "QLinearWhere", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM", "MatMulNBits", "NhwcMaxPool",
    }
)  # fmt: skip
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Kernels:
    """Operator counts of an optimized graph."""

    integer: Mapping[str, int]
    qdq: Mapping[str, int]
    floating: Mapping[str, int]


def kernels(model: Path) -> Kernels:
    """Load `model` with all optimizations and count what became of it, bodies of If and Loop included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized=path)
        proto = onnx.load(path, load_external_data=False)
    counts: Counter[str] = Counter()
    _count(proto.graph, counts)
    return Kernels(
        {k: n for k, n in counts.most_common() if k in _INTEGER},
        {k: n for k, n in counts.most_common() if k in _QDQ},
        {k: n for k, n in counts.most_common() if k not in _INTEGER | _QDQ},
    )


def _count(graph: onnx.GraphProto, counts: Counter[str]) -> None:
    for node in graph.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _count(attribute.g, counts)
