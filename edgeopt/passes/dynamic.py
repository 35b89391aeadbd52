"""Dynamic int8: activations get their scale at run time, weights are int8 per output channel; standard operators that
ONNX Runtime fuses.

    MatMul(x, W):  x_q, s_x, z_x = DynamicQuantizeLinear(x)
                   y = Cast(MatMulInteger(x_q, W_q, z_x)) * (s_x * s_w)           -> one DynamicQuantizeMatMul kernel

A Gemm becomes the same with its bias added. Never Conv: ConvInteger costs five more operators than it saves. LSTM, on
request, becomes ONNX Runtime's DynamicQuantizeLSTM, whose weights are quantized per direction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import bias_of, channel_axis, constant, weight_of
from edgeopt.numbers.grid import INT8_WEIGHT, QParams, choose, quantize
from edgeopt.passes.qdq import drop_unused


def candidates(model: ir.Model, *, lstm: bool = False) -> list[ir.Node]:
    """MatMul and Gemm nodes with a constant float32 matrix, in every sub-graph; with `lstm` also LSTMs with constant
    weights.
    """
    return [n for n in model.graph.all_nodes() if _product(n) or (lstm and _lstm(n))]


def _product(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return False
    w = weight_of(node)
    if w is None or w.const_value is None or w.dtype != ir.DataType.FLOAT or len(w.const_value.shape) != 2:
        return False
    if not w.const_value.size or not np.isfinite(w.const_value.numpy()).all():
        return False
    if node.op_type == "MatMul":
        return True
    a = node.attributes
    plain = a.get_float("alpha", 1.0) == 1.0 and a.get_float("beta", 1.0) == 1.0 and not a.get_int("transA", 0)
    return plain and (len(node.inputs) < 3 or node.inputs[2] is None or bias_of(node) is not None)


def _lstm(node: ir.Node) -> bool:
    return node.op_type == "LSTM" and not node.domain and all(constant(node.inputs[i]) for i in (1, 2))


def dynamic(model: ir.Model, params: Mapping[str, QParams], nodes: frozenset[str]) -> ir.Model:
    """A clone in which the products called `nodes` are dynamic; `params` holds the grid of each weight, by the weight's
    name.
    """
    copy = model.clone()
    quantized: dict[tuple[ir.Value | None, int], tuple[ir.Value, ...]] = {}
    for node in tuple(copy.graph.all_nodes()):
        if node.name in nodes and _product(node):
            _replace(copy, node, params, quantized)
        elif node.name in nodes and _lstm(node):
            _replace_lstm(copy, node)
    drop_unused(copy)
    return copy


def own(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of `model` called `name`."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(
    model: ir.Model,
    node: ir.Node,
    params: Mapping[str, QParams],
    quantized: dict[tuple[ir.Value | None, int], tuple[ir.Value, ...]],
) -> None:
    weight, name, graph = weight_of(node), str(node.name), node.graph
    assert weight is not None and weight.const_value is not None and graph is not None
    p = params[str(weight.name)]
    w = weight.const_value.numpy()
    transpose = channel_axis(node) == 0
    key = f"{weight.name}_{'t' if transpose else 'n'}"
    if f"{key}_int8" not in model.graph.initializers:
        q = quantize(w, p)
        own(model, f"{key}_int8", np.ascontiguousarray(q.T if transpose else q))
        own(model, f"{key}_scale", p.scale)
        own(model, f"{key}_zero", np.zeros(p.scale.shape, np.int8))
    wq, ws, wz = (model.graph.initializers[f"{key}_{part}"] for part in ("int8", "scale", "zero"))
    x, new = node.inputs[0], []
    if (x, id(graph)) not in quantized:
        dql = ir.Node("", "DynamicQuantizeLinear", [x], num_outputs=3, name=f"{name}_DynamicQuantizeLinear")
        for value, part in zip(dql.outputs, ("uint8", "scale", "zero"), strict=True):
            value.name = f"{name}_x_{part}"
        quantized[x, id(graph)] = tuple(dql.outputs)
        new.append(dql)
    xq, xs, xz = quantized[x, id(graph)]
    product = ir.Node("", "MatMulInteger", [xq, wq, xz, wz], name=f"{name}_MatMulInteger")
    cast = ir.Node("", "Cast", [product.outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT.value)], name=f"{name}_Cast")
    scale = ir.Node("", "Mul", [xs, ws], name=f"{name}_Scale")
    result = ir.Node("", "Mul", [cast.outputs[0], scale.outputs[0]], name=f"{name}_Mul")
    new += [product, cast, scale, result]
    bias = bias_of(node)
    if bias is not None:
        result = ir.Node("", "Add", [result.outputs[0], bias], name=f"{name}_Add")
        new.append(result)
    for made in new:
        for i, value in enumerate(made.outputs):
            value.name = value.name or f"{made.name}_{i}"
    graph.insert_before(node, new)
    take_over(graph, node, result.outputs[0])


def take_over(graph: ir.Graph | ir.Function, node: ir.Node, value: ir.Value) -> None:
    """Let `value` stand for the output of `node`, name included, and remove `node`."""
    old = node.outputs[0]
    name, value.type, value.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def _saturation(w: np.ndarray) -> float:
    """The scale above which no two neighbours along the reduction of `w` [in, out] sum to more than 127 steps."""
    pairs = np.pad(w, ((0, w.shape[0] % 2), (0, 0))).reshape(-1, 2, w.shape[1])
    return max(float(np.maximum(pairs, 0).sum(1).max()), float(np.maximum(-pairs, 0).sum(1).max())) / INT8_WEIGHT.qmax


def _replace_lstm(model: ir.Model, node: ir.Node) -> None:
    inputs = list(node.inputs) + [None] * (8 - len(node.inputs))
    extra: list[ir.Value | None] = []
    for i, part in ((1, "W"), (2, "R")):
        value = node.inputs[i]
        assert value is not None and value.const_value is not None
        w = np.swapaxes(value.const_value.numpy(), 1, 2)  # [directions, 4 hidden, in] -> [directions, in, 4 hidden]
        # one scale a direction; small enough that no pair of products saturates on any CPU
        peak = np.maximum(np.abs(w).max(axis=(1, 2)), [INT8_WEIGHT.qmax * _saturation(d) for d in w])
        p = choose(0.0, peak, INT8_WEIGHT, 0)
        name = f"{node.name}_{part}"
        inputs[i] = own(model, f"{name}_int8", np.ascontiguousarray(quantize(w, p)))
        extra += [own(model, f"{name}_scale", p.scale), own(model, f"{name}_zero", np.zeros(p.scale.shape, np.int8))]
    keep = [a for a in node.attributes.values() if a.name != "layout"]
    new = ir.Node(
        "com.microsoft",
        "DynamicQuantizeLSTM",
        [*inputs[:8], *extra],
        keep,
        num_outputs=len(node.outputs),
        name=f"{node.name}_quant",
    )
    assert node.graph is not None
    node.graph.insert_before(node, new)
    for old, value in zip(tuple(node.outputs), new.outputs, strict=True):
        output, value.type, value.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name = f"{output}_old"
        value.name = output
    node.graph.remove(node, safe=True)
    model.opset_imports.setdefault("com.microsoft", 1)
