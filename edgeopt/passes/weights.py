"""Weight-only quantization: constants become int8 per channel or int4 in blocks; computation stays in float.

int8 weights are dequantized by Cast and Mul, which ONNX Runtime folds into a float constant when it loads the file: the
file is smaller and the model as fast as before. A DequantizeLinear instead would run in every inference. int4 blocks do
use one, since ONNX Runtime fuses it with a MatMul into MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, node, take_over
from edgeopt.graph.ops import array, channel_axis, constant, rule, weight_of
from edgeopt.numbers.grid import INT4_WEIGHT, INT8_WEIGHT, Array, QParams, QType, weight_params
from edgeopt.passes.qdq import dequantized_constant

INT4_BLOCK = 32
_PER_SCALE = 8  # elements at least
_LARGE = 4096  # bytes
_PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # their scales are looked up in the file
# positions of constants that are no weights; of a table of positions a Slice takes as many as there are
_OTHERS = {"Einsum": tuple(range(8)), "MatMul": (0,), "Gemm": (0,), "Slice": (0,)}
_TABLE = 1 << 14  # elements
_SMALLEST = 256  # elements; in smaller weights the scales need more space than is saved


def weight_only(
    model: ir.Model, bits: int, only: frozenset[str] | None = None, params: Mapping[str, QParams] | None = None
) -> ir.Model:
    """A clone in which large float32 weights of layers are stored as integers of `bits` bits.

    bits: 8, or 4 for a MatMul [K, N] of the main graph with K a multiple of the block size; only: names of the nodes to
    change, None for all; params: grids of weights that are rounded already, by name.
    """
    copy = model.clone()
    names, made = Names(copy), list[ir.Value]()
    for layer in tuple(copy.graph.all_nodes()):
        if only is None or layer.name in only:
            for i, value in _stored(layer):
                # ONNX Runtime does not fuse four bits in the body of an If or a Loop, and refuses the file
                width = bits if layer.graph is copy.graph else 8
                p = (params or {}).get(str(value.name)) or _params(array(value), layer, i, width)
                # readers of a weight with the same axis share its integers, but each has its own DequantizeLinear
                name, owner = f"{value.name}_{p.axis}", f"_{layer.name}"
                made.append(dequantized_constant(copy, names, value, p, [(layer, i)], name, owner=owner))
    stored = {value.producer() for value in made}
    for dequantize in tuple(copy.graph.all_nodes()):
        if dequantize in stored and dequantize.attributes.get_int("block_size", 0) == 0:
            _multiplied(copy, names, dequantize)
    copy.graph.sort()
    drop_unused(copy)
    return copy


def storable(model: ir.Model, least_bytes: float) -> frozenset[str]:
    """Names of the nodes that `weight_only` stores, with at least `least_bytes` of float32 weights."""
    return frozenset(
        str(node.name)
        for node in model.graph.all_nodes()
        if sum(4 * v.const_value.size for _, v in _stored(node) if v.const_value is not None) >= max(least_bytes, 1)
    )


def stored_grids(model: ir.Model, nodes: frozenset[str], bits: int) -> dict[str, QParams]:
    """The grids on which `weight_only` stores the first weights of `nodes`, by the name of the weight."""
    found = {}
    for layer in model.graph:
        weight = weight_of(layer) if layer.name in nodes else None
        if weight is not None and weight.const_value is not None and _large(weight):
            found[str(weight.name)] = _params(weight.const_value.numpy(), layer, rule(layer).weights[0], bits)
    return found


def _stored(layer: ir.Node) -> list[tuple[int, ir.Value]]:
    """(input position, weight) of what is stored of a layer."""
    inputs = layer.inputs
    positions = () if layer.domain else (*rule(layer).weights, *_OTHERS.get(layer.op_type, ()))
    least = _TABLE if layer.op_type == "Slice" else _SMALLEST
    return [(i, v) for i in positions if i < len(inputs) and (v := inputs[i]) is not None and _large(v, least)]


def _multiplied(model: ir.Model, names: Names, dequantize: ir.Node) -> None:
    """Replace a DequantizeLinear of int8 weights (one axis, zero point 0) by Cast and Mul; the graph stays unsorted."""
    q, scale = dequantize.inputs[:2]
    _out, graph = dequantize.outputs[0], dequantize.graph
    if q is None or scale is None or graph is None or q.dtype != ir.DataType.INT8 or not constant(q):
        return
    axis, rank = dequantize.attributes.get_int("axis", 1), array(q).ndim
    s = array(scale).reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    spread = initializer(model, names, f"{scale.name}_broadcast", s)
    to_float = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    cast = node(names, "Cast", [q], f"{dequantize.name}_Cast", to_float, outputs=[f"{dequantize.name}_Cast_output"])
    mul = node(names, "Mul", [cast.outputs[0], spread], f"{dequantize.name}_Mul")
    graph.extend([cast, mul])
    take_over(graph, dequantize, mul.outputs[0])


def _large(value: ir.Value, least: int = _SMALLEST) -> bool:
    tensor = value.const_value if constant(value) else None
    if tensor is None or value.dtype != ir.DataType.FLOAT or tensor.size < least or len(tensor.shape) < 2:
        return False
    return bool(np.isfinite(tensor.numpy()).all())


def _params(w: Array, layer: ir.Node, position: int, bits: int) -> QParams:
    if bits == 4 and layer.op_type == "MatMul" and w.ndim == 2 and w.shape[0] % INT4_BLOCK == 0:
        return block_params(w.reshape(w.shape[0] // INT4_BLOCK, INT4_BLOCK, w.shape[1]), INT4_WEIGHT)
    if position in rule(layer).weights:
        return weight_params(w, channel_axis(layer, position), INT8_WEIGHT)
    grids = [weight_params(w, axis, INT8_WEIGHT) for axis in range(w.ndim) if w.size >= _PER_SCALE * w.shape[axis]]
    return min(grids, key=lambda p: float((p.scale.astype(np.float64) ** 2).mean()))  # as rounding errors are


def spread(model: ir.Model) -> ir.Model:
    """A clone in which every large constant of equal elements is made by a ConstantOfShape, as small as its shape; the
    model itself if it has none.
    """
    even = [str(v.name) for v in model.graph.initializers.values() if _even(v)]
    if not even:
        return model
    copy = model.clone()
    names = Names(copy)
    for value in [copy.graph.initializers[name] for name in even]:
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        shape = initializer(copy, names, f"{value.name}_shape", np.array(array.shape, np.int64))
        one = ir.AttrTensor("value", ir.Tensor(array.reshape(-1)[:1].copy(), dtype=tensor.dtype))
        made = node(names, "ConstantOfShape", [shape], f"{value.name}_ConstantOfShape", [one])
        copy.graph.append(made)
        value.replace_all_uses_with(made.outputs[0])
    copy.graph.sort()
    drop_unused(copy)
    return copy


def _even(value: ir.Value) -> bool:
    """Whether all elements of a large float32 constant are equal."""
    tensor = value.const_value
    if tensor is None or value.is_graph_output() or tensor.nbytes < _LARGE or tensor.dtype != ir.DataType.FLOAT:
        return False
    array = tensor.numpy()
    return bool((array == array.flat[0]).all()) and not any(n.op_type in _PAIRS for n in value.consumers())


def block_params(blocks: Array, qtype: QType) -> QParams:
    """Grids of `blocks` float32 [K / block, block, N] along axis 0 of the matrix; scales: [K / block, N].

    The element of largest magnitude is mapped to -8, the end of the signed 4-bit range, whatever its sign (so scales
    can be negative).
    """
    index = np.abs(blocks).argmax(axis=1, keepdims=True)
    scale = (np.take_along_axis(blocks, index, axis=1)[:, 0] / qtype.qmin).astype(np.float32)
    scale = np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(1), scale)
    return QParams(scale, np.zeros(scale.shape, np.int8), qtype, 0, blocks.shape[1])
