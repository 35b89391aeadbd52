"""ONNX Runtime's basic level, written back: fewer nodes, the same numbers, standard ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph
from edgeopt.passes.simplifying import simplify
from edgeopt.runtime.basic import basic
from tests import tiny

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "batch norm into conv": (
        (
            "g (float[1,4,6,6] x) => (float[1,8,6,6] y) { c = Conv <pads = [1,1,1,1]> (x, w)  y = BatchNormalization"
            " (c, s, o, m, v) }"
        ),
        {"w": normal(8, 4, 3, 3), "s": normal(8), "o": normal(8), "m": normal(8), "v": np.abs(normal(8)) + 1},
        ["Conv"],
    ),
    "product and sum into Gemm": (
        "g (float[3,8] x) => (float[3,4] y) { h = MatMul(x, w)  y = Add(h, b) }",
        {"w": normal(8, 4), "b": normal(4)},
        ["Gemm"],
    ),
    "constants folded": (
        "g (float[4] x) => (float[4] y) { c = Add(a, b)  d = Exp(c)  y = Mul(x, d) }",
        {"a": normal(4), "b": normal(4)},
        ["Mul"],
    ),
    "identities gone": ("g (float[4] x) => (float[4] y) { a = Identity(x)  b = Exp(a)  y = Identity(b) }", {}, ["Exp"]),
}
every_case = pytest.mark.parametrize("case", CASES)


def model_of(case: str) -> ir.Model:
    text, weights, _ = CASES[case]
    return tiny.model(text, **weights)


@every_case
@pytest.mark.parametrize("rewrite", [basic, simplify])
def test_fewer_nodes_give_the_same_numbers(case: str, rewrite) -> None:
    model = model_of(case)
    result = rewrite(model)
    assert tiny.operators(result) == CASES[case][2]
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    x = normal(*model.graph.inputs[0].shape)
    for r, y in zip(tiny.run(model, {"x": x}), tiny.run(result, {"x": x}), strict=True):
        np.testing.assert_allclose(y, r, rtol=1e-5, atol=1e-5)  # float32 sums in another order


@every_case
@pytest.mark.parametrize("rewrite", [basic, simplify])
def test_the_argument_stays_and_a_second_time_changes_nothing(case: str, rewrite) -> None:
    model = model_of(case)
    before = tiny.frozen(model)
    once = rewrite(model)
    assert tiny.frozen(model) == before
    assert tiny.frozen(rewrite(once)) == tiny.frozen(once) == tiny.frozen(rewrite(model))


@every_case
def test_inputs_outputs_and_their_dimensions_keep_their_names(case: str) -> None:
    model, result = model_of(case), basic(model_of(case))
    assert [(v.name, v.dtype, v.shape) for v in result.graph.inputs] == [
        (v.name, v.dtype, v.shape) for v in model.graph.inputs
    ]
    assert [v.name for v in result.graph.outputs] == [v.name for v in model.graph.outputs]


def test_no_operator_of_the_runtime_s_own_is_left() -> None:
    text = """g (float[2,5,16] x) => (float[2,5,16] y) {
        m = ReduceMean <axes = [-1]> (x)
        d = Sub(x, m)
        q = Mul(d, d)
        v = ReduceMean <axes = [-1]> (q)
        e = Add(v, eps)
        r = Sqrt(e)
        n = Div(d, r)
        g1 = Mul(n, s)
        y = Add(g1, o)
    }"""
    model = tiny.model(text, eps=np.float32(1e-5), s=normal(16), o=normal(16))
    result = basic(model)
    assert {n.domain for n in result.graph.all_nodes()} == {""} and set(result.opset_imports) == {""}
    assert result.opset_imports[""] == model.opset_imports[""]
    x = normal(2, 5, 16)
    np.testing.assert_allclose(tiny.run(result, {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_a_constant_that_is_much_larger_than_what_makes_it_is_not_stored() -> None:
    text = """g (float[1,2,64,512] x) => (float[1,2,64,512] y) {
        z = ConstantOfShape <value = float[1] {0.5}> (s)
        e = Expand(row, s)
        k = Add(z, e)
        y = Mul(x, k)
    }"""
    model = tiny.model(text, s=np.int64([1, 2, 64, 512]), row=normal(1, 1, 1, 512))
    result = basic(model)
    assert graph.size_bytes(result) < 4096 and set(tiny.operators(result)) >= {"Expand", "Mul"}
    x = normal(1, 2, 64, 512)
    assert np.array_equal(tiny.run(result, {"x": x})[0], tiny.run(model, {"x": x})[0])
    assert tiny.frozen(basic(result)) == tiny.frozen(result)
    small = tiny.model(text.replace("64,512", "2,4"), s=np.int64([1, 2, 2, 4]), row=normal(1, 1, 1, 4))
    assert tiny.operators(basic(small)) == ["Mul"]


def test_a_weight_that_is_made_of_a_constant_stays_one() -> None:
    text = "g (float[1,256] x) => (float[1,256] y) { w = Tile(row, k)  y = MatMul(x, w) }"
    result = basic(tiny.model(text, row=normal(32, 256), k=np.int64([8, 1])))
    assert tiny.operators(result) == ["MatMul"]


def test_a_weight_that_is_larger_than_what_makes_it_even_in_integers_is_not_stored() -> None:
    text = """g (float[1,513] x) => (float[1,128] y) {
        zeros = ConstantOfShape(s)  bank = ScatterElements(zeros, at, values)  y = MatMul(x, bank) }"""
    at = np.int64([np.arange(128) * 4])  # as in a filter bank
    result = basic(tiny.model(text, s=np.int64([513, 128]), at=at, values=normal(1, 128)))
    assert graph.size_bytes(result) < 4096 and "ScatterElements" in tiny.operators(result)


def test_metadata_and_producer_are_the_original_s() -> None:
    model = model_of("constants folded")
    model.metadata_props["labels"] = "cat,dog"
    model.producer_name, model.producer_version = "exporter", "3"
    result = basic(model)
    assert result.metadata_props["labels"] == "cat,dog"
    assert (result.producer_name, result.producer_version) == ("exporter", "3")


def test_a_model_above_the_limit_comes_back_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("batch norm into conv")
    monkeypatch.setattr("edgeopt.graph.facts.PROTOBUF_LIMIT", 10)
    assert basic(model) is model


def test_bodies_of_if_survive() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) {
        y = If (c) <
            then_branch = t () => (float[4] p) { k = Exp(w)  p = Mul(x, k) },
            else_branch = e () => (float[4] q) { i = Identity(x)  q = Neg(i) }
        >
    }"""
    model = tiny.model(text, w=normal(4))
    result = basic(model)
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": normal(4)}
        np.testing.assert_allclose(tiny.run(result, feed)[0], tiny.run(model, feed)[0], rtol=1e-6)


def test_constants_that_it_makes_have_names_that_it_does_not_make_again() -> None:
    text = "g (float[1,3,8] x) => (float[1,3,4] y) { h = MatMul(x, w)  y = Add(h, b) }"
    result = basic(tiny.model(text, w=normal(8, 4), b=normal(4)))
    assert [n.op_type for n in result.graph] == ["Reshape", "Gemm", "Reshape"]
    made = set(result.graph.initializers) - {"w", "b"}
    assert len(made) == 2 and all(name.endswith("_made") for name in made)
    assert set(basic(result).graph.initializers) == set(result.graph.initializers)
