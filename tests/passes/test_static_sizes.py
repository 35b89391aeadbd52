"""Sizes that are the same for every input become constants, and others do not."""

from __future__ import annotations

import numpy as np

from edgeopt.passes.static_sizes import known, of_shapes, static_sizes
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


def test_what_follows_from_shapes_alone_is_told_from_what_follows_from_data() -> None:
    assert {v.name for v in of_shapes(MODEL)} == {"s", "n", "d", "h", "u", "to"}


def test_elements_that_differ_between_the_feeds_are_not_known() -> None:
    found = known(MODEL, sizes(MODEL, ONE)[1], sizes(MODEL, OTHER)[1])
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
