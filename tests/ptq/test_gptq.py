"""GPTQ against its definition, and what makes it worth having."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.ptq.gptq import Wide, gptq

LIMIT = 7


def problem(groups: int, out: int, size: int, seed: int) -> tuple[Wide, Wide, Wide]:
    """Weights, a correlated H and scales."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 4 * size + 8, size)) @ rng.standard_normal((groups, size, size))
    w = rng.standard_normal((groups, out, size))
    return w, np.swapaxes(x, 1, 2) @ x / x.shape[1], np.abs(w).max(2) / LIMIT


def naive(w: Wide, h: Wide, scale: Wide) -> Wide:
    """One group, column by column, with the inverse of H written out (Frantar et al. 2022, algorithm 1 without
    blocks), or the nearest integers where they are nearer to the outputs.
    """
    size = len(h)
    h = h + np.eye(size) * 0.01 * np.diag(h).mean()
    order = np.argsort(-np.diag(h), kind="stable")
    left, upper = w[:, order].copy(), np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    q = np.zeros_like(left)
    for i in range(size):
        q[:, i] = scale * np.clip(np.rint(left[:, i] / scale), -LIMIT, LIMIT)
        left[:, i + 1 :] -= np.outer((left[:, i] - q[:, i]) / upper[i, i], upper[i, i + 1 :])
    found = np.zeros_like(q)
    found[:, order] = q
    nearest = scale[:, None] * np.clip(np.rint(w / scale[:, None]), -LIMIT, LIMIT)
    behind = [np.einsum("oi,ij,oj->o", w - v, h, w - v) for v in (found, nearest)]
    return np.where((behind[0] > behind[1])[:, None], nearest, found)


def error(w: Wide, q: Wide, h: Wide) -> float:
    """E |w x - q x|^2."""
    return float(np.einsum("goi,gij,goj->", w - q, h, w - q))


@pytest.mark.parametrize(("groups", "out", "size"), [(1, 5, 20), (1, 3, 150), (6, 1, 9), (4, 2, 1)])
def test_blocks_and_groups_give_what_the_definition_gives(groups: int, out: int, size: int) -> None:
    w, h, scale = problem(groups, out, size, seed=3)
    found = gptq(w, h, scale, LIMIT)
    want = np.stack([naive(w[g], h[g], scale[g]) for g in range(groups)])
    # an integer may fall to the other side where two sums in another order differ in the last bit; it does not here
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 40))
def test_the_result_is_on_the_grid_and_no_further_off_than_rounding(seed: int, groups: int, size: int) -> None:
    w, h, scale = problem(groups, 16, size, seed)
    found = gptq(w, h, scale, LIMIT)
    q = found / scale[:, :, None]
    np.testing.assert_allclose(q, np.rint(q), atol=1e-9)
    assert np.abs(q).max() <= LIMIT + 1e-9
    nearest = scale[:, :, None] * np.clip(np.rint(w / scale[:, :, None]), -LIMIT, LIMIT)
    damped = h + np.eye(size) * 0.01 * np.einsum("gii->gi", h).mean(1)[:, None, None]
    assert error(w, found, damped) <= error(w, nearest, damped) * (1 + 1e-12)


def test_with_inputs_that_have_nothing_to_do_with_each_other_it_is_rounding() -> None:
    w, _, scale = problem(1, 4, 12, seed=1)
    h = np.diag(np.arange(1.0, 13.0))[None]
    nearest = scale[:, :, None] * np.rint(w / scale[:, :, None])
    np.testing.assert_allclose(gptq(w, h, scale, LIMIT), nearest, atol=1e-12)


def test_correlated_inputs_make_errors_good() -> None:
    w, h, scale = problem(1, 32, 40, seed=2)
    nearest = scale[:, :, None] * np.rint(w / scale[:, :, None])
    assert error(w, gptq(w, h, scale, LIMIT), h) < 0.6 * error(w, nearest, h)


def test_inputs_in_blocks_may_have_scales_of_their_own() -> None:
    w, h, _ = problem(1, 5, 64, seed=6)
    blocks = w.reshape(1, 5, 4, 16)
    scale = np.repeat(np.abs(blocks).max(3) / -8.0, 16, axis=2)  # of -8 to 7, the end of which the peak takes
    found = gptq(w, h, scale, 7, -8)
    q = found / scale
    np.testing.assert_allclose(q, np.rint(q), atol=1e-9)
    assert q.max() <= 7 + 1e-9 and q.min() >= -8 - 1e-9
    nearest = scale * np.clip(np.rint(w / scale), -8, 7)
    assert error(w, found, h) < 0.8 * error(w, nearest, h)
    alike = np.abs(w).max(2) / LIMIT
    each = np.broadcast_to(alike[:, :, None], w.shape)
    np.testing.assert_array_equal(gptq(w, h, each, LIMIT), gptq(w, h, alike, LIMIT))


SINGULAR = {
    "zero": np.zeros((1, 6, 6)),
    "of rank one": np.ones((1, 6, 6)),
    "with dead inputs": np.diag([1.0, 0, 2, 0, 0, 3])[None],
    "indefinite by more than the damping": np.diag([1.0, 1, 1, 1, 1, 1])[None] - 0.3 * np.ones((1, 6, 6)),
}


@pytest.mark.parametrize("h", SINGULAR.values(), ids=SINGULAR)
def test_a_singular_h_is_no_obstacle(h: Wide) -> None:
    w, _, scale = problem(1, 3, 6, seed=4)
    found = gptq(w, h, scale, LIMIT)
    assert np.isfinite(found).all() and np.abs(found / scale[:, :, None]).max() <= LIMIT + 1e-9
