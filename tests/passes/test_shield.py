"""A float node between integer ones stays float in ONNX Runtime, which would quantize its weights unasked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.passes.shield import shield
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

ISLAND = """g (float[N,4,8,8] x) => (float[N,6,8,8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    [island] c = LAYER
    r = Relu(c)
    p = QuantizeLinear(r, s, z)
    y = DequantizeLinear(p, s, z)
}"""
LAYERS = {
    "with a bias": "Conv <pads = [1,1,1,1]> (d, w, b)",
    "without": "Conv <pads = [1,1,1,1]> (d, w)",
    "transposed": "ConvTranspose <pads = [1,1,1,1]> (d, wt)",
}
GRID = {"s": np.float32(0.05), "z": np.uint8(0)}
FEED = {"x": normal(2, 4, 8, 8)}


def island(layer: str) -> ir.Model:
    """Channels of very different ranges, which one scale for all would ruin."""
    w = normal(6, 4, 3, 3) * np.float32([10, 1, 0.1, 0.01, 0.001, 1e-4]).reshape(6, 1, 1, 1)
    weights = {"b": normal(6), "w": w, "wt": np.ascontiguousarray(w.transpose(1, 0, 2, 3))}
    used = {k: v for k, v in weights.items() if f" {k}" in LAYERS[layer]}
    return tiny.model(ISLAND.replace("LAYER", LAYERS[layer]), **used, **GRID)


def optimized(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators after ONNX Runtime's optimizations."""
    open_session(model, optimized=folder / "o.onnx")
    return Counter(n.op_type for n in onnx.load(folder / "o.onnx").graph.node)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_shielded_node_gives_what_the_file_says(layer: str) -> None:
    model = island(layer)
    want = tiny.run(model, FEED)[0]  # without optimizations
    found = open_session(shield(model)).run(FEED)[0]
    # a sum in another order may fall to the next step of the output's grid
    assert np.abs(found - want).max() <= GRID["s"] * 1.01 and (found != want).mean() < 1e-3


def test_without_the_shield_onnx_runtime_makes_it_integer(tmp_path: Path) -> None:
    model = island("with a bias")
    assert optimized(model, tmp_path)["QLinearConv"] == 1  # should this fail, the pass is no longer needed
    assert optimized(shield(model), tmp_path)["QLinearConv"] == 0
    want = tiny.run(model, FEED)[0]
    assert np.abs(open_session(model).run(FEED)[0] - want).max() > GRID["s"]


def test_a_node_that_is_not_between_integer_ones_is_left_alone() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w, b)  y = Relu(c) }"
    model = tiny.model(text, w=normal(6, 4, 3, 3), b=normal(6))
    assert tiny.frozen(shield(model)) == tiny.frozen(model)


def test_shielding_again_changes_nothing_and_the_argument_stays() -> None:
    model = island("with a bias")
    before = tiny.frozen(model)
    once = shield(model)
    assert tiny.frozen(model) == before and tiny.frozen(shield(once)) == tiny.frozen(once)


# a float pool in front of integers

STEM = """g (float[1,3,16,16] x) => (float[1,8,8,8] y) {
    c = Conv <pads = [1,1,1,1]> (x, w, b)
    r = Relu(c)
    [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
    q = QuantizeLinear(p, s, z)
    y = DequantizeLinear(q, s, z)
}"""
STEM_FEED = {"x": normal(1, 3, 16, 16)}


def stem() -> ir.Model:
    return tiny.model(STEM, w=normal(8, 3, 3, 3), b=normal(8, seed=1), **GRID)


def pooled_type(model: ir.Model, folder: Path) -> int:
    """What the MaxPool of ONNX Runtime's optimized graph reads: ONNX's number of the element type."""
    open_session(model, optimized=folder / "o.onnx")
    graph = onnx.load(folder / "o.onnx").graph
    (pool,) = (n for n in graph.node if n.op_type == "MaxPool")
    makers = {o: n.op_type for n in graph.node for o in n.output}
    return onnx.TensorProto.UINT8 if makers[pool.input[0]] == "QuantizeLinear" else onnx.TensorProto.FLOAT


def test_without_the_shield_onnx_runtime_pools_integers(tmp_path: Path) -> None:
    assert pooled_type(stem(), tmp_path) == onnx.TensorProto.UINT8  # should this fail, the pass is no longer needed


def test_a_shielded_pool_reads_floats_and_gives_the_same(tmp_path: Path) -> None:
    model = stem()
    before = tiny.frozen(model)
    made = shield(model)
    assert pooled_type(made, tmp_path) == onnx.TensorProto.FLOAT
    assert np.array_equal(open_session(made).run(STEM_FEED)[0], tiny.run(model, STEM_FEED)[0])
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert tiny.frozen(model) == before and tiny.frozen(shield(made)) == tiny.frozen(made)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (
            "between integers",
            (
                "g (float[1,3,4,4] x) => (float[1,3,2,2] y) { a = QuantizeLinear(x, s, z)  d = DequantizeLinear(a, s,"
                " z)  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (d)  q = QuantizeLinear(p, s, z)  y ="
                " DequantizeLinear(q, s, z) }"
            ),
        ),
        (
            "among floats",
            (
                "g (float[1,3,4,4] x) => (float[1,3,2,2] y) { p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) "
                " y = Relu(p) }"
            ),
        ),
    ],
)
def test_a_pool_that_is_no_border_stays_as_it_is(what: str, text: str) -> None:
    model = tiny.model(text, **(GRID if "Quantize" in text else {}))
    assert tiny.frozen(shield(model)) == tiny.frozen(model), what


PRODUCT = """g (float[1,16,32] x) => (float[1,16,64] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, s, k)
    [product] m = MatMul(d, v)
    y = Add(m, b)
}"""


def product() -> ir.Model:
    w = np.random.default_rng(0).integers(-127, 128, (32, 64)).astype(np.int8)
    return tiny.model(PRODUCT, w=w, b=normal(64), k=np.int8(0), **GRID)


def test_a_product_of_integers_with_a_bias_stays_one_where_sizes_are_fixed(tmp_path: Path) -> None:
    model, feed = product(), {"x": normal(1, 16, 32)}
    assert optimized(model, tmp_path)["Gemm"] == 1  # should this fail, the pass is no longer needed
    shielded = shield(model, {"m": 3})
    kernels = optimized(shielded, tmp_path)
    assert kernels["Gemm"] == 0 and kernels["MatMulIntegerToFloat"] == 1
    np.testing.assert_allclose(tiny.run(shielded, feed)[0], tiny.run(model, feed)[0], rtol=1e-5, atol=1e-5)
    assert tiny.frozen(shield(model)) == tiny.frozen(shield(model, {"m": 2}))  # nothing to do without a third axis
