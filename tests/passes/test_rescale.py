"""Channels divided here and multiplied there: the function stays, whatever the factors, or nothing is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.data import Feed
from edgeopt.passes.rescale import Wide, allowed, boundaries, read, rescaled, written
from edgeopt.ptq.peaks import peaks
from tests import tiny
from tests.models import normal
from tests.static import values

IMAGE = "g (float[N,4,6,6] x) => (float[N,D,E,F] y)"
ROWS = "g (float[N,5,8] x) => (float[N,5,M] y)"
FLAT = "g (float[N,8] x) => (float[N,M] y)"
SHAPES = {IMAGE: (2, 4, 6, 6), ROWS: (2, 5, 8), FLAT: (3, 8)}
# constants by name; a body takes those that it names
CONSTANTS: Mapping[str, np.ndarray] = {
    "k1": normal(8, 4, 3, 3, seed=1),
    "k2": normal(6, 8, 3, 3, seed=2),
    "k3": normal(6, 8, 1, 1, seed=3),
    "dw": normal(8, 1, 3, 3, seed=4),
    "gr": normal(6, 4, 3, 3, seed=5),
    "one": normal(1, 4, 1, 1, seed=6),
    "single": normal(1, 1, 1, 1, seed=7) + 2,
    "wide": normal(3, 1, 3, 3, seed=8),
    "kb": normal(8, seed=9),
    "kc": normal(6, seed=10),
    "kd": normal(8, seed=11),
    "kone": normal(1, seed=12),
    "m1": normal(8, 8, seed=13),
    "m2": normal(8, 6, seed=14),
    "m3": normal(8, 3, seed=15),
    "m4": normal(8, 8, seed=16),
    "t2": normal(6, 8, seed=17),
    "column": normal(8, 1, seed=18),
    "row": normal(1, 4, seed=19),
    "batched": normal(2, 8, 6, seed=20),
    "v1": np.abs(normal(8, seed=21)) + 0.2,
    "v2": normal(8, seed=22),
    "v3": normal(8, seed=23),
    "lone": np.float32(0.5) + normal(1, seed=25),
    "number": np.float32(0.7),
    "mean": normal(4, seed=27),
    "variance": np.abs(normal(4, seed=28)) + 0.5,
    "bs": normal(4, seed=29),
    "bb": normal(4, seed=30),
    "k4": normal(8, 4, 3, 3, seed=31),
    "zero": np.float32(0),
    "six": np.float32(6),
    "wrong": np.float32(-1),
    "bound": np.float32(3),
    "third": normal(3, 1, seed=32),
}
P = "<pads = [1, 1, 1, 1]>"
SAME: Mapping[str, tuple[str, str, int]] = {  # header, body, boundaries
    "convolutions": (IMAGE, f"a = Conv {P} (x, k1, kb)  r = Relu(a)  y = Conv {P} (r, k2, kc)", 1),
    "without biases": (IMAGE, f"a = Conv {P} (x, k1)  r = Relu(a)  y = Conv {P} (r, k2)", 1),
    "without a function between": (IMAGE, f"a = Conv {P} (x, k1, kb)  y = Conv {P} (a, k2)", 1),
    "leaky": (IMAGE, f"a = Conv {P} (x, k1, kb)  r = LeakyRelu <alpha = 0.3> (a)  y = Conv (r, k3)", 1),
    "depthwise": (
        IMAGE,
        (
            f"a = Conv {P} (x, k1, kb)  r = Relu(a)  d = Conv <group = 8, pads = [1,1,1,1]> (r, dw, kd)  s = Relu(d)  y"
            " = Conv (s, k3, kc)"
        ),
        2,
    ),
    "groups": (IMAGE, f"a = Conv {P} (x, k1, kb)  r = Relu(a)  y = Conv <group = 2> (r, gr, kc)", 1),
    "one channel": (IMAGE, "a = Conv (x, one, kone)  r = Relu(a)  y = Conv (r, wide)", 1),
    "largest of windows": (
        IMAGE,
        f"a = Conv {P} (x, k1, kb)  p = MaxPool <kernel_shape = [2, 2], pads = [1,1,1,1]> (a)  y = Conv (p, k3)",
        1,
    ),
    "mean of windows": (
        IMAGE,
        f"a = Conv {P} (x, k1, kb)  p = AveragePool <kernel_shape = [2, 2], pads = [1,1,0,0]> (a)  y = Conv (p, k3)",
        1,
    ),
    "mean of all": (IMAGE, f"a = Conv {P} (x, k1, kb)  p = GlobalAveragePool(a)  y = Conv (p, k3, kc)", 1),
    "largest of all": (IMAGE, f"a = Conv {P} (x, k1, kb)  p = GlobalMaxPool(a)  y = Conv (p, k3, kc)", 1),
    "two readers": (
        IMAGE,
        f"a = Conv {P} (x, k1, kb)  r = Relu(a)  b = Conv (r, k3, kc)  c = Conv {P} (r, k2)  y = Mul(b, c)",
        1,
    ),
    "readers before and after": (
        IMAGE,
        f"a = Conv {P} (x, k1, kb)  r = Relu(a)  b = Conv (r, k3, kc)  c = Conv {P} (a, k2)  y = Mul(b, c)",
        1,
    ),
    "clipped": (IMAGE, f"a = Conv {P} (x, soft, kb)  r = Clip(a, zero, six)  y = Conv (r, k3)", 1),
    "clipped twice": (
        IMAGE,
        f"a = Conv {P} (x, soft, kb)  c = Clip(a, zero, six)  r = Clip(c, zero, bound)  y = Conv (r, k3)",
        1,
    ),
    "clipped from below only": (IMAGE, f"a = Conv {P} (x, k1, kb)  r = Clip(a, zero)  y = Conv (r, k3)", 1),
    "normalization of images": (
        IMAGE,
        f"q = Sigmoid(x)  n = BatchNormalization(q, bs, bb, mean, variance)  r = Relu(n)  y = Conv {P} (r, k4)",
        1,
    ),
    "gemm": (FLAT, "a = Gemm(x, m1, kb)  r = Relu(a)  y = Gemm(r, m2, kc)", 1),
    "gemm by columns": (FLAT, "a = Gemm <transB = 1> (x, m1, kb)  r = Relu(a)  y = Gemm <transB = 1> (r, t2)", 1),
    "gemm with a bias of one number": (FLAT, "a = Gemm(x, m1, number)  r = Relu(a)  y = Gemm(r, m2)", 1),
    "gemm with a bias of one element": (FLAT, "a = Gemm(x, m1, lone)  r = Relu(a)  y = Gemm(r, m2)", 1),
    "gemm with one output": (FLAT, "a = Gemm(x, column, lone)  r = Relu(a)  y = Gemm(r, row)", 1),
    "one number times one number": (FLAT, "a = Gemm(x, column)  b = Gemm(a, n11)  y = Gemm(b, row)", 2),
    "products": (ROWS, "a = MatMul(x, m1)  b = Add(a, v2)  r = Relu(b)  y = MatMul(r, m2)", 1),
    "bias first": (ROWS, "a = MatMul(x, m1)  b = Add(v2, a)  y = MatMul(b, m2)", 1),
    "bias and scale": (ROWS, "a = MatMul(x, m1)  b = Add(a, v2)  c = Mul(v3, b)  y = MatMul(c, m2)", 2),
    "clipped rows": (ROWS, "a = MatMul(x, m1)  b = Add(a, v2)  r = Clip(b, zero, bound)  y = MatMul(r, m2)", 1),
    "normalization with three readers": (
        ROWS,
        (
            "n = LayerNormalization(x, v1, v2)  q = MatMul(n, m1)  k = MatMul(n, m4)  v = MatMul(n, m3)"
            "  t = Transpose <perm = [0, 2, 1]> (k)  s = MatMul(q, t)  y = MatMul(s, v)"
        ),
        1,
    ),
    "normalization without shift": (ROWS, "n = LayerNormalization(x, v1)  y = MatMul(n, m2)", 1),
    "product as the producer": (ROWS, "q = Sigmoid(x)  n = Mul(q, v1)  b = Add(n, v2)  y = MatMul(b, m2)", 1),
}
KEPT: Mapping[str, tuple[str, str]] = {  # where nothing may change
    "read by no layer too": (
        IMAGE,
        f"a = Conv {P} (x, k1, kb)  r = Relu(a)  b = Conv (r, k3)  s = Sigmoid(r)  c = Conv (s, k3b)  y = Add(b, c)",
    ),
    "a residual": (IMAGE, f"a = Conv {P} (x, k1, kb)  r = Relu(a)  c = Conv <group = 8> (r, kd1)  y = Add(c, a)"),
    "a shared weight": (ROWS, "a = MatMul(x, m1)  r = Relu(a)  y = MatMul(r, m1)"),
    "a shared bias": (ROWS, "a = MatMul(x, m1)  b = Add(a, v2)  c = MatMul(b, m4)  y = Add(c, v2)"),
    "a shared bias of convolutions": (IMAGE, f"a = Conv {P} (x, k1, kb)  y = Conv {P} (a, k8, kb)"),
    "not homogeneous": (ROWS, "a = MatMul(x, m1)  r = Sigmoid(a)  y = MatMul(r, m2)"),
    "clipped from above only": (ROWS, 'a = MatMul(x, m1)  r = Clip(a, "", bound)  y = MatMul(r, m2)'),
    "clipped from below zero": (ROWS, "a = MatMul(x, m1)  r = Clip(a, wrong, bound)  y = MatMul(r, m2)"),
    "alpha": (FLAT, "a = Gemm <alpha = 0.5> (x, m1, kb)  y = Gemm(a, m2)"),
    "beta": (FLAT, "a = Gemm <beta = 0.5> (x, m1, kb)  y = Gemm(a, m2)"),
    "alpha of the reader": (FLAT, "a = Gemm(x, m1, kb)  y = Gemm <alpha = 2.0> (a, m2)"),
    "rows and columns exchanged": (FLAT, "a = Gemm(x, m1, kb)  y = Gemm <transA = 1> (a, third)"),
    "a weight for each row, read": (ROWS, "a = MatMul(x, m1)  y = MatMul(a, batched)"),
    "a vector as the weight of the reader": (ROWS, "a = MatMul(x, m1)  t = MatMul(a, v1)  y = Unsqueeze(t, last)"),
    "a bias that is read": (FLAT, "a = Gemm(x, m1, kb)  b = Gemm(x, m4, a)  y = Gemm(b, m2)"),
    "normalization that gives its mean": (
        ROWS,
        "n, mu = LayerNormalization(x, v1, v2)  a = MatMul(n, m2)  y = Add(a, mu)",
    ),
}
CONSTANTS = {
    **CONSTANTS,
    "last": np.int64([-1]),
    "soft": normal(8, 4, 3, 3, seed=1) * np.linspace(0.02, 1, 8, dtype=np.float32)[:, None, None, None],
    "n11": np.float32([[1.5]]),
    "k3b": normal(6, 8, 1, 1, seed=40),
    "kd1": normal(8, 1, 1, 1, seed=41),
    "k8": normal(8, 8, 3, 3, seed=42),
}


def built(header: str, body: str) -> ir.Model:
    """The model of `body`, each of its nodes named."""
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return tiny.model(f"{header} {{ {body} }}", **{k: v for k, v in CONSTANTS.items() if k in words})


def samples(header: str, count: int = 4) -> list[Feed]:
    return tiny.feeds(count, seed=3, x=SHAPES[header])


def assert_same(model: ir.Model, made: ir.Model, feeds: Sequence[Feed]) -> None:
    """Both give the same outputs for `feeds`, to float rounding, under the same names, and the file of `made` says
    what it holds.
    """
    assert [v.name for v in model.graph.inputs] == [v.name for v in made.graph.inputs]
    assert [v.name for v in model.graph.outputs] == [v.name for v in made.graph.outputs]
    assert [(n.name, n.op_type) for n in model.graph] == [(n.name, n.op_type) for n in made.graph]
    for name, value in made.graph.initializers.items():
        assert value.const_value is not None and value.shape is not None
        assert value.const_value.shape.numpy() == value.shape.numpy(), name
    for feed in feeds:
        for a, b in zip(tiny.run(model, feed), tiny.run(made, feed), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(a).max())))


def chance(model: ir.Model, feeds: Sequence[Feed], seed: int, spread: float = 2.0) -> dict[str, Wide]:
    """Factors by chance for all boundaries, as far as clips can bear them."""
    rng = np.random.default_rng(seed)
    found = boundaries(model)
    read_ = [(str(i), lambda feed=feed: feed) for i, feed in enumerate(feeds)]
    highest = {n: p.highest for n, p in peaks(model, {v: b.axis for b in found for v, _ in b.clips}, read_).items()}
    return {b.value: allowed(np.exp(rng.uniform(-spread, spread, b.channels)), b, highest) for b in found}


def changed(model: ir.Model, made: ir.Model) -> set[str]:
    """Names of the weights that differ."""
    before, after = tiny.weights_of(model), tiny.weights_of(made)
    return {n for n in before.keys() | after.keys() if n not in before or not np.array_equal(before[n], after.get(n))}


@pytest.mark.parametrize("case", SAME)
def test_the_function_stays_for_any_factors(case: str) -> None:
    header, body, count = SAME[case]
    model, feeds = built(header, body), samples(header)
    before = tiny.frozen(model)
    assert len(boundaries(model)) == count
    for seed in range(3):
        made = rescaled(model, chance(model, feeds, seed))
        assert changed(model, made)  # or nothing was seen
        assert_same(model, made, feeds)
    assert tiny.frozen(model) == before


@pytest.mark.parametrize("case", KEPT)
def test_where_a_reader_cannot_make_it_good_there_is_no_boundary(case: str) -> None:
    header, body = KEPT[case]
    model = built(header, body)
    values = {str(n.outputs[0].name) for n in model.graph}
    assert "a" not in {b.value for b in boundaries(model)} and "n" not in {b.value for b in boundaries(model)}
    made = rescaled(model, {v: np.full(8, 2.0) for v in values & {"a", "n"}})
    assert tiny.frozen(made) == tiny.frozen(model)


# where the channels are not what they look like


MIXED = {
    "windows over the channels, largest": (
        "a = MatMul(x, m1)  p = MaxPool <kernel_shape = [3], pads = [1, 1]> (a)  y = MatMul(p, m2)"
    ),
    "windows over the channels, mean": (
        "a = MatMul(x, m1)  p = AveragePool <kernel_shape = [3], pads = [1, 1]> (a)  y = MatMul(p, m2)"
    ),
    "windows over the channels of a normalization": (
        "a = LayerNormalization(x, v1, v2)  p = MaxPool <kernel_shape = [3], pads = [1, 1]> (a)  y = MatMul(p, m2)"
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_pool_over_the_channels_ends_the_way(case: str) -> None:
    model, feeds = built(ROWS, MIXED[case]), samples(ROWS)
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


def test_a_normalization_over_two_axes_has_channels_in_the_last() -> None:
    text = "g (float[N,8,8] x) => (float[N,8,3] y) { n = LayerNormalization <axis = 1> (x, s, b)  y = MatMul(n, w) }"
    model = tiny.model(text, s=normal(8, 8), b=normal(8, 8, seed=1), w=normal(8, 3, seed=2))
    feeds = tiny.feeds(3, x=(2, 8, 8))
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


def test_a_product_with_a_vector_has_no_channels() -> None:
    text = "g (float[N,8,8] x) => (float[N,3] y) { a = MatMul(x, v)  r = Relu(a)  y = MatMul(r, w) }"
    model = tiny.model(text, v=normal(8), w=normal(8, 3, seed=1))
    feeds = tiny.feeds(3, x=(2, 8, 8))
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


def test_a_product_with_a_weight_for_each_row_of_the_batch_is_a_producer() -> None:
    text = "g (float[2,5,8] x) => (float[2,5,6] y) { a = MatMul(x, m)  r = Relu(a)  y = MatMul(r, w) }"
    model = tiny.model(text, m=normal(2, 8, 8), w=normal(8, 6, seed=2))
    feeds = tiny.feeds(3, x=(2, 5, 8))
    assert len(boundaries(model)) == 1
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


@pytest.mark.parametrize("shape", [(1, 8), (3, 8), (3, 1), (1, 1)])
def test_a_gemm_takes_a_bias_of_any_shape(shape: tuple[int, ...]) -> None:
    text = "g (float[3,8] x) => (float[3,6] y) { a = Gemm(x, m, b)  r = Relu(a)  y = Gemm(r, w) }"
    model = tiny.model(text, m=normal(8, 8), b=normal(*shape, seed=1), w=normal(8, 6, seed=2))
    feeds = tiny.feeds(3, x=(3, 8))
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


def test_a_convolution_of_one_weight_keeps_its_shape() -> None:
    text = "g (float[N,1,6,6] x) => (float[N,3,4,4] y) { a = Conv (x, s, b)  r = Relu(a)  y = Conv (r, w) }"
    model = tiny.model(text, s=CONSTANTS["single"], b=normal(1), w=CONSTANTS["wide"])
    feeds = tiny.feeds(3, x=(2, 1, 6, 6))
    assert len(boundaries(model)) == 1
    assert_same(model, rescaled(model, {"a": np.array([3.0])}), feeds)


def test_a_value_that_is_an_output_too_stays() -> None:
    text = "g (float[N,8] x) => (float[N,8] r, float[N,6] y) { a = Gemm(x, m, b)  r = Relu(a)  y = Gemm(r, w) }"
    model = tiny.model(text, m=normal(8, 8), b=normal(8, seed=1), w=normal(8, 6, seed=2))
    assert boundaries(model) == []


def test_a_weight_that_is_an_output_too_stays() -> None:
    text = "g (float[N,8] x) => (float[8,6] w, float[N,6] y) { a = Gemm(x, m, b)  y = Gemm(a, w) }"
    model = tiny.model(text, m=normal(8, 8), b=normal(8, seed=1), w=normal(8, 6, seed=2))
    assert boundaries(model) == []


def test_a_reader_in_a_branch_keeps_its_producer_as_it_is() -> None:
    text = """g (float[N,8] x, bool c) => (float[N,6] y) {
        a = Gemm(x, m, b)
        y = If (c) <then_branch = t () => (float[N,6] p) { p = Gemm(a, w) },
                    else_branch = e () => (float[N,6] q) { q = Gemm(a, w2) }>
    }"""
    model = tiny.model(text, m=normal(8, 8), b=normal(8, seed=1), w=normal(8, 6, seed=2), w2=normal(8, 6, seed=3))
    assert boundaries(model) == []


@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_a_clip_that_lets_nothing_through_does_no_harm(bound: float) -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { a = Gemm(x, m, b)  r = Clip(a, zero, top)  y = Gemm(r, w) }"
    m, b = normal(8, 8), normal(8, seed=1)
    m[:, 0], b[0] = 0, 0  # a channel that touches 0 and no more
    m[:, 1], b[1] = 0, -5
    model = tiny.model(text, m=m, b=b, w=normal(8, 6, seed=2), zero=np.float32(0), top=np.float32(bound))
    feeds = tiny.feeds(3, x=(2, 8))
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


def test_weights_that_lie_column_by_column_in_memory_are_multiplied_too() -> None:
    model, feeds = built(*SAME["convolutions"][:2]), samples(IMAGE)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(np.asfortranarray(value.const_value.numpy()), name=value.name)
    assert_same(model, rescaled(model, chance(model, feeds, 1)), feeds)


# factors


def test_a_channel_that_reaches_the_bound_keeps_its_scale_and_others_stay_below_it() -> None:
    model = built(*SAME["clipped"][:2])
    (b,) = boundaries(model)
    assert b.clips == (("a", 6.0),)
    highest = {"a": np.array([7.0, 6.0, 3.0, 3.0, -1.0, 0.0, 100.0, 5.9])}
    s = allowed(np.array([9.0, 0.1, 0.1, 0.8, 0.01, 0.01, 0.5, 2.0]), b, highest)
    np.testing.assert_allclose(s, [1.0, 1.0, 0.5, 0.8, 0.01, 0.01, 1.0, 2.0])
    assert (highest["a"][s != 1] / s[s != 1] <= 6 + 1e-9).all()


def test_of_a_clip_some_channels_reach_the_bound_and_others_are_free() -> None:
    model, feeds = built(*SAME["clipped"][:2]), samples(IMAGE)
    reached = np.max([values(model, ["a"], f)["a"].max((0, 2, 3)) for f in feeds], axis=0) > 6
    assert 0 < reached.sum() < 8
    s = chance(model, feeds, 0)["a"]
    assert ((s == 1) == reached).all()


@pytest.mark.parametrize("case", ["convolutions", "depthwise", "groups", "gemm", "gemm by columns", "products"])
def test_ranges_of_channels_are_what_a_look_at_each_weight_finds(case: str) -> None:
    """Peaks after one channel of the weights was made a thousand times larger, by a walk over every element."""
    model = built(*SAME[case][:2])
    for b in boundaries(model):
        for c in range(b.channels):
            s = np.ones(b.channels)
            s[c] = 1e-3
            made = rescaled(model, {b.value: s})
            (after,) = [n for n in boundaries(made) if n.value == b.value]
            np.testing.assert_allclose(written(after.producer), written(b.producer) / s, rtol=1e-5)
            for old, new in zip(b.readers, after.readers, strict=True):
                np.testing.assert_allclose(read(new), read(old) * s, rtol=1e-5)


def test_ranges_of_a_grouped_reader_are_counted_group_by_group() -> None:
    (b,) = boundaries(built(*SAME["groups"][:2]))
    w = CONSTANTS["gr"]  # 2 groups of 3 outputs with 4 inputs each
    want = [max(abs(float(v)) for o in range(3) for v in w[3 * g + o, i].reshape(-1)) for g in (0, 1) for i in range(4)]
    np.testing.assert_allclose(read(b.readers[0]), want)


# graphs by chance


@st.composite
def chains(draw: st.DrawFn) -> tuple[ir.Model, list[Feed]]:
    """Layers with something between, images or rows."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    images, layers = draw(st.booleans()), draw(st.integers(2, 4))
    lines, weights, width, value = [], {}, 4, "x"
    for i in range(layers):
        out = draw(st.sampled_from([1, 2, 4, 6]))
        group = width if images and draw(st.booleans()) else 1
        out = out if group == 1 else width * draw(st.sampled_from([1, 2]))
        shape = (out, width // group, 3, 3) if images else (width, out)
        weights[f"w{i}"] = rng.standard_normal(shape).astype(np.float32)
        bias = draw(st.booleans())
        if bias:
            weights[f"b{i}"] = rng.standard_normal(out).astype(np.float32)
        if images:
            inputs = f"{value}, w{i}" + (f", b{i}" if bias else "")
            lines.append(f"l{i} = Conv <group = {group}, pads = [1, 1, 1, 1]> ({inputs})")
        else:
            lines.append(f"p{i} = MatMul({value}, w{i})")
            lines.append(f"l{i} = {f'Add(p{i}, b{i})' if bias else f'Identity(p{i})'}")
        between = draw(st.sampled_from(["Relu(v)", "LeakyRelu(v)", "Clip(v, zero, six)", "Identity(v)", "Tanh(v)"]))
        lines.append(f"f{i} = {between.replace('v', f'l{i}')}")
        width, value = out, f"f{i}"
    text, header = "  ".join(lines), "float[N,4,5,5] x" if images else "float[N,3,4] x"
    rank = "float[N,A,B,C] y" if images else "float[N,A,B] y"
    weights |= {"zero": np.float32(0), "six": np.float32(6)} if "zero" in text else {}
    model = tiny.model(f"g ({header}) => ({rank}) {{ {text}  y = Identity({value}) }}", **weights)
    return model, tiny.feeds(3, seed=1, x=(2, 4, 5, 5) if images else (2, 3, 4))


@settings(max_examples=40, deadline=None)
@given(chains(), st.integers(0, 100))
def test_the_function_of_a_chain_by_chance_stays(chain: tuple[ir.Model, list[Feed]], seed: int) -> None:
    model, feeds = chain
    before = tiny.frozen(model)
    assert_same(model, rescaled(model, chance(model, feeds, seed)), feeds)
    assert tiny.frozen(model) == before
