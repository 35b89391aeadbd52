"""A weight that several layers read stays one weight in the file."""

from __future__ import annotations

import numpy as np
import pytest

import edgeopt
from edgeopt import graph
from tests import tiny
from tests.models import normal

STEPS = 6
UNROLLED = (
    "g (float[N,64] x) => (float[N,64] y) { h0 = Relu(x)\n"
    + "\n".join(
        f"[p{i}] g{i} = Gemm(h{i}, w, b{i % 2})  a{i} = Relu(g{i})  h{i + 1} = Add(a{i}, x)" for i in range(STEPS)
    )
    + "\ny = Identity(h6) }"
)


def unrolled() -> bytes:
    w = normal(64, 64) * np.float32(0.1)
    return graph.proto_bytes(tiny.model(UNROLLED, w=w, b0=normal(64, seed=1), b1=normal(64, seed=2)))


@pytest.mark.parametrize("choices", [{}, {"effort": "fast"}, {"clip_weights": True}], ids=str)
def test_a_weight_of_unrolled_steps_is_stored_once(choices: dict[str, object]) -> None:
    samples = [{"x": normal(1, 64, seed=i)} for i in range(40)]
    found = edgeopt.quantize(unrolled(), samples, mode="static", include=("Gemm",), measure=False, **choices)  # type: ignore[arg-type]
    assert len([n for n in found.report.integer_nodes if n.startswith("p")]) == STEPS
    assert found.report.bytes_after["int8"] == pytest.approx(64 * 64, rel=0.1)
    assert found.report.bytes_after.get("float32", 0) < 64 * 64
    assert found.report.worst_sqnr_db > 25


def test_a_stored_weight_of_unrolled_steps_is_stored_once_too() -> None:
    samples = [{"x": normal(1, 64, seed=i)} for i in range(40)]
    found = edgeopt.quantize(unrolled(), samples, mode="weights", measure=False).report
    assert found.bytes_after["int8"] == 64 * 64 and found.worst_sqnr_db > 30


LAYERS = "g (float[N,96] x) => (float[N,32] y) { [one] a = Gemm(x, v, b)  r = Relu(a)  [two] y = Gemm(r, w, c) }"


def test_stored_weights_are_rounded_by_what_layers_read_and_still_are_integers_of_the_file() -> None:
    mix = normal(8, 96, seed=7)  # the inputs vary in eight directions of 96
    samples = [{"x": normal(16, 8, seed=i) @ mix + np.float32(1)} for i in range(40)]
    weights = {"v": normal(96, 64), "w": normal(64, 32, seed=1), "b": normal(64, seed=2), "c": normal(32, seed=3)}
    model = graph.proto_bytes(tiny.model(LAYERS, **weights))
    near, plain = (
        edgeopt.quantize(model, samples, mode="weights", effort=e, measure=False) for e in ("normal", "fast")
    )  # type: ignore[arg-type]
    assert near.report.worst_sqnr_db > plain.report.worst_sqnr_db + 6
    assert near.report.bytes_after["int8"] == plain.report.bytes_after["int8"] == 96 * 64 + 64 * 32


def test_a_weight_that_is_stored_beside_integer_layers_stands_once_in_the_file() -> None:
    text = """g (float[N,64] x) => (float[N,64] y) {
        [one] a = Gemm(x, v, b)  r = Relu(a)  [two] s = Gemm(r, w, c)  t = Sin(s)  [three] y = Gemm(t, u, b) }"""
    weights = {name: normal(64, 64, seed=i) * np.float32(0.1) for i, name in enumerate("vwu")}
    model = graph.proto_bytes(tiny.model(text, **weights, b=normal(64, seed=5), c=normal(64, seed=6)))
    samples = [{"x": normal(4, 64, seed=i)} for i in range(40)]
    found = edgeopt.quantize(model, samples, mode="static", include=("one", "two"), exclude=("three",), measure=False)
    plain = edgeopt.quantize(model, samples, mode="static", include=("one", "two"), measure=False)
    assert found.report.bytes_after["int8"] == pytest.approx(2 * 64 * 64, rel=0.03)  # what is excluded stays float
    assert plain.report.bytes_after["int8"] == pytest.approx(3 * 64 * 64, rel=0.03)
    for made in (found, plain):
        used = {str(v.name) for n in made.model.graph for v in n.inputs if v is not None}
        outputs = {str(v.name) for v in made.model.graph.outputs}
        assert {str(v.name) for n in made.model.graph for v in n.outputs} <= used | outputs  # nothing is left over


@pytest.mark.parametrize(
    ("gemm", "c"),
    [
        ("Gemm(x, w, c)", normal(20, 64, seed=3)),
        ("Gemm(x, w, c)", normal(20, 1, seed=3)),
        ("Gemm <alpha = 0.1, beta = 5.0> (x, w, c)", normal(64, seed=3)),
    ],
)
def test_a_bias_that_is_none_of_the_channels_stays_as_it_is(gemm: str, c: np.ndarray) -> None:
    text = f"g (float[20,64] x) => (float[20,64] y) {{ a = {gemm}  y = Relu(a) }}"
    model = graph.proto_bytes(tiny.model(text, w=normal(64, 64), c=c))
    samples = [{"x": normal(20, 64, seed=i) + np.float32(1)} for i in range(24)]
    assert edgeopt.quantize(model, samples, mode="weights", measure=False).report.worst_sqnr_db > 35


def test_a_weight_read_as_it_is_and_transposed_on_the_other_side_is_two_layers() -> None:
    text = """g (float[64,64] x) => (float[64,64] y) {
        [one] a = Gemm(x, w)  r = Relu(a)  [two] y = Gemm <transA = 1> (r, w) }"""
    model = graph.proto_bytes(tiny.model(text, w=normal(64, 64) * np.float32(0.1)))
    samples = [{"x": normal(64, 64, seed=i)} for i in range(24)]
    for mode in ("weights", "static"):
        found = edgeopt.quantize(model, samples, mode=mode, include=("Gemm",), measure=False)  # type: ignore[arg-type]
        assert found.report.worst_sqnr_db > 25


@pytest.mark.parametrize(("inner", "mode"), [(64, "weights (4 bits)"), (60, "weights")])
def test_the_smallest_file_has_four_bits_only_where_blocks_divide_the_rows(inner: int, mode: str) -> None:
    text = f"g (float[N,{inner}] x) => (float[N,64] y) {{ m = MatMul(x, w)  y = Sin(m) }}"
    model = graph.proto_bytes(tiny.model(text, w=normal(inner, 64) * np.float32(0.05)))
    samples = [{"x": normal(1, inner, seed=i)} for i in range(40)]
    found = edgeopt.quantize(model, samples, prefer="size", measure=False)
    assert mode in [c.mode for c in found.report.candidates]
    assert ("weights (4 bits)" in [c.mode for c in found.report.candidates]) == (inner == 64)
