"""HardSwish and Gelu in every way that exporters write it, and what only looks like it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.passes.gated import fuse_gelu, fuse_gelu_here, fuse_hardswish
from tests import tiny
from tests.models import normal

CONSTANTS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "four": 4.0}
GATE = "s = Add({0})  g1 = Clip(s, zero, six)"
SPELT = {
    f"{a} {b} {c}": f"{GATE.format(a)}  m = Mul({b})  y = {c}"
    for a, b, c in itertools.product(
        ("x, three", "three, x"), ("x, g1", "g1, x"), ("Div(m, six)", "Mul(m, sixth)", "Mul(sixth, m)")
    )
}
SPELT |= {
    "the gate divided": f"{GATE.format('x, three')}  d = Div(g1, six)  y = Mul(x, d)",
    "the gate multiplied": f"{GATE.format('x, three')}  d = Mul(sixth, g1)  y = Mul(d, x)",
    "the input divided": f"{GATE.format('x, three')}  d = Div(x, six)  y = Mul(d, g1)",
}
SPELT["a HardSigmoid"] = "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul(x, h)"
SPELT["a HardSigmoid first"] = "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul(h, x)"
OTHERS = {
    "another shift": "s = Add(x, four)  g1 = Clip(s, zero, six)  m = Mul(x, g1)  y = Div(m, six)",
    "another divisor": "s = Add(x, three)  g1 = Clip(s, zero, six)  m = Mul(x, g1)  y = Div(m, four)",
    "another bound": "s = Add(x, three)  g1 = Clip(s, zero, four)  m = Mul(x, g1)  y = Div(m, six)",
    "upside down": "s = Add(x, three)  g1 = Clip(s, zero, six)  m = Mul(x, g1)  y = Div(six, m)",
    "the default HardSigmoid": "h = HardSigmoid(x)  y = Mul(x, h)",
    "another factor": "s = Add(x, three)  g1 = Clip(s, zero, six)  n = Neg(x)  m = Mul(n, g1)  y = Div(m, six)",
    "a gate that is read elsewhere": (
        "s = Add(x, three)  g1 = Clip(s, zero, six)  m = Mul(x, g1)  d = Div(m, six)  y = Add(d, g1)"
    ),
    "half of it": "s = Add(x, three)  g1 = Clip(s, zero, six)  y = Mul(x, g1)",
}


def model_of(body: str):
    used = {
        k: np.float32(v) for k, v in CONSTANTS.items() if k in body.replace("sixth", "SIXTH" if k == "six" else "sixth")
    }
    return tiny.model(f"g (float[64] x) => (float[64] y) {{ {body} }}", **used)


X = {"x": np.linspace(-6, 6, 64, dtype=np.float32)}


@pytest.mark.parametrize("spelling", SPELT)
def test_every_spelling_is_recognised(spelling: str) -> None:
    model = model_of(SPELT[spelling])
    before = tiny.frozen(model)
    result = fuse_hardswish(model)
    assert tiny.operators(result) == ["HardSwish"] and not tiny.weights_of(result)
    assert tiny.frozen(model) == before
    assert [v.name for v in result.graph.outputs] == ["y"]
    # 1/6 in float32, and the order of the factors
    np.testing.assert_allclose(tiny.run(result, X)[0], tiny.run(model, X)[0], rtol=1e-5, atol=1e-6)
    assert tiny.frozen(fuse_hardswish(result)) == tiny.frozen(result)


@pytest.mark.parametrize("other", OTHERS)
def test_what_only_looks_like_it_stays(other: str) -> None:
    model = model_of(OTHERS[other])
    assert tiny.frozen(fuse_hardswish(model)) == tiny.frozen(model)


def test_a_model_before_hardswish_stays() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> g (float[4] x) => (float[4] y) { h = HardSigmoid <alpha = 0.16666667,'
        " beta = 0.5> (x)  y = Mul(x, h) }"
    )
    model = tiny.model(text)
    assert fuse_hardswish(model) is model


def test_two_in_a_row_and_a_step_that_is_an_output() -> None:
    text = """g (float[64] x) => (float[64] g1, float[64] z) {
        s = Add(x, three)  g1 = Clip(s, zero, six)  m = Mul(x, g1)  y = Div(m, six)
        s2 = Add(y, three)  g2 = Clip(s2, zero, six)  m2 = Mul(y, g2)  z = Div(m2, six)
    }"""
    model = tiny.model(text, **{k: np.float32(CONSTANTS[k]) for k in ("three", "zero", "six")})
    result = fuse_hardswish(model)
    assert tiny.operators(result).count("HardSwish") == 1  # the first one's gate is an output
    for r, y in zip(tiny.run(model, X), tiny.run(result, X), strict=True):
        np.testing.assert_allclose(y, r, rtol=1e-5, atol=1e-6)


GELU = {"one": 1.0, "half": 0.5, "root": float(np.sqrt(2)), "inverse": float(np.sqrt(0.5)), "two": 2.0}
ERROR = {
    "divided": "d = Div(x, root)  e = Erf(d)  a = Add(e, one)",
    "multiplied": "d = Mul(inverse, x)  e = Erf(d)  a = Add(one, e)",
}
FACTORS = {
    "(x a) / 2": "m = Mul(x, a)  y = Mul(m, half)",
    "half (a x)": "m = Mul(a, x)  y = Mul(half, m)",
    "(x / 2) a": "m = Mul(x, half)  y = Mul(m, a)",
    "x (a / 2)": "m = Div(a, two)  y = Mul(x, m)",
}
NO_GELU = {
    "another root": "d = Div(x, two)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  y = Mul(m, half)",
    "not halved": "d = Div(x, root)  e = Erf(d)  a = Add(e, one)  y = Mul(x, a)",
    "of another value": "n = Neg(x)  d = Div(n, root)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  y = Mul(m, half)",
    "read elsewhere": "d = Div(x, root)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  h = Mul(m, half)  y = Add(h, e)",
}


def gelu_model(body: str) -> ir.Model:
    used = {k: np.float32(v) for k, v in GELU.items() if k in body}
    return tiny.model(f"g (float[64] x) => (float[64] y) {{ {body} }}", **used)


@pytest.mark.parametrize("inside", ERROR)
@pytest.mark.parametrize("outside", FACTORS)
def test_every_spelling_of_gelu_is_recognised(inside: str, outside: str) -> None:
    model = gelu_model(f"{ERROR[inside]}  {FACTORS[outside]}")
    before = tiny.frozen(model)
    result = fuse_gelu(model)
    assert tiny.operators(result) == ["Gelu"] and result.opset_imports[""] >= 20
    assert tiny.frozen(model) == before
    np.testing.assert_allclose(tiny.run(result, X)[0], tiny.run(model, X)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", NO_GELU)
def test_what_only_looks_like_gelu_stays(other: str) -> None:
    model = gelu_model(NO_GELU[other])
    assert fuse_gelu(model) is model


@pytest.mark.parametrize("inside", ERROR)
@pytest.mark.parametrize("outside", FACTORS)
def test_every_spelling_is_one_node_of_onnxruntime_at_the_opset_of_the_model(inside: str, outside: str) -> None:
    model = gelu_model(f"{ERROR[inside]}  {FACTORS[outside]}")
    result = fuse_gelu_here(model)
    assert [(n.domain, n.op_type) for n in result.graph] == [("com.microsoft", "Gelu")]
    assert result.opset_imports == {**model.opset_imports, "com.microsoft": 1}
    np.testing.assert_allclose(tiny.run(result, X)[0], tiny.run(model, X)[0], rtol=1e-5, atol=1e-6)


def test_a_gelu_of_which_the_user_names_a_node_stays() -> None:
    model = gelu_model(f"{ERROR['divided']}  {FACTORS['half (a x)']}")
    for node in model.graph:
        assert fuse_gelu_here(model, {str(node.name)}).graph.num_nodes() == model.graph.num_nodes()
    assert tiny.operators(fuse_gelu_here(model, {"another"})) == ["Gelu"]


def test_a_gelu_with_a_constant_of_more_axes_stays_and_one_of_float16_does_not() -> None:
    """Its axes are those of the result; and no float16 is nearer to the root of 2 than 1e-4."""
    body, used = f"{ERROR['divided']}  {FACTORS['half (a x)']}", ("one", "half", "root")
    for name in used:
        numbers = {k: np.full((1, 1), GELU[k], np.float32) if k == name else np.float32(GELU[k]) for k in used}
        model = tiny.model(f"g (float[64] x) => (float[A,64] y) {{ {body} }}", **numbers)
        assert fuse_gelu_here(model) is model
    halves = {k: np.float16(GELU[k]) for k in used}
    assert tiny.operators(
        fuse_gelu_here(tiny.model(f"g (float16[64] x) => (float16[64] y) {{ {body} }}", **halves))
    ) == ["Gelu"]


@pytest.mark.parametrize("other", NO_GELU)
def test_what_only_looks_like_gelu_stays_for_onnxruntime_too(other: str) -> None:
    model = gelu_model(NO_GELU[other])
    assert fuse_gelu_here(model) is model


def test_what_is_quantized_with_a_gelu_can_be_trained_on() -> None:
    body = f"a1 = MatMul(x, v)  {ERROR['divided']}  {FACTORS['half (a x)']}".replace("(x, root)", "(a1, root)")
    text = f"g (float[N,64] x) => (float[N,8] z) {{ {body.replace('(a, x)', '(a, a1)')}  z = MatMul(y, w) }}"
    numbers = {k: np.float32(GELU[k]) for k in ("one", "half", "root")}
    model, feeds = tiny.model(text, v=normal(64, 64), w=normal(64, 8), **numbers), tiny.feeds(32, x=(1, 64))
    made = edgeopt.quantize(model, feeds, mode="static", include=("MatMul",), measure=False).model
    assert "Gelu" in tiny.operators(made)
    found = edgeopt.distill(made, feeds, teacher=model, quantized=True, epochs=2, learning_rate=1e-4)
    assert found.parity < 1e-2 and "Gelu" in tiny.operators(found.model)
