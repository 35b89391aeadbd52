"""What exporters take apart is one call again: fewer steps, and the same numbers and gradients as node by node."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgeopt.train.network.module import OnnxModule
from tests import tiny
from tests.models import normal

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'
NUMBERS = {
    "root": np.float32(math.sqrt(2)),
    "inverse": np.float32(math.sqrt(0.5)),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "three": np.float32(3),
    "cubic": np.float32(0.044715),
    "pi": np.float32(math.sqrt(2 / math.pi)),
    "eps": np.float32(1e-5),
    "last": np.int64([-1]),
    "cube": np.int64([-1, 6, 6]),
    "scale": np.float32([0.35]),
    "zero": np.float32(0),
    "six": np.float32(6),
    "sixth": np.float32(1 / 6),
    "other": np.float32(0.7),
}
WEIGHTS = {"w": normal(6, 6), "b": normal(6, seed=1), "g": normal(6, seed=2), "wide": normal(6, 1, seed=3)}
NORM = (
    "m = ReduceMean<keepdims = {keep}>(x, last) c = Sub(x, m) s = Pow(c, two) v = ReduceMean(s, last) e = Add(v, eps) r"
    " = Sqrt(e) n = Div(c, r)"
)
# body, how many steps are left
FUSED = {
    "gelu": ("d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)", 1),
    "gelu, multiplied, halved first": (
        "d = Mul(x, inverse) e = Erf(d) p = Add(one, e) h = Mul(half, x) y = Mul(h, p)",
        1,
    ),
    "gelu, halved inside": ("d = Div(x, root) e = Erf(d) p = Add(e, one) h = Mul(p, half) y = Mul(x, h)", 1),
    "gelu by tanh": (
        (
            "a = Pow(x, three) c = Mul(a, cubic) i = Add(x, c) k = Mul(i, pi) t = Tanh(k) p = Add(t, one) h = Mul(x,"
            " half) y = Mul(h, p)"
        ),
        1,
    ),
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", 1),
    "hardswish": ("a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)", 1),
    "hardswish, gate first": ("a = Add(three, x) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, x)", 1),
    "silu of x times one": ("m = Mul(x, one) s = Sigmoid(m) y = Mul(x, s)", 1),
    "mish": ("p = Softplus(x) t = Tanh(p) y = Mul(x, t)", 1),
    "layer norm": (NORM.format(keep=1) + " k = Mul(n, g) y = Add(k, b)", 1),
    "linear": ("m = MatMul(x, w) y = Add(b, m)", 1),
    "attention": ("t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) p = Softmax(z) y = MatMul(p, x)", 2),
    "attention, the axis counted from the front": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) p = Softmax<axis = 2>(z) y = MatMul(p, x)",
        2,
    ),
    "attention, flattened for its softmax": (
        (
            "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) s = Shape(z) f = Flatten<axis = 2>(z) o = Softmax(f) p"
            " = Reshape(o, s) y = MatMul(p, x)"
        ),
        2,
    ),
    "attention, scores scaled": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) u = Mul(z, scale) p = Softmax(u) y = MatMul(p, x)",
        2,
    ),
    "attention, scores divided, masked": (
        (
            "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) u = Div(z, scale) a = Add(u, mask) p = Softmax(a) y ="
            " MatMul(p, x)"
        ),
        2,
    ),
    "attention, queries and keys scaled": (
        (
            "t = Transpose<perm = [0, 2, 1]>(x) q = Mul(x, scale) k = Mul(t, other) z = MatMul(q, k) p = Softmax(z) y ="
            " MatMul(p, x)"
        ),
        2,
    ),
}
APART = {
    "another root": "d = Div(x, two) e = Erf(d) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)",
    "another value": "n = Neg(x) s = Sigmoid(n) y = Mul(x, s)",
    "a gate of another height": "a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six)",
    "a sum that is wider than the product": "m = MatMul(x, wide) y = Add(m, b)",
    "a matrix for each sample": "m = MatMul(x, each) y = Add(m, b)",
    "softmax over another axis": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) p = Softmax<axis = 1>(z) y = MatMul(p, x)"
    ),
    "softmax over two axes": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) f = Flatten(z) o = Softmax(f) p = Reshape(o, cube) y ="
        " MatMul(p, x)"
    ),
    "a temperature for each key": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) u = Mul(z, mask) p = Softmax(u) y = MatMul(p, x)"
    ),
    "scores over nothing": (
        "t = Transpose<perm = [0, 2, 1]>(x) z = MatMul(x, t) u = Div(z, zero) p = Softmax(u) y = MatMul(p, x)"
    ),
    "norm of a vector of scales": NORM.format(keep=1) + " k = Mul(n, mask) y = Add(k, b)",
}


def made(body: str, outputs: str = "float[N,6,6] y") -> ir.Model:
    text = f"{HEAD} g (float[N,6,6] x) => ({outputs}) {{ {body} }}"
    more = {"mask": normal(6, 6, seed=5), "each": normal(2, 6, 6, seed=6)}
    words = re.findall(r"\w+", body)
    return tiny.model(text, **{name: value for name, value in (NUMBERS | WEIGHTS | more).items() if name in words})


def learned(module: OnnxModule, x: np.ndarray, taps: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The answer, and the gradients of input and weights."""
    feed = torch.from_numpy(x).requires_grad_()
    y = module({"x": feed}, taps)["y"]
    y.square().sum().backward()
    found = [y, feed.grad, *(w.grad for w in module.weights)]
    module.zero_grad()
    return [t.detach().numpy().copy() for t in found if t is not None]


def steps(module: OnnxModule) -> int:
    return len(next(iter(module._plans.values())).steps)


@pytest.mark.parametrize("name", FUSED)
def test_the_answer_and_the_gradients_are_those_of_node_by_node(name: str) -> None:
    body, left = FUSED[name]
    module, x = OnnxModule(made(body)), normal(2, 6, 6, seed=7)
    whole = learned(module, x)
    assert steps(module) == left < len(module._nodes)
    inner = tuple(str(n.outputs[0].name) for n in module._nodes)
    apart = learned(module, x, inner)  # all that is asked for is computed
    assert len(whole) == len(apart)
    for a, b in zip(whole, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize("name", APART)
def test_what_only_looks_alike_is_left_as_it_is_and_agrees_with_onnx_runtime(name: str) -> None:
    model, x = made(APART[name]), normal(2, 6, 6, seed=7)
    module = OnnxModule(model)
    np.testing.assert_allclose(learned(module, x)[0], tiny.run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)
    assert steps(module) == len(module._nodes)


def test_a_value_that_is_an_output_too_is_computed() -> None:
    module = OnnxModule(made("s = Sigmoid(x) y = Mul(x, s)", "float[N,6,6] y, float[N,6,6] s"))
    assert set(module({"x": torch.zeros(1, 6, 6)})) == {"y", "s"}
    assert steps(module) == 2


def test_a_value_that_another_node_reads_is_computed() -> None:
    module = OnnxModule(made("m = MatMul(x, w) a = Add(m, b) r = Relu(m) y = Add(a, r)"))
    x = normal(1, 6, 6)
    m = x @ WEIGHTS["w"]
    np.testing.assert_allclose(learned(module, x)[0], m + WEIGHTS["b"] + np.maximum(m, 0), rtol=1e-4, atol=1e-4)
    assert steps(module) == 4


def test_attention_keeps_no_scores_for_the_backward_pass() -> None:
    module, x = OnnxModule(made(FUSED["attention"][0])), torch.zeros(1, 6, 6).requires_grad_()
    kept: list[tuple[int, ...]] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(t.shape))
        return t

    big = torch.zeros(1, 50, 6).requires_grad_()
    module({"x": x})
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module({"x": big})
    assert (1, 50, 50) not in kept
