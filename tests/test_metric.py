"""A user's own metric: measured on the float model and on the result, a gate, and an error in words when it is no metric."""

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
from tests.models import normal
from tests.test_search import FEEDS
from tests.test_sensitivities import chain

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
    with pytest.raises(EdgeoptError, match="--max-drop"):
        quantize(chain(), FEEDS, **STATIC, **choices)
