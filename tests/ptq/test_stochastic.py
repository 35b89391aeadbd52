"""Stochastic rounding: right on average, one of two neighbours each time, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.ptq.stochastic import Wide, stochastic

LIMIT = 7


def problem(seed: int, groups: int = 2, out: int = 3, size: int = 5) -> tuple[Wide, Wide]:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((groups, out, size))
    return w, np.abs(w).max(2) / LIMIT


def test_the_expected_value_is_the_weight() -> None:
    w, scale = problem(0)
    seeds = 4000
    mean = sum(stochastic(w, scale, LIMIT, np.random.default_rng(seed)) for seed in range(seeds)) / seeds
    for at in np.ndindex(*w.shape):
        unit = w[at] / scale[at[:2]]
        share = unit - math.floor(unit)
        deviation = scale[at[:2]] * math.sqrt(share * (1 - share) / seeds)
        assert abs(mean[at] - w[at]) <= 5 * deviation + 1e-9


def test_up_comes_as_often_as_the_fraction_says() -> None:
    w = np.full((1, 1, 100_000), 2.3)
    found = stochastic(w, np.ones((1, 1)), LIMIT, np.random.default_rng(1))
    assert set(np.unique(found)) == {2.0, 3.0}
    assert abs((found == 3).mean() - 0.3) < 0.01


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 2))
def test_each_weight_is_one_of_its_neighbours_within_the_grid(seed: int, share: float) -> None:
    w, scale = problem(seed)
    scale = scale * share
    found = stochastic(w, scale, LIMIT, np.random.default_rng(seed))
    for at in np.ndindex(*w.shape):
        unit = w[at] / scale[at[:2]]
        allowed = [scale[at[:2]] * min(max(q, -LIMIT), LIMIT) for q in (math.floor(unit), math.floor(unit) + 1)]
        assert min(abs(found[at] - v) for v in allowed) < 1e-12


def test_integers_stay_as_they_are() -> None:
    w = np.arange(-LIMIT, LIMIT + 1.0)[None, None]
    assert np.array_equal(stochastic(w, np.ones((1, 1)), LIMIT, np.random.default_rng(0)), w)


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    w, scale = problem(3, size=40)
    first, again, other = (stochastic(w, scale, LIMIT, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
