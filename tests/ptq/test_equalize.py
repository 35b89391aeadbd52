"""Cross-layer equalization: equal ranges, the same function, and never a channel moved through the bound of a Clip."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeopt.data import Feed
from edgeopt.errors import DataError
from edgeopt.passes.rescale import boundaries, read, written
from edgeopt.ptq.equalize import equalized, factors
from edgeopt.ptq.peaks import Sample
from tests import tiny
from tests.models import normal
from tests.passes.test_rescale import IMAGE, KEPT, SAME, assert_same, built, chains, changed, samples
from tests.static import values

ranges = arrays(np.float64, 5, elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6)))


def named(feeds: list[Feed]) -> list[Sample]:
    """As a job's samples."""

    def reader(feed: Feed) -> Callable[[], Feed]:
        return lambda: feed

    return [(str(i), reader(feed)) for i, feed in enumerate(feeds)]


@given(ranges, ranges)
def test_factors_are_those_of_the_paper_and_make_both_ranges_their_geometric_mean(
    r1: np.ndarray, r2: np.ndarray
) -> None:
    found = factors(r1, r2)
    for i in range(len(r1)):
        if r1[i] == 0 or r2[i] == 0:
            assert found[i] == 1
            continue
        assert found[i] == pytest.approx(math.sqrt(r1[i] * r2[i]) / r2[i])  # equation 11
        assert r1[i] / found[i] == pytest.approx(math.sqrt(r1[i] * r2[i]))
        assert r2[i] * found[i] == pytest.approx(math.sqrt(r1[i] * r2[i]))


@pytest.mark.parametrize("case", SAME)
def test_the_function_stays(case: str) -> None:
    header, body, _ = SAME[case]
    model, feeds = built(header, body), samples(header)
    before = tiny.frozen(model)
    assert_same(model, equalized(model, named(feeds)), feeds)
    assert tiny.frozen(model) == before


@pytest.mark.parametrize("case", KEPT)
def test_a_model_without_a_pair_is_given_back_as_it_is(case: str) -> None:
    model = built(*KEPT[case])
    producers = {b.producer.op_type for b in boundaries(model)}
    if not producers & {"Conv", "Gemm", "MatMul"}:
        assert equalized(model, []) is model


PAIRS = [
    c
    for c, (_, body, _) in SAME.items()
    if "Clip" not in body and boundaries(built(*SAME[c][:2]))[0].producer.op_type in ("Conv", "Gemm", "MatMul")
]


@pytest.mark.parametrize("case", PAIRS)
def test_both_ranges_of_every_channel_are_equal_afterwards(case: str) -> None:
    header, body, _ = SAME[case]
    made = equalized(built(header, body), named(samples(header)))
    for b in boundaries(made):
        if b.producer.op_type in ("Conv", "Gemm", "MatMul"):
            np.testing.assert_allclose(
                written(b.producer), np.max([read(n) for n in b.readers], axis=0), rtol=0.03, err_msg=b.value
            )


def test_a_chain_of_many_layers_comes_to_rest_with_equal_ranges() -> None:
    rng = np.random.default_rng(0)
    lines, weights, value = [], {}, "x"
    for i in range(6):
        weights[f"w{i}"] = (rng.standard_normal((8, 8)) * np.exp(rng.uniform(-3, 3, 8))).astype(np.float32)
        lines.append(f"m{i} = MatMul({value}, w{i})  r{i} = Relu(m{i})")
        value = f"r{i}"
    model = tiny.model(f"g (float[N,8] x) => (float[N,8] y) {{ {'  '.join(lines)}  y = Identity({value}) }}", **weights)
    made = equalized(model, [])
    assert len(boundaries(made)) == 5
    for b in boundaries(made):
        np.testing.assert_allclose(written(b.producer), read(b.readers[0]), rtol=0.1)


@pytest.mark.parametrize("case", ["clipped", "clipped twice"])
def test_channels_that_reach_the_bound_of_a_clip_keep_their_scale_and_others_stay_below_it(case: str) -> None:
    header, body, _ = SAME[case]
    model, feeds = built(header, body), samples(header)
    made = equalized(model, named(feeds))
    before, after = ([values(m, ["a"], f)["a"].max((0, 2, 3)) for f in feeds] for m in (model, made))
    reached = np.max(before, axis=0) > 6
    assert reached.any() and not reached.all()
    w, v = tiny.weights_of(model)["soft"], tiny.weights_of(made)["soft"]
    assert np.array_equal(w[reached], v[reached])
    assert (np.max(after, axis=0)[~reached] <= 6 * (1 + 1e-5)).all()
    assert not np.allclose(w[~reached], v[~reached])


def test_a_channel_with_tiny_weights_moves_no_further_than_a_thousand_times() -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { a = Gemm(x, m, b)  r = Relu(a)  y = Gemm(r, w) }"
    m = normal(8, 8)
    m[:, 0] *= 1e-12
    model = tiny.model(text, m=m, b=normal(8, seed=1), w=normal(8, 6, seed=2))
    made = equalized(model, [])
    assert_same(model, made, tiny.feeds(3, x=(2, 8)))
    grown = tiny.weights_of(made)["m"][:, 0] / m[:, 0]
    np.testing.assert_allclose(grown, 1e3, rtol=1e-3)


def test_dead_channels_stay_as_they_are() -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { a = Gemm(x, m, b)  r = Relu(a)  y = Gemm(r, w) }"
    m, w, b = normal(8, 8), normal(8, 6, seed=2), normal(8, seed=1)
    m[:, 0], w[1] = 0, 0
    made = tiny.weights_of(equalized(tiny.model(text, m=m, b=b, w=w), []))
    assert np.array_equal(made["m"][:, :2], m[:, :2]) and np.array_equal(made["w"][:2], w[:2])
    assert made["b"][0] == b[0]


def test_rounding_to_integers_loses_less_afterwards() -> None:
    header, body, _ = SAME["depthwise"]
    model, feeds = built(header, body), samples(header)
    spoiled = model.clone()
    w, k = (spoiled.graph.initializers[n] for n in ("k1", "dw"))
    assert w.const_value is not None and k.const_value is not None
    spread = 10.0 ** np.linspace(-2, 2, 8, dtype=np.float32)[:, None, None, None]
    w.const_value = ir.tensor(w.const_value.numpy() * spread, name="k1")
    k.const_value = ir.tensor(k.const_value.numpy() / spread, name="dw")

    def rounded(m: ir.Model) -> ir.Model:
        copy = m.clone()
        for v in copy.graph.initializers.values():
            assert v.const_value is not None
            x = v.const_value.numpy()
            if x.ndim == 4:
                scale = np.abs(x).max() / 127  # one for all channels
                v.const_value = ir.tensor((np.rint(x / scale) * scale).astype(np.float32), name=v.name)
        return copy

    def db(m: ir.Model) -> float:
        return min(tiny.sqnr_db(tiny.run(spoiled, f)[0], tiny.run(rounded(m), f)[0]) for f in feeds)

    assert db(equalized(spoiled, named(feeds))) > db(spoiled) + 10


@settings(max_examples=25, deadline=None)
@given(chains())
def test_the_function_of_a_chain_by_chance_stays(chain: tuple[ir.Model, list[Feed]]) -> None:
    model, feeds = chain
    assert_same(model, equalized(model, named(feeds)), feeds)


def test_the_same_samples_give_the_same_bytes_in_any_order() -> None:
    header, body, _ = SAME["clipped"]
    feeds = named(samples(header))
    made = [equalized(built(header, body), f) for f in (feeds, feeds, feeds[::-1])]
    assert tiny.frozen(made[0]) == tiny.frozen(made[1]) == tiny.frozen(made[2])
    assert changed(built(header, body), made[0])


def test_a_clip_without_a_sample_that_can_be_read_is_an_error_in_words() -> None:
    def torn() -> Feed:
        raise DataError("torn")

    model = built(IMAGE, SAME["clipped"][1])
    with pytest.raises(DataError, match="torn"):
        equalized(model, [(str(i), torn) for i in range(32)])
