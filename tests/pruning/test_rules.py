"""What the rules once got wrong: each of these is pruned as its zeroed form computes, or stays whole."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import shrink
from edgeopt.pruning import width
from edgeopt.runtime.probe import shapes
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal
from tests.pruning.test_width import zeroed

ROW, IMAGE = {"x": normal(1, 8)}, {"x": normal(1, 3, 6, 6)}
LAYERS = {"w0": normal(8, 8), "w1": normal(8, 4)}
CONVS = {"w0": normal(8, 3, 1, 1), "w1": normal(4, 8, 1, 1)}
SIZES = np.int64([4, 4])
IF = (
    "< then_branch = t () => (float[N,4] u) { u = MatMul(a, w1) }, else_branch = e () => (float[N,4] v) { v = MatMul(a,"
    " w2) } >"
)
# graph, feed, weights, whether anything may go
CASES = {
    "an axis of 1 is squeezed at the end": (
        "g (float[N,8] x) => (float[N] y) { a = MatMul(x, w0)  b = MatMul(a, w1)  y = Squeeze(b, one) }",
        ROW,
        {"w0": normal(8, 8), "w1": normal(8, 1), "one": np.int64([1])},
        True,
    ),
    "a Resize with all sizes": (
        (
            'g (float[1,3,6,6] x) => (float[1,4,12,12] y) { a = Conv(x, w0)  r = Resize <mode = "linear"> (a, , ,'
            " sizes)  y = Conv(r, w1) }"
        ),
        IMAGE,
        {**CONVS, "sizes": np.int64([1, 8, 12, 12])},
        True,
    ),
    "a scale that is computed": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  n = LayerNormalization(a, a)  y = MatMul(n, w1) }",
        ROW,
        LAYERS,
        False,
    ),
    "a layer used twice": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  b = MatMul(a, w0)  y = MatMul(b, w1) }",
        ROW,
        LAYERS,
        False,
    ),
    "a bias that the input gets first": (
        "g (float[N,8] x) => (float[N,4] y) { q = Add(x, b)  a = MatMul(q, w0)  r = Add(a, b)  y = MatMul(r, w1) }",
        ROW,
        {**LAYERS, "b": normal(8)},
        False,
    ),
    "a weight that is an output": (
        "g (float[N,8] x) => (float[N,4] y, float[8] b) { a = MatMul(x, w0)  r = Add(a, b)  y = MatMul(r, w1) }",
        ROW,
        {**LAYERS, "b": normal(8)},
        False,
    ),
    "an embedding that is also the last layer": (
        (
            "g (int64[N,S] x) => (float[N,S,10] y) { a = Gather(e, x)  b = MatMul(a, w0)  c = MatMul(b, w1)  t ="
            " Transpose <perm = [1,0]> (e)  y = MatMul(c, t) }"
        ),
        {"x": np.int64([[1, 2, 3]])},
        {"e": normal(10, 8), "w0": normal(8, 12), "w1": normal(12, 8)},
        True,
    ),
    "a table whose rows are also channels": (
        (
            "g (float[N,8] x, int64[1] i) => (float[N,4] y) { a = MatMul(x, w0)  b = MatMul(a, w1)  q = Gather(w1, i) "
            " y = Add(b, q) }"
        ),
        {**ROW, "i": np.int64([2])},
        LAYERS,
        False,
    ),
    "what a branch reads": (
        f"g (float[N,8] x, bool c) => (float[N,4] y) {{ a = MatMul(x, w0)  y = If {IF} (c) }}",
        {**ROW, "c": np.array(True)},
        {**LAYERS, "w2": normal(8, 4)},
        False,
    ),
    "the first state of an LSTM": (
        (
            "g (float[T,N,8] x, float[N,8] z) => (float[T,D,N,4] y) { a = MatMul(z, w1)  h = Unsqueeze(a, zero)  y ="
            " LSTM <hidden_size = 4> (x, w, r, , , h) }"
        ),
        {"x": normal(3, 1, 8), "z": normal(1, 8)},
        {"w1": normal(8, 4), "zero": np.int64([0]), "w": normal(1, 16, 8), "r": normal(1, 16, 4)},
        False,
    ),
    "an Expand to fewer sizes": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  e = Expand(a, eight)  y = MatMul(e, w1) }",
        ROW,
        {**LAYERS, "eight": np.int64([8])},
        True,
    ),
    "a reduction of nothing": (
        (
            "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  s = ReduceSum <noop_with_empty_axes = 1> (a)  y ="
            " MatMul(s, w1) }"
        ),
        ROW,
        LAYERS,
        True,
    ),
    "sizes of a Split that come in": (
        (
            "g (float[N,8] x, int64[2] z) => (float[N,4] y) { a = MatMul(x, w0)  b, c = Split <axis = 1> (a, z)  d ="
            " Add(b, c)  y = MatMul(d, w2) }"
        ),
        {**ROW, "z": SIZES},
        {"w0": LAYERS["w0"], "w2": normal(4, 4)},
        False,
    ),
    "positions that are counted": (
        (
            "g (int64[N,S] x) => (float[N,S,4] y) { s = Shape(x)  p = Expand(ids, s)  a = Gather(e, p)  b = MatMul(a,"
            " w0)  y = MatMul(b, w1) }"
        ),
        {"x": np.int64([[1, 2, 3]])},
        {"ids": np.int64([[0, 1, 2]]), "e": normal(10, 8), **LAYERS},
        True,
    ),
    "channels that a kernel slides over": (
        (
            "g (float[N,8] x) => (float[N,2] y) { a = MatMul(x, w0)  r = Reshape(a, four)  c = Conv(r, k)  f ="
            " Reshape(c, two)  y = MatMul(f, w2) }"
        ),
        ROW,
        {
            "w0": LAYERS["w0"],
            "four": np.int64([0, 1, 4, 2]),
            "k": normal(1, 1, 1, 2),
            "two": np.int64([0, 4]),
            "w2": normal(4, 2),
        },
        False,
    ),
    "a size that is computed with": (
        (
            "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  s = Shape(a)  d = Gather(s, last)  h = Div(d, two)"
            "  u = Unsqueeze(h, zero)  z = Concat <axis = 0> (keep, two1, u)  r = Reshape(a, z)  m = ReduceSum"
            " <keepdims = 0> (r, one)  y = MatMul(m, w2) }"
        ),
        ROW,
        {
            "w0": LAYERS["w0"],
            "last": np.int64(1),
            "two": np.int64(2),
            "zero": np.int64([0]),
            "keep": np.int64([0]),
            "two1": np.int64([2]),
            "one": np.int64([1]),
            "w2": normal(4, 4),
        },
        False,
    ),
    "a size that only sizes something": (
        (
            "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  s = Shape(a)  d = Gather(s, last)  u ="
            " Unsqueeze(d, zero)  z = Concat <axis = 0> (keep, u)  r = Reshape(a, z)  y = MatMul(r, w1) }"
        ),
        ROW,
        {**LAYERS, "last": np.int64(1), "zero": np.int64([0]), "keep": np.int64([0])},
        True,
    ),
    "a Pad that moves channels": (
        "g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w0)  p = Pad(a, pads)  y = MatMul(p, w1) }",
        ROW,
        {**LAYERS, "pads": np.int64([0, 1, 0, -1])},
        False,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_what_is_left_gives_what_the_whole_gives_with_zeros(name: str, seed: int) -> None:
    text, feed, weights, free = CASES[name]
    model = tiny.model(text, **weights)
    units = width.units_of(model, shapes(model, feed))
    scores = dict(enumerate(np.random.default_rng(seed).random(len(units.parents)).tolist()))
    gone, _ = width.chosen(units, scores, 0.5)
    assert bool(gone) == free
    want = open_session(zeroed(model, units, gone)).run(feed)
    for a, b in zip(open_session(width.without(model, units, gone)).run(feed), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_layer_is_left_without_a_channel() -> None:
    few, many = np.float32([0.01] * 4 + [1] * 4), np.float32(0.01)
    text = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
        a = Conv(x, w0)  l, r = Split <axis = 1> (a, sizes)
        d = Conv <group = 4, pads = [1,1,1,1]> (l, w1)  c = Concat <axis = 1> (d, r)  y = Conv(c, w2)
    }"""
    weights = {"w0": normal(8, 3, 1, 1) * few.reshape(8, 1, 1, 1), "w1": normal(4, 1, 3, 3) * many, "sizes": SIZES}
    found = shrink(tiny.proto(text, **weights, w2=normal(4, 8, 1, 1) * few.reshape(1, 8, 1, 1)), width=0.5)
    assert min(w.size for w in tiny.weights_of(found.model).values()) > 0
