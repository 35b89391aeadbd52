"""Weights fitted to what layers read in integers: the regression against its definition, and what comes of it in a
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgeopt.errors import DataError
from edgeopt.graph.ops import bias_of, channel_axis, weight_of
from edgeopt.hardware import target as targets
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.ptq.moments import gather, layers
from edgeopt.ptq.reconstruct import ROUNDERS, reconstructed
from edgeopt.ptq.refit import Joint, fitted, refitted
from edgeopt.runtime.session import Feed
from tests import tiny
from tests.models import normal
from tests.ptq.test_reconstruct import MODEL, NAMES
from tests.static import static

TARGET = targets.load("cpu-x86-vnni")
GROUPS, OUT, IN = 2, 3, 5
W = normal(GROUPS, OUT, IN).astype(np.float64)


def mixed(seed: int, n: int) -> np.ndarray:
    """Columns [n, groups, in] that go together."""
    return np.einsum("ngi,gij->ngj", normal(n, GROUPS, IN, seed=seed), normal(GROUPS, IN, IN, seed=99)) + np.float32(1)


def of(lose: Callable[[np.ndarray], np.ndarray], n: int = 400) -> tuple[Joint, Joint]:
    """Moments of two halves of columns x that read x - lose(x)."""
    columns = [mixed(seed, n) for seed in (0, 1)]
    return Joint.of(columns[0] - lose(columns[0]), columns[0]), Joint.of(columns[1] - lose(columns[1]), columns[1])


def test_moments_are_sums_over_columns_one_by_one_and_add() -> None:
    x, y = mixed(0, 7), mixed(1, 7)
    found, parts = Joint.of(x, y), [Joint.of(x[i : i + 1], y[i : i + 1]) for i in range(7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for g, i, j in np.ndindex(GROUPS, IN, IN):
        lost = [float(y[n, g, i] - x[n, g, i]) for n in range(7)]
        want = sum(lost[n] * float(x[n, g, j]) for n in range(7))
        assert found.g[g, i, j] == pytest.approx(want, rel=1e-4, abs=1e-4)
        assert found.h[g, i, j] == pytest.approx(
            sum(float(x[n, g, i] * x[n, g, j]) for n in range(7)), rel=1e-4, abs=1e-4
        )
        assert found.d[g, i] == pytest.approx(sum(lost), rel=1e-4, abs=1e-4)
    for name in ("h", "g", "x", "d"):
        np.testing.assert_allclose(getattr(merged, name), getattr(found, name), rtol=1e-4, atol=1e-4)
    assert merged.count == found.count == 7


@pytest.mark.parametrize("centred", [False, True])
def test_means_are_those_of_the_columns_or_of_their_distance_from_the_mean(centred: bool) -> None:
    x, y = mixed(0, 50), mixed(1, 50)
    h, g = Joint.of(x, y).means(centred)
    a, d = x.astype(np.float64), (y - x).astype(np.float64)
    if centred:
        a, d = a - a.mean(0), d - d.mean(0)
    np.testing.assert_allclose(h, np.einsum("ngi,ngj->gij", a, a) / 50, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(g, np.einsum("ngi,ngj->gij", d, a) / 50, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_what_inputs_lose_linearly_is_made_good(centred: bool) -> None:
    def gives(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.einsum("goi,ngi->ngo", weights, x)

    def lose(x: np.ndarray) -> np.ndarray:
        return np.asarray(0.2 * x - np.float32(0.1) * np.roll(x, 1, axis=2))

    found, x = fitted(W, of(lose), centred), mixed(2, 400)  # other columns
    reads, want = x - lose(x), gives(x, W)
    errors = [want - gives(reads, weights) for weights in (W, found)]
    before, after = (np.square(e - centred * e.mean(0)).sum() for e in errors)
    assert after < 0.01 * before


def test_what_nothing_is_lost_of_stays_to_the_bit() -> None:
    assert fitted(W, of(np.zeros_like), centred=True) is W


def test_noise_is_not_learned_by_heart() -> None:
    rng = np.random.default_rng(5)

    def lose(x: np.ndarray) -> np.ndarray:
        return np.asarray(0.3 * rng.standard_normal(x.shape), np.float32)

    plain = [j.means(True) for j in of(lose, n=8)]  # as many columns as weights, nearly
    halves = of(lose, n=8)
    moved = np.abs(fitted(W, halves, True) - W).max()
    h, g = plain[0]
    by_heart = np.abs(W @ g @ np.linalg.inv(h + 1e-6 * np.eye(IN))).max()
    assert moved < 0.2 * by_heart


def test_the_change_is_the_ridge_regression_of_both_halves() -> None:
    def lose(x: np.ndarray) -> np.ndarray:
        return np.asarray(0.1 * np.roll(x, 1, axis=2))

    halves = of(lose)
    change = fitted(W, halves, True) - W
    h, g = halves[0].merge(halves[1]).means(True)
    mean = np.einsum("gii->gi", h).mean(1)
    wanted = [
        np.stack([np.linalg.solve((h[k] + 4.0**e * mean[k] * np.eye(IN)).T, (W[k] @ g[k]).T).T for k in range(GROUPS)])
        for e in range(-3, 7)
    ]
    assert min(np.abs(change - w).max() for w in wanted) < 1e-9


def test_dead_inputs_and_few_columns_give_numbers() -> None:
    x = mixed(0, 3)
    x[:, :, 0] = 0
    x[:, 1] = 0
    halves = Joint.of(x, x * np.float32(1.1)), Joint.of(x * 2, x * np.float32(2.2))
    assert np.isfinite(fitted(W, halves, True)).all() and np.isfinite(fitted(W, halves, False)).all()


# in a model

FEEDS: list[Feed] = tiny.feeds(24, x=(2, 4, 6, 6))
READ = [(str(i), lambda feed=feed: feed) for i, feed in enumerate(FEEDS)]


def test_what_one_layer_rounds_away_the_next_one_makes_good() -> None:
    model = tiny.model(
        "g (float[N,8] x) => (float[N,4] y) { [first] h = MatMul(x, a)  [second] y = MatMul(h, b) }",
        a=normal(8, 8) + 3 * np.eye(8, dtype=np.float32),
        b=normal(8, 4, seed=1),
    )
    feeds = tiny.feeds(48, x=(16, 8))
    made = static(model, feeds, TARGET)
    first = made.params["a"]
    params = {**made.params, "a": replace(first, scale=first.scale * np.float32(16))}  # 4 bits
    read = [(str(i), lambda feed=feed: feed) for i, feed in enumerate(feeds[:32])]
    nodes = layers(made.model, made.plan.integer)
    alone = reconstructed(made.model, params, gather(made.model, nodes, read), TARGET)
    together = refitted(made.model, nodes, made.plan, params, read, TARGET)
    want = np.concatenate([tiny.run(made.model, f)[0] for f in feeds[32:]])
    found = [
        np.concatenate([tiny.run(fold_weights(insert_qdq(m, made.plan, params)), f)[0] for f in feeds[32:]])
        for m in (alone, together)
    ]
    assert tiny.sqnr_db(want, found[1]) > tiny.sqnr_db(want, found[0]) + 6


@pytest.mark.parametrize("rounding", ROUNDERS)
@pytest.mark.parametrize("name", ["cpu-x86-avx2", "cpu-x86-vnni"])
def test_weights_are_on_their_grids_and_the_float_model_is_left_alone(rounding: str, name: str) -> None:
    target = targets.load(name)
    made = static(MODEL, FEEDS[:6], target)
    before = tiny.frozen(made.model)
    nodes, seen = layers(made.model, made.plan.integer), list[tuple[int, int]]()
    done = refitted(
        made.model, nodes, made.plan, made.params, READ[:6], target, rounding, lambda a, b: seen.append((a, b))
    )
    assert tiny.frozen(made.model) == before and seen == [(i + 1, len(NAMES)) for i in range(len(NAMES))]
    for node in done.graph:
        weight, bias = weight_of(node), bias_of(node)
        if node.name not in NAMES or weight is None or weight.const_value is None:
            continue
        scale = made.params[str(weight.name)].scale.astype(np.float64)
        w = np.moveaxis(weight.const_value.numpy().astype(np.float64), channel_axis(node), 0)
        q = w.reshape(len(scale), -1) / scale[:, None]
        np.testing.assert_allclose(q, np.rint(q), atol=1e-3)
        assert np.abs(np.rint(q)).max() <= 127
        if bias is not None and bias.const_value is not None:
            assert np.isfinite(bias.const_value.numpy()).all()


def test_the_same_samples_give_the_same_bytes_and_unreadable_ones_are_passed_over() -> None:
    made = static(MODEL, FEEDS[:6], TARGET)
    nodes = layers(made.model, made.plan.integer)

    def broken() -> Feed:
        raise DataError("no picture")

    def run(samples: list[tuple[str, Callable[[], Feed]]]) -> bytes:
        return tiny.frozen(refitted(made.model, nodes, made.plan, made.params, samples, TARGET))

    assert run(READ[:6]) == run(READ[:6]) != run([*READ[:5], ("broken", broken)])
    assert run([]) == run(READ[:1]) == tiny.frozen(made.model)  # no two halves: nothing to learn from
