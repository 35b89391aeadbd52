"""Columns are what layers multiply: weights times a column is the layer's output there."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.ptq import moments
from edgeopt.ptq.moments import (
    BLOCK,
    LayerMoments,
    blocks_of,
    columns,
    gather,
    layers,
    name,
    parts,
    rows,
    size_bytes,
    unrows,
)
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

CONV = "g (float[N,C,SIZE] x) => (float[N,D,OUT] y) { [layer] y = Conv <ATTRIBUTES> (x, w) }"
SIZES = {3: (11,), 4: (9, 10), 5: (5, 6, 7)}  # of what a weight of so many axes reads
FORMS = {
    "plain": ("pads = [0,0,0,0]", (4, 3, 3, 3), 3),
    "padded": ("pads = [1,2,0,1]", (4, 3, 3, 2), 3),
    "strided": ("strides = [2,3], pads = [1,1,1,1]", (4, 3, 3, 3), 3),
    "dilated": ("dilations = [2,1], pads = [2,0,2,0]", (4, 3, 3, 1), 3),
    "grouped": ("group = 2, pads = [1,1,1,1]", (6, 2, 3, 3), 4),
    "depthwise": ("group = 4, strides = [2,2], pads = [1,1,1,1]", (8, 1, 3, 3), 4),
    "sound": ("strides = [2], dilations = [2], pads = [3,1]", (4, 3, 5), 3),
    "sound, grouped": ("group = 2, pads = [2,2]", (4, 2, 5), 4),
    "volume": ("strides = [1,2,1], pads = [1,0,1,0,1,1]", (4, 2, 3, 2, 3), 2),
    "same, upper": ('auto_pad = "SAME_UPPER", strides = [2,3]', (4, 3, 4, 4), 3),
    "same, lower": ('auto_pad = "SAME_LOWER", strides = [2,3]', (4, 3, 4, 4), 3),
    "same, sound": ('auto_pad = "SAME_UPPER", strides = [3]', (4, 3, 4), 3),
    "valid": ('auto_pad = "VALID", strides = [2,2]', (4, 3, 3, 3), 3),
}


def conv(form: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    attributes, shape, channels = FORMS[form]
    size = SIZES[len(shape)]
    text = CONV.replace("ATTRIBUTES", attributes).replace("SIZE", ",".join(map(str, size)))
    model = tiny.model(text.replace("OUT", ",".join("PQR"[: len(size)])), w=normal(*shape))
    return model, {"x": normal(2, channels, *size)}


@pytest.mark.parametrize("form", FORMS)
def test_weights_times_every_column_are_the_outputs_of_a_convolution(form: str) -> None:
    model, feed = conv(form)
    ((node,),) = layers(model, frozenset({"layer"}))
    y = open_session(model).run(feed)[0]
    x = columns(node, feed["x"], np.random.default_rng(0), count=10**6)
    found = np.einsum("goi,ngi->ngo", rows(node), x).reshape(len(x), -1)
    want = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert np.array_equal(unrows(node, rows(node)), model.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[N,3,5] x) => (float[N,3,4] y) { [layer] y = MatMul(x, w) }", (5, 4)),
        ("g (float[N,5] x) => (float[N,4] y) { [layer] y = Gemm <transB = 1> (x, w) }", (4, 5)),
        ("g (float[N,5] x) => (float[N,4] y) { [layer] y = Gemm(x, w) }", (5, 4)),
    ],
)
def test_weights_times_every_row_are_the_outputs_of_a_product(text: str, shape: tuple[int, int]) -> None:
    model = tiny.model(text, w=normal(*shape))
    ((node,),) = layers(model, frozenset({"layer"}))
    x = normal(2, 3, 5) if "3,5" in text else normal(6, 5)
    found = columns(node, x, np.random.default_rng(0))
    want = open_session(model).run({"x": x})[0].reshape(-1, 4)
    np.testing.assert_allclose(found[:, 0] @ rows(node)[0].T, want, rtol=1e-4, atol=1e-5)
    assert np.array_equal(unrows(node, rows(node)), model.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]


def test_moments_of_parts_add_up_to_the_moments_of_all() -> None:
    x = normal(50, 2, 7)
    parts, whole = LayerMoments.of(x[:20]).merge(LayerMoments.of(x[20:])), LayerMoments.of(x)
    assert parts.count == whole.count == 50
    np.testing.assert_allclose(parts.h, whole.h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.h[1], x[:, 1].T @ x[:, 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.x[0], x.sum(0), rtol=1e-4, atol=1e-4)


def test_moments_of_a_shared_weight_are_sums_and_each_reader_has_its_own_mean() -> None:
    a, b = normal(30, 2, 7), normal(20, 2, 7, seed=1) + np.float32(3)
    both = LayerMoments.of(a, 0, 2).merge(LayerMoments.of(b, 1, 2))
    assert both.counts == (30, 20) and both.count == 50
    np.testing.assert_allclose(both.h, LayerMoments.of(a).h + LayerMoments.of(b).h)
    np.testing.assert_allclose(both.mean(1), b.mean(0), rtol=1e-5)
    apart = np.concatenate([a - a.mean(0), b - b.mean(0)])
    want = np.einsum("ngi,ngj->gij", apart, apart) / 50
    np.testing.assert_allclose(both.covariance([True, True]), want, rtol=1e-3, atol=1e-4)


TWO = """g (float[N,4,6,6] x) => (float[N,5,6,6] y) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w1)
    r = Relu(a)
    [second] y = Conv(r, w2)
}"""


def two() -> ir.Model:
    return tiny.model(TWO, w1=normal(3, 4, 3, 3), w2=normal(5, 3, 1, 1))


def test_moments_of_one_layer_are_the_same_whichever_others_are_looked_at() -> None:
    model = two()
    samples = [(str(i), partial(dict, {"x": normal(1, 4, 6, 6, seed=i)})) for i in range(11)]
    nodes = layers(model, frozenset({"first", "second"}))
    together = gather(model, nodes, samples)
    for node in nodes:
        found, again = gather(model, [node], samples)[name(node)], together[name(node)]
        assert found.count == again.count == 11 * 36
        assert np.array_equal(found.h, again.h)  # bit for bit


def test_memory_decides_how_many_layers_go_together_and_which_are_too_large() -> None:
    nodes = layers(two(), frozenset({"first", "second"}))
    sizes = [size_bytes(n) for n in nodes]
    assert sizes == [8 * 36**2, 8 * 3**2]
    much = 10**9
    assert parts(nodes, much, much, {}) == ([nodes], [])
    assert parts(nodes, much, 5 * sizes[0], {}) == ([nodes], [])
    assert parts(nodes, much, 5 * sizes[0] - 1, {}) == ([nodes[1:]], nodes[:1])
    assert parts([nodes[0]] * 6, 5 * 3 * sizes[0], much, {}) == ([[nodes[0]] * 5, [nodes[0]]], [])
    assert parts(nodes, 1, much, {}) == ([[nodes[0]], [nodes[1]]], [])
    assert parts(nodes, much, 1, {}) == ([], nodes)


def test_what_layers_read_takes_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "cores", lambda: 2)
    nodes = layers(two(), frozenset({"first", "second"}))
    (first, *_), (second, *_) = nodes
    sizes, read = [size_bytes(n) for n in nodes], {str(n.inputs[0].name): 1000 for n in (first, second)}
    need = 3 * sum(sizes) + 2 * 2 * 1000  # by two workers at once
    assert parts(nodes, need, 10**9, read) == ([nodes], [])
    assert parts(nodes, need - 1, 10**9, read) == ([nodes[:1], nodes[1:]], [])


@pytest.mark.parametrize("size", [1, 9, 512, 513, 576, 1024, 1152, 1536, 4608, 5760, 521, 2 * 521])
def test_blocks_are_equal_and_small_where_a_size_has_such_divisors(size: int) -> None:
    blocks = blocks_of(size)
    assert size % blocks == 0
    small = [n for n in range(1, size + 1) if size % n == 0 and BLOCK / 4 <= size / n <= BLOCK]
    assert blocks == (min(small) if small and size > BLOCK else 1)


@pytest.mark.parametrize("groups", [1, 3])
def test_of_many_inputs_the_moments_are_the_blocks_on_the_diagonal(groups: int) -> None:
    x = normal(40, groups, 1024) + np.float32(1)
    m = LayerMoments.of(x)
    for centred in (False, True):
        covariance = m.covariance([centred])
        assert covariance.shape == (2 * groups, 512, 512)
        for i in range(2 * groups):
            part = x[:, i // 2, i % 2 * 512 :][:, :512].astype(np.float64)
            wanted = np.cov(part.T, bias=True) if centred else part.T @ part / 40
            np.testing.assert_allclose(covariance[i], wanted, atol=1e-5)  # float32 sums


def test_moments_that_are_no_numbers_are_left_out() -> None:
    model = two()
    samples = [(str(i), partial(dict, {"x": np.float32(3e19) * normal(1, 4, 6, 6, seed=i)})) for i in range(2)]
    assert gather(model, layers(model, frozenset({"first"})), samples) == {}
