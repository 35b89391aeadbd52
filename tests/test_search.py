"""Efforts: each is at least as near to float as the one before it, and the search says what it tried."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import quantize
from edgeopt.errors import EdgeoptError
from edgeopt.report import Report
from tests.models import normal
from tests.test_sensitivities import chain

CORRELATED = normal(16, 16, seed=9)
FEEDS = [{"x": normal(16, 16, seed=i) @ CORRELATED + 1} for i in range(80)]


def report(effort: str, **more: object) -> Report:
    choices = {"mode": "static", "include": ("Gemm",), "measure": False, **more}
    return quantize(chain(), FEEDS, effort=effort, samples=48, **choices).report


def test_what_layers_read_makes_rounding_better_than_the_nearest() -> None:
    # correlated inputs with a mean: what GPTQ and bias correction are for
    assert report("normal").worst_sqnr_db > report("fast").worst_sqnr_db + 1


def test_the_same_samples_give_the_same_bytes() -> None:
    made = [quantize(chain(), FEEDS, mode="static", include=("Gemm",), measure=False).model for _ in range(2)]
    weights = [
        {n: v.const_value.numpy() for n, v in m.graph.initializers.items() if v.const_value is not None} for m in made
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(a, weights[1][n]) for n, a in weights[0].items())


def test_a_search_is_never_further_off_and_its_log_tells_every_move() -> None:
    found = report("high", budget_s=20.0)
    assert found.worst_sqnr_db >= report("normal").worst_sqnr_db - 0.5  # more samples for GPTQ may cost a little here
    moves = [n for n in found.notes if n.startswith("search: ") and " dB (" in n]
    assert any("ranges by minmax" in m for m in moves)
    assert all(m.endswith(("kept", "no gain", "slower", "no faster", "too far from float")) for m in moves)


def test_without_time_the_first_result_stands() -> None:
    found = report("high", budget_s=1e-6)
    assert found.mode == "static" and not any("ranges by" in n for n in found.notes)


@pytest.mark.parametrize(
    ("choices", "message"), [({"effort": "hi"}, "did you mean 'high'"), ({"budget_s": 0.0}, "--budget 0")]
)
def test_a_wrong_choice_is_refused(choices: dict[str, object], message: str) -> None:
    with pytest.raises(EdgeoptError, match=message):
        quantize(chain(), FEEDS, **choices)
