"""Activations that ONNX Runtime computes slowly on CPUs, written as operators that it vectorizes and that keep the
blocked layout of images: PRelu, Elu, Selu, Celu, Mish, LRN, Softmax over channels and square roots by Pow, up to float
rounding.

A PRelu takes as long as the convolution before it, Mish and LRN several times as long. Networks of convolutions with
them are 1.1 to 7 times as fast so, in float (`scripts/bench_passes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.graph.edit import Names, initializer, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant, scalar

_BETA, _HALF = 0.75, 0.5
_AXES_AS_INPUT = 18  # opset of ReduceMax
_KEEPS = frozenset({"Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "BatchNormalization", "LRN", "Identity"})
_LEAST_ALPHA = 1e-6  # of Celu, which divides by it
_MOST = 20.0  # the exponential of more changes nothing: tanh(softplus(20)) is 1
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # ONNX's defaults of alpha and gamma


@dataclass
class _Writer:
    """Writes nodes before `node`, and constants, with names that begin with its own."""

    model: ir.Model
    names: Names
    node: ir.Node

    def __call__(self, op: str, *inputs: ir.Value, **attributes: float | tuple[int, ...]) -> ir.Value:
        given = [
            ir.AttrInt64s(name, value) if isinstance(value, tuple) else ir.AttrFloat32(name, value)
            for name, value in attributes.items()
        ]
        made = make(self.names, op, inputs, f"{self.node.name}_{op}", given)
        self.model.graph.insert_before(self.node, made)
        return made.outputs[0]

    def number(self, value: float | np.ndarray, part: str) -> ir.Value:
        return initializer(self.model, self.names, f"{self.node.name}_{part}", np.asarray(value, np.float32))


def prelu(write: _Writer, x: ir.Value) -> ir.Value:
    """Slopes a: a x + (1 - a) relu(x), or LeakyRelu where all are one."""
    a = array(write.node.inputs[1])
    if (a == a.flat[0]).all():
        return write("LeakyRelu", x, alpha=float(a.flat[0]))
    above = write("Mul", write("Relu", x), write.number(1 - a, "rest"))
    return write("Add", write("Mul", x, write.number(a, "slope")), above)


def elu(write: _Writer, x: ir.Value) -> ir.Value:
    """relu(x) + a (exp(min(x, 0)) - 1)."""
    return _exponential(write, x, write.node.attributes.get_float("alpha", 1.0))


def selu(write: _Writer, x: ir.Value) -> ir.Value:
    """g (relu(x) + a (exp(min(x, 0)) - 1))."""
    alpha, gamma = (write.node.attributes.get_float(*given) for given in zip(("alpha", "gamma"), _SELU, strict=True))
    return write("Mul", _exponential(write, x, alpha), write.number(gamma, "gamma"))


def celu(write: _Writer, x: ir.Value) -> ir.Value:
    """relu(x) + a (exp(min(x, 0) / a) - 1)."""
    alpha = write.node.attributes.get_float("alpha", 1.0)
    return _exponential(write, x, alpha, 1 / alpha)


def _exponential(write: _Writer, x: ir.Value, alpha: float, rate: float = 1.0) -> ir.Value:
    below = write("Min", x, write.number(0.0, "zero"))
    below = below if rate == 1 else write("Mul", below, write.number(rate, "rate"))
    below = write("Sub", write("Exp", below), write.number(1.0, "one"))
    below = below if alpha == 1 else write("Mul", below, write.number(alpha, "alpha"))
    return write("Add", write("Relu", x), below)


def mish(write: _Writer, x: ir.Value) -> ir.Value:
    """x q / (q + 2) with q = e (e + 2), e = exp(x)."""
    two = write.number(2.0, "two")
    e = write("Exp", write("Min", x, write.number(_MOST, "most")))
    q = write("Mul", e, write("Add", e, two))
    return write("Mul", x, write("Div", q, write("Add", q, two)))


def lrn(write: _Writer, x: ir.Value) -> ir.Value:
    """x / t^(3/4), t = bias + the sum of squares of the channels around, which is a convolution with a band."""
    given, count = write.node.attributes, _channels(x)
    size, bias = given.get_int("size", 1), given.get_float("bias", 1.0)
    distance = np.arange(count)[None] - np.arange(count)[:, None]  # from the channel of a row to that of a column
    band = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    weight = write.number(band[..., None, None] * (given.get_float("alpha", 1e-4) / size), "band")
    t = write("Conv", write("Mul", x, x), weight, write.number(np.full(count, bias), "bias"))
    root = write("Sqrt", t)
    return write("Div", x, write("Mul", root, write("Sqrt", root)))


def _channels(x: ir.Value) -> int:
    """How many channels a value of convolutions has; 0 if nothing tells."""
    node = x.producer()
    while node is not None and node.op_type in _KEEPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return (
        array(node.inputs[1]).shape[0]
        if node is not None and node.op_type == "Conv" and constant(node.inputs[1])
        else 0
    )


def softmax(write: _Writer, x: ir.Value) -> ir.Value:
    """Over channels, for which the kernel would move them to the end and back: exp(x - m) over its sum."""
    axes = initializer(write.model, write.names, f"{write.node.name}_axes", np.array([1], np.int64))
    old = write.model.opset_imports[""] < _AXES_AS_INPUT
    top = write("ReduceMax", x, axes=(1,)) if old else write("ReduceMax", x, axes)
    e = write("Exp", write("Sub", x, top))
    return write("Div", e, write("ReduceSum", e, axes))


def square_root(write: _Writer, x: ir.Value) -> ir.Value:
    """x to the power of one half."""
    return write("Sqrt", x)


_FORMS: dict[str, Callable[[_Writer, ir.Value], ir.Value]] = {
    "PRelu": prelu, "Elu": elu, "Selu": selu, "Celu": celu, "Mish": mish, "LRN": lrn, "Softmax": softmax,
    "Pow": square_root,
}  # fmt: skip


def fast_activations(model: ir.Model, spared: frozenset[str] = frozenset()) -> ir.Model:
    """A clone with these forms of such nodes, but for those called `spared`; the model itself if it has none."""
    if not any(_found(n) for n in model.graph if n.name not in spared):
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        found = None if node.name in spared else _found(node)
        if found is not None:
            op, x = found
            take_over(copy.graph, node, _FORMS[op](_Writer(copy, names, node), x))
    RemoveUnusedNodesPass()(copy)
    return copy


def _found(node: ir.Node) -> tuple[str, ir.Value] | None:
    """(activation, its input) that `node` computes; of a Mish that is written out the last node."""
    if node.domain or any(v is not None and v.dtype not in (None, ir.DataType.FLOAT) for v in node.inputs):
        return None
    if node.op_type == "Mul":
        x = next((x for x in map(_of_mish, node.inputs) if x is not None and x in node.inputs), None)
        return None if x is None else ("Mish", x)
    x = node.inputs[0] if node.op_type in _FORMS else None
    if x is None:
        return None
    fits = {
        "PRelu": lambda: _slopes(node.inputs[1]),
        "LRN": lambda: node.attributes.get_float("beta", _BETA) == _BETA and _channels(x) > 0,
        "Softmax": lambda: node.attributes.get_int("axis", -1) == 1 and _channels(x) > 0,
        "Celu": lambda: abs(node.attributes.get_float("alpha", 1.0)) >= _LEAST_ALPHA,
        "Pow": lambda: scalar(node.inputs[1]) == _HALF and array(node.inputs[1]).ndim == 0,
    }.get(node.op_type)
    return (node.op_type, x) if fits is None or fits() else None


def _of_mish(value: ir.Value | None) -> ir.Value | None:
    """x of tanh(softplus(x))."""
    tanh = None if value is None else value.producer()
    inner = tanh.inputs[0] if tanh is not None and tanh.op_type == "Tanh" else None
    softplus = None if inner is None else inner.producer()
    return softplus.inputs[0] if softplus is not None and softplus.op_type == "Softplus" else None


def _slopes(value: ir.Value | None) -> bool:
    return constant(value) and array(value).size > 0 and bool(np.isfinite(array(value)).all())
