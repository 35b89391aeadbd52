"""Weights and biases against exact integer arithmetic: what the fused kernels of ONNX Runtime must give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgeopt.graph.ops import channel_axis
from edgeopt.graph.plan import Plan
from edgeopt.hardware import target as targets
from edgeopt.numbers.grid import BIAS, INT8_WEIGHT, UINT8, QParams, choose, dequantize, quantize
from edgeopt.numbers.observers import Statistics
from edgeopt.ptq.grids import (
    activation_params,
    bias_params,
    largest_pair,
    reduction_rows,
    saturation_floor,
    untie,
    weight_params,
    within_pairs,
)
from tests import tiny
from tests.static import Static, kernels_of, static, values

AVX2, VNNI = targets.load("cpu-x86-avx2"), targets.load("cpu-x86-vnni")
SATURATES_HERE = targets.load("host").grid.saturates
LAW = settings(max_examples=80, deadline=None, derandomize=True)
weights = st.floats(-1000, 1000, width=32)


def guarded(w: np.ndarray, op_type: str, axis: int) -> tuple[np.ndarray, QParams]:
    p = weight_params(w, axis, INT8_WEIGHT, floor=saturation_floor(w, op_type, axis))
    return quantize(w, p), p


def worst_pair_sum(rows: np.ndarray) -> int:
    """The largest magnitude of x_0 q_0 + x_1 q_1 over all pairs of `rows` and all 0 <= x <= 255: it is at a corner
    of the square.
    """
    q = np.pad(rows.astype(np.int64), ((0, 0), (0, rows.shape[1] % 2))).reshape(rows.shape[0], -1, 2)
    corners = [q[..., 0] * a + q[..., 1] * b for a, b in itertools.product((0, 255), repeat=2)]
    return int(np.abs(corners).max())


# The saturation floor


def test_no_pair_of_any_two_weights_saturates() -> None:
    steps = np.arange(-127, 128, dtype=np.float32)
    w = np.array(list(itertools.product(steps, steps)), np.float32)  # every pair of 8-bit weights, one a channel
    q, _ = guarded(w.T, "MatMul", 1)
    assert worst_pair_sum(q.T) <= 32767
    assert worst_pair_sum(quantize(w.T, weight_params(w.T, 1, INT8_WEIGHT)).T) > 32767  # which unguarded ones do


@LAW
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=weights))
def test_no_pair_of_a_matrix_saturates(w: np.ndarray) -> None:
    q, _ = guarded(w, "MatMul", 1)
    assert worst_pair_sum(q.T) <= 32767


@LAW
@given(arrays(np.float32, array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4), elements=weights))
def test_no_pair_of_a_convolution_saturates(w: np.ndarray) -> None:
    q, _ = guarded(w, "Conv", 0)
    positions = [q[:, c, i, j] for i in range(w.shape[2]) for j in range(w.shape[3]) for c in range(w.shape[1])]
    assert worst_pair_sum(np.stack(positions, axis=1)) <= 32767


@LAW
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=weights))
def test_the_floor_costs_a_channel_at_most_one_bit(w: np.ndarray) -> None:
    _, p = guarded(w, "MatMul", 1)
    plain = weight_params(w, 1, INT8_WEIGHT)
    assert (p.scale >= plain.scale).all()
    assert (p.scale <= plain.scale * np.float32(2 * 127 / 127 * 1.000001)).all()  # a pair sums to two peaks at the most


def test_a_channel_without_large_neighbours_keeps_all_its_bits() -> None:
    w = np.float32([[127, 0, 127, -127], [127, 127, 0, 0]]).T
    _, p = guarded(w, "MatMul", 1)
    assert p.scale[0] == 1 and p.scale[1] > 1


def test_neighbours_of_opposite_sign_do_not_count() -> None:
    assert largest_pair(np.float32([[3, -4, 2, 2], [-1, -1, 5, -5], [7, -9, 0, 0]])).tolist() == [4, 5, 9]


def test_a_lone_last_element_has_no_neighbour() -> None:
    assert largest_pair(np.float32([[1, 1, 5]])).tolist() == [5]


def test_rows_are_in_the_order_of_the_kernels() -> None:
    w = np.arange(2 * 3 * 1 * 2, dtype=np.float32).reshape(2, 3, 1, 2)
    assert reduction_rows(w, "Conv", 0)[0].tolist() == [0, 2, 4, 1, 3, 5]  # position by position, channels inmost
    m = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert reduction_rows(m, "MatMul", 1).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert reduction_rows(m, "Gemm", 0).tolist() == m.tolist()


# The fused kernels against exact integers


@dataclass(frozen=True)
class Layer:
    """One node from x to y, its weight, and how it sums int64 products."""

    text: str
    w: np.ndarray
    x: tuple[int, ...]
    product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    kernel: str


def convolve(x: np.ndarray, w: np.ndarray, *, pad: int = 0, group: int = 1) -> np.ndarray:
    """x [n, c, h, w] * w [out, c / group, kh, kw], stride 1, in the type of `x`."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    xs, ws = np.split(windows, group, axis=1), np.split(w, group, axis=0)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", a, b) for a, b in zip(xs, ws, strict=True)], axis=1)


def adversarial(out: int, shape: tuple[int, ...]) -> np.ndarray:
    """[out, *shape]: all ones, all minus ones, ones in pairs, noise near the peak ...: what makes pairs of products
    large.
    """
    rng = np.random.default_rng(3)
    n = int(np.prod(shape))
    k = np.arange(n)
    rows = [np.ones(n), -np.ones(n), (-1.0) ** k, (-1.0) ** (k // 2), rng.choice([-1.0, 1.0], n)]
    rows += [rng.uniform(0.5, 1, n), -rng.uniform(0.9, 1, n), rng.standard_normal(n)]
    return np.array([rows[i % len(rows)] * (1 + i) for i in range(out)], np.float32).reshape(out, *shape)


def conv_layer(out: int, channels: int, side: int, *, group: int = 1) -> Layer:
    pad = side // 2
    text = f"""g (float[1,{channels},6,6] x) => (float[1,{out},6,6] y) {{
        y = Conv <group = {group}, pads = [{pad},{pad},{pad},{pad}]> (x, w, b)
    }}"""
    w = adversarial(out, (channels // group, side, side))
    return Layer(text, w, (1, channels, 6, 6), lambda x, q: convolve(x, q, pad=pad, group=group), "QLinearConv")


def matmul_layer(k: int, n: int) -> Layer:
    text = f"g (float[5,{k}] x) => (float[5,{n}] y) {{ h = MatMul(x, w)  y = Relu(h) }}"
    w = np.ascontiguousarray(adversarial(n, (k,)).T)
    return Layer(text, w, (5, k), lambda x, q: np.maximum(x @ q, 0), "QLinearMatMul")


def gemm_layer(k: int, n: int) -> Layer:
    text = f"g (float[5,{k}] x) => (float[5,{n}] y) {{ h = Gemm <transB = 1> (x, w, b)  y = Relu(h) }}"
    return Layer(text, adversarial(n, (k,)), (5, k), lambda x, q: x @ q.T, "QGemm")


LAYERS = {
    "conv 1x1": conv_layer(16, 32, 1),
    "conv 1x1 odd": conv_layer(9, 7, 1),
    "conv 3x3": conv_layer(16, 16, 3),
    "conv 3x3 odd": conv_layer(8, 5, 3),
    "conv 3x3 grouped": conv_layer(16, 32, 3, group=2),
    "conv 3x3 depthwise": conv_layer(16, 16, 3, group=16),
    "conv 3x3 multiplied": conv_layer(32, 16, 3, group=16),
    "matmul": matmul_layer(64, 16),
    "matmul odd": matmul_layer(33, 9),
    "gemm": gemm_layer(64, 16),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def feeds_of(layer: Layer) -> list[dict[str, np.ndarray]]:
    """All 255, pairs of 255, and noise, once x is on its grid of 0 ... 255."""
    rng = np.random.default_rng(4)
    full = np.ones(layer.x, np.float32)
    striped = full * (np.arange(full.size).reshape(layer.x) % 4 < 2)
    return [{"x": x.astype(np.float32)} for x in (full, striped, rng.uniform(0, 1, layer.x))]


def made(layer: Layer, *, saturates: bool) -> Static:
    bias = {"b": np.linspace(-3, 3, layer.w.shape[0]).astype(np.float32)} if ", b)" in layer.text else {}
    model = tiny.model(layer.text, w=layer.w, **bias)
    return static(
        model, feeds_of(layer), AVX2.model_copy(update={"grid": AVX2.grid.model_copy(update={"saturates": saturates})})
    )


def exact(layer: Layer, s: Static, x: np.ndarray) -> np.ndarray:
    """The integers of y: int64 sums of products, one float32 multiplication, as ONNX defines QLinearConv and
    QLinearMatMul.
    """
    px, pw, py = s.params["x"], s.params["w"], s.params["y"]
    qx = quantize(x, px).astype(np.int64) - int(px.zero_point)
    total = layer.product(qx, quantize(layer.w, pw).astype(np.int64))
    channel = (1, -1, 1, 1) if total.ndim == 4 else (1, -1)
    if "b" in s.params:
        total = total + quantize(tiny.weights_of(s.model)["b"], s.params["b"]).astype(np.int64).reshape(channel)
    real = total * (px.scale.astype(np.float64) * pw.scale / py.scale).reshape(channel)
    return np.clip(np.rint(real) + int(py.zero_point), 0, 255).astype(np.int64)


@every_layer
def test_the_fused_kernel_gives_the_exact_integers(layer: Layer, tmp_path: Path) -> None:
    s = made(layer, saturates=True)
    assert layer.kernel in kernels_of(s.result, tmp_path).integer
    for feed in feeds_of(layer):
        (y,) = tiny.run(s.result, feed, level="all")
        off = np.abs(quantize(y, s.params["y"]).astype(np.int64) - exact(layer, s, feed["x"]))
        # the kernel's float32 multiplier may round a tie to the other side: one step, and rarely
        assert off.max() <= 1 and (off > 0).mean() <= 0.01


@pytest.mark.skipif(not SATURATES_HERE, reason="this machine sums u8*s8 pairs in 32 bits")
@pytest.mark.parametrize("name", ["conv 1x1", "conv 3x3", "matmul", "gemm"])
def test_without_the_floor_sums_saturate_on_this_machine(name: str) -> None:
    layer = LAYERS[name]
    s = made(layer, saturates=False)
    worst = 0
    for feed in feeds_of(layer):
        (y,) = tiny.run(s.result, feed, level="all")
        worst = max(worst, int(np.abs(quantize(y, s.params["y"]).astype(np.int64) - exact(layer, s, feed["x"])).max()))
    assert worst > 10  # steps of the output: far beyond rounding


@every_layer
def test_the_graph_as_written_gives_what_float64_gives(layer: Layer) -> None:
    s = made(layer, saturates=True)
    px, pw, py = s.params["x"], s.params["w"], s.params["y"]
    for feed in feeds_of(layer):
        x, w = (dequantize(quantize(a, p), p).astype(np.float64) for a, p in ((feed["x"], px), (layer.w, pw)))
        y = layer.product(x, w)
        if "b" in s.params:
            b = dequantize(quantize(tiny.weights_of(s.model)["b"], s.params["b"]), s.params["b"]).astype(np.float64)
            y = y + b.reshape((1, -1, 1, 1) if y.ndim == 4 else (1, -1))
        expected = np.clip(np.rint(y / py.scale.astype(np.float64)) + int(py.zero_point), 0, 255)
        (found,) = tiny.run(s.result, feed)
        off = np.abs(quantize(found, py).astype(np.int64) - expected)
        assert off.max() <= 1 and (off > 0).mean() <= 0.01  # float32 sums may round a tie to the other side


# Weights that few models have


@pytest.mark.parametrize(
    ("text", "w"),
    [
        ("g (float[2,3,33] x) => (float[2,3,8] y) { y = MatMul(x, w) }", adversarial(16, (33,)).reshape(2, 8, 33)),
        ("g (float[5,64] x) => (float[5] y) { y = MatMul(x, w) }", adversarial(1, (64,)).reshape(64)),
    ],
    ids=["one matrix a batch", "a vector"],
)
@pytest.mark.parametrize("ones", [True, False])
def test_a_product_with_an_unusual_weight_stays_near_float(text: str, w: np.ndarray, ones: bool) -> None:
    model = tiny.model(text, w=np.ascontiguousarray(w.transpose(0, 2, 1)) if w.ndim == 3 else w)
    shape = tuple(model.graph.inputs[0].shape)
    x = np.ones(shape, np.float32) if ones else np.random.default_rng(1).uniform(0, 1, shape).astype(np.float32)
    s = static(model, [{"x": x}], AVX2)
    # 8 bits of weights and activations give some 40 dB; a saturated sum or a wrong scale less than 20
    assert tiny.sqnr_db(tiny.run(model, {"x": x})[0], tiny.run(s.result, {"x": x}, level="all")[0]) >= 33


@pytest.mark.parametrize("shape", [(8,), (1, 8), (5, 8), (5, 1), (1,), ()], ids=str)
def test_a_gemm_with_a_bias_of_any_shape_stays_near_float(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((16, 8)).astype(np.float32) * np.float32([0.1, 1, 10, 0.1, 1, 10, 3, 5])
    b = np.asarray(rng.uniform(1, 5, shape), np.float32)
    model = tiny.model("g (float[5,16] x) => (float[5,8] y) { y = Gemm(x, w, b) }", w=w, b=b)
    feed = {"x": rng.standard_normal((5, 16)).astype(np.float32)}
    s = static(model, [feed], AVX2)
    for level in ("none", "all"):
        r, y = tiny.run(model, feed)[0], tiny.run(s.result, feed, level=level)[0]
        for j in range(8):  # channel by channel: the large ones would hide the small
            assert tiny.sqnr_db(r[:, j], y[:, j]) >= 30


# Biases and dead channels


def test_a_bias_has_the_scale_of_the_products() -> None:
    p = bias_params(np.float32(0.5), QParams(np.float32([0.25, 2]), np.int8([0, 0]), INT8_WEIGHT, 0))
    assert p.qtype == BIAS and p.axis == 0
    assert p.scale.tolist() == [0.125, 1.0] and p.scale.dtype == np.float32 and p.zero_point.tolist() == [0, 0]


def one_conv(w: np.ndarray, b: np.ndarray, top: float) -> tuple[ir.Model, Static, dict[str, np.ndarray]]:
    """A 1x1 Conv of 8 channels on x in 0 ... `top`."""
    out = w.shape[0]
    text = f"g (float[1,8,4,4] x) => (float[1,{out},4,4] y) {{ y = Conv(x, w, b) }}"
    model = tiny.model(text, w=w, b=b)
    x = np.random.default_rng(0).uniform(0, top, (1, 8, 4, 4)).astype(np.float32)
    x.reshape(-1)[0] = top
    return model, static(model, [{"x": x}], AVX2), {"x": x}


@pytest.mark.parametrize("bias", [1e3, -4e3, 1e9])
@pytest.mark.parametrize("level", ["none", "all"])
def test_a_bias_that_would_overflow_gets_a_larger_scale(bias: float, level: str) -> None:
    w = np.full((4, 8, 1, 1), 1e-9, np.float32)
    b = np.float32([bias, 0, 1e-8, -1e-8])
    model, s, feed = one_conv(w, b, 1e-3)
    q = quantize(b, s.params["b"])
    assert np.abs(q.astype(np.int64)).max() <= 2**30 + 1
    np.testing.assert_allclose(dequantize(q, s.params["b"])[0], bias, rtol=1e-6)  # float32 scale and product
    y, r = tiny.run(s.result, feed, level=level)[0], tiny.run(model, feed)[0]
    assert np.abs(y - r).max() <= s.params["y"].scale  # at most one step: half of y's, half of a tie in the kernel


@pytest.mark.parametrize("top", [1.0, 255.0])
@pytest.mark.parametrize("dead", [0.0, 1e-41, 1e-30])
@pytest.mark.parametrize("level", ["none", "all"])
def test_a_dead_channel_gives_its_bias(top: float, dead: float, level: str) -> None:
    w = np.full((3, 8, 1, 1), dead, np.float32)
    w[2] = 1 / (8 * top)
    b = np.float32([0.3, -0.7, 0.1])
    model, s, feed = one_conv(w, b, top)
    y, r = tiny.run(s.result, feed, level=level)[0], tiny.run(model, feed)[0]
    assert np.abs(y - r)[:, :2].max() <= s.params["y"].scale * 0.51  # half a step of y and float rounding


def test_a_dead_channel_without_bias_has_scale_one() -> None:
    p = weight_params(np.zeros((2, 4), np.float32), 0, INT8_WEIGHT)
    assert p.scale.tolist() == [1, 1]


@LAW
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6), elements=weights),
    st.integers(0, 1),
)
def test_a_weight_is_within_half_a_step(w: np.ndarray, axis: int) -> None:
    p = weight_params(w, axis, INT8_WEIGHT)
    error = np.abs(dequantize(quantize(w, p), p).astype(np.float64) - w)
    steps = np.moveaxis(error, axis, 0).reshape(w.shape[axis], -1).max(1) / p.scale
    assert steps.max() <= 0.5 + 128 * 4 * 2.0**-24  # float32 rounding of up to 127 steps


# Grids of activations and shared constants


def seen(*numbers: float) -> Statistics:
    return Statistics().update(np.float32(numbers), 100)


def test_values_that_share_a_source_share_one_grid() -> None:
    plan = Plan(dict.fromkeys(frozenset({"n"}), "int8 static"), {}, {"a": "a", "b": "a", "c": "c"}, {})
    params = activation_params(plan, {"a": seen(0, 2), "c": seen(-1, 3)}, AVX2, "minmax")
    assert params["a"] is params["b"]
    assert params["a"].scale == np.float32(2 / 255) and params["a"].qtype == UINT8
    assert params["c"].zero_point == 64


def test_the_rule_decides_the_grid() -> None:
    x = np.random.default_rng(0).uniform(0, 1, 300_000).astype(np.float32)
    x[0] = 50
    statistics = {"a": Statistics().update(x, x.size)}
    plan = Plan(dict.fromkeys(frozenset(), "int8 static"), {}, {"a": "a"}, {})
    grids = {
        rule: float(activation_params(plan, statistics, AVX2, rule)["a"].scale) for rule in ("minmax", "percentile")
    }
    assert grids["minmax"] == pytest.approx(50 / 255) and grids["percentile"] < 2 / 255


SHARED = """g (float[1,8,4,4] x) => (float[1,8,4,4] y) {
    a = Conv(x, w, b)
    t = Mul(a, big)
    c = Conv(t, w, b)
    s = Conv(c, w, b)
    y = Sin(s)
}"""


def test_integer_nodes_share_a_weight_among_themselves_alone_and_never_a_bias() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((8, 8, 1, 1)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    model = tiny.model(SHARED, w=w, b=b, big=np.float32(10))
    before = tiny.frozen(model)
    names = [str(n.name) for n in model.graph]
    plan = Plan(dict.fromkeys(frozenset({names[0], names[2]}), "int8 static"), {}, {}, {})
    copy = untie(model, plan)
    nodes = {str(n.name): n for n in copy.graph}
    for i, different in ((1, 2), (2, 3)):
        kept = [nodes[names[k]].inputs[i] for k in (0, 2, 3)]
        assert len({id(v) for v in kept}) == different and kept[0] is not kept[2] is not kept[1]
        assert all(np.array_equal(v.const_value.numpy(), (w, b)[i - 1]) for v in kept)
    assert tiny.frozen(model) == before
    x = {"x": rng.standard_normal((1, 8, 4, 4)).astype(np.float32)}
    assert np.array_equal(tiny.run(copy, x)[0], tiny.run(model, x)[0])


def test_a_weight_shared_by_layers_of_different_ranges_serves_both() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((8, 8, 1, 1)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    model = tiny.model(
        SHARED.replace("s = Conv(c, w, b)\n    y = Sin(s)", "y = Identity(c)"),
        w=w,
        b=b,
        big=np.full((1, 1, 1, 1), 50, np.float32),
    )
    feeds = tiny.feeds(4, x=(1, 8, 4, 4))
    s = static(model, feeds, AVX2)
    assert len(s.plan.integer) == 3
    for feed in feeds:
        assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(s.result, feed, level="all")[0]) >= 28


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize(
    "c", [np.float32([1, 2, 3, -1]), np.float32(3.0), np.float32([-2])], ids=["row", "scalar", "one"]
)
def test_an_operand_that_is_constant_gets_a_grid_of_its_own(op: str, c: np.ndarray) -> None:
    model = tiny.model(f"g (float[1,4] x) => (float[1,4] y) {{ y = {op}(x, c) }}", c=c)
    feed = {"x": np.float32([[1, 2, 3, 4]])}
    s = static(model, [feed], AVX2)
    lo, hi = min(0.0, float(c.min())), max(0.0, float(c.max()))
    assert s.params["c"].qtype == UINT8 and s.params["c"].scale == np.float32((hi - lo) / 255)
    # half a step of x (4/255), of c and of y, each times the largest of the other
    bound = 0.51 * (4 / 255 * max(1, np.abs(c).max()) + (hi - lo) / 255 * 4 + s.params["y"].scale)
    np.testing.assert_allclose(tiny.run(s.result, feed)[0], tiny.run(model, feed)[0], rtol=0, atol=bound)


def test_the_channel_axis_is_where_the_scales_are() -> None:
    for text, shape, axis in (
        ("g (float[2,3] x) => (float[2,4] y) { y = Gemm(x, w) }", (3, 4), 1),
        ("g (float[2,3] x) => (float[2,4] y) { y = Gemm <transB = 1> (x, w) }", (4, 3), 0),
        ("g (float[2,3] x) => (float[2,4] y) { y = MatMul(x, w) }", (3, 4), 1),
        ("g (float[1,3,5,5] x) => (float[1,4,5,5] y) { y = Conv(x, w) }", (4, 3, 1, 1), 0),
    ):
        model = tiny.model(text, w=np.ones(shape, np.float32))
        (node,) = model.graph
        assert channel_axis(node) == axis
        feed = {"x": np.ones(tuple(model.graph.inputs[0].shape), np.float32)}
        p = static(model, [feed], AVX2).params["w"]
        assert p.axis == axis and p.scale.shape == (4,)


def test_a_network_of_many_kinds_stays_near_float() -> None:
    rng = np.random.default_rng(8)
    text = """g (float[1,8,8,8] x) => (float[1,10] y) {
        a = Conv <pads = [1,1,1,1]> (x, w1, b1)
        ar = Relu(a)
        d = Conv <pads = [1,1,1,1], group = 16> (ar, w2, b2)
        dr = Clip(d, zero, six)
        s = Add(ar, dr)
        m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (s)
        c = Concat <axis = 1> (m, m)
        p = GlobalAveragePool(c)
        f = Flatten(p)
        y = Gemm(f, w3, b3)
    }"""
    shapes = {"w1": (16, 8, 3, 3), "w2": (16, 1, 3, 3), "w3": (32, 10), "b1": (16,), "b2": (16,), "b3": (10,)}
    constants = {k: (rng.standard_normal(s) * 0.3).astype(np.float32) for k, s in shapes.items()}
    model = tiny.model(text, zero=np.float32(0), six=np.float32(6), **constants)
    feeds = tiny.feeds(8, x=(1, 8, 8, 8))
    s = static(model, feeds, AVX2)
    assert len(s.plan.integer) == 8 and len(s.plan.clamps) == 2
    r, y, w = (
        np.stack([tiny.run(m, f, level=level)[0] for f in feeds])
        for m, level in ((model, "all"), (s.result, "none"), (s.result, "all"))
    )
    assert tiny.sqnr_db(r, y) >= 25  # 8 bits and eight layers
    assert tiny.sqnr_db(y, w) >= 35  # fused kernels round elsewhere, no more
    assert values(model, ["y"], feeds[0])["y"].shape == (1, 10)


def test_choose_and_the_target_agree_on_the_weights_of_every_target() -> None:
    w = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    for name in targets.names():
        qtype = targets.load(name).weight_type
        largest = np.abs(quantize(w, choose(-np.abs(w).max(1), np.abs(w).max(1), qtype, 0)).astype(int)).max(1)
        assert (largest > 63).all() if qtype.power_of_two else largest.tolist() == [127] * 4


# Pairs that learning moved


INT8 = st.integers(-127, 127)
PAIRED = st.one_of(
    st.tuples(
        st.just("Conv"), st.just(0), arrays(np.int8, array_shapes(min_dims=4, max_dims=4, max_side=4), elements=INT8)
    ),
    st.tuples(
        st.sampled_from(["MatMul", "Gemm"]),
        st.integers(0, 1),
        arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=INT8),
    ),
)


def pairs(q: np.ndarray, op_type: str, axis: int) -> np.ndarray:
    """[channels, pairs, 2] in the order of the kernels."""
    rows = reduction_rows(q.astype(np.int64), op_type, axis)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(rows.shape[0], -1, 2)


@LAW
@given(PAIRED)
def test_after_the_cut_no_pair_saturates_and_a_second_cut_changes_nothing(case: tuple[str, int, np.ndarray]) -> None:
    op_type, axis, q = case
    before = q.copy()
    found = within_pairs(q, op_type, axis)
    assert (found.dtype, found.shape) == (q.dtype, q.shape) and np.array_equal(q, before)
    assert worst_pair_sum(pairs(found, op_type, axis).reshape(1, -1)) <= 32767
    assert np.array_equal(within_pairs(found, op_type, axis), found)


@LAW
@given(PAIRED)
def test_only_the_larger_of_a_pair_that_saturates_is_cut_and_no_further_than_it_must(
    case: tuple[str, int, np.ndarray],
) -> None:
    op_type, axis, q = case
    old, new = pairs(q, op_type, axis), pairs(within_pairs(q, op_type, axis), op_type, axis)
    wrong = (old.prod(-1) > 0) & (np.abs(old.sum(-1)) > 128)
    assert np.array_equal(old[~wrong], new[~wrong])
    for a, b in zip(old[wrong], new[wrong], strict=True):
        assert abs(b.sum()) == 128 and np.sign(b).tolist() == np.sign(a).tolist()
        (moved,) = np.flatnonzero(a != b)
        assert abs(a[moved]) >= abs(a[1 - moved])


def test_pairs_of_a_convolution_are_neighbouring_channels_at_one_position() -> None:
    q = np.zeros((1, 2, 1, 2), np.int8)
    q[0, 0] = 127  # both positions of one channel: in no pair
    assert np.array_equal(within_pairs(q, "Conv", 0), q)
    q[0, 1, 0, 1] = 100  # both channels at the second position
    assert within_pairs(q, "Conv", 0)[0, :, 0].tolist() == [[127, 28], [0, 100]]
