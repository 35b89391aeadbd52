"""The clipped scale against every candidate tried one by one in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.ptq.clipping import SHARES, Wide, clipped_scale

LIMIT = 7


def lost(w: Wide, power: Wide, s: float) -> float:
    """sum_i power_i (w_i - Q(w_i; s))^2 of one row."""
    total = 0.0
    for i in range(len(w)):
        q = min(max(round(w[i] / s), -LIMIT), LIMIT) * s  # round: half to even, as NumPy's
        total += power[i] * (w[i] - q) ** 2
    return total


def naive(w: Wide, power: Wide, scale: float, floor: float) -> float:
    """The first candidate that loses least."""
    candidates = [max(share * scale, min(floor, scale)) for share in (1 - i / 40 for i in range(21))]
    return min(candidates, key=lambda s: lost(w, power, s))


def problem(seed: int, groups: int, out: int, size: int) -> tuple[Wide, Wide, Wide]:
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, (groups, out, size))
    return w, rng.random((groups, size)) ** 3, np.abs(w).max(2) / LIMIT


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.floats(0, 1.5))
def test_the_scale_is_the_one_that_brute_force_finds(seed: int, groups: int, out: int, size: int, low: float) -> None:
    w, power, scale = problem(seed, groups, out, size)
    floor = low * scale
    found = clipped_scale(w, power, scale, LIMIT, floor)
    for g, o in np.ndindex(groups, out):
        want = naive(w[g, o], power[g], scale[g, o], floor[g, o])
        # two candidates may lose the same up to the order of a sum
        assert lost(w[g, o], power[g], found[g, o]) == pytest.approx(lost(w[g, o], power[g], want), rel=1e-9, abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_no_scale_is_above_the_peak_s_nor_below_half_of_it_nor_below_the_floor(seed: int, low: float) -> None:
    w, power, scale = problem(seed, 2, 5, 9)
    floor = low * scale
    found = clipped_scale(w, power, scale, LIMIT, floor)
    assert (found <= scale).all()
    assert (found >= SHARES[-1] * scale - 1e-15).all()
    assert (found >= np.minimum(floor, scale) - 1e-15).all()
    for g, o in np.ndindex(2, 5):
        assert lost(w[g, o], power[g], found[g, o]) <= lost(w[g, o], power[g], scale[g, o]) + 1e-15


def test_an_outlier_that_nothing_reads_is_clipped() -> None:
    w = np.array([[[10.0, *np.linspace(-3, 3, 50)]]])
    scale, no_floor = np.abs(w).max(2) / LIMIT, np.zeros((1, 1))
    unread, read = np.ones((1, 51)), np.ones((1, 51))
    unread[0, 0], read[0, 0] = 0, 1e6
    assert clipped_scale(w, unread, scale, LIMIT, no_floor)[0, 0] < 0.6 * scale[0, 0]
    assert clipped_scale(w, read, scale, LIMIT, no_floor)[0, 0] == scale[0, 0]


@pytest.mark.parametrize("power", [0.0, np.nan], ids=["dead inputs", "no numbers"])
def test_where_there_is_nothing_to_choose_by_the_scale_stays(power: float) -> None:
    w, _, scale = problem(3, 2, 4, 6)
    found = clipped_scale(w, np.full((2, 6), power), scale, LIMIT, np.zeros_like(scale))
    assert np.array_equal(found, scale)


def test_arguments_are_left_alone() -> None:
    w, power, scale = problem(4, 2, 3, 5)
    before = [x.copy() for x in (w, power, scale)]
    clipped_scale(w, power, scale, LIMIT, np.zeros_like(scale))
    assert all(np.array_equal(x, y) for x, y in zip((w, power, scale), before, strict=True))
