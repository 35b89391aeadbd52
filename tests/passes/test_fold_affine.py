"""Scales and shifts around a convolution: gone, with the same numbers, and left where they cannot go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.passes.fold_affine import fold_affine
from tests import tiny

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


W, B = normal(8, 4, 3, 3), normal(8)
IN, OUT = "float[2,4,6,6] x", "float[2,8,{0},{0}] y"
PADDED, BARE = "Conv <pads = [1,1,1,1]>", "Conv"
ONE, ROW = np.float32(1.5), np.float32([0.5])
CIN, COUT = np.abs(normal(1, 4, 1, 1)) + 0.5, np.abs(normal(8, 1, 1)) + 0.5

FOLDED = {
    "scale behind": (f"a = {PADDED} (x, w, b)  y = Mul(a, c)", 6, ONE),
    "scale behind, first operand": (f"a = {PADDED} (x, w, b)  y = Mul(c, a)", 6, ROW),
    "a scale a channel behind": (f"a = {PADDED} (x, w, b)  y = Mul(a, c)", 6, COUT),
    "quotient behind": (f"a = {PADDED} (x, w, b)  y = Div(a, c)", 6, COUT),
    "shift behind": (f"a = {PADDED} (x, w, b)  y = Add(a, c)", 6, COUT),
    "shift behind without bias": (f"a = {PADDED} (x, w)  y = Sub(a, c)", 6, COUT),
    "both behind": (f"a = {PADDED} (x, w)  m = Mul(a, c)  y = Add(m, c)", 6, COUT),
    "scale before": (f"a = Mul(x, c)  y = {PADDED} (a, w, b)", 6, CIN),
    "quotient before": (f"a = Div(x, c)  y = {PADDED} (a, w, b)", 6, ONE),
    "shift before": (f"a = Sub(x, c)  y = {BARE} (a, w, b)", 4, CIN),
    "normalisation before": (f"a = Sub(x, c)  d = Div(a, c)  y = {BARE} (d, w, b)", 4, CIN),
    "scale before groups": ("a = Mul(x, c)  y = Conv <group = 2> (a, wg, b)", 4, CIN),
    "shift before groups": ("a = Add(x, c)  y = Conv <group = 2> (a, wg, b)", 4, CIN),
}
KEPT = {
    "shift before padding": (f"a = Sub(x, c)  y = {PADDED} (a, w, b)", 6, CIN),
    "padding by name": ('a = Add(x, c)  y = Conv <auto_pad = "SAME_UPPER"> (a, w, b)', 6, CIN),
    "number over x": (f"a = {PADDED} (x, w, b)  y = Div(c, a)", 6, COUT),
    "number less x": (f"a = {PADDED} (x, w, b)  y = Sub(c, a)", 6, COUT),
    "one number a pixel": (f"a = {PADDED} (x, w, b)  y = Mul(a, c)", 6, normal(6, 6)),
    "one number a column": (f"a = {PADDED} (x, w, b)  y = Mul(a, c)", 6, normal(6)),
    "another reader": (f"a = {PADDED} (x, w, b)  m = Mul(a, c)  y = Add(m, a)", 6, COUT),
    "another reader before": (
        f"a = Mul(x, c)  k = {PADDED} (a, w, b)  s = Concat <axis = 1> (a, a)  y = Add(k, s)",
        6,
        CIN,
    ),
    "infinite scale": (f"a = {PADDED} (x, w, b)  y = Mul(a, c)", 6, np.float32(np.inf)),
    "a zero under it": (f"a = {PADDED} (x, w, b)  r = Add(a, a)  y = Div(r, c)", 6, np.float32(0)),
}


def model_of(cases: dict[str, tuple[str, int, np.ndarray]], case: str):
    body, side, c = cases[case]
    constants = {"w": W, "wg": W[:, :2].copy(), "b": B, "c": c}
    used = {k: v for k, v in constants.items() if f"{k})" in body or f"{k}," in body or f"({k}" in body}
    return tiny.model(f"g ({IN}) => ({OUT.format(side)}) {{ {body} }}", **used)


@pytest.mark.parametrize("case", FOLDED)
def test_an_affine_step_goes_into_the_convolution(case: str) -> None:
    model = model_of(FOLDED, case)
    before = tiny.frozen(model)
    result = fold_affine(model)
    assert tiny.operators(result) == ["Conv"] and tiny.frozen(model) == before
    assert [v.name for v in result.graph.outputs] == ["y"]
    x = normal(2, 4, 6, 6)
    # float32 products in another order
    np.testing.assert_allclose(tiny.run(result, {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)
    assert tiny.frozen(fold_affine(result)) == tiny.frozen(result)


@pytest.mark.parametrize("case", KEPT)
def test_a_step_that_cannot_go_into_the_convolution_stays(case: str) -> None:
    model = model_of(KEPT, case)
    assert tiny.frozen(fold_affine(model)) == tiny.frozen(model)


def test_a_division_by_zero_stays_without_a_word() -> None:
    model = tiny.model(f"g ({IN}) => ({OUT.format(6)}) {{ a = {PADDED} (x, w)  y = Div(a, c) }}", w=W, c=np.float32(0))
    assert tiny.operators(fold_affine(model)) == ["Conv", "Div"]


def test_a_scale_that_makes_channels_of_one_stays() -> None:
    text = "g (float[2,1,6,6] x) => (float[2,8,4,4] y) { a = Mul(x, c)  y = Conv(a, w) }"
    model = tiny.model(text, w=W, c=CIN)
    x = normal(2, 1, 6, 6)
    np.testing.assert_allclose(
        tiny.run(fold_affine(model), {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-4, atol=1e-4
    )


def test_a_shared_weight_is_folded_for_one_reader_only() -> None:
    text = (
        f"g ({IN}) => ({OUT.format(6)}) {{ a = {PADDED} (x, w, b)  m = Mul(a, c)  k = {PADDED} (x, w, b)  y = Add(m,"
        " k) }"
    )
    model = tiny.model(text, w=W, b=B, c=COUT)
    result = fold_affine(model)
    assert "Mul" not in tiny.operators(result)
    x = normal(2, 4, 6, 6)
    np.testing.assert_allclose(tiny.run(result, {"x": x})[0], tiny.run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_an_output_between_stays_an_output() -> None:
    text = f"g ({IN}) => (float[2,8,6,6] a, float[2,8,6,6] y) {{ a = {PADDED} (x, w)  y = Mul(a, c) }}"
    model = tiny.model(text, w=W, c=COUT)
    assert tiny.frozen(fold_affine(model)) == tiny.frozen(model)


NORM = {"scale": np.abs(normal(8)) + 0.5, "shift": normal(8), "mean": normal(8), "variance": np.abs(normal(8)) + 0.1}
POOL = "MaxPool <kernel_shape = [2,2], strides = [2,2], pads = [1,1,1,1]>"


def pooled(after: str, **constants: np.ndarray) -> ir.Model:
    text = f"g (float[2,4,6,6] x) => (float[2,8,4,4] y) {{ a = {PADDED} (x, w, b)  p = {POOL} (a)  {after} }}"
    return tiny.model(text, w=W, b=B, **constants)


@pytest.mark.parametrize(
    ("after", "constants"),
    [
        ("y = BatchNormalization (p, scale, shift, mean, variance)", NORM),
        ("m = Mul(p, c)  y = Add(m, c)", {"c": COUT}),
        ("y = Sub(p, c)", {"c": -COUT}),
    ],
)
def test_an_increasing_step_behind_a_pool_of_maxima_goes_into_the_convolution(
    after: str, constants: dict[str, np.ndarray]
) -> None:
    model = pooled(after, **constants)
    folded = fold_affine(model)
    assert tiny.operators(folded) == ["Conv", "MaxPool"] and [v.name for v in folded.graph.outputs] == ["y"]
    feed = {"x": normal(2, 4, 6, 6)}
    np.testing.assert_allclose(tiny.run(folded, feed)[0], tiny.run(model, feed)[0], rtol=1e-5, atol=1e-5)


def test_a_step_that_turns_maxima_round_stays_behind_the_pool() -> None:
    scale = NORM["scale"].copy()
    scale[3] = -0.5
    for model in (
        pooled("y = BatchNormalization (p, scale, shift, mean, variance)", **{**NORM, "scale": scale}),
        pooled("y = Mul(p, c)", c=-COUT),
        pooled("m = Mul(p, c)  y = Add(m, p)", c=COUT),
    ):
        assert tiny.frozen(fold_affine(model)) == tiny.frozen(model)
