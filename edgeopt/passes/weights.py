"""Weight-only: constants become int8 per channel, or int4 in blocks, behind a DequantizeLinear; computation stays
float.

The file shrinks; speed is another matter: ONNX Runtime turns int4 blocks before a MatMul into MatMulNBits, and
dequantizes everything else on every run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.grid import INT4_WEIGHT, INT8_WEIGHT, QParams, QType
from edgeopt.ops import constant
from edgeopt.passes.qdq import dequantized_constant, drop_unused

INT4_BLOCK = 32
_SMALLEST = 256  # elements; below this a scale costs more than it saves
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0, "LSTM": 1, "GRU": 1}
_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "Gather": 0, "LSTM": 1, "GRU": 1}


def _axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return _CHANNELS.get(node.op_type, rank - 1)


def weight_only(model: ir.Model, bits: int, exclude: frozenset[str] = frozenset()) -> ir.Model:
    """A clone whose large float32 weights of Conv, ConvTranspose, Gemm, MatMul, Gather, LSTM and GRU are integers of
    `bits` (8, or 4 for MatMul [K, N]).
    """
    copy = model.clone()
    for node in tuple(copy.graph.all_nodes()):
        positions = {"LSTM": (1, 2), "GRU": (1, 2)}.get(node.op_type, (_WEIGHTS.get(node.op_type, -1),))
        for i in positions:
            if i < 0 or node.domain or node.name in exclude or not constant(node.inputs[i]):
                continue
            value = node.inputs[i]
            assert value is not None and value.const_value is not None
            if (
                value.dtype == ir.DataType.FLOAT
                and value.const_value.size >= _SMALLEST
                and value.const_value.shape.rank() >= 2
            ):
                p = _params(value.const_value.numpy(), node, bits)
                readers = [u for u in value.uses() if u.node.graph is node.graph]
                dequantized_constant(copy, value, p, readers, f"{value.name}_{node.name}")
    copy.graph.sort()
    drop_unused(copy)
    return copy


def _params(w: np.ndarray, node: ir.Node, bits: int) -> QParams:
    if bits == 4 and node.op_type == "MatMul" and w.ndim == 2 and w.shape[0] % INT4_BLOCK == 0:
        blocks = w.reshape(w.shape[0] // INT4_BLOCK, INT4_BLOCK, w.shape[1])
        return block_params(blocks, INT4_WEIGHT)
    axis = _axis(node, w.ndim)
    peak = np.abs(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).max(axis=1)
    scale = np.where(peak > 0, peak / INT8_WEIGHT.qmax, 1).astype(np.float32)
    return QParams(scale, np.zeros(scale.shape, np.int8), INT8_WEIGHT, axis)


def block_params(blocks: np.ndarray, qtype: QType) -> QParams:
    """Grids of `blocks` float32 [K / block, block, N] along axis 0 of the matrix, one scale [K / block, N] a block.

    Signed 4 bits reach -8: the element of largest magnitude is put there, whatever its sign.
    """
    index = np.abs(blocks).argmax(axis=1, keepdims=True)
    peak = np.take_along_axis(blocks, index, axis=1)[:, 0]
    scale = np.where(peak != 0, peak / qtype.qmin, 1).astype(np.float32)
    return QParams(scale, np.zeros(scale.shape, np.int8), qtype, 0, blocks.shape[1])
