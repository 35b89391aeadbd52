"""Roundings and clipped scales as layers get them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeopt.graph.ops import activations, bias_of, channel_axis, weight_of
from edgeopt.hardware import target as targets
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import QParams
from edgeopt.ptq.grids import bias_params, scale_floor
from edgeopt.ptq.moments import LayerMoments, gather, layers, rows
from edgeopt.ptq.reconstruct import ROUNDERS, clipped, reconstructed
from edgeopt.runtime.session import Feed
from tests import tiny
from tests.models import normal
from tests.ptq.test_gptq import LIMIT, problem
from tests.static import Static, static

TEXT = """g (float[N,4,6,6] x) => (float[N,5] y) {
    [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(a)
    [deep] d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, dw, db)
    [apart] o = Conv <group = 4, pads = [1, 1, 1, 1]> (d, ow)
    [bare] e = Conv (o, k)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    [head] y = Gemm(f, m, mb)
}"""
HEAVY = normal(8, 4, 3, 3)
HEAVY[:, 0] *= 5  # what reads the silent channel of the samples
MODEL = tiny.model(
    TEXT,
    w=HEAVY,
    b=normal(8),
    dw=normal(8, 1, 3, 3, seed=1),
    db=normal(8, seed=2),
    ow=normal(4, 2, 3, 3, seed=6),
    k=normal(6, 4, 1, 1, seed=3),
    m=normal(6, 5, seed=4),
    mb=normal(5, seed=5),
)
FEEDS: list[Feed] = [{"x": f["x"] * np.float32([0.001, 1, 1, 1])[:, None, None]} for f in tiny.feeds(6, x=(2, 4, 6, 6))]
NAMES = ("wide", "deep", "apart", "bare", "head")
BOTH = pytest.mark.parametrize("name", ["cpu-x86-avx2", "cpu-x86-vnni"])


def found_for(target: Target) -> tuple[Static, dict[str, LayerMoments]]:
    made = static(MODEL, FEEDS, target)
    read = [(str(i), lambda feed=feed: feed) for i, feed in enumerate(FEEDS)]
    return made, gather(made.model, layers(made.model, made.plan.integer), read)


@BOTH
def test_a_clipped_scale_is_the_best_of_brute_force_above_the_floor_of_the_target(name: str) -> None:
    target = targets.load(name)
    made, moments = found_for(target)
    found = clipped(made.model, made.params, moments, target)
    for node in made.model.graph:
        weight = weight_of(node)
        if node.name not in moments or weight is None or weight.const_value is None:
            continue
        w, m, grid = rows(node).astype(np.float64), moments[str(node.name)], made.params[str(weight.name)]
        scale_x = made.params[str(activations(node)[0][1].name)].scale
        floor = scale_floor(node, weight.const_value.numpy(), channel_axis(node), scale_x, target)
        for g, o in np.ndindex(*w.shape[:2]):
            c = g * w.shape[1] + o
            power = np.array([m.h[g, i, i] / m.count for i in range(w.shape[2])])
            want = naive(w[g, o], power, float(grid.scale[c]), float(floor[c]))
            assert found[str(weight.name)].scale[c] == pytest.approx(want, rel=1e-6)
        bias = bias_of(node)
        if bias is not None:
            again = bias_params(scale_x, found[str(weight.name)])
            assert np.array_equal(found[str(bias.name)].scale, again.scale)


def test_large_weights_that_read_next_to_nothing_are_clipped() -> None:
    target = targets.load("cpu-x86-vnni")  # where pairs saturate, scales cannot fall
    made, moments = found_for(target)
    found = clipped(made.model, made.params, moments, target)
    assert (found["w"].scale < 0.8 * made.params["w"].scale).all()


def naive(w: np.ndarray, power: np.ndarray, scale: float, floor: float, limit: int = 127) -> float:
    """The largest candidate that loses least, tried one by one."""
    best, at = np.inf, scale
    for i in range(21):
        s = max((1 - i / 40) * scale, min(floor, scale))
        error = sum(p * (v - min(max(round(v / s), -limit), limit) * s) ** 2 for p, v in zip(power, w, strict=True))
        if error < best * (1 - 1e-12):
            best, at = error, s
    return at


@BOTH
def test_clipping_touches_grids_of_weights_and_biases_only_and_leaves_its_arguments_alone(name: str) -> None:
    target = targets.load(name)
    made, moments = found_for(target)
    before: dict[str, QParams] = {k: replace(v) for k, v in made.params.items()}
    found = clipped(made.model, made.params, moments, target)
    constants = set(tiny.weights_of(made.model))
    assert found.keys() == made.params.keys()
    for key, grid in made.params.items():
        assert np.array_equal(grid.scale, before[key].scale)
        if key not in constants:
            assert found[key] is grid
        assert found[key].scale.dtype == grid.scale.dtype and found[key].scale.shape == grid.scale.shape


@pytest.mark.parametrize("rounding", ROUNDERS)
@BOTH
def test_every_rounding_gives_weights_on_their_grids_that_the_target_can_add(rounding: str, name: str) -> None:
    target = targets.load(name)
    made, moments = found_for(target)
    before = tiny.frozen(made.model)
    params = clipped(made.model, made.params, moments, target)
    done = reconstructed(made.model, params, moments, target, rounding)
    assert tiny.frozen(made.model) == before
    for node in done.graph:
        weight = weight_of(node)
        if node.name not in NAMES or weight is None or weight.const_value is None:
            continue
        axis, scale = channel_axis(node), params[str(weight.name)].scale.astype(np.float64)
        q = np.moveaxis(weight.const_value.numpy().astype(np.float64), axis, 0).reshape(len(scale), -1) / scale[:, None]
        np.testing.assert_allclose(q, np.rint(q), atol=1e-3)
        assert np.abs(np.rint(q)).max() <= 127
        if target.grid.saturates and node.name in ("wide", "apart", "bare"):
            w = np.moveaxis(weight.const_value.numpy(), 1, -1).reshape(len(scale), -1) / scale[:, None]
            pairs = np.rint(w)[:, : w.shape[1] // 2 * 2].reshape(len(scale), -1, 2)
            assert np.abs(pairs.sum(-1)).max() <= 128
    want, got = (np.concatenate([tiny.run(m, f)[0] for f in FEEDS]) for m in (made.model, done))
    assert tiny.sqnr_db(want, got) > 20


@pytest.mark.parametrize("rounding", ROUNDERS)
def test_every_rounder_takes_groups_and_gives_values_of_the_grid(rounding: str) -> None:
    w, h, scale = problem(3, 4, 6, seed=0)
    q = ROUNDERS[rounding](w, h, scale, LIMIT) / scale[:, :, None]
    np.testing.assert_allclose(q, np.rint(q), atol=1e-9)
    assert np.abs(q).max() <= LIMIT + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_best_rounder_errs_as_little_as_the_better_one_for_each_output(seed: int) -> None:
    w, h, scale = problem(2, 8, 12, seed)
    errors = {
        name: np.einsum("goi,gij,goj->go", d, h, d)
        for name in ("gptq", "adaround", "best")
        for d in [w - ROUNDERS[name](w, h, scale * 2, LIMIT)]
    }
    np.testing.assert_allclose(errors["best"], np.minimum(errors["gptq"], errors["adaround"]), rtol=1e-9)


def test_a_layer_of_many_inputs_is_rounded_in_blocks_and_nearer_than_by_the_nearest() -> None:
    w, mixed = normal(1024, 6), normal(1024, 1024, seed=1) / 32
    text = "g (float[N,1024] x) => (float[N,6] y) { [layer] y = MatMul(x, w) }"
    feeds: list[Feed] = [{"x": normal(200, 1024, seed=i) @ mixed} for i in range(24)]
    target = targets.load("cpu-x86-vnni")
    made = static(tiny.model(text, w=w), feeds, target)
    read = [(str(i), lambda feed=feed: feed) for i, feed in enumerate(feeds)]
    moments = gather(made.model, layers(made.model, made.plan.integer), read)
    grid = made.params["w"]
    done = {how: reconstructed(made.model, made.params, moments, target, how) for how in ("nearest", "gptq")}
    errors = {}
    for how, model in done.items():
        found = tiny.weights_of(model)["w"]
        q = found / grid.scale
        assert np.abs(q - np.rint(q)).max() < 1e-3 and np.abs(q).max() <= grid.qtype.qmax + 1e-3
        errors[how] = float(((feeds[0]["x"] @ (found - w)) ** 2).sum())
    assert errors["gptq"] < 0.8 * errors["nearest"]


def test_the_nearest_rounder_is_rounding_number_by_number() -> None:
    w, h, scale = problem(2, 3, 5, seed=1)
    found = ROUNDERS["nearest"](w, h, scale / 2, LIMIT)
    for g, o, i in np.ndindex(*w.shape):
        s = scale[g, o] / 2
        assert found[g, o, i] == s * min(max(round(w[g, o, i] / s), -LIMIT), LIMIT)


def test_a_rounding_makes_the_mean_good_by_the_bias() -> None:
    target = targets.load("cpu-x86-vnni")
    made, moments = found_for(target)
    done = reconstructed(made.model, made.params, moments, target, "nearest")
    before, after = tiny.weights_of(made.model), tiny.weights_of(done)
    m = moments["m"]
    for o in range(5):
        moved = sum(float(before["m"][i, o] - after["m"][i, o]) * m.x[0, 0, i] / m.count for i in range(6))
        assert after["mb"][o] == pytest.approx(float(before["mb"][o]) + moved, rel=1e-5, abs=1e-6)
