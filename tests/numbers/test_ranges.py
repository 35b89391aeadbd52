"""Range rules against the true error of the grids they lead to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeopt.numbers.grid import INT8_WEIGHT, UINT8, QType, choose, fake_quantize
from edgeopt.numbers.observers import Statistics
from edgeopt.numbers.ranges import RANGES, entropy, minmax, mse, percentile

LAW = settings(max_examples=60, deadline=None, derandomize=True)
UINT4 = QType("uint4", 0, 15, symmetric=False)
every_rule = pytest.mark.parametrize("rule", RANGES.values(), ids=RANGES)


def seen(*xs: np.ndarray) -> Statistics:
    """Statistics of all elements of `xs`, one sample each."""
    total = Statistics()
    for x in xs:
        total = total.update(x, x.size)
    return total


def squared_error(x: np.ndarray, lo: float, hi: float, qtype: QType) -> float:
    return float(np.square(fake_quantize(x, choose(lo, hi, qtype)) - x, dtype=np.float64).mean())


def with_outliers(kind: str) -> np.ndarray:
    """float32 [8192], most of it near zero."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(8192).astype(np.float32)
    if kind == "heavy tails":
        return rng.standard_t(2.2, 8192).astype(np.float32)
    if kind == "one end":
        x[:4] = [30, 25, 40, 38]
    if kind == "both ends":
        x[:4] = [30, -25, 40, -38]
    if kind == "after Relu":
        x = np.maximum(x, 0)
        x[:3] = [40, 33, 35]
    if kind == "negative":
        x = -np.maximum(x, 0)
        x[:3] = [-40, -33, -35]
    return x


OUTLIERS = ["heavy tails", "one end", "both ends", "after Relu", "negative"]


# in 4 bits the heavy tails leave all but a few elements in one step, where rounding is no uniform noise
CASES = [
    (kind, qtype)
    for kind in OUTLIERS
    for qtype in (UINT8, INT8_WEIGHT, UINT4)
    if (kind, qtype) != ("heavy tails", UINT4)
]
every_case = pytest.mark.parametrize(("kind", "qtype"), CASES, ids=lambda v: getattr(v, "dtype", v))


@every_case
def test_mse_is_no_worse_than_minmax_in_true_error(kind: str, qtype: QType) -> None:
    x = with_outliers(kind)
    s = seen(x)
    # the rule knows elements to within a bin and takes rounding for uniform noise, which is good to a few percent of
    # the error
    assert squared_error(x, *mse(s, qtype), qtype) <= 1.03 * squared_error(x, *minmax(s, qtype), qtype)


@pytest.mark.parametrize("kind", ["one end", "both ends", "after Relu", "negative"])
def test_mse_clips_rare_outliers_of_a_coarse_grid(kind: str) -> None:
    x = with_outliers(kind)
    s = seen(x)
    assert squared_error(x, *mse(s, UINT4), UINT4) < 0.8 * squared_error(x, *minmax(s, UINT4), UINT4)


def test_mse_is_no_worse_than_minmax_when_a_far_outlier_leaves_the_rest_in_one_step() -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    x[0] = 3000
    s = seen(x)
    assert squared_error(x, *mse(s, UINT8), UINT8) <= 1.03 * squared_error(x, *minmax(s, UINT8), UINT8)


@every_case
def test_mse_is_nearly_as_good_as_a_search_over_true_errors(kind: str, qtype: QType) -> None:
    x = with_outliers(kind)
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shrink = np.linspace(1, 0.2, 41)
    pairs = (
        [(a, a) for a in shrink]
        if qtype.symmetric
        else [(a, b) for a in (shrink if lo else [1.0]) for b in (shrink if hi else [1.0])]
    )
    if qtype.symmetric:
        lo, hi = -max(-lo, hi), max(-lo, hi)
    best = min(squared_error(x, lo * a, hi * b, qtype) for a, b in pairs)
    # 5 %: the search sees the rounding of these very elements, the rule its expectation
    assert squared_error(x, *mse(seen(x), qtype), qtype) <= 1.05 * best


@pytest.mark.parametrize("kind", OUTLIERS)
def test_mse_does_not_change_when_a_sample_of_zeros_joins(kind: str) -> None:
    x = with_outliers(kind) * np.float32(1e-4)
    assert mse(seen(x, np.zeros(10, np.float32)), UINT4) == mse(seen(x), UINT4)


@pytest.mark.parametrize("sign", [1, -1])
def test_mse_lets_exact_zeros_cost_nothing(sign: int) -> None:
    x = with_outliers("after Relu") * np.float32(sign)
    many = np.concatenate([x, np.zeros(10 * x.size, np.float32)])
    # zero is on every grid, so that more of them move no end; a candidate step, 0.8 % of the range, covers ties in
    # rounding
    for a, b in zip(mse(seen(many), UINT4), mse(seen(x), UINT4), strict=True):
        assert a == pytest.approx(b, rel=0.02)


def test_minmax_is_every_element() -> None:
    assert minmax(seen(np.float32([3, 5]), np.float32([-2, 4])), UINT8) == (-2.0, 5.0)


def test_percentile_leaves_out_at_most_the_stated_share_at_each_end() -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    lo, hi = percentile(seen(x), UINT8)
    inner = np.quantile(x.astype(np.float64), [1e-5, 1 - 1e-5])
    width = seen(x).histogram.width
    assert inner[0] - 2 * width <= lo <= inner[0] + 2 * width  # the ends are edges of bins
    assert inner[1] - 2 * width <= hi <= inner[1] + 2 * width
    assert float((x < lo).mean()) <= 1e-5 and float((x > hi).mean()) <= 1e-5


def test_percentile_drops_a_lone_outlier_of_many() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)
    x[7] = 1000
    lo, hi = percentile(seen(x), UINT8)
    assert hi < 2 and lo >= -1


def test_percentile_of_few_elements_is_minmax() -> None:
    s = seen(np.float32([-1.5, 0.25, 3.0]))
    assert percentile(s, UINT8) == (-1.5, 3.0)


@LAW
@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)))
def test_entropy_lies_inside_the_extremes_and_zero(x: np.ndarray) -> None:
    lo, hi = entropy(seen(x), UINT8)
    assert min(0.0, float(x.min())) <= lo <= 0 <= hi <= max(0.0, float(x.max()))


def test_entropy_clips_a_far_outlier() -> None:
    x = with_outliers("after Relu")
    assert entropy(seen(x), UINT8)[1] < 0.9 * float(x.max())


def test_entropy_keeps_the_whole_of_a_flat_distribution() -> None:
    x = np.linspace(0, 1, 100_000, dtype=np.float32)
    assert entropy(seen(x), UINT8)[1] >= 0.95


@every_rule
@LAW
@given(x=arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
@pytest.mark.parametrize("qtype", [UINT8, INT8_WEIGHT], ids=lambda t: t.dtype)
def test_every_rule_gives_an_interval_that_a_grid_with_zero_can_take(rule, x: np.ndarray, qtype: QType) -> None:
    lo, hi = rule(seen(x), qtype)
    assert np.isfinite(lo) and np.isfinite(hi) and lo <= hi
    p = choose(lo, hi, qtype)
    assert np.isfinite(p.scale) and p.scale > 0
    assert fake_quantize(np.zeros(1, np.float32), p) == 0


@every_rule
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-20, -(2.0**20)])
def test_every_rule_represents_a_constant_tensor(rule, value: float) -> None:
    x = np.full(100, value, np.float32)
    p = choose(*rule(seen(x), UINT8), UINT8)
    # a rule knows a value to within a bin, 2^-11 of it; a step is 1/255
    assert abs(fake_quantize(x, p)[0] - value) <= abs(value) / 255


@every_rule
def test_every_rule_depends_on_the_statistics_alone(rule) -> None:
    x, y = with_outliers("one end"), with_outliers("negative")
    assert rule(seen(x, y), UINT8) == rule(seen(y).merge(seen(x)), UINT8)


def test_a_grid_of_16_bits_clips_nothing_that_was_seen() -> None:
    x = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    statistics = Statistics().update(x, 1024)  # of which the histogram has some only
    wide = QType("uint16", 0, 65535, symmetric=False)
    assert mse(statistics, wide) == minmax(statistics, wide) == (x.min(), x.max())
    assert squared_error(x, *mse(statistics, wide), wide) < 1e-6 * float((x**2).sum())
