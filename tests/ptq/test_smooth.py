"""SmoothQuant against its formula, number by number."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.data import Feed
from edgeopt.errors import DataError
from edgeopt.passes.rescale import boundaries
from edgeopt.ptq.smooth import factors, smoothed
from tests import tiny
from tests.models import normal
from tests.passes.test_rescale import KEPT, ROWS, SAME, assert_same, built, chains, changed, samples
from tests.ptq.test_equalize import named, ranges
from tests.static import values

QKV = "normalization with three readers"


def formula(x: np.ndarray, w: np.ndarray, alpha: float) -> list[float]:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) over their geometric mean, 1 where nothing flows (equation 4)."""
    raw = [a**alpha / b ** (1 - alpha) if a > 0 and b > 0 else None for a, b in zip(x, w, strict=True)]
    live = [math.log(s) for s in raw if s is not None]
    middle = math.exp(sum(live) / len(live)) if live else 1.0
    return [1.0 if s is None else min(max(s / middle, 1e-4), 1e4) for s in raw]


@given(ranges, ranges, st.floats(0, 1))
def test_factors_are_those_of_the_paper(x: np.ndarray, w: np.ndarray, alpha: float) -> None:
    np.testing.assert_allclose(factors(x, w, alpha), formula(x, w, alpha), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("case", SAME)
def test_the_function_stays(case: str, alpha: float) -> None:
    header, body, _ = SAME[case]
    model, feeds = built(header, body), samples(header)
    before = tiny.frozen(model)
    made = smoothed(model, named(feeds), alpha)
    assert_same(model, made, feeds)
    assert tiny.frozen(model) == before


@pytest.mark.parametrize("case", KEPT)
def test_where_no_layer_can_make_it_good_the_model_is_given_back_as_it_is(case: str) -> None:
    model = built(*KEPT[case])
    if not boundaries(model):
        assert smoothed(model, [], 0.5) is model


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_what_three_readers_share_is_divided_by_the_factor_of_the_formula(alpha: float) -> None:
    model, feeds = built(*SAME[QKV][:2]), samples(ROWS)
    x, w = [0.0] * 8, [0.0] * 8
    for feed in feeds:
        for row in values(model, ["n"], feed)["n"].reshape(-1, 8):
            x = [max(a, abs(float(b))) for a, b in zip(x, row, strict=True)]
    before = tiny.weights_of(model)
    for name in ("m1", "m4", "m3"):
        w = [max(a, max(abs(float(v)) for v in row)) for a, row in zip(w, before[name], strict=True)]
    s = np.array(formula(np.array(x), np.array(w), alpha))
    after = tiny.weights_of(smoothed(model, named(feeds), alpha))
    for name in ("v1", "v2"):
        np.testing.assert_allclose(after[name], before[name] / s, rtol=1e-4)
    for name in ("m1", "m4", "m3"):
        np.testing.assert_allclose(after[name], before[name] * s[:, None], rtol=1e-4)


def test_alpha_1_gives_every_channel_of_the_input_the_same_range_and_alpha_0_every_row_of_the_weights() -> None:
    model, feeds = built(ROWS, "n = LayerNormalization(x, v1, v2)  y = MatMul(n, m2)"), samples(ROWS)
    flat = smoothed(model, named(feeds), 1.0)
    x = np.max([np.abs(values(flat, ["n"], f)["n"]).max((0, 1)) for f in feeds], axis=0)
    np.testing.assert_allclose(x, x[0], rtol=1e-4)
    w = np.abs(tiny.weights_of(smoothed(model, named(feeds), 0.0))["m2"]).max(1)
    np.testing.assert_allclose(w, w[0], rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, m1)  b = Add(a, v2)  c = Mul(v3, b)  y = MatMul(c, m2)",
        "n = LayerNormalization(x, v1, v2)  c = Mul(n, v3)  y = MatMul(c, m2)",
    ],
    ids=["product", "normalization"],
)
def test_an_input_with_two_producers_behind_each_other_is_smoothed_once(body: str) -> None:
    model, feeds = built(ROWS, body), samples(ROWS)
    before, after = (
        np.max([np.abs(values(m, ["c"], f)["c"]).max((0, 1)) for f in feeds], axis=0)
        for m in (model, smoothed(model, named(feeds), 1.0))
    )
    assert not np.allclose(before, before[0], rtol=0.1)
    np.testing.assert_allclose(after, after[0], rtol=1e-3)  # twice would turn the ranges over


def test_outliers_in_some_channels_cost_less_afterwards() -> None:
    text = "g (float[N,5,8] x) => (float[N,5,6] y) { n = LayerNormalization(x, s)  y = MatMul(n, w) }"
    s = np.ones(8, np.float32)
    s[2] = 60  # as in language models
    w = normal(8, 6)
    w[2] /= 60
    model, feeds = tiny.model(text, s=s, w=w), tiny.feeds(8, x=(2, 5, 8))

    def db(m: ir.Model) -> float:
        """With the input of the product and its weights on 8-bit grids, one scale for the input and one for each
        column.
        """
        w, found = tiny.weights_of(m)["w"], []
        grid = np.abs(w).max(0) / 127
        for feed in feeds:
            n = values(m, ["n"], feed)["n"]
            scale = np.abs(n).max() / 127
            found.append(tiny.sqnr_db(n @ w, (np.rint(n / scale) * scale) @ (np.rint(w / grid) * grid)))
        return min(found)

    assert db(smoothed(model, named(feeds))) > db(model) + 10


def test_dead_channels_stay_as_they_are() -> None:
    text = "g (float[N,5,8] x) => (float[N,5,6] y) { n = LayerNormalization(x, s, b)  y = MatMul(n, w) }"
    s, b, w = np.abs(normal(8)) + 0.1, normal(8, seed=1), normal(8, 6, seed=2)
    s[0], b[0], w[1] = 0, 0, 0
    feeds = tiny.feeds(4, x=(2, 5, 8))
    model = tiny.model(text, s=s, b=b, w=w)
    after = tiny.weights_of(smoothed(model, named(feeds)))
    assert after["s"][0] == 0 and after["s"][1] == s[1] and after["b"][1] == b[1]
    assert np.array_equal(after["w"][:2], w[:2])


@pytest.mark.parametrize("value", [0.0, 1.5], ids=["zero", "constant"])
def test_inputs_that_never_change_do_no_harm(value: float) -> None:
    model = built(*SAME[QKV][:2])
    feed = {"x": np.full((2, 5, 8), value, np.float32)}
    for alpha in (0.0, 0.5, 1.0):
        assert_same(model, smoothed(model, named([feed]), alpha), [feed])


@settings(max_examples=25, deadline=None)
@given(chains(), st.floats(0, 1))
def test_the_function_of_a_chain_by_chance_stays(chain: tuple[ir.Model, list[Feed]], alpha: float) -> None:
    model, feeds = chain
    assert_same(model, smoothed(model, named(feeds), alpha), feeds)


def test_the_same_samples_give_the_same_bytes_in_any_order() -> None:
    model, feeds = built(*SAME[QKV][:2]), named(samples(ROWS))
    made = [smoothed(model, f) for f in (feeds, feeds, feeds[::-1])]
    assert tiny.frozen(made[0]) == tiny.frozen(made[1]) == tiny.frozen(made[2])
    assert changed(model, made[0]) == {"v1", "v2", "m1", "m4", "m3"}


def test_without_a_sample_that_can_be_read_there_is_an_error_in_words() -> None:
    def torn() -> Feed:
        raise DataError("torn")

    with pytest.raises(DataError, match="torn"):
        smoothed(built(*SAME[QKV][:2]), [(str(i), torn) for i in range(32)])
