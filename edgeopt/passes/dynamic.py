"""Dynamic int8 quantization: the scale of activations is computed at run time, weights are int8 per output channel.

It uses standard operators, which ONNX Runtime fuses.

    MatMul(x, W):  x_q, s_x, z_x = DynamicQuantizeLinear(x)
                   y = Cast(MatMulInteger(x_q, W_q, z_x)) * (s_x * s_w)           -> one DynamicQuantizeMatMul kernel

A Gemm becomes the same with its bias added. A Conv is never changed: ConvInteger needs five additional operators, which
cost more than it saves. An LSTM, on request, becomes ONNX Runtime's DynamicQuantizeLSTM, whose weights have a scale
for each gate of each unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, bias_of, channel_axis, constant, scaled, weight_of
from edgeopt.numbers.grid import INT8_WEIGHT, QParams, choose, largest_pair, quantize


def candidates(model: ir.Model, *, lstm: bool = False) -> list[ir.Node]:
    """MatMul and Gemm nodes with a constant float32 matrix, also in sub-graphs; with `lstm` also LSTMs with constant
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
    if scaled(node) or node.attributes.get_int("transA", 0) != 0:
        return False
    return len(node.inputs) < 3 or node.inputs[2] is None or bias_of(node) is not None


def _lstm(node: ir.Node) -> bool:
    return node.op_type == "LSTM" and not node.domain and all(constant(node.inputs[i]) for i in (1, 2))


def dynamic(model: ir.Model, params: Mapping[str, QParams], nodes: frozenset[str]) -> ir.Model:
    """A clone in which the products called `nodes` are dynamic; params: the grid of each weight, by weight name."""
    copy = model.clone()
    writer = _Writer(copy, Names(copy), params)
    for node in tuple(copy.graph.all_nodes()):
        if node.name in nodes and _product(node):
            writer.replace(node)
        elif node.name in nodes and _lstm(node):
            _replace_lstm(copy, writer.names, node)
    drop_unused(copy)
    return copy


@dataclass
class _Writer:
    """Writes the dynamic form into a model; quantized weights and inputs are shared by several products."""

    model: ir.Model
    names: Names
    params: Mapping[str, QParams]
    weights: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)
    inputs: dict[tuple[ir.Value | None, int], tuple[ir.Value, ...]] = field(default_factory=dict)

    def replace(self, node: ir.Node) -> None:
        """Replace the product `node` by its dynamic form."""
        name, graph, names = str(node.name), node.graph, self.names
        assert graph is not None
        wq, ws, wz = self._weight(node)
        x, new = node.inputs[0], list[ir.Node]()
        if (x, id(graph)) not in self.inputs:
            outputs = [f"{name}_x_{part}" for part in ("uint8", "scale", "zero")]
            new.append(make(names, "DynamicQuantizeLinear", [x], f"{name}_DynamicQuantizeLinear", outputs=outputs))
            self.inputs[x, id(graph)] = tuple(new[0].outputs)
        xq, xs, xz = self.inputs[x, id(graph)]
        to_float = [ir.AttrInt64("to", ir.DataType.FLOAT.value)]
        product = make(names, "MatMulInteger", [xq, wq, xz, wz], f"{name}_MatMulInteger")
        cast = make(names, "Cast", [product.outputs[0]], f"{name}_Cast", to_float)
        scale = make(names, "Mul", [xs, ws], f"{name}_Scale")
        result = make(names, "Mul", [cast.outputs[0], scale.outputs[0]], f"{name}_Mul")
        new += [product, cast, scale, result]
        bias = bias_of(node)
        if bias is not None:
            result = make(names, "Add", [result.outputs[0], bias], f"{name}_Add")
            new.append(result)
        graph.insert_before(node, new)
        take_over(graph, node, result.outputs[0])

    def _weight(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(integers [in, out], scales, zero points) of the weight of `node`."""
        weight = weight_of(node)
        assert weight is not None
        transpose = channel_axis(node) == 0
        key = f"{weight.name}_{'t' if transpose else 'n'}"
        if key not in self.weights:
            p = self.params[str(weight.name)]
            q = quantize(array(weight), p)
            integers = np.ascontiguousarray(q.T if transpose else q)
            self.weights[key] = (
                initializer(self.model, self.names, f"{key}_int8", integers),
                initializer(self.model, self.names, f"{key}_scale", p.scale),
                initializer(self.model, self.names, f"{key}_zero", np.zeros(p.scale.shape, np.int8)),
            )
        return self.weights[key]


def _replace_lstm(model: ir.Model, names: Names, node: ir.Node) -> None:
    inputs = list(node.inputs) + [None] * (8 - len(node.inputs))
    extra: list[ir.Value | None] = []
    for i, part in ((1, "W"), (2, "R")):
        w = np.swapaxes(array(node.inputs[i]), 1, 2)  # [directions, 4 hidden, in] -> [directions, in, 4 hidden]
        # one scale for each gate of each unit, large enough that no pair of products saturates on any CPU
        grids = [choose(0.0, np.maximum(np.abs(d).max(0), largest_pair(d.T)), INT8_WEIGHT, 1) for d in w]
        integers = np.stack([quantize(d, p) for d, p in zip(w, grids, strict=True)])
        scale = np.stack([p.scale for p in grids])
        name = f"{node.name}_{part}"
        inputs[i] = initializer(model, names, f"{name}_int8", integers)
        zero = np.zeros(scale.shape, np.int8)
        extra += [initializer(model, names, f"{name}_{part}", x) for part, x in (("scale", scale), ("zero", zero))]
    keep = [a for a in node.attributes.values() if a.name != "layout"]
    assert node.graph is not None
    outputs, parts = [""] * len(node.outputs), [*inputs[:8], *extra]
    new = make(names, "DynamicQuantizeLSTM", parts, f"{node.name}_quant", keep, domain="com.microsoft", outputs=outputs)
    node.graph.insert_before(node, new)
    take_over(node.graph, node, *new.outputs)
    model.opset_imports.setdefault("com.microsoft", 1)
