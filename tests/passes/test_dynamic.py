"""Dynamic int8 against the same arithmetic in NumPy, and against the graphs that exporters write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.graph.ops import channel_axis, weight_of
from edgeopt.hardware import target as targets
from edgeopt.numbers.grid import INT8_WEIGHT, QParams, quantize
from edgeopt.passes.dynamic import candidates, dynamic
from edgeopt.ptq.grids import dynamic_params, saturation_floor, weight_params
from tests import tiny
from tests.static import kernels_of

RNG = np.random.default_rng(0)
W = RNG.standard_normal((32, 16)).astype(np.float32)
SQUARE = RNG.standard_normal((32, 32)).astype(np.float32)
B = RNG.standard_normal(16).astype(np.float32)


def grids(model: ir.Model) -> dict[str, QParams]:
    """Per-channel grids of the weights of all candidates, guarded as on a machine that saturates."""
    found = {}
    for node in candidates(model):
        value = weight_of(node)
        w, axis = value.const_value.numpy(), channel_axis(node)
        found[str(value.name)] = weight_params(w, axis, INT8_WEIGHT, floor=saturation_floor(w, node.op_type, axis))
    return found


def made(model: ir.Model) -> ir.Model:
    return dynamic(model, grids(model), frozenset(str(n.name) for n in candidates(model, lstm=True)))


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [..., k] times integers w [k, n] with x on ONNX's DynamicQuantizeLinear grid: float32 scale, zero included,
    uint8.
    """
    lo, hi = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((hi - lo) / np.float32(255))
    zero = np.clip(np.rint(-lo / scale), 0, 255)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    return (q @ w.astype(np.int64)).astype(np.float32) * scale


PRODUCTS = {
    "MatMul": ("g (float[5,32] x) => (float[5,16] y) { y = MatMul(x, w) }", W, False),
    "MatMul of a batch": ("g (float[2,5,32] x) => (float[2,5,16] y) { y = MatMul(x, w) }", W, False),
    "Gemm": ("g (float[5,32] x) => (float[5,16] y) { y = Gemm(x, w) }", W, False),
    "Gemm with bias": ("g (float[5,32] x) => (float[5,16] y) { y = Gemm(x, w, b) }", W, True),
    "Gemm with transB": ("g (float[5,32] x) => (float[5,16] y) { y = Gemm <transB = 1> (x, w) }", W.T, False),
    "Gemm with both": ("g (float[5,32] x) => (float[5,16] y) { y = Gemm <transB = 1> (x, w, b) }", W.T, True),
}
every_product = pytest.mark.parametrize("case", PRODUCTS)


def model_of(case: str) -> ir.Model:
    text, w, biased = PRODUCTS[case]
    return tiny.model(text, w=np.ascontiguousarray(w), **({"b": B} if biased else {}))


@every_product
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@pytest.mark.parametrize("level", ["none", "all"])
def test_the_product_is_numpys(case: str, shift: float, level: str) -> None:
    model, (_, w, biased) = model_of(case), PRODUCTS[case]
    x = (RNG.standard_normal(tuple(model.graph.inputs[0].shape)) + shift).astype(np.float32)
    p = grids(model)["w"]
    q = quantize(w, p)
    expected = product(x, q if w.shape[0] == 32 else q.T) * p.scale + (B if biased else 0)
    # the integers are exact; two float32 scales and a sum are not
    np.testing.assert_allclose(tiny.run(made(model), {"x": x}, level=level)[0], expected, rtol=1e-5, atol=1e-5)


@every_product
def test_onnx_runtime_makes_one_kernel_of_it(case: str, tmp_path: Path) -> None:
    found = kernels_of(made(model_of(case)), tmp_path)
    assert found.integer == {"DynamicQuantizeMatMul": 1}
    assert not found.qdq and not found.floating


@every_product
def test_the_result_is_near_float(case: str) -> None:
    model = model_of(case)
    x = RNG.standard_normal(tuple(model.graph.inputs[0].shape)).astype(np.float32)
    assert tiny.sqnr_db(tiny.run(model, {"x": x})[0], tiny.run(made(model), {"x": x}, level="all")[0]) >= 35


@every_product
def test_the_argument_stays_and_a_second_time_changes_nothing(case: str) -> None:
    model = model_of(case)
    before = tiny.frozen(model)
    nodes = frozenset(str(n.name) for n in candidates(model))
    once = dynamic(model, grids(model), nodes)
    assert tiny.frozen(model) == before
    assert tiny.frozen(dynamic(once, grids(model), nodes)) == tiny.frozen(once)
    assert tiny.frozen(dynamic(model, grids(model), nodes)) == tiny.frozen(once)


def test_only_the_named_nodes_change() -> None:
    model = tiny.model(
        "g (float[5,32] x) => (float[5,32] y) { h = MatMul(x, w)  y = MatMul(h, v) }", w=SQUARE, v=SQUARE.T.copy()
    )
    first, _ = (str(n.name) for n in model.graph)
    result = dynamic(model, grids(model), frozenset({first}))
    assert tiny.operators(result).count("MatMulInteger") == tiny.operators(result).count("MatMul") == 1
    assert tiny.frozen(dynamic(model, {}, frozenset())) == tiny.frozen(model)


def test_the_float_weights_are_gone() -> None:
    stored = tiny.weights_of(made(model_of("Gemm with both")))
    assert {a.dtype for a in stored.values() if a.ndim == 2} == {np.dtype(np.int8)}
    assert sum(a.nbytes for a in stored.values()) < W.nbytes / 2


def test_products_of_one_input_share_its_quantization() -> None:
    text = "g (float[5,32] x) => (float[5,32] y) { a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b) }"
    result = made(tiny.model(text, w=SQUARE, v=SQUARE.T.copy()))
    assert tiny.operators(result).count("DynamicQuantizeLinear") == 1
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def test_a_shared_weight_is_stored_once() -> None:
    text = "g (float[5,32] x) => (float[5,32] y) { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }"
    model = tiny.model(text, w=SQUARE)
    result = made(model)
    assert sum(a.dtype == np.int8 and a.ndim == 2 for a in tiny.weights_of(result).values()) == 1
    x = RNG.standard_normal((5, 32)).astype(np.float32)
    assert tiny.sqnr_db(tiny.run(model, {"x": x})[0], tiny.run(result, {"x": x})[0]) >= 33


def near_float(model: ir.Model, result: ir.Model, feed: dict[str, np.ndarray], floor_db: float = 33) -> None:
    for r, y in zip(tiny.run(model, feed), tiny.run(result, feed, level="all"), strict=True):
        assert tiny.sqnr_db(r, y) >= floor_db


def test_a_weight_that_is_read_both_ways_serves_both() -> None:
    text = "g (float[5,32] x) => (float[5,32] y) { a = MatMul(x, w)  r = Relu(a)  y = Gemm <transB = 1> (r, w) }"
    model = tiny.model(text, w=SQUARE * np.geomspace(0.1, 10, 32, dtype=np.float32))
    result = dynamic(model, *dynamic_params(candidates(model, lstm=True), targets.load("cpu-x86-avx2")))
    near_float(model, result, {"x": RNG.standard_normal((5, 32)).astype(np.float32)}, 25)


# Bodies of If

BODIES = """g (bool c, float[5,32] x, float[5,32] u) => (float[5,32] y, float[5,32] z) {{
    {before}
    y = If (c) <
        then_branch = t () => (float[5,32] p) {k1} {{ [m1] p = MatMul({a}, {one}) }},
        else_branch = e () => (float[5,32] q) {k2} {{ [m2] q = MatMul({b}, {two}) }}
    >
    {after}
}}"""
ELSEWHERE = "z = Sin(u)"


def both_branches(*, named: bool = True, **parts: str) -> None:
    """The result is valid, has no float product left, and is near the float model under both conditions."""
    blank = dict.fromkeys(("before", "after", "k1", "k2"), "") | {"a": "x", "b": "u", "one": "w", "two": "v"}
    text = BODIES.format(**(blank | parts))
    if not named:
        text = text.replace("[m1] ", "").replace("[m2] ", "")
    used = {k: a for k, a in {"w": SQUARE, "v": SQUARE.T.copy()}.items() if f", {k})" in text}
    model = tiny.model(text, **used)
    result = made(model)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert not any(n.op_type == "MatMul" for n in result.graph.all_nodes())
    x, u = RNG.standard_normal((2, 5, 32)).astype(np.float32)
    for flag in (True, False):
        near_float(model, result, {"c": np.array(flag), "x": x, "u": u})


def test_products_in_bodies_are_dynamic_too() -> None:
    both_branches(after=ELSEWHERE)


def test_both_bodies_may_read_one_outer_value() -> None:
    both_branches(a="u", b="u", after=ELSEWHERE)


def test_a_product_before_an_if_shares_its_quantization_with_the_bodies() -> None:
    both_branches(before="[m0] z = MatMul(u, w)", a="x", b="u")


def test_a_product_behind_an_if_may_read_what_a_body_read() -> None:
    both_branches(after="[m0] z = MatMul(u, w)", a="x", b="u")


def constant_k(number: float) -> str:
    """A body's own weight k: `number` times the identity."""
    return f"<float[32,32] k = {{{', '.join(str(number * (i % 33 == 0)) for i in range(1024))}}}>"


def test_weights_of_the_same_name_in_both_bodies_stay_apart() -> None:
    both_branches(after=ELSEWHERE, k1=constant_k(1.0), k2=constant_k(2.0), one="k", two="k")


def test_unnamed_products_in_bodies_are_told_apart() -> None:
    both_branches(after=ELSEWHERE, named=False)


# Outputs


@pytest.mark.parametrize("outputs", [["y"], ["y", "h"], ["h", "y"]])
def test_outputs_keep_names_and_order_and_may_be_used_inside(outputs: list[str]) -> None:
    declared = ", ".join(f"float[5,32] {n}" for n in outputs)
    model = tiny.model(f"g (float[5,32] x) => ({declared}) {{ h = MatMul(x, w)  y = MatMul(h, w) }}", w=SQUARE)
    result = made(model)
    assert [v.name for v in result.graph.outputs] == outputs
    near_float(model, result, {"x": RNG.standard_normal((5, 32)).astype(np.float32)})


# What is no candidate


@pytest.mark.parametrize(
    "text",
    [
        "g (float[32,5] x) => (float[5,16] y) { y = Gemm <transA = 1> (x, w) }",
        "g (float[5,32] x) => (float[5,16] y) { y = Gemm <alpha = 0.5> (x, w) }",
        "g (float[5,32] x, float[16] c) => (float[5,16] y) { y = Gemm <beta = 2.0> (x, w, c) }",
        "g (float[5,32] x, float[16] c) => (float[5,16] y) { y = Gemm (x, w, c) }",
        "g (float[5,32] x, float[32,4] z) => (float[5,4] y) { y = MatMul(x, z) }",
        "g (float[16,5] x) => (float[32,5] y) { y = MatMul(w, x) }",
    ],
)
def test_a_product_that_the_kernel_cannot_do_is_no_candidate(text: str) -> None:
    model = tiny.model(text, **({"w": W} if "w" in text.replace("with", "") else {}))
    assert candidates(model) == []


def test_a_batch_of_weights_and_half_precision_are_no_candidates() -> None:
    batch = "g (float[2,5,32] x) => (float[2,5,16] y) { y = MatMul(x, w) }"
    assert candidates(tiny.model(batch, w=np.stack([W, W]))) == []
    half = "g (float16[5,32] x) => (float16[5,16] y) { y = MatMul(x, w) }"
    assert candidates(tiny.model(half, w=W.astype(np.float16))) == []


# LSTM

LSTM = """g (float[7,2,24] x) => (float[7,{d},2,16] y, float[{d},2,16] h) {{
    y, h = LSTM <hidden_size = 16{more}> (x, w, r, b)
}}"""


def lstm(directions: int, scale: float = 0.3) -> ir.Model:
    rng = np.random.default_rng(4)
    text = LSTM.format(d=directions, more=', direction = "bidirectional"' if directions == 2 else "")
    parts = {"w": (directions, 64, 24), "r": (directions, 64, 16), "b": (directions, 128)}
    return tiny.model(text, **{k: (rng.standard_normal(s) * scale).astype(np.float32) for k, s in parts.items()})


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_is_quantized_on_request_alone(directions: int, tmp_path: Path) -> None:
    model = lstm(directions)
    assert candidates(model) == [] and len(candidates(model, lstm=True)) == 1
    before = tiny.frozen(model)
    result = made(model)
    assert tiny.frozen(model) == before
    assert kernels_of(result, tmp_path).integer == {"DynamicQuantizeLSTM": 1}
    assert [v.name for v in result.graph.outputs] == ["y", "h"]
    near_float(model, result, {"x": RNG.standard_normal((7, 2, 24)).astype(np.float32)}, 30)


def test_the_directions_of_an_lstm_have_scales_of_their_own() -> None:
    model = lstm(2)
    w = tiny.weights_of(model)["w"]
    model.graph.initializers["w"].const_value = ir.Tensor(w * np.float32([1, 0.01])[:, None, None], name="w")
    near_float(model, made(model), {"x": RNG.standard_normal((7, 2, 24)).astype(np.float32)}, 30)


def test_the_gates_of_the_units_of_an_lstm_have_scales_of_their_own() -> None:
    model = lstm(1)
    wide = np.exp(np.random.default_rng(5).standard_normal((1, 64, 1)) * 1.5).astype(np.float32)
    for name in ("w", "r"):  # a scale for all of them leaves the smallest ones no levels
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(value.const_value.numpy() * wide, name=name)
    near_float(model, made(model), {"x": RNG.standard_normal((7, 2, 24)).astype(np.float32)}, 25)


def test_an_lstm_whose_products_all_have_one_sign_does_not_saturate() -> None:
    model = lstm(1)
    for name in ("w", "r"):
        value = model.graph.initializers[name]
        ones = np.full(value.const_value.shape.numpy(), 0.02, np.float32)
        value.const_value = ir.Tensor(ones, name=name)
    near_float(model, made(model), {"x": np.ones((7, 2, 24), np.float32)}, 30)
