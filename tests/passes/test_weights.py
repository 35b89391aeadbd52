"""Weight-only integers: within half a step of the floats, wherever the weights are, and the same graph around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph
from edgeopt.numbers.grid import INT4_WEIGHT, INT8_WEIGHT, QParams, fake_quantize
from edgeopt.passes.qdq import params_of
from edgeopt.passes.weights import INT4_BLOCK, block_params, spread, storable, weight_only
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.static import kernels_of

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def normal(*shape: int) -> np.ndarray:
    """Weights whose channels differ in size along every axis."""
    w = RNG.standard_normal(shape).astype(np.float32)
    for axis, n in enumerate(shape):
        w *= np.geomspace(0.3, 3, n, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return w


KINDS = {
    "Conv": ("g (float[1,8,5,5] x) => (float[1,16,5,5] y) { y = Conv <pads = [1,1,1,1]> (x, w) }", (16, 8, 3, 3), 0),
    "ConvTranspose": ("g (float[1,8,5,5] x) => (float[1,16,7,7] y) { y = ConvTranspose (x, w) }", (8, 16, 3, 3), 1),
    "Gemm": ("g (float[3,32] x) => (float[3,16] y) { y = Gemm (x, w) }", (32, 16), 1),
    "Gemm with transB": ("g (float[3,32] x) => (float[3,16] y) { y = Gemm <transB = 1> (x, w) }", (16, 32), 0),
    "MatMul": ("g (float[3,32] x) => (float[3,16] y) { y = MatMul (x, w) }", (32, 16), 1),
    "MatMul of matrices": ("g (float[2,3,32] x) => (float[2,3,16] y) { y = MatMul (x, w) }", (2, 32, 16), 2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind: str) -> ir.Model:
    text, shape, _ = KINDS[kind]
    return tiny.model(HEADER + text, w=normal(*shape))


def feed_of(model: ir.Model) -> dict[str, np.ndarray]:
    (x,) = model.graph.inputs
    shape = tuple(x.shape)
    return {
        "x": RNG.integers(0, 32, shape)
        if x.dtype == ir.DataType.INT64
        else RNG.standard_normal(shape).astype(np.float32)
    }


def stated(model: ir.Model) -> list[tuple[np.ndarray, QParams]]:
    """(real weight, its grid) of every DequantizeLinear, and of every product of cast integers and a scale."""
    found = []
    for node in model.graph.all_nodes():
        cast = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear":
            p, source = params_of(node), node
        elif cast is not None and cast.op_type == "Cast":
            scale = node.inputs[1].const_value.numpy()
            axis = next((i for i, n in enumerate(scale.shape) if n > 1), 0)
            p, source = QParams(scale.reshape(-1), np.zeros(scale.size, np.int8), INT8_WEIGHT, axis), cast
        else:
            continue
        q = source.inputs[0].const_value.numpy().astype(np.int32)
        real = (q - p._expand(p.zero_point, q.ndim)) * p._expand(p.scale, q.ndim)
        found.append((real.astype(np.float32), p))
    return found


@every_kind
def test_onnx_runtime_folds_8_bits_when_it_loads_them(kind: str, tmp_path: Path) -> None:
    found = kernels_of(weight_only(model_of(kind), 8), tmp_path)
    assert not found.qdq and not {"Cast", "Mul"} & found.floating.keys()


@every_kind
def test_an_int8_weight_is_within_half_a_step(kind: str) -> None:
    model = model_of(kind)
    w, ((real, p),) = tiny.weights_of(model)["w"], stated(weight_only(model, 8))
    assert p.axis == KINDS[kind][2] and p.scale.shape == (w.shape[p.axis],)
    steps = np.abs(real - w) / p._expand(p.scale, w.ndim)
    assert steps.max() <= 0.5 + 128 * 4 * 2.0**-24  # float32 rounding of up to 127 steps
    peaks = np.abs(np.moveaxis(w, p.axis, 0).reshape(p.scale.size, -1)).max(1)
    np.testing.assert_allclose(p.scale, peaks / 127, rtol=1e-6)  # no step is wasted


@every_kind
def test_the_result_computes_in_float_with_the_rounded_weights(kind: str) -> None:
    model = model_of(kind)
    result = weight_only(model, 8)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    ((real, _),) = stated(result)
    rounded = tiny.model(HEADER + KINDS[kind][0], w=real)
    feed = feed_of(model)
    # the same float32 operator on the same weights
    np.testing.assert_allclose(tiny.run(result, feed)[0], tiny.run(rounded, feed)[0], rtol=1e-5, atol=1e-5)
    assert (
        tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed, level="all")[0]) >= 33
    )  # weights of channels that differ a hundredfold


@every_kind
def test_the_argument_stays_and_a_second_time_changes_nothing(kind: str) -> None:
    model = model_of(kind)
    before = tiny.frozen(model)
    once = weight_only(model, 8)
    assert tiny.frozen(model) == before
    assert tiny.frozen(weight_only(once, 8)) == tiny.frozen(once) == tiny.frozen(weight_only(model, 8))


@every_kind
def test_the_weights_take_a_quarter(kind: str) -> None:
    model = model_of(kind)
    result = weight_only(model, 8)
    assert graph.bytes_by_dtype(result)["int8"] >= tiny.weights_of(model)["w"].size
    assert graph.size_bytes(result) < 0.4 * graph.size_bytes(model)  # 5 bytes a channel besides


# 4 bits


def test_a_four_bit_weight_is_within_half_a_step_but_where_the_grid_ends() -> None:
    w = normal(128, 16)
    model = tiny.model(HEADER + "g (float[3,128] x) => (float[3,16] y) { y = MatMul (x, w) }", w=w)
    result = weight_only(model, 4)
    assert [v.dtype for v in result.graph.initializers.values()].count(ir.DataType.INT4) >= 1
    ((real, p),) = stated(result)
    assert (p.axis, p.block, p.scale.shape) == (0, INT4_BLOCK, (4, 16))
    scale = p._expand(p.scale, 2)
    level, error = w / scale, np.abs((real - w) / scale)
    inside = level <= 7.5  # the peak of a block is -8; of the other sign there are 7 levels only
    assert error[inside].max() <= 0.5 + 1e-5 and (level >= -8 - 1e-5).all()
    assert error.max() <= 1 + 1e-5
    x = RNG.standard_normal((3, 128)).astype(np.float32)
    for level_name in ("none", "all"):
        (y,) = tiny.run(result, {"x": x}, level=level_name)
        np.testing.assert_allclose(
            y, x @ real, rtol=2e-2, atol=2e-2 * np.abs(y).max()
        )  # the fused kernel may round x to 8 bits
    assert tiny.sqnr_db(x @ w, x @ real) >= 16


def test_onnx_runtime_makes_one_kernel_of_four_bits(tmp_path: Path) -> None:
    model = tiny.model(HEADER + "g (float[3,128] x) => (float[3,16] y) { y = MatMul (x, w) }", w=normal(128, 16))
    assert kernels_of(weight_only(model, 4), tmp_path).integer == {"MatMulNBits": 1}


def test_a_matrix_that_blocks_do_not_divide_keeps_8_bits() -> None:
    model = tiny.model(HEADER + "g (float[3,33] x) => (float[3,16] y) { y = MatMul (x, w) }", w=normal(33, 16))
    assert set(graph.bytes_by_dtype(weight_only(model, 4))) == {"int8", "float"}


def test_the_peak_of_a_block_is_the_lowest_integer_whatever_its_sign() -> None:
    blocks = np.float32([[1, -4], [4, 2], [0, 0]]).reshape(1, 3, 2)
    p = block_params(blocks, INT4_WEIGHT)
    assert p.scale.tolist() == [[-0.5, 0.5]]
    assert fake_quantize(blocks[0], QParams(p.scale, p.zero_point, INT4_WEIGHT, 0, 3))[[1, 0], [0, 1]].tolist() == [
        4,
        -4,
    ]


# Dead and tiny weights


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-42, 1e-38])
def test_a_dead_channel_stays_dead(bits: int, peak: float) -> None:
    w = normal(64, 16)
    w[:, 3] = peak
    w[:32, 5] = -peak
    model = tiny.model(HEADER + "g (float[3,64] x) => (float[3,16] y) { y = MatMul (x, w) }", w=w)
    ((real, p),) = stated(weight_only(model, bits))
    assert np.isfinite(real).all() and (p.scale != 0).all()
    assert np.abs(real[:, 3]).max() <= 2 * peak


# Where the weights are


def test_weights_inside_the_bodies_of_if_are_stored_too() -> None:
    def text(number: int) -> str:
        return f"<float[16,16] k = {{{', '.join(str(float(number + i % 7)) for i in range(256))}}}>"

    model = tiny.model(
        f"""{HEADER} g (bool c, float[2,16] x) => (float[2,16] y) {{
        y = If (c) <
            then_branch = t () => (float[2,16] p) {text(1)} {{ p = MatMul(x, k) }},
            else_branch = e () => (float[2,16] q) {text(5)} {{ h = MatMul(x, k)  q = MatMul(h, w) }}
        >
    }}""",
        w=normal(16, 16),
    )
    before = tiny.frozen(model)
    result = weight_only(model, 8)
    assert tiny.frozen(model) == before
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    assert len(stated(result)) == 3
    assert "float" not in {k for k, n in graph.bytes_by_dtype(result).items() if n >= 1024}
    x = RNG.standard_normal((2, 16)).astype(np.float32)
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": x}
        assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 38


def test_four_bits_in_a_body_are_eight_which_onnx_runtime_takes() -> None:
    def text(number: int) -> str:
        return f"<float[32,32] k = {{{', '.join(str(float(number + i % 7)) for i in range(1024))}}}>"

    model = tiny.model(
        f"""{HEADER} g (bool c, float[2,32] x) => (float[2,32] y) {{
        h = MatMul(x, w)
        y = If (c) <
            then_branch = t () => (float[2,32] p) {text(1)} {{ p = MatMul(h, k) }},
            else_branch = e () => (float[2,32] q) {text(5)} {{ q = MatMul(h, k) }}
        >
    }}""",
        w=np.random.default_rng(7).standard_normal((32, 32)).astype(np.float32),
    )
    result = weight_only(graph.raise_opset(model, 21), 4)
    kinds = [
        v.dtype for v in result.graph.initializers.values() if v.const_value is not None and v.const_value.size == 1024
    ]
    assert kinds.count(ir.DataType.INT4) == 1 and kinds.count(ir.DataType.INT8) == 2
    x = np.random.default_rng(8).standard_normal((2, 32)).astype(np.float32)
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": x}
        assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed, level="all")[0]) >= 15


def test_a_weight_that_main_graph_and_body_share_serves_both() -> None:
    model = tiny.model(
        f"""{HEADER} g (bool c, float[2,16] x) => (float[2,16] y) {{
        h = MatMul(x, w)
        y = If (c) <
            then_branch = t () => (float[2,16] p) {{ p = MatMul(h, w) }},
            else_branch = e () => (float[2,16] q) {{ q = Add(h, x) }}
        >
    }}""",
        w=normal(16, 16),
    )
    result = weight_only(model, 8)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": RNG.standard_normal((2, 16)).astype(np.float32)}
        assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 36


def test_weights_of_a_loop_body_are_stored_too() -> None:
    model = tiny.model(
        f"""{HEADER} g (int64 n, float[2,16] x) => (float[2,16] y) {{
        yes = Constant <value = bool {{1}}> ()
        y = Loop (n, yes, x) <
            body = b (int64 i, bool c, float[2,16] a) => (bool d, float[2,16] z) {{
                d = Identity(c)  m = MatMul(a, w)  z = Tanh(m)
            }}
        >
    }}""",
        w=normal(16, 16) / 8,
    )
    result = weight_only(model, 8)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    feed = {"n": np.array(3), "x": RNG.standard_normal((2, 16)).astype(np.float32)}
    assert len(stated(result)) == 1
    assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 30


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_both_matrices_of_a_recurrent_layer_are_stored(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3}[op]
    text = f"{HEADER} g (float[5,2,16] x) => (float[5,1,2,8] y) {{ y = {op} <hidden_size = 8> (x, w, r) }}"
    model = tiny.model(text, w=normal(1, gates * 8, 16) / 9, r=normal(1, gates * 8, 32)[:, :, :8] / 9)
    result = weight_only(model, 8)
    assert len(stated(result)) == (2 if gates * 64 >= 256 else 1)
    feed = {"x": RNG.standard_normal((5, 2, 16)).astype(np.float32)}
    assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 30


def test_a_table_that_is_read_twice_is_stored_once() -> None:
    text = "g (int64[3] i, float[3,16] x) => (float[3,16] y) { e = Gather(w, i)  h = MatMul(x, w)  y = Add(e, h) }"
    model = tiny.model(HEADER + text, w=normal(16, 16))
    result = weight_only(model, 8)
    assert len(stated(result)) == 1
    feed = {"i": np.array([1, 5, 3]), "x": RNG.standard_normal((3, 16)).astype(np.float32)}
    assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 36


# What stays


def test_small_and_excluded_weights_stay_float() -> None:
    text = "g (float[3,16] x) => (float[3,8] y) { [first] h = MatMul(x, w)  [last] y = MatMul(h, v) }"
    model = tiny.model(HEADER + text, w=normal(16, 16), v=normal(16, 8))  # 256 and 128 elements
    assert len(stated(weight_only(model, 8))) == 1
    assert tiny.frozen(weight_only(model, 8, frozenset({"last"}))) == tiny.frozen(model)


def test_an_excluded_reader_of_a_shared_weight_reads_floats() -> None:
    text = "g (float[3,16] x) => (float[3,16] y) { [first] h = MatMul(x, w)  [last] y = MatMul(h, w) }"
    model = tiny.model(HEADER + text, w=normal(16, 16))
    result = weight_only(model, 8, frozenset({"first"}))
    last = next(n for n in result.graph if n.name == "last")
    assert np.array_equal(last.inputs[1].const_value.numpy(), tiny.weights_of(model)["w"])


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[2,7,32] x) => (float[2,7,16] y) { y = Einsum <equation = \"bth,hk->btk\"> (x, w) }", (32, 16)),
        ("g (float[4,7,8] x) => (float[4,7,16] y) { y = Einsum <equation = \"gth,ghk->gtk\"> (x, w) }", (4, 8, 16)),
        ("g (float[32,7] x) => (float[16,7] y) { y = MatMul(w, x) }", (16, 32)),
        ("g (float[3,5,32] x) => (float[3,5,16] y) { y = MatMul(x, w) }", (3, 32, 16)),
    ],
    ids=["einsum", "einsum by group", "left", "three axes"],
)  # fmt: skip
def test_constants_that_are_no_weights_of_a_layer_are_stored_too(text: str, shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    w *= np.geomspace(0.01, 1, shape[0]).astype(np.float32).reshape(-1, *(1,) * (len(shape) - 1))
    model = tiny.model(text, w=w)
    stored = weight_only(model, 8)
    assert sum(v.nbytes for v in tiny.weights_of(stored).values() if v.dtype == np.int8) == w.size
    (feed,) = tiny.feeds(1, x=tuple(d if isinstance(d, int) else 1 for d in model.graph.inputs[0].shape or ()))
    assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(stored, feed)[0]) > 40  # by the axis along which ranges vary


@pytest.mark.parametrize(("rows", "stored"), [(1024, True), (256, False)])
def test_a_table_of_positions_that_is_sliced_is_stored(rows: int, stored: bool) -> None:
    text = """g (float[N,T,32] x, int64[1] until) => (float[N,T,32] y) {
        p = Slice (table, zero, until, one)  y = Add(x, p) }"""
    table, zero, one = normal(1, rows, 32), np.int64([0]), np.int64([1])
    model = graph.canonical(graph.load(tiny.proto(text, table=table, zero=zero, one=one)))
    found = weight_only(model, 8)
    sizes = [graph.size_bytes(m) for m in (model, found)]
    assert (sizes[1] < 0.3 * sizes[0]) == stored == bool(storable(model, 0))
    feed = {"x": normal(2, 40, 32), "until": np.int64([40])}
    before, after = (open_session(m).run(feed)[0] for m in (model, found))
    assert np.abs(after - before).max() <= np.abs(table).max() / 250


def test_a_large_constant_of_equal_elements_takes_no_space() -> None:
    text = "g (float[1,8,32] x) => (float[1,16,32] y) { y = Concat <axis = 1> (x, z) }"
    model = tiny.model(text, z=np.full((1, 8, 32), 2.5, np.float32))
    big = tiny.model(text.replace("32]", "320]"), z=np.full((1, 8, 320), 2.5, np.float32))
    for m, made in ((model, 0), (big, 1)):
        small = spread(m)
        assert tiny.operators(small).count("ConstantOfShape") == made
        (feed,) = tiny.feeds(1, x=(1, 8, 320 if made else 32))
        assert np.array_equal(tiny.run(small, feed)[0], tiny.run(m, feed)[0])
    assert graph.size_bytes(spread(big)) < 100 < 8 * 320 * 4 == graph.size_bytes(big)
