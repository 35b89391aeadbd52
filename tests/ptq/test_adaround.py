"""AdaRound against every choice of up and down, and its gradient against differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.ptq.adaround import _inverse, _pull, _soft, adaround
from tests.ptq.test_gptq import LIMIT, SINGULAR, Wide, problem


def nearest(w: Wide, scale: Wide) -> Wide:
    return scale[:, :, None] * np.clip(np.rint(w / scale[:, :, None]), -LIMIT, LIMIT)


def loss(w: Wide, q: Wide, h: Wide) -> float:
    """(w - q) H (w - q)^T of one row, written out."""
    total = 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            total += (w[i] - q[i]) * h[i, j] * (w[j] - q[j])
    return total


def best(w: Wide, h: Wide, scale: float) -> float:
    """The smallest loss of one row over every choice of up and down within the grid."""
    low = np.floor(w / scale)
    choices = itertools.product((0, 1), repeat=len(w))
    return min(loss(w, scale * np.clip(low + np.array(up), -LIMIT, LIMIT), h) for up in choices)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 20), st.floats(0.4, 1.2))
def test_the_result_is_on_the_grid_and_no_output_is_further_off_than_the_nearest(
    seed: int, groups: int, size: int, share: float
) -> None:
    w, h, scale = problem(groups, 6, size, seed)
    scale = scale * share  # below 1 the peak of each row is beyond the end of the grid
    found = adaround(w, h, scale, LIMIT, steps=60)
    q = found / scale[:, :, None]
    np.testing.assert_allclose(q, np.rint(q), atol=1e-9)
    assert np.abs(q).max() <= LIMIT + 1e-9
    for g, o in np.ndindex(groups, 6):
        plain = nearest(w, scale)[g, o]
        d = np.abs(w[g, o] - plain)
        noise = 1e-5 * loss(d, np.zeros(size), np.abs(h[g]))  # of float32 sums that cancel
        assert loss(w[g, o], found[g, o], h[g]) <= loss(w[g, o], plain, h[g]) + noise


@pytest.mark.parametrize("seed", range(4))
def test_every_weight_goes_to_one_of_its_two_neighbours(seed: int) -> None:
    w, h, scale = problem(2, 5, 12, seed)
    q, unit = adaround(w, h, scale, LIMIT, steps=200) / scale[:, :, None], w / scale[:, :, None]
    assert np.abs(q - unit).max() < 1 + 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_it_ends_near_the_best_of_all_choices_and_far_below_the_nearest(seed: int) -> None:
    w, h, scale = problem(1, 16, 8, seed)
    found = adaround(w, h, scale, LIMIT)
    plain = nearest(w, scale)
    mine = sum(loss(w[0, o], found[0, o], h[0]) for o in range(16))
    rounded = sum(loss(w[0, o], plain[0, o], h[0]) for o in range(16))
    least = sum(best(w[0, o], h[0], scale[0, o]) for o in range(16))
    assert least <= mine + 1e-9
    assert mine <= 2 * least
    assert mine < 0.75 * rounded


def test_with_inputs_that_have_nothing_to_do_with_each_other_it_is_rounding() -> None:
    w, _, scale = problem(1, 4, 12, seed=1)
    h = np.diag(np.linspace(1.0, 2.0, 12))[None]
    np.testing.assert_allclose(adaround(w, h, scale, LIMIT), nearest(w, scale), atol=1e-12)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_data_does_not_matter(size: float) -> None:
    w, h, scale = problem(2, 4, 10, seed=6)
    same = adaround(w, h * 4.0 * size, scale, LIMIT) == adaround(w, h * 1.0 * size, scale, LIMIT)
    assert same.all()


@pytest.mark.parametrize("h", SINGULAR.values(), ids=SINGULAR)
def test_a_singular_h_is_no_obstacle(h: Wide) -> None:
    w, _, scale = problem(1, 3, 6, seed=4)
    found = adaround(w, h, scale, LIMIT, steps=100)
    assert np.isfinite(found).all() and np.abs(found / scale[:, :, None]).max() <= LIMIT + 1e-9


def test_groups_do_not_see_each_other() -> None:
    w, h, scale = problem(3, 4, 6, seed=8)
    level = np.einsum("gii->gi", h).mean(1)
    h = h / level[:, None, None]  # H is measured by its mean over a group
    together = adaround(w, h, scale, LIMIT)
    alone = np.concatenate([adaround(w[g : g + 1], h[g : g + 1], scale[g : g + 1], LIMIT) for g in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-9)


def test_arguments_are_left_alone_and_the_same_input_gives_the_same_bits() -> None:
    w, h, scale = problem(2, 3, 5, seed=9)
    before = [x.copy() for x in (w, h, scale)]
    first = adaround(w, h, scale, LIMIT)
    assert all(np.array_equal(x, y) for x, y in zip((w, h, scale), before, strict=True))
    assert np.array_equal(first, adaround(w, h, scale, LIMIT))


@pytest.mark.parametrize("beta", [2.0, 5.0, 20.0])
def test_the_pull_is_the_derivative_of_the_regularizer(beta: float) -> None:
    def regularizer(x: float) -> float:
        return 1 - abs(2 * x - 1) ** beta

    step = 1e-6
    for share in (0.02, 0.2, 0.45, 0.55, 0.8, 0.98):
        want = (regularizer(share + step) - regularizer(share - step)) / (2 * step)
        found = _pull(np.float32([share]), np.float32(beta))[0]
        assert found == pytest.approx(want, rel=1e-3, abs=1e-5)


@given(st.floats(0, 1))
def test_v_starts_where_h_is_the_fraction(share: float) -> None:
    assert _soft(_inverse(np.float32([share])))[0] == pytest.approx(share, abs=1e-5)
