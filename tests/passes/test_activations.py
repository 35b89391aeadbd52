"""Activations as what ONNX Runtime computes fast: the same results, and no other node is touched."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.passes.activations import fast_activations
from tests import tiny
from tests.models import normal

IMAGE = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { y = PRelu(x, a) }"
ROW = "g (float[N,4] x) => (float[N,4] y) { y = PRelu(x, a) }"


def canonical(text: str, **weights: np.ndarray) -> ir.Model:
    return graph.canonical(graph.load(tiny.proto(text, **weights)))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


@pytest.mark.parametrize(
    ("text", "slopes"),
    [
        (IMAGE, normal(4, 1, 1)),
        (IMAGE, normal(1, 4, 1, 1)),
        (IMAGE, normal(6)),
        (IMAGE, 100 * normal(4, 6, 6)),
        (ROW, normal(4)),
        (ROW, np.float32([0, 1, -1, 2])),
    ],
    ids=["by channel", "of four axes", "by column", "by element", "of rows", "of every kind"],
)
def test_slopes_are_split_and_the_results_stay(text: str, slopes: np.ndarray) -> None:
    model = canonical(text, a=slopes)
    found = fast_activations(model)
    assert ops(found) == {"Relu": 1, "Mul": 2, "Add": 1}
    x = 3 * normal(2, *([4, 6, 6] if text is IMAGE else [4]))
    want = tiny.run(model, {"x": x})[0]
    np.testing.assert_allclose(tiny.run(found, {"x": x})[0], want, rtol=1e-5, atol=1e-6 * float(np.abs(slopes).max()))
    assert [v.name for v in found.graph.outputs] == ["y"]


def test_one_slope_for_all_is_a_leaky_relu() -> None:
    model = canonical(IMAGE, a=np.full((4, 1, 1), 0.25, np.float32))
    found = fast_activations(model)
    assert ops(found) == {"LeakyRelu": 1}
    x = normal(2, 4, 6, 6)
    assert np.array_equal(tiny.run(found, {"x": x})[0], tiny.run(model, {"x": x})[0])


@pytest.mark.parametrize(
    ("body", "new"),
    [
        ("y = Elu(x)", "Exp"),
        ("y = Elu <alpha = 0.5> (x)", "Exp"),
        ("y = Selu(x)", "Exp"),
        ("y = Selu <alpha = 1.5, gamma = 2.0> (x)", "Exp"),
        ("y = Celu(x)", "Exp"),
        ("y = Celu <alpha = 2.0> (x)", "Exp"),
        ("y = Mish(x)", "Exp"),
        ("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)", "Exp"),
        ("s = Softplus(x)  t = Tanh(s)  y = Mul(t, x)", "Exp"),
    ],
)
def test_others_are_written_out_and_the_results_stay(body: str, new: str) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 18]> g (float[N,5,64] x) => (float[N,5,64] y) {{ {body} }}'
    model = canonical(text)
    found = fast_activations(model)
    assert new in ops(found) and not {"Elu", "Selu", "Celu", "Mish", "Softplus"} & ops(found).keys()
    x = np.float32([-1e30, -100, -1, -1e-6, 0, 1e-6, 1, 19, 21, 100, 1e18])
    x = np.resize(np.concatenate([x, 4 * normal(200)]), (2, 5, 64))
    want = tiny.run(model, {"x": x})[0]
    np.testing.assert_allclose(tiny.run(found, {"x": x})[0], want, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize(("size", "more"), [(5, ""), (3, ", alpha = 0.5, bias = 2.0"), (1, ""), (9, ", alpha = 3.0")])
def test_a_local_response_is_a_convolution_with_a_band(size: int, more: str) -> None:
    text = f"""g (float[N,3,6,6] x) => (float[N,7,6,6] y) {{
        c = Conv (x, w)  r = Relu(c)  y = LRN <size = {size}{more}> (r) }}"""
    model = canonical(text, w=normal(7, 3, 1, 1))
    found = fast_activations(model)
    assert "LRN" not in ops(found) and ops(found)["Conv"] == 2
    x = 3 * normal(2, 3, 6, 6)
    np.testing.assert_allclose(tiny.run(found, {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [14, 17, 18, 21])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_softmax_over_channels_of_pictures_is_written_out(opset: int, size: float) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,3,6,6] x) => (float[N,7,6,6] y) {{
        c = Conv (x, w)  y = Softmax <axis = 1> (c) }}"""
    model = canonical(text, w=normal(7, 3, 1, 1))
    found = fast_activations(model)
    assert "Softmax" not in ops(found) and ops(found)["Exp"] == 1
    x = np.float32(size) * normal(2, 3, 6, 6)
    got = tiny.run(found, {"x": x})[0]
    np.testing.assert_allclose(got, tiny.run(model, {"x": x})[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,7,6,6] x) => (float[N,7,6,6] y) { c = Conv (x, w)  y = Softmax <axis = -1> (c) }",
        "g (float[N,7] x) => (float[N,7] y) { y = Softmax <axis = 1> (x) }",
        "g (float[N,7,6,6] x) => (float[N,7,6,6] y) { y = LRN <size = 3> (x) }",
        "g (float[N,7,6,6] x) => (float[N,7,6,6] y) { c = Conv (x, w)  y = LRN <size = 3, beta = 0.5> (c) }",
        "g (float[N,7] x) => (float[N,7] y) { y = Pow(x, third) }",
        "g (float[N,7] x) => (float[N,7] y) { y = Celu <alpha = 0.0> (x) }",
    ],
)
def test_forms_that_are_not_covered_stay(text: str) -> None:
    weights = {"w": normal(7, 7, 1, 1)} if "Conv" in text else {"third": np.float32(0.34)} if "Pow" in text else {}
    model = canonical(text, **weights)
    assert fast_activations(model) is model


def test_a_power_that_adds_an_axis_stays() -> None:
    model = canonical("g (float x) => (float[1] y) { y = Pow(x, half) }", half=np.float32([0.5]))
    assert fast_activations(model) is model


def test_what_the_user_names_stays() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, w)  [mine] y = PRelu(h, a) }"
    made = tiny.proto(text, w=normal(16, 16), a=normal(16))
    data = [{"x": normal(1, 16, seed=i)} for i in range(12)]
    found = edgeopt.quantize(made, data, mode="static", include=("MatMul",), exclude=("mine",), measure=False)
    assert ops(found.model)["PRelu"] == 1 and found.report.kept_float["mine"] == "chosen to stay float"


def test_a_power_of_one_half_is_a_square_root() -> None:
    model = canonical("g (float[N,7] x) => (float[N,7] y) { y = Pow(x, half) }", half=np.float32(0.5))
    found = fast_activations(model)
    assert ops(found) == {"Sqrt": 1}
    x = np.abs(normal(3, 7))
    np.testing.assert_allclose(tiny.run(found, {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-6)


def test_a_tanh_of_another_value_is_no_mish() -> None:
    model = canonical("g (float[N,4] x, float[N,4] z) => (float[N,4] y) { s = Softplus(x) t = Tanh(s) y = Mul(z, t) }")
    assert fast_activations(model) is model


@pytest.mark.parametrize(
    "model",
    [
        canonical("g (float[N,4] x, float[4] a) => (float[N,4] y) { y = PRelu(x, a) }"),
        canonical(ROW, a=np.float32([1, np.inf, 0, 0])),
        canonical("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"),
    ],
    ids=["computed slopes", "infinite slopes", "none"],
)
def test_others_stay(model: ir.Model) -> None:
    assert fast_activations(model) is model


@pytest.mark.parametrize(("mode", "kept"), [("weights", 0), ("fp16", 1)])
def test_results_for_a_processor_have_none_and_fp16_ones_keep_it(mode: str, kept: int) -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, w)  y = PRelu(h, a) }"
    made = tiny.proto(text, w=normal(16, 16), a=normal(16))
    found = edgeopt.quantize(made, [{"x": normal(1, 16, seed=i)} for i in range(12)], mode=mode, measure=False)
    assert ops(found.model)["PRelu"] == kept
