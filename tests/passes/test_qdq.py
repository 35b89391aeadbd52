"""Q/DQ insertion against fake quantization in NumPy, and what it must leave as it was."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.graph.plan import Plan
from edgeopt.hardware import target as targets
from edgeopt.numbers.grid import BIAS, INT4_WEIGHT, INT8_WEIGHT, UINT8, QParams, fake_quantize, quantize
from edgeopt.passes.qdq import drop_unused, fold_weights, insert_qdq, params_of
from edgeopt.ptq.place import place
from edgeopt.runtime.probe import probe
from edgeopt.runtime.session import Feed
from tests import tiny
from tests.ptq.test_grids import convolve
from tests.static import Static, static

AVX2 = targets.load("cpu-x86-avx2")
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32)
W2 = (RNG.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32)
B = RNG.standard_normal(8).astype(np.float32)
FEEDS = tiny.feeds(4, x=(1, 8, 6, 6))
CONV = "Conv <pads = [1,1,1,1]>"
BLOCK = f"""g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
    a = {CONV} (x, w, b)
    r = Relu(a)
    m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (r)
    c = {CONV} (m, w2)
    y = Add(c, m)
}}"""


def made(text: str, feeds: list[Feed] = FEEDS, *, exclude: frozenset[str] = frozenset()) -> Static:
    used = {k: v for k, v in {"w": W, "w2": W2, "b": B}.items() if f" {k}" in text}
    return static(tiny.model(text, **used), feeds, AVX2, exclude=exclude)


def pooled(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)).max((-1, -2))


def block_in_numpy(p: Mapping[str, QParams], x: np.ndarray) -> np.ndarray:
    def fake(a: np.ndarray, name: str) -> np.ndarray:
        return fake_quantize(a.astype(np.float32), p[name])

    x, w, w2 = (fake(a, n).astype(np.float64) for a, n in ((x, "x"), (W, "w"), (W2, "w2")))
    r = fake(convolve(x, w, pad=1) + fake(B, "b").reshape(1, -1, 1, 1), "r")
    m = fake(pooled(r), "m")
    c = fake(convolve(m.astype(np.float64), w2, pad=1), "c")
    return fake(c + m, "y")


def test_the_result_is_fake_quantization_of_the_plan() -> None:
    s = made(BLOCK)
    assert len(s.plan.integer) == 4 and s.plan.grids["m"] == "r"
    for feed in FEEDS:
        (y,) = tiny.run(s.result, feed)
        steps = np.abs(y - block_in_numpy(s.params, feed["x"])) / s.params["y"].scale
        # a float32 sum may fall on the other side of a tie: a step of c moves y by a step or two, and rarely
        assert steps.max() <= 2.01 and (steps > 0.5).mean() <= 0.01


def test_weights_and_bias_are_integers_and_the_floats_are_gone() -> None:
    s = made(BLOCK)
    stored = tiny.weights_of(s.result)
    assert np.array_equal(stored["w_quantized"], quantize(W, s.params["w"])) and stored["w_quantized"].dtype == np.int8
    assert np.array_equal(stored["b_quantized"], quantize(B, s.params["b"])) and stored["b_quantized"].dtype == np.int32
    assert not {"w", "w2", "b"} & stored.keys()


def test_the_clamp_that_a_grid_takes_over_is_gone() -> None:
    s = made(BLOCK)
    assert s.plan.clamps and "Relu" not in tiny.operators(s.result)
    r = s.params["r"]
    assert r.range[0] == 0  # which is all that the Relu did


def test_a_clip_is_taken_over_with_both_bounds() -> None:
    text = f"g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{ a = {CONV} (x, w)  y = Clip(a, lo, hi) }}"
    model = tiny.model(text, w=W * 9, lo=np.float32(0), hi=np.float32(6))
    s = static(model, FEEDS, AVX2)
    assert tiny.operators(s.result).count("Clip") == 0
    for feed in FEEDS:
        (y,) = tiny.run(s.result, feed)
        assert y.min() >= 0 and y.max() <= 6.0001  # 255 steps of the float32 nearest to 6/255
        assert tiny.sqnr_db(tiny.run(model, feed)[0], y) > 30


def test_the_arguments_stay_as_they_were() -> None:
    model = tiny.model(BLOCK, w=W, w2=W2, b=B)
    s = static(model, FEEDS, AVX2)
    before = tiny.frozen(s.model)
    inserted = insert_qdq(s.model, s.plan, s.params)
    assert tiny.frozen(s.model) == before
    middle = tiny.frozen(inserted)
    fold_weights(inserted)
    assert tiny.frozen(inserted) == middle


def test_folding_keeps_the_numbers_and_is_idempotent() -> None:
    s = made(BLOCK)
    inserted = insert_qdq(s.model, s.plan, s.params)
    folded = fold_weights(inserted)
    for feed in FEEDS:
        assert np.array_equal(tiny.run(inserted, feed)[0], tiny.run(folded, feed)[0])
    assert tiny.frozen(fold_weights(folded)) == tiny.frozen(folded)


def test_inserting_twice_is_refused_or_changes_nothing() -> None:
    s = made(BLOCK)
    once = insert_qdq(s.model, s.plan, s.params)
    try:
        twice = insert_qdq(once, s.plan, s.params)
    except (KeyError, ValueError):
        return
    assert tiny.frozen(twice) == tiny.frozen(once)


def test_the_result_is_valid_onnx_and_the_same_every_time() -> None:
    a, b = made(BLOCK), made(BLOCK)
    onnx.checker.check_model(ir.to_proto(a.result), full_check=True)
    assert tiny.frozen(a.result) == tiny.frozen(b.result)


def test_the_graph_states_the_grids_of_the_plan() -> None:
    s = made(BLOCK)
    stated = {
        str(n.inputs[0].name).removesuffix("_quantized"): params_of(n)
        for n in s.result.graph
        if n.op_type == "DequantizeLinear" and len(n.inputs) > 2
    }
    inner = {"y": "y_real"}
    assert {inner.get(n, n) for n in s.params} - {"b"} == {inner.get(n, n) for n in stated}
    for name, p in stated.items():
        assert np.array_equal(p.scale, s.params[name].scale) and np.array_equal(p.zero_point, s.params[name].zero_point)
        assert p.axis == s.params[name].axis and p.qtype.dtype == s.params[name].qtype.dtype


# Readers


def test_a_float_reader_of_a_float_value_loses_nothing() -> None:
    text = f"g (float[1,8,6,6] x) => (float[1,8,6,6] y, float[1,8,6,6] z) {{ y = {CONV} (x, w)  z = Sin(x) }}"
    s = made(text)
    for feed in FEEDS:
        z = tiny.run(s.result, feed)[1]
        assert np.array_equal(z, tiny.run(s.model, feed)[1])


def test_a_float_reader_of_an_integer_value_reads_the_grid() -> None:
    text = f"g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{ a = {CONV} (x, w)  y = Sin(a) }}"
    s = made(text)
    sin = next(n for n in s.result.graph if n.op_type == "Sin")
    assert sin.inputs[0].producer().op_type == "DequantizeLinear"


@pytest.mark.parametrize("named", [True, False])
def test_a_body_of_if_reads_the_grid_of_an_outer_integer_value(named: bool) -> None:
    text = f"""g (bool c, float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        a = {CONV} (x, w)
        y = If (c) <
            then_branch = t () => (float[1,8,6,6] p) {{ p = Sin(a) }},
            else_branch = e () => (float[1,8,6,6] q) {{ q = Cos(a) }}
        >
    }}"""
    if named:
        text = (
            text.replace("a = Conv", "[first] a = Conv").replace("p = S", "[sin] p = S").replace("q = C", "[cos] q = C")
        )
    feeds = [{"c": np.array(i % 2 == 0), **f} for i, f in enumerate(FEEDS)]
    s = made(text, feeds)
    onnx.checker.check_model(ir.to_proto(s.result), full_check=True)
    for feed in feeds:
        assert tiny.sqnr_db(tiny.run(s.model, feed)[0], tiny.run(s.result, feed)[0]) > 25


def test_one_value_read_twice_by_one_node_has_one_pair() -> None:
    text = f"g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{ a = {CONV} (x, w)  y = Add(a, a) }}"
    s = made(text)
    assert tiny.operators(s.result).count("QuantizeLinear") == 3  # x, a, y
    for feed in FEEDS:
        assert tiny.sqnr_db(tiny.run(s.model, feed)[0], tiny.run(s.result, feed)[0]) > 30


# Outputs

OUTPUTS = {
    "an integer value": (f"y = {CONV} (x, w)", ["y"]),
    "an integer value that is used inside": (f"y = {CONV} (x, w)  z = {CONV} (y, w2)", ["y", "z"]),
    "the other order": (f"y = {CONV} (x, w)  z = {CONV} (y, w2)", ["z", "y"]),
    "a clamp": (f"a = {CONV} (x, w)  y = Relu(a)", ["y"]),
    "a clamp that is used twice": (f"a = {CONV} (x, w)  y = Relu(a)  b1 = Sin(y)  z = Add(y, b1)", ["z", "y"]),
    "moved data": (f"a = {CONV} (x, w)  y = Transpose <perm = [0,1,3,2]> (a)", ["y"]),
    "a float value that integers read": (f"y = Sin(x)  z = {CONV} (y, w)", ["y", "z"]),
    "one value twice": (f"y = {CONV} (x, w)", ["y", "y"]),
    "an input": (f"y = {CONV} (x, w)", ["y", "x"]),
}


def outputs_text(case: str) -> str:
    body, names = OUTPUTS[case]
    declared = ", ".join(f"float[1,8,6,6] {n}" for n in names)
    return f"g (float[1,8,6,6] x) => ({declared}) {{ {body} }}"


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_keep_their_names_order_and_types(case: str) -> None:
    body = OUTPUTS[case][0]
    model = tiny.model(outputs_text(case), **{k: v for k, v in {"w": W, "w2": W2}.items() if f" {k})" in body})
    s = static(model, FEEDS, AVX2)
    assert [v.name for v in s.result.graph.outputs] == OUTPUTS[case][1]
    assert all(v.dtype == ir.DataType.FLOAT for v in s.result.graph.outputs)
    for feed in FEEDS:
        for r, y in zip(tiny.run(model, feed), tiny.run(s.result, feed), strict=True):
            assert tiny.sqnr_db(r, y) > 30


# Golden


GOLDEN = """
[x_QuantizeLinear] x_quantized = QuantizeLinear (x, x_scale, x_zero_point)
[w_DequantizeLinear] w_DequantizeLinear_output = DequantizeLinear <axis: int = 0> (w_quantized, w_scale, w_zero_point)
[b_DequantizeLinear] b_DequantizeLinear_output = DequantizeLinear <axis: int = 0> (b_quantized, b_scale)
[x_DequantizeLinear] x_DequantizeLinear_output = DequantizeLinear (x_quantized, x_scale, x_zero_point)
[conv] y_real = Conv (x_DequantizeLinear_output, w_DequantizeLinear_output, b_DequantizeLinear_output)
[y_QuantizeLinear] y_quantized = QuantizeLinear (y_real, y_scale, y_zero_point)
[y_DequantizeLinear] y = DequantizeLinear (y_quantized, y_scale, y_zero_point)
"""
GOLDEN_CONSTANTS = {"x_scale": 0.5, "x_zero_point": 4, "y_scale": 0.25, "y_zero_point": 0, "w_scale": [0.125]}
GOLDEN_CONSTANTS |= {"w_zero_point": [0], "w_quantized": [[[[12]]]], "b_scale": [0.0625], "b_quantized": [16]}


def golden_case() -> tuple[ir.Model, Plan, dict[str, QParams]]:
    text = "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv(x, w, b)  y = Relu(a) }"
    model = tiny.model(text, w=np.full((1, 1, 1, 1), 1.5, np.float32), b=np.float32([1]))
    for node, name in zip(model.graph, ("conv", "relu"), strict=True):
        node.name = name
    plan = Plan(dict.fromkeys(frozenset({"conv"}), "int8 static"), {"relu": "conv"}, {"x": "x", "y": "y"}, {})
    zero = np.zeros(1, np.int8)
    params = {
        "x": QParams(np.float32(0.5), np.uint8(4), UINT8),
        "y": QParams(np.float32(0.25), np.uint8(0), UINT8),
        "w": QParams(np.float32([0.125]), zero, INT8_WEIGHT, 0),
        "b": QParams(np.float32([0.0625]), zero.astype(np.int32), BIAS, 0),
    }
    return model, plan, params


def test_a_convolution_with_relu_looks_like_this() -> None:
    model, plan, params = golden_case()
    result = fold_weights(insert_qdq(model, plan, params))
    nodes = [line.strip() for line in onnx.printer.to_text(ir.to_proto(result)).splitlines() if line.startswith("   [")]
    assert sorted(nodes) == sorted(GOLDEN.strip().splitlines())  # any order that runs will do
    assert {name: a.tolist() for name, a in tiny.weights_of(result).items()} == GOLDEN_CONSTANTS


# Blocks, and constants that are no weights


def test_a_weight_in_blocks_of_four_bits_is_stored_in_four_bits() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,64] x) => (float[2,8] y) { y = MatMul(x, w) }'
    w = RNG.standard_normal((64, 8)).astype(np.float32)
    scale = np.abs(w.reshape(4, 16, 8)).max(1) / np.float32(7)
    p = QParams(scale, np.zeros(scale.shape, np.int8), INT4_WEIGHT, 0, 16)
    model = tiny.model(text, w=w)
    (node,) = model.graph
    result = fold_weights(
        insert_qdq(model, Plan(dict.fromkeys(frozenset({str(node.name)}), "int8 static"), {}, {}, {}), {"w": p})
    )
    assert result.graph.initializers["w_quantized"].dtype == ir.DataType.INT4
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_allclose(tiny.run(result, {"x": x})[0], x @ fake_quantize(w, p), rtol=1e-5, atol=1e-5)


def test_a_quantizer_of_activations_is_not_folded() -> None:
    text = "g (float[4] x) => (uint8[4] q) { q = QuantizeLinear(x, s, z) }"
    model = tiny.model(text, s=np.float32(0.5), z=np.uint8(3))
    assert tiny.operators(fold_weights(model)) == ["QuantizeLinear"]


def test_initializers_that_nothing_reads_are_dropped_and_outputs_are_not() -> None:
    model = tiny.model("g (float[2] x) => (float[2] y) { y = Add(x, used) }", used=np.float32([1, 2]))
    for name in ("unused", "given"):
        value = ir.Value(
            name=name, const_value=ir.Tensor(np.float32([1]), name=name), type=ir.TensorType(ir.DataType.FLOAT)
        )
        model.graph.register_initializer(value)
    model.graph.outputs.append(model.graph.initializers["given"])
    drop_unused(model)
    assert set(model.graph.initializers) == {"used", "given"}


def test_a_plan_without_integers_changes_nothing() -> None:
    model = tiny.model(BLOCK, w=W, w2=W2, b=B)
    nowhere = place(model, AVX2, probe(model, FEEDS[0]), exclude=frozenset(str(n.name) for n in model.graph))
    assert tiny.frozen(fold_weights(insert_qdq(model, nowhere, {}))) == tiny.frozen(model)
