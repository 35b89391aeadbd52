"""The distance from what a batch normalization was trained with."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.runtime.norm import norm_distance
from tests import tiny
from tests.models import normal

TEXT = """g (float[N,3,8,8] x) => (float[N,6,8,8] y) {
    a = Conv <pads = [1,1,1,1]> (x, w)  b = BatchNormalization(a, g, h, m, v)  y = Relu(b)
}"""
W = normal(6, 3, 3, 3)


def trained(x: np.ndarray, text: str = TEXT, **changed: np.ndarray) -> object:
    """A model whose normalization has the statistics of `x`."""
    weights = {"w": W, "g": np.ones(6, np.float32), "h": np.zeros(6, np.float32), **changed}
    first = tiny.model(TEXT.replace("y = Relu(b)", "y = Identity(a)").replace("b = Batch", "unused = Batch"),
                       m=np.zeros(6, np.float32), v=np.ones(6, np.float32), **weights)  # fmt: skip
    (a,) = tiny.run(first, {"x": x})
    return norm_distance(tiny.model(text, m=a.mean((0, 2, 3)), v=a.var((0, 2, 3)), **weights))


def test_the_data_of_the_training_are_at_distance_0_and_scaled_or_shifted_ones_are_not() -> None:
    x = normal(16, 3, 8, 8)
    distance = trained(x)
    assert callable(distance)
    feeds = [{"x": x[i : i + 1]} for i in range(16)]
    assert distance(feeds) == pytest.approx(0, abs=1e-4)
    scaled = distance([{"x": 2 * f["x"]} for f in feeds])
    assert scaled == pytest.approx((4 - 1 - np.log(4)) / 2, abs=0.01)  # means are near 0
    assert distance([{"x": f["x"] + np.float32(3)} for f in feeds]) > 0.5


def test_a_normalization_may_read_the_input_itself() -> None:
    x = normal(16, 3, 8, 8) * np.float32(2) + np.float32(1)
    text = "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { b = BatchNormalization(x, g, h, m, v)  y = Relu(b) }"
    weights = {"g": np.ones(3, np.float32), "h": np.zeros(3, np.float32), "m": x.mean((0, 2, 3)), "v": x.var((0, 2, 3))}
    distance = norm_distance(tiny.model(text, **weights))
    assert distance is not None and distance([{"x": x}]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,3,8,8] x) => (float[N,6,8,8] y) { y = Conv <pads = [1,1,1,1]> (x, w) }",  # it was folded
        TEXT.replace("(float[N,3,8,8] x)", "(float[N,3,8,8] x, float[6] v)"),  # its variance is an input
    ],
)
def test_without_statistics_in_the_file_there_is_no_distance(text: str) -> None:
    weights = {"w": W, "g": np.ones(6), "h": np.zeros(6), "m": np.zeros(6), "v": np.ones(6)}
    used = {k: v.astype(np.float32) for k, v in weights.items() if k in text and f"float[6] {k}" not in text}
    assert norm_distance(tiny.model(text, **used)) is None
