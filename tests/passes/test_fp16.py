"""fp16: types that meet, constants and ranges that do not fit, bodies, and outputs near the float32 model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph
from edgeopt.passes.fp16 import LARGEST, fp16
from edgeopt.runtime.session import Feed
from tests import tiny

RNG = np.random.default_rng(0)
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def normal(*shape: int, size: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * size).astype(np.float32)


def typed(text: str, **weights: np.ndarray) -> ir.Model:
    return graph.typed(tiny.model(text, **weights))


def halved(model: ir.Model, **options) -> ir.Model:
    """A deep copy of `model` in fp16, whose types must agree."""
    result = fp16(ir.from_proto(ir.to_proto(model)), **options)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    inferred = graph.typed(result)  # strict inference: every declared type is the one that follows
    assert [v.dtype for v in inferred.graph.outputs] == [v.dtype for v in result.graph.outputs]
    return result


def dtypes(model: ir.Model) -> dict[str, ir.DataType | None]:
    """Element type of every node's output, in every graph, as ONNX infers it."""
    return {str(v.name): v.dtype for n in graph.typed(model).graph.all_nodes() for v in n.outputs}


def casts(model: ir.Model) -> int:
    return sum(n.op_type == "Cast" for n in model.graph.all_nodes())


def near(model: ir.Model, result: ir.Model, feed: Feed, floor_db: float = 50) -> None:
    """Every output within `floor_db` of the float32 model: 11 bits give 60 dB and more a rounding."""
    types = {str(v.name): v.dtype for v in result.graph.inputs}
    half_feed = {k: x.astype(np.float16) if types[k] == HALF else x for k, x in feed.items()}
    for level in ("none", "all"):
        for r, y in zip(tiny.run(model, feed), tiny.run(result, half_feed, level=level), strict=True):
            assert np.isfinite(y).all()
            assert tiny.sqnr_db(r, y) >= floor_db


CONV_NET = """g (float[1,3,12,12] x) => (float[1,5] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    n = BatchNormalization (a, s, o, m, v)
    r = Relu(n)
    p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
    c = Conv <pads = [1,1,1,1]> (p, w2)
    k = Clip(c, lo, hi)
    g1 = GlobalAveragePool(k)
    f = Flatten(g1)
    d = Gemm(f, w3, b3)
    y = Softmax(d)
}"""


def conv_net() -> ir.Model:
    parts = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (16, 8, 3, 3), "w3": (16, 5), "b3": (5,), "o": (8,), "m": (8,)}
    weights = {k: normal(*s, size=0.3) for k, s in parts.items()}
    positive = {"s": np.abs(normal(8)) + 0.5, "v": np.abs(normal(8)) + 0.5}
    return typed(CONV_NET, lo=np.float32(0), hi=np.float32(6), **weights, **positive)


@pytest.mark.parametrize("io_keep", [True, False])
def test_a_convolutional_network_is_half_and_near(io_keep: bool) -> None:
    model = conv_net()
    result = halved(model, io_keep=io_keep)
    assert graph.bytes_by_dtype(result) == {"float16": graph.size_bytes(model) // 2}
    assert casts(result) == (2 if io_keep else 0)
    near(model, result, {"x": normal(1, 3, 12, 12)})


@pytest.mark.parametrize("io_keep", [True, False])
def test_inputs_and_outputs_have_the_types_asked_for(io_keep: bool) -> None:
    text = "g (float[4] x, int64[4] i) => (float[4] y, int64[4] j) { y = Exp(x)  j = Neg(i) }"
    result = halved(typed(text), io_keep=io_keep)
    floats = SINGLE if io_keep else HALF
    assert [v.dtype for v in result.graph.inputs] == [floats, ir.DataType.INT64]
    assert [v.dtype for v in result.graph.outputs] == [floats, ir.DataType.INT64]
    assert [v.name for v in result.graph.outputs] == ["y", "j"]
    near(typed(text), result, {"x": normal(4), "i": np.arange(4)})


@pytest.mark.parametrize("io_keep", [True, False])
def test_the_argument_stays_as_it_was(io_keep: bool) -> None:
    model = conv_net()
    before = tiny.frozen(model)
    fp16(model, io_keep=io_keep)
    assert tiny.frozen(model) == before


@pytest.mark.parametrize("io_keep", [True, False])
def test_a_second_time_changes_nothing(io_keep: bool) -> None:
    once = halved(conv_net(), io_keep=io_keep)
    for first in (once, graph.typed(once)):  # as the pass left it, and as it is read back from a file
        assert tiny.frozen(fp16(first, io_keep=io_keep)) == tiny.frozen(first)


def test_a_model_that_is_half_in_part_keeps_that_part() -> None:
    text = """g (float[4] x) => (float[4] y) {
        a = Cast <to = 10> (x)
        b = Exp(a)
        c = Cast <to = 1> (b)
        y = Tanh(c)
    }"""
    model = typed(text)
    result = halved(model)
    assert dtypes(result)["b"] == HALF and casts(result) <= 4
    near(model, result, {"x": normal(4)})


# Outputs that are used inside


@pytest.mark.parametrize("outputs", [["y", "h"], ["h", "y"], ["h", "y", "u"]])
@pytest.mark.parametrize("io_keep", [True, False])
def test_outputs_keep_names_and_order_and_may_be_used_inside(outputs: list[str], io_keep: bool) -> None:
    declared = ", ".join(f"float[4] {n}" for n in outputs)
    text = f"g (float[4] x) => ({declared}) {{ h = Exp(x)  [float] u = Add(h, x)  y = Mul(u, h) }}"
    model = typed(text)
    for keep in (frozenset(), frozenset({"float"})):
        result = halved(model, io_keep=io_keep, keep=keep)
        assert [v.name for v in result.graph.outputs] == outputs
        near(model, result, {"x": normal(4)})


def test_an_output_that_is_an_input_or_a_constant_keeps_its_type() -> None:
    model = typed("g (float[4] x) => (float[4] y, float[4] c) { y = Add(x, c) }", c=normal(4))
    near(model, halved(model), {"x": normal(4)})


def test_one_value_that_is_two_outputs_keeps_both() -> None:
    model = typed("g (float[4] x) => (float[4] y, float[4] y) { y = Exp(x) }")
    result = halved(model)
    assert [v.name for v in result.graph.outputs] == ["y", "y"]
    near(model, result, {"x": normal(4)})


# What does not fit


def test_a_constant_beyond_fp16_stays_float32() -> None:
    model = typed(
        "g (float[4] x) => (float[4] y) { [big] a = Mul(x, c)  b = Div(a, c)  y = Exp(b) }", c=np.float32([1e6])
    )
    result = halved(model)
    assert tiny.weights_of(result)["c"].dtype == np.float32 and tiny.weights_of(result)["c"] == 1e6
    assert dtypes(result)["a"] == SINGLE
    near(model, result, {"x": normal(4, size=0.5)})


def test_a_bound_that_would_become_0_keeps_its_node_in_float32() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) {
        n = ReduceL2 <axes = [1], keepdims = 1> (x)
        c = Clip(n, least)
        y = Div(x, c)
    }"""
    model = typed(text, least=np.float32(1e-12))
    result = halved(model)
    x = np.float32([[0, 0, 0, 0], [1, 2, 3, 4]])
    (y,) = tiny.run(result, {"x": x})
    assert tiny.weights_of(result)["least"] == np.float32(1e-12)
    assert not any(n.op_type == "Div" and v.dtype == HALF for n in result.graph for v in n.inputs if v is not None)
    assert np.isfinite(y).all() and np.allclose(y, tiny.run(model, {"x": x})[0], atol=1e-3)


def test_a_constant_serves_a_float_island_and_a_half_node() -> None:
    text = "g (float[4] x) => (float[4] y) { [island] a = Add(x, c)  y = Mul(a, c) }"
    model = typed(text, c=normal(4))
    result = halved(model, keep=frozenset({"island"}))
    assert sorted(a.dtype.name for a in tiny.weights_of(result).values()) == ["float16", "float32"]
    types = dtypes(result)
    assert types["a"] == SINGLE and HALF in types.values()
    near(model, result, {"x": normal(4)})


def test_a_node_whose_calibrated_range_is_too_large_stays_float32() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Exp(x)  b = Log(a)  y = Tanh(b) }"
    model = typed(text)
    result = halved(model, peaks={"a": LARGEST * 2, "b": 20.0})
    assert dtypes(result)["a"] == SINGLE
    near(model, result, {"x": np.float32([15, 2, -1, 12])})


def test_a_cast_of_numbers_beyond_fp16_stays_float32() -> None:
    text = "g (int64[4] i) => (float[4] y) { a = Cast <to = 1> (i)  b = Div(a, c)  y = Exp(b) }"
    model = typed(text, c=np.float32([1e6]))
    feed = {"i": np.array([1_000_000, 70_000, 3, 500_000])}
    near(model, halved(model, peaks={"a": 1e6, "b": 1.0}), feed)


def test_an_infinite_mask_constant_survives() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) { a = Where(m, x, c)  y = Softmax(a) }"
    model = typed(text, m=np.array([[True, False], [True, True]]), c=np.float32(-np.inf))
    near(model, halved(model), {"x": normal(2, 2)})


@pytest.mark.parametrize("low", [-3.4e38, -1e9])
def test_a_huge_mask_constant_stays_a_mask(low: float) -> None:
    text = "g (float[2,2] x) => (float[2,2] y) { a = Where(m, x, c)  y = Softmax(a) }"
    model = typed(text, m=np.array([[True, False], [True, True]]), c=np.float32(low))
    near(model, halved(model), {"x": normal(2, 2)})


def test_kept_nodes_stay_float32() -> None:
    text = "g (float[4] x) => (float[4] y) { a = Exp(x)  [keep] b = Tanh(a)  y = Neg(b) }"
    types = dtypes(halved(typed(text), keep=frozenset({"keep"})))
    assert types["b"] == SINGLE and types["a"] == HALF


# Operators with types of their own


def test_a_cast_to_float_gives_half_and_one_to_integers_takes_it() -> None:
    text = """g (int64[4] i, float[4] x) => (float[4] y, int64[4] j) {
        a = Cast <to = 1> (i)
        y = Add(a, x)
        b = Mul(x, x)
        j = Cast <to = 7> (b)
    }"""
    model = typed(text)
    result = halved(model)
    assert dtypes(result)["a"] == HALF
    near(model, result, {"i": np.arange(4), "x": np.float32([1, 2, 3, 4])})


def test_a_cast_between_other_types_is_left() -> None:
    text = "g (float[4] x) => (double[4] y) { a = Exp(x)  y = Cast <to = 11> (a) }"
    model = typed(text)
    near(model, halved(model), {"x": normal(4)})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_scales_of_resize_stay_float32(mode: str) -> None:
    text = f'g (float[1,2,4,4] x) => (float[1,2,8,8] y) {{ a = Exp(x)  y = Resize <mode = "{mode}"> (a, , s) }}'
    model = typed(text, s=np.float32([1, 1, 2, 2]))
    result = halved(model)
    assert tiny.weights_of(result)["s"].dtype == np.float32
    near(model, result, {"x": normal(1, 2, 4, 4)})


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_random_tensors_stay_float32_since_the_runtime_draws_no_halves(op: str) -> None:
    text = (
        f"g (float[64] x) => (float[64] y) {{ r = {op} <shape = [64], seed = 1.0> ()  z = Mul(r, zero)  y = Add(z,"
        " x) }"
    )
    model = typed(text, zero=np.float32([0]))
    result = halved(model)
    assert dtypes(result)["r"] == SINGLE
    near(model, result, {"x": normal(64)})


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
@pytest.mark.parametrize("stated", [True, False])
def test_random_tensors_like_another_follow_it_unless_they_state_a_type(op: str, stated: bool) -> None:
    attributes = "<seed = 1.0, dtype = 1>" if stated else "<seed = 1.0>"
    text = f"g (float[64] x) => (float[64] y) {{ r = {op} {attributes} (x)  z = Mul(r, zero)  y = Add(z, x) }}"
    model = typed(text, zero=np.float32([0]))
    result = halved(model)
    assert dtypes(result)["r"] == (SINGLE if stated else HALF)
    near(model, result, {"x": normal(64)})


def test_a_random_tensor_that_is_kept_stays_float32() -> None:
    text = (
        "g (float[8] x) => (float[8] y) { [keep] r = RandomNormal <shape = [8], seed = 1.0> ()  z = Mul(r, zero)  y ="
        " Add(z, x) }"
    )
    model = typed(text, zero=np.float32([0]))
    result = halved(model, keep=frozenset({"keep"}))
    assert dtypes(result)["r"] == SINGLE
    near(model, result, {"x": normal(8)})


def test_an_eye_keeps_the_type_that_it_states() -> None:
    model = typed("g (int64[3,3] i, float[3,3] x) => (float[3,3] y) { e = EyeLike <dtype = 1> (i)  y = Add(e, x) }")
    near(model, halved(model), {"i": np.zeros((3, 3), np.int64), "x": normal(3, 3)})


def test_drawn_bits_have_a_type_that_their_node_states() -> None:
    model = typed(
        "g (float[4] x) => (float[4] y) { a = Clip(x, one, one)  b = Bernoulli <dtype = 1, seed = 1.0> (a)  y = Add(b,"
        " x) }",
        one=np.float32(1),
    )
    halved(model)  # which checks the types


def test_a_constant_of_a_shape_stays_as_it_is() -> None:
    text = (
        "g (int64[1] n, float[4] x) => (float[4] y) { c = ConstantOfShape <value = float[1] {2}> (n)  y = Mul(c, x) }"
    )
    model = typed(text)
    near(model, halved(model), {"n": np.array([4]), "x": normal(4)})


def test_an_operator_without_half_stays_float32() -> None:
    text = "g (float[4,4] x) => (float[4,4] y) { a = Exp(x)  b = Range(zero, four, one)  c = Mul(a, b)  y = Neg(c) }"
    model = typed(text, zero=np.float32(0), four=np.float32(4), one=np.float32(1))
    near(model, halved(model), {"x": normal(4, 4)})


def test_a_sequence_keeps_its_type() -> None:
    text = (
        "g (float[4] x) => (float[8] y) { a = Exp(x)  s = SequenceConstruct(a, x)  y = ConcatFromSequence <axis = 0>"
        " (s) }"
    )
    model = typed(text)
    near(model, halved(model), {"x": normal(4)})


def test_layer_normalization_and_attention_shapes_survive() -> None:
    text = """g (float[2,5,16] x) => (float[2,5,16] y) {
        n = LayerNormalization <axis = -1> (x, s, o)
        q = MatMul(n, wq)
        t = Transpose <perm = [0,2,1]> (n)
        a = MatMul(q, t)
        z = Div(a, root)
        p = Softmax(z)
        v = MatMul(p, n)
        y = Add(v, x)
    }"""
    model = typed(text, s=normal(16), o=normal(16), wq=normal(16, 16, size=0.2), root=np.float32(4))
    near(model, halved(model), {"x": normal(2, 5, 16)})


def test_a_recurrent_layer_is_half() -> None:
    text = "g (float[3,2,8] x) => (float[3,1,2,4] y) { y = LSTM <hidden_size = 4> (x, w, r) }"
    model = typed(text, w=normal(1, 16, 8, size=0.3), r=normal(1, 16, 4, size=0.3))
    result = fp16(model)
    assert set(graph.bytes_by_dtype(result)) == {"float16"}
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


# Bodies


IF = """g (bool c, float[4] x) => (float[4] y) {
    h = Exp(x)
    z = If (c) <
        then_branch = t () => (float[4] p) { [t1] u = Mul(h, k)  [t2] p = Tanh(u) },
        else_branch = e () => (float[4] q) <float[4] k2 = {1.0, 2.0, 3.0, 4.0}> { [e1] q = Add(h, k2) }
    >
    y = Neg(z)
}"""


@pytest.mark.parametrize("io_keep", [True, False])
@pytest.mark.parametrize("keep", [frozenset(), frozenset({"t1"}), frozenset({"e1"})], ids=str)
def test_bodies_of_if_compute_in_half_and_give_what_if_expects(io_keep: bool, keep: frozenset[str]) -> None:
    model = typed(IF, k=normal(4))
    result = halved(model, io_keep=io_keep, keep=keep)
    inner = [
        v.dtype
        for n in result.graph.all_nodes()
        if n.graph is not result.graph and n.op_type != "Cast"
        for v in n.outputs
    ]
    assert inner.count(HALF) == 3 - len(keep)
    for flag in (True, False):
        near(model, result, {"c": np.array(flag), "x": normal(4)})


LOOP = """g (int64 n, float[4] x) => (float[4] y, float[S,4] all) {
    yes = Constant <value = bool {1}> ()
    y, all = Loop (n, yes, x) <
        body = b (int64 i, bool c, float[4] a) => (bool d, float[4] z, float[4] scan) {
            [l0] d = Identity(c)
            [l1] m = Mul(a, k)
            [l2] z = Tanh(m)
            [l3] scan = Add(m, outer)
        }
    >
}"""


@pytest.mark.parametrize("io_keep", [True, False])
def test_a_loop_body_carries_float32_and_computes_in_half(io_keep: bool) -> None:
    text = LOOP.replace("yes = Constant", "outer = Exp(x)  yes = Constant")
    model = typed(text, k=normal(4))
    result = halved(model, io_keep=io_keep)
    assert [v.name for v in result.graph.outputs] == ["y", "all"]
    near(model, result, {"n": np.array(3), "x": normal(4)})


def test_weights_of_the_same_name_in_both_bodies_stay_apart() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) {
        y = If (c) <
            then_branch = t () => (float[4] p) <float[4] k = {1.0, 1.0, 1.0, 1.0}> { [t1] p = Mul(x, k) },
            else_branch = e () => (float[4] q) <float[4] k = {2.0, 2.0, 2.0, 2.0}> { [e1] q = Mul(x, k) }
        >
    }"""
    model = typed(text)
    result = halved(model)
    for flag in (True, False):
        near(model, result, {"c": np.array(flag), "x": normal(4)})


def test_unnamed_nodes_in_bodies_are_told_apart() -> None:
    text = IF
    for name in ("[t1] ", "[t2] ", "[e1] "):
        text = text.replace(name, "")
    model = typed(text, k=normal(4))
    first, *_ = (str(n.name) for n in model.graph)
    result = halved(model, keep=frozenset({first}))  # the Exp alone
    inner = [
        v.dtype
        for n in result.graph.all_nodes()
        if n.graph is not result.graph and n.op_type != "Cast"
        for v in n.outputs
    ]
    assert inner.count(HALF) == 3
