"""The monoid laws of every observer, to the last bit, and their numbers against NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgeopt.numbers.observers import HALF, HALF_BITS, Histogram, MinMax, Statistics

LAW = settings(max_examples=40, deadline=None, derandomize=True)
SUBSAMPLE = 8

normal = st.floats(-100, 100, width=32)
extreme = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),  # denormals and huge ones too
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -3.4028235e38, 3.4028235e38]),
    st.integers(-149, 127).map(lambda e: math.ldexp(-1.0, e)),  # -2^e is on the edge of its first bin
    st.integers(-149, 127).map(lambda e: math.ldexp(1.0, e)),
)
tensors = arrays(
    np.float32, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5), elements=st.one_of(normal, extreme)
)
filled = arrays(
    np.float32, array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6), elements=st.one_of(normal, extreme)
)
samples = st.lists(tensors, max_size=5)


@dataclass(frozen=True)
class Kind:
    """An observer's unit and its update."""

    unit: Any
    update: Callable[[Any, np.ndarray], Any]

    def of(self, xs: Sequence[np.ndarray]) -> Any:
        return functools.reduce(self.update, xs, self.unit)


KINDS = {
    "MinMax": Kind(MinMax(), lambda o, x: o.update(x)),
    "Histogram": Kind(Histogram(), lambda o, x: o.update(x)),
    "Statistics": Kind(Statistics(), lambda o, x: o.update(x, SUBSAMPLE)),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
@LAW
@given(a=samples, b=samples)
def test_updating_with_two_lists_is_merging_their_statistics(
    kind: Kind, a: list[np.ndarray], b: list[np.ndarray]
) -> None:
    assert kind.of([*a, *b]) == kind.of(a).merge(kind.of(b))


@every_kind
@LAW
@given(a=samples, b=samples)
def test_merge_is_commutative(kind: Kind, a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert kind.of(a).merge(kind.of(b)) == kind.of(b).merge(kind.of(a))


@every_kind
@LAW
@given(a=samples, b=samples, c=samples)
def test_merge_is_associative(kind: Kind, a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> None:
    x, y, z = kind.of(a), kind.of(b), kind.of(c)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))


@every_kind
@LAW
@given(a=samples)
def test_the_empty_observer_is_the_unit(kind: Kind, a: list[np.ndarray]) -> None:
    x = kind.of(a)
    assert kind.unit.merge(x) == x == x.merge(kind.unit)


@every_kind
@LAW
@given(a=samples)
def test_the_order_of_samples_does_not_matter(kind: Kind, a: list[np.ndarray]) -> None:
    assert kind.of(a) == kind.of(a[::-1])


@every_kind
@LAW
@given(x=filled)
def test_an_update_leaves_observer_and_tensor_alone(kind: Kind, x: np.ndarray) -> None:
    before = x.copy()
    kind.update(kind.unit, x)
    assert x.tobytes() == before.tobytes()
    assert kind.unit == type(kind.unit)()


@every_kind
def test_observers_of_different_samples_differ(kind: Kind) -> None:
    assert kind.of([np.float32([1, 2])]) != kind.of([np.float32([1, -4])])


@LAW
@given(st.lists(filled, min_size=1, max_size=4))
def test_minmax_is_exact(xs: list[np.ndarray]) -> None:
    found = KINDS["MinMax"].of(xs)
    assert (found.lo, found.hi) == (min(float(x.min()) for x in xs), max(float(x.max()) for x in xs))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_the_laws_hold_beside_a_sample_that_is_not_finite(bad: float) -> None:
    a, b = np.float32([1, bad]), np.float32([2, 3, -4])
    one, two = (Statistics().update(x, SUBSAMPLE) for x in (a, b))
    in_order, reversed_ = (
        Statistics().update(a, SUBSAMPLE).update(b, SUBSAMPLE),
        Statistics().update(b, SUBSAMPLE).update(a, SUBSAMPLE),
    )
    merged = one.merge(two)
    assert repr(in_order.minmax) == repr(reversed_.minmax) == repr(merged.minmax)
    assert in_order.histogram == reversed_.histogram == merged.histogram


def test_minmax_keeps_a_nan() -> None:
    found = MinMax().update(np.float32([1, 2])).update(np.float32([np.nan, 0])).update(np.float32([3]))
    assert math.isnan(found.lo) and math.isnan(found.hi)


def edges_of(h: Histogram) -> np.ndarray:
    return np.ldexp(np.arange(-HALF, HALF + 1, dtype=np.float64), h.exponent - HALF_BITS)


def counted(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """np.histogram with half-open bins; NumPy closes its last bin, so that one gets a bin beyond it, which must stay
    empty."""
    counts, _ = np.histogram(x.astype(np.float64), np.append(edges, np.inf))
    assert counts[-1] == 0
    return counts[:-1]


@LAW
@given(st.lists(filled, min_size=1, max_size=4))
def test_histogram_counts_are_numpys_on_the_same_edges(xs: list[np.ndarray]) -> None:
    h = KINDS["Histogram"].of(xs)
    x = np.concatenate([x.reshape(-1) for x in xs])
    assert h.zeros == int((x == 0).sum())
    if h.zeros == x.size:
        assert h.counts[HALF] == h.counts.sum() == x.size
        return
    # a number that vanishes beside the peak of its sample may be counted on either side of zero
    vanishing = sum(int(((x != 0) & (np.abs(x) < np.abs(x).max() * 2.0**-100)).sum()) for x in xs)
    off = h.counts - counted(x, edges_of(h))
    assert not off[: HALF - 1].any() and not off[HALF + 1 :].any()
    assert off.sum() == 0 and abs(off[HALF]) <= vanishing


@LAW
@given(st.lists(filled, min_size=1, max_size=4))
def test_histogram_bins_are_as_fine_as_the_largest_magnitude_allows(xs: list[np.ndarray]) -> None:
    h = KINDS["Histogram"].of(xs)
    peak = max(float(np.abs(x).max()) for x in xs)
    if peak > 0:  # all of it lies inside, and half as wide a histogram would not hold it
        assert math.ldexp(1.0, h.exponent - 1) <= peak <= math.ldexp(1.0, h.exponent)


@pytest.mark.parametrize("peak", [1e-30, 1e-6, 0.01, 0.3])
def test_a_sample_of_zeros_does_not_coarsen_the_histogram(peak: float) -> None:
    x = np.linspace(0, peak, 1000, dtype=np.float32)
    h = Histogram().update(np.zeros(5, np.float32)).update(x)
    assert h.width <= peak / (HALF // 2)
    assert h.zeros == 6


@pytest.mark.parametrize("e", [-149, -126, -3, 0, 5, 127])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_power_of_two_is_counted_in_its_own_bin(e: int, sign: int) -> None:
    x = math.ldexp(sign, e)
    h = Histogram().update(np.float32([x]))
    (i,) = np.flatnonzero(h.counts)
    assert edges_of(h)[i] <= x < edges_of(h)[i + 1]


def test_the_centres_are_the_middles_of_the_edges() -> None:
    h = Histogram().update(np.float32([3.0]))
    edges = edges_of(h)
    assert np.array_equal(h.centres, (edges[1:] + edges[:-1]) / 2)


def test_statistics_see_every_extreme_but_count_a_subsample() -> None:
    x = np.zeros(100_000, np.float32)
    x[12_345], x[54_321] = 50, -7
    s = Statistics().update(x.reshape(10, 100, 100), 1000)
    assert (s.minmax.lo, s.minmax.hi) == (-7, 50)
    assert 900 <= s.histogram.counts.sum() <= 1100


@pytest.mark.parametrize("shape", [(64, 32, 32), (100, 100, 10), (7, 1024), (65536,)], ids=str)
def test_the_subsample_falls_on_every_channel(shape: tuple[int, ...]) -> None:
    last = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
    s = Statistics().update(last, 2048)
    # a mean over some 2000 of n equally frequent numbers; a step that is a multiple of the row would see a few only
    h = s.histogram
    mean = np.average(h.centres, weights=h.counts)
    assert mean == pytest.approx((shape[-1] - 1) / 2, rel=0.1)
    assert np.average((h.centres - mean) ** 2, weights=h.counts) ** 0.5 == pytest.approx(last.std(), rel=0.1)


def test_statistics_of_a_small_tensor_count_all_of_it() -> None:
    s = Statistics().update(np.ones((3, 5), np.float32), 4096)
    assert s.histogram.counts.sum() == 15


def test_a_tensor_without_elements_changes_nothing() -> None:
    assert Statistics().update(np.zeros((0, 4), np.float32), 10) == Statistics()


def test_the_sign_of_zero_does_not_depend_on_the_order() -> None:
    a, b = MinMax().update(np.float32([0.0])), MinMax().update(np.float32([-0.0]))
    assert repr(a.merge(b)) == repr(b.merge(a))
