"""The probe: every float value as it is on a sample."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.runtime import probe as module
from edgeopt.runtime.probe import Probe, probe, probe_and_shapes
from edgeopt.runtime.session import Feed, Session, with_outputs
from tests import tiny

TEXT = """g (float[N,4] x, int64[2] s) => (float[A,B] y) {
    a = Relu(x)
    b = Reshape(a, s)
    n = Shape(b)
    f = Cast <to = 10> (b)
    y = Exp(b)
}"""


def feed() -> dict[str, np.ndarray]:
    return {"x": np.float32([[1, -2, 3, 0], [5, -6, 7, 0.5]]), "s": np.array([4, 2])}


def test_every_float32_value_has_its_real_shape_and_extremes() -> None:
    found = probe(tiny.model(TEXT), feed())
    assert found["x"] == Probe((2, 4), -6.0, 7.0)
    assert found["a"] == Probe((2, 4), 0.0, 7.0) and found["b"] == Probe((4, 2), 0.0, 7.0)
    assert found["y"].shape == (4, 2) and found["y"].hi == pytest.approx(np.exp(7), rel=1e-6)
    assert not {"s", "n", "f"} & found.keys()


@pytest.mark.parametrize(
    ("room", "runs"),
    [(64, [["a"], ["b", "y"]]), (63, [["a"], ["b"], ["y"]]), (1, [["a"], ["b"], ["y"]])],
)
def test_as_many_values_of_32_bytes_are_shown_in_one_run_as_fit_after_a_first_one_with_its_trace(
    room: int, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(TEXT)
    whole = probe(model, feed())
    before = tiny.frozen(model)
    shown: list[list[str]] = []

    def noted(model: ir.Model, values: list[str], *, copy: bool) -> ir.Model:
        shown.append(values)
        return with_outputs(model, values, copy=copy)

    monkeypatch.setattr(module, "with_outputs", noted)
    assert probe(model, feed(), max_ram=4 * room) == whole
    assert shown == runs and tiny.frozen(model) == before


def test_all_runs_together_are_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float | None] = []

    def run(session: Session, feed: Feed, limit_s: float | None) -> Iterator[tuple[str, np.ndarray]]:
        left.append(limit_s)
        time.sleep(0.05)
        return iter(())

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "_sizes", lambda model, trace: {})
    probe_and_shapes(tiny.model(TEXT), feed(), 0.12, max_ram=1)
    bounds = [0.12, 0.07, 0.02]  # less on a busy machine
    assert all(x is not None and 0 < x <= most for x, most in zip(left, bounds, strict=True))


def test_sizes_are_unknown_where_the_trace_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(TEXT)
    whole = probe(model, feed())
    monkeypatch.setattr(module, "_TRACE_BYTES", 10)
    monkeypatch.setattr(module, "_UNKNOWN_BYTES", 64)
    assert probe(model, feed(), max_ram=4 * 64) == whole


def test_a_value_without_elements_has_size_zero() -> None:
    found = probe(tiny.model("g (float[N,4] x) => (float[N,4] y) { y = Exp(x) }"), {"x": np.zeros((0, 4), np.float32)})
    assert found["y"] == Probe((0, 4), 0.0, 0.0) and found["y"].size == 0 and not found["y"].masked


def test_sequences_and_integers_are_left_out() -> None:
    text = (
        "g (float[4] x) => (float[4] y) { s = SequenceConstruct(x, x)  i = Constant <value = int64 {0}> ()  y ="
        " SequenceAt(s, i) }"
    )
    assert set(probe(tiny.model(text), {"x": np.ones(4, np.float32)})) == {"x", "y"}


@pytest.mark.parametrize(
    ("lo", "hi", "masked"),
    [
        (-1.0, 1.0, False),
        (-4000.0, 1e6, False),
        (-1e4, 0.0, True),
        (-65504.0, 0.0, True),
        (-np.inf, 0.0, True),
        (0.0, np.inf, True),
        (np.nan, np.nan, True),
    ],
)
def test_a_mask_is_known_by_its_size(lo: float, hi: float, masked: bool) -> None:
    assert Probe((3,), lo, hi).masked is masked


def test_size_is_the_product_of_the_shape() -> None:
    assert Probe((2, 3, 4), 0, 1).size == 24 and Probe((), 0, 1).size == 1
