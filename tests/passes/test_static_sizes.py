"""Sizes that are the same for every input become constants, and others do not."""

from __future__ import annotations

import numpy as np

from edgeopt.passes.static_sizes import known, static_sizes
from edgeopt.runtime.probe import sizes
from tests import tiny
from tests.models import normal

TEXT = """g (float[N,S,12] x) => (float[N,S,3,4] y, int64[M] z) {
    a = MatMul(x, w)
    s = Shape(a)
    n = Slice(s, zero, two)
    d = Gather(s, last)
    h = Div(d, three)
    u = Unsqueeze(h, zero)
    to = Concat <axis = 0> (n, three1, u)
    y = Reshape(a, to)
    k = ArgMax <axis = 2, keepdims = 0> (x)
    f = Flatten <axis = 0> (k)
    z = Squeeze(f, zero)
}"""
MODEL = tiny.model(
    TEXT,
    w=normal(12, 12),
    zero=np.int64([0]),
    two=np.int64([2]),
    last=np.int64(2),
    three=np.int64(3),
    three1=np.int64([3]),
)
ONE, OTHER = ({"x": normal(n, s, 12)} for n, s in ((1, 5), (2, 10)))


def test_elements_that_differ_between_the_feeds_are_not_known() -> None:
    found = known(MODEL, sizes(MODEL, ONE)[1], sizes(MODEL, OTHER)[1])
    assert set(found) == {"s", "n", "d", "h", "u", "to"}
    assert found["s"] == [None, None, 12] and found["h"] == [4] and found["to"] == [None, None, 3, 4]
    assert "k" not in found and "z" not in found


def test_what_is_all_known_is_a_constant_and_the_function_stays() -> None:
    before = tiny.frozen(MODEL)
    shapes, numbers = sizes(MODEL, ONE)
    found = static_sizes(MODEL, known(MODEL, numbers, sizes(MODEL, OTHER)[1]), shapes)
    assert tiny.frozen(MODEL) == before
    assert "Div" not in tiny.operators(found) and "Shape" in tiny.operators(found)
    for feed in (ONE, OTHER, {"x": normal(3, 1, 12)}):
        for a, b in zip(tiny.run(found, feed), tiny.run(MODEL, feed), strict=True):
            assert np.array_equal(a, b)


def test_a_model_without_fixed_sizes_is_left_as_it_is() -> None:
    assert static_sizes(MODEL, {}, {}) is MODEL


CHANCE = """g (float[N,S,4] x) => (float[N,S,4] y, int64[1] q, int64[M] z) {
    s = Shape(x)
    n = Gather(s, one)
    m = Mod(n, four)
    p = Sub(four, m)
    q = Mod(p, four)
    l = Min(n, limit)
    b = Concat <axis = 0> (l, q)
    w = Less(n, limit)
    h = Where(w, n, limit)
    z = Add(b, h)
    y = Identity(x)
}"""


def test_what_is_equal_by_chance_is_not_taken_for_fixed() -> None:
    """A padding to a multiple of four, and a limit, that both feeds happen to agree on."""
    ints = {"one": np.int64([1]), "four": np.int64([4]), "limit": np.int64([8])}
    model = tiny.model(CHANCE, **ints)
    one, other = ({"x": normal(1, s, 4)} for s in (16, 32))
    found = known(model, sizes(model, one)[1], sizes(model, other)[1])
    assert [found[k] for k in ("n", "m", "p", "q", "l", "h")] == [[None]] * 6
    assert found["b"] == [None, None]


def test_a_where_is_followed_element_by_element() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        s = Shape(x)
        n = Gather(s, first)
        c = Concat <axis = 0> (n, minus)
        e = Equal(c, minus)
        w = Where(e, one, c)
        y = Expand(t, w)
    }"""
    ints = {"first": np.int64([0]), "minus": np.int64([-1]), "one": np.int64([1])}
    model = tiny.model(text, **ints, t=normal(1, 4))
    found = known(model, sizes(model, {"x": normal(1, 4)})[1], sizes(model, {"x": normal(3, 4)})[1])
    assert found["c"] == [None, -1] and found["w"] == [None, 1]
