"""Max and Min with a number become Clip, with the same results."""

import numpy as np
import pytest

from edgeopt.graph.form import canonical
from edgeopt.passes.clips import clips
from tests import tiny
from tests.models import normal

SIDE = "g (float[N,4,3] x) => (float[N,4,3] y)"


@pytest.mark.parametrize(
    ("text", "clipped"),
    [
        ("{ y = Max(x, c) }", 1),
        ("{ y = Min(c, x) }", 1),
        ("{ a = LeakyRelu(x)  b = Max(a, c)  y = Min(b, d) }", 2),
        ("{ a = Max(x, v)  y = Relu(a) }", 0),  # a vector
        ("{ a = Max(x, low)  y = Relu(a) }", 0),  # a barrier
        ("{ a = Relu(x)  y = Max(x, a) }", 0),
        ("{ y = Max(x, c, d) }", 0),
    ],
)
def test_a_number_is_a_bound(text: str, clipped: int) -> None:
    numbers = {"c": np.float32(-0.4), "d": np.float32(0.5), "v": np.float32([1, 2, 3]), "low": np.float32(-3e38)}
    used = {k: v for k, v in numbers.items() if k in text.replace("(", " ").replace(",", " ").replace(")", " ").split()}
    model = canonical(tiny.model(f"{SIDE} {text}", **used))
    before = tiny.frozen(model)
    result = clips(model)
    assert tiny.operators(result).count("Clip") == clipped and tiny.frozen(model) == before
    assert (result is model) == (clipped == 0) and tiny.frozen(clips(result)) == tiny.frozen(result)
    x = {"x": normal(2, 4, 3)}
    np.testing.assert_array_equal(tiny.run(result, x)[0], tiny.run(model, x)[0])
