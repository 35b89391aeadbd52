"""A user's own metric: measured on the float model and on the result, a gate, and an error in words when it is no
metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import quantize
from edgeopt.errors import EdgeoptError
from edgeopt.quantization.metric import LIKENESSES
from tests import tiny
from tests.models import normal
from tests.quantization.test_search import FEEDS
from tests.quantization.test_sensitivity import chain

STATIC: dict[str, Any] = {"mode": "static", "include": ("Gemm",), "measure": False}
COUNTER = itertools.count()
X = normal(64, 16, seed=77)


def mean_square(run: Callable[..., list[np.ndarray]]) -> float:
    return float(np.square(run({"x": X})[0]).mean())


def test_the_metric_of_both_models_is_in_the_report() -> None:
    found = quantize(chain(), FEEDS, metric=mean_square, **STATIC).report
    assert found.metric is not None and found.metric.name == "mean_square"
    assert found.metric.on_float == pytest.approx(found.metric.result, rel=0.1)
    assert found.metric.on_float != found.metric.result
    assert found.candidates[0].metric == found.metric.result and not found.missed


def test_a_fall_beyond_the_bar_is_missed_and_one_within_is_not() -> None:
    # the metric sees the rounding of the outputs only, so that any integer model falls
    want = {}

    def exactness(run: Callable[..., list[np.ndarray]]) -> float:
        y = run({"x": X})[0]
        want.setdefault("y", y)
        return -float(np.abs(y - want["y"]).max())

    strict, loose = (quantize(chain(), FEEDS, metric=exactness, max_drop=d, **STATIC).report for d in (0.0, 1e6))
    assert any("exactness falls by" in m for m in strict.missed) and not loose.missed


def test_in_auto_mode_the_bar_decides_what_is_close() -> None:
    def constant(run: Callable[..., list[np.ndarray]]) -> float:
        return 1.0

    found = quantize(chain(), FEEDS, metric=constant, max_drop=0.0, include=("Gemm",), measure=False).report
    assert found.mode == "static" and not found.missed


def test_a_function_is_found_by_module_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric_module.py").write_text("def top(run):\n    return 0.5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = quantize(chain(), FEEDS, metric="my_metric_module:top", **STATIC).report
    assert found.metric is not None and (found.metric.name, found.metric.result) == ("my_metric_module:top", 0.5)


def fails(run: object) -> float:
    raise KeyError("no such label")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (fails, "--eval fails: KeyError: 'no such label'"),
        (lambda run: math.nan, "gives nan"),
        (lambda run: math.inf, "gives inf"),
        (lambda run: "good", "ValueError"),
        (lambda run: float(next(COUNTER)), "0 and then 1 for the same model"),
        (lambda run: run({"wrong": X})[0], "wrong"),
        ("no.such.module:top", "No module named"),
        ("math:no_such", "no_such"),
        ("math:pi", "not a function"),
    ],
)
def test_what_is_no_metric_is_refused_in_words(metric: Any, message: str) -> None:
    with pytest.raises(EdgeoptError, match=message):
        quantize(chain(), FEEDS, metric=metric, **STATIC)


@pytest.mark.parametrize(
    "choices", [{"max_drop": 0.1}, {"max_drop": -1.0, "metric": fails}, {"max_drop": math.nan, "metric": fails}]
)
def test_a_bar_without_a_metric_or_below_zero_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(EdgeoptError, match="max_drop"):
        quantize(chain(), FEEDS, **STATIC, **choices)


# likeness to the float model, without labels

REFERENCE = [[normal(3, 5, seed=i), normal(3, 2, 4, seed=i + 9)] for i in range(4)]
RESULT = [[y + 0.3 * normal(*y.shape, seed=i) for i, y in enumerate(r)] for r in REFERENCE]


def test_kl_is_the_sum_by_the_book() -> None:
    def softmax(z: np.ndarray) -> np.ndarray:
        e = [math.exp(v) for v in z]
        return np.array(e) / sum(e)

    want = []
    for r, y in zip(REFERENCE, RESULT, strict=True):
        for a, b in zip(r[0], y[0], strict=True):  # the second output looks like no class scores
            p, q = softmax(a), softmax(b)
            want.append(sum(u * math.log(u / v) for u, v in zip(p, q, strict=True)))
    assert LIKENESSES["kl"](REFERENCE, RESULT) == pytest.approx(-float(np.mean(want)), rel=1e-6)
    assert LIKENESSES["kl"](REFERENCE, REFERENCE) == 0


def test_kl_takes_probabilities_as_they_are() -> None:
    e = [np.exp(r[0]) for r in REFERENCE]
    shares = [[x / x.sum(-1, keepdims=True)] for x in e]
    moved = [[np.roll(x[0], 1, -1)] for x in shares]
    as_logits = LIKENESSES["kl"]([[np.log(x[0])] for x in shares], [[np.log(x[0])] for x in moved])
    assert LIKENESSES["kl"](shares, moved) == pytest.approx(as_logits, rel=1e-4)


def test_agreement_and_cosine_are_those_of_the_report() -> None:
    found = quantize(chain(), FEEDS, **STATIC).report
    for name in ("agreement", "cosine"):
        again = quantize(chain(), FEEDS, metric=name, max_drop=1.0, **STATIC).report
        assert again.metric is not None and again.metric.on_float == pytest.approx(1)
        assert again.metric.result == pytest.approx(found.agreement if name == "agreement" else found.outputs[0].cosine)
        assert not again.missed


@pytest.mark.parametrize(("bar", "missed"), [(0.0, True), (10.0, False)])
def test_a_likeness_is_a_gate_as_a_function_is(bar: float, missed: bool) -> None:
    found = quantize(chain(), FEEDS, metric="kl", max_drop=bar, budget_s=5.0, **STATIC).report
    assert any("kl falls by" in m for m in found.missed) == missed


@pytest.mark.parametrize("name", ["agreement", "kl"])
def test_what_has_no_classes_has_no_agreement(name: str) -> None:
    text = "g (float[N,16] x) => (float[N,1] y) { y = Gemm <transB = 1> (x, w, b) }"
    model = tiny.proto(text, w=normal(1, 16), b=normal(1)).SerializeToString()
    with pytest.raises(EdgeoptError, match="no output looks like class scores"):
        quantize(model, FEEDS, metric=name, **STATIC)


class Odd(Exception):
    """Of the user's own."""


@pytest.mark.parametrize("error", [StopIteration, Odd, KeyError])
def test_whatever_a_metric_raises_is_told_in_words(error: type[Exception]) -> None:
    def fails(run: object) -> float:
        raise error("sorry")

    with pytest.raises(EdgeoptError, match=f"{error.__name__}.*sorry"):
        quantize(chain(), FEEDS, metric=fails, **STATIC)


def test_kl_treats_the_result_as_the_reference_looks() -> None:
    """A softmax on an integer grid does not sum to 1 exactly, and is a probability all the same."""
    p = np.float32([[0.9, 0.05, 0.05]])
    assert LIKENESSES["kl"]([[p]], [[p * np.float32(1.002)]]) == pytest.approx(math.log(1.002), abs=1e-4)
