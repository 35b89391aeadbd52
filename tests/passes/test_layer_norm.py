"""LayerNormalization in every way that exporters write it, and what only looks like it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.passes.layer_norm import fuse_layer_norm
from tests import tiny
from tests.models import normal
from tests.static import kernels_of

BODY = """m = ReduceMean <axes = [AXES]> (x)  d = Sub(x, m)  SQUARE  v = ReduceMean <axes = [AXES]> (p)
    e = Add(v, epsilon)  s = Sqrt(e)  n = Div(d, s)  SCALED  BIASED"""
SQUARES = ("p = Pow(d, two)", "p = Mul(d, d)", "d2 = Sub(x, m)  p = Pow(d2, two)")
SCALED, BIASED = ("q = Mul(n, scale)", "q = Mul(scale, n)"), ("y = Add(q, bias)", "y = Add(bias, q)")
SHAPES = {"-1": (8,), "2": (8,), "-2, -1": (5, 8), "1, 2": (5, 8)}
X = {"x": normal(3, 5, 8) + 4 * normal(3, 5, 1)}
PLAIN = (SQUARES[0], SCALED[0], BIASED[0])


def model_of(body: str, *, opset: int = 14, **weights: np.ndarray) -> ir.Model:
    header = f'<ir_version: 8, opset_import: ["": {opset}]>'
    known = {"two": np.float32(2), "epsilon": np.float32(1e-5), "scale": normal(8), "bias": normal(8), **weights}
    used = {name: value for name, value in known.items() if name in body}
    return tiny.model(f"{header} g (float[3,5,8] x) => (float[3,5,8] y) {{ {body} }}", **used)


def spelt(axes: str = "-1", square: str = PLAIN[0], scaled: str = PLAIN[1], biased: str = PLAIN[2]) -> str:
    text = BODY.replace("AXES", axes).replace("SQUARE", square)
    return text.replace("SCALED", scaled).replace("BIASED", biased)


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize(("square", "scaled", "biased"), list(itertools.product(SQUARES, SCALED, BIASED)))
def test_every_spelling_is_one_node(axes: str, square: str, scaled: str, biased: str) -> None:
    shape = SHAPES[axes]
    model = model_of(spelt(axes, square, scaled, biased), scale=normal(*shape), bias=normal(*shape))
    before = tiny.frozen(model)
    result = fuse_layer_norm(model)
    assert tiny.operators(result) == ["LayerNormalization"] and result.opset_imports[""] == 17
    assert tiny.weights_of(result).keys() == {"scale", "bias"} and tiny.frozen(model) == before
    np.testing.assert_allclose(tiny.run(result, X)[0], tiny.run(model, X)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_it_is_found_at_every_opset(opset: int) -> None:
    text = (
        spelt()
        if opset < 18
        else spelt().replace(" <axes = [-1]> (x)", "(x, last)").replace(" <axes = [-1]> (p)", "(p, last)")
    )
    result = fuse_layer_norm(model_of(text, opset=opset, last=np.array([-1])))
    assert tiny.operators(result) == ["LayerNormalization"] and result.opset_imports[""] == max(17, opset)


@pytest.mark.parametrize(
    "body",
    [
        spelt("1"),  # not the last axis
        spelt("0, 2"),
        spelt().replace("p = Pow(d, two)", "p = Pow(d, epsilon)"),
        spelt().replace("p = Pow(d, two)", "p = Pow(x, two)"),
        spelt().replace("n = Div(d, s)", "n = Div(x, s)"),
        spelt().replace("n = Div(d, s)", "n = Mul(d, s)"),
        spelt().replace("v = ReduceMean <axes = [-1]> (p)", "v = ReduceMean <axes = [1]> (p)"),
        spelt().replace("e = Add(v, epsilon)", "e = Add(v, v)"),
        spelt().replace("q = Mul(n, scale)", "q = Mul(n, x)"),
        spelt().replace("y = Add(q, bias)", "r = Add(q, bias)  y = Add(r, q)"),
        spelt().replace("y = Add(q, bias)", "r = Add(q, bias)  y = Add(r, n)"),
    ],
)
def test_what_only_looks_like_it_stays(body: str) -> None:
    model = model_of(body)
    assert fuse_layer_norm(model) is model


@pytest.mark.parametrize("shape", [(5, 8), (1,)])
def test_a_scale_of_another_shape_stays(shape: tuple[int, ...]) -> None:
    model = model_of(spelt(), scale=normal(*shape), bias=normal(*shape))
    assert fuse_layer_norm(model) is model


def test_one_of_which_the_user_names_a_node_stays() -> None:
    model = model_of(spelt())
    names = [str(n.name) for n in model.graph]
    assert all(fuse_layer_norm(model, {name}) is model for name in names)
    assert tiny.operators(fuse_layer_norm(model, {"another"})) == ["LayerNormalization"]


@pytest.mark.parametrize("constant", ["epsilon", "two"])
def test_a_constant_with_more_axes_than_a_number_stays(constant: str) -> None:
    """Its axes are those of the result."""
    model = model_of(spelt(), **{constant: np.full((1, 1), 2, np.float32)})
    assert fuse_layer_norm(model) is model


def test_what_is_fused_or_only_there_when_simplified_can_be_named() -> None:
    text = """<ir_version: 8, opset_import: ["": 14]> g (float[N,8] x) => (float[N,8] z) {
        m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Mul(d, d)  v = ReduceMean <axes = [-1]> (p)
        e = Add(v, epsilon)  s = Sqrt(e)  n = Div(d, s)  q = Mul(n, scale)  y = Add(q, bias)
        h = MatMul(y, w)  a = Add(h, three)  b = Clip(a, zero, six)  c = Mul(h, b)  z = Div(c, six)
    }"""
    numbers = {k: np.float32(v) for k, v in {"epsilon": 1e-5, "three": 3, "zero": 0, "six": 6}.items()}
    model = tiny.model(text, scale=normal(8), bias=normal(8), w=normal(8, 8), **numbers)
    for named in ("LayerNormalization", "HardSwish"):
        found = edgeopt.quantize(model, tiny.feeds(8, x=(1, 8)), mode="static", include=("MatMul",), exclude=(named,))
        assert {"LayerNormalization", "HardSwish"} <= set(tiny.operators(found.model))
    with pytest.raises(UsageError, match="no node, glob or operator type 'Hardswish'"):
        edgeopt.quantize(model, tiny.feeds(8, x=(1, 8)), mode="static", exclude=("Hardswish",))


def test_behind_integers_both_are_one_kernel_each(tmp_path: Path) -> None:
    """ONNX Runtime alone finds neither behind a DequantizeLinear, which it copies for each reader."""
    text = """<ir_version: 8, opset_import: ["": 14]> g (float[N,8,12,12] image) => (float[N,8,10,12] z) {
        x = Conv(image, w1)  m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Pow(d, two)
        v = ReduceMean <axes = [-1]> (p)  e = Add(v, epsilon)  s = Sqrt(e)  n = Div(d, s)  q = Mul(n, scale)
        y = Add(q, bias)  a = Conv <pads = [1,1,1,1]> (y, w2)
        b = Div(a, root)  f = Erf(b)  g1 = Add(f, one)  h = Mul(a, g1)  i = Mul(h, half)
        z = Conv <pads = [1,2,1,2]> (i, w3)
    }"""
    weights = {"w1": normal(8, 8, 3, 3), "w2": normal(8, 8, 3, 3), "w3": normal(8, 8, 3, 3)}
    numbers = {"two": 2, "epsilon": 1e-5, "root": np.sqrt(2), "one": 1, "half": 0.5}
    more = {k: np.float32(v) for k, v in numbers.items()}
    model = tiny.model(text, scale=normal(10), bias=normal(10), **weights, **more)
    data = [{"image": normal(1, 8, 12, 12)} for _ in range(24)]
    found = edgeopt.quantize(model, data, mode="static", include=("Conv",), measure=False, costs="table")
    floats = kernels_of(found.model, tmp_path).floating
    assert floats["LayerNormalization"] == floats["Gelu"] == 1 and floats.keys().isdisjoint({"Erf", "ReduceMean"})
