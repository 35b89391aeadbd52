"""The warm-up of a worker and its cold start, with a worker that answers from a list."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.profiling.live import Live, median
from edgeopt.runtime.process import Here, Worker

LAW = settings(max_examples=60, deadline=None, derandomize=True)
WINDOW_NS = 50_000_000


class Answers:
    """A worker whose blocks take `times`, each of them `WINDOW_NS` on the clock; what it was asked is in `log`."""

    def __init__(self, times: Sequence[Sequence[int]]) -> None:
        self.times: Iterator[Sequence[int]] = iter(times)
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.place = Here()

    def ask(self, op: str, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        self.log.append((op, arguments))
        return {"times": next(self.times), "start": 0, "end": WINDOW_NS} if op == "block" else {}


def live(*times: Sequence[int]) -> tuple[Live, Answers]:
    answers = Answers(times)
    return Live(cast(Worker, answers), {}, {"create_ns": 7}), answers


@LAW
@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=9))
def test_the_median_is_pythons(times: list[int]) -> None:
    assert median(times) == float(statistics.median(times))


def test_the_first_two_runs_are_the_cold_start_after_the_feeds_were_given() -> None:
    started, answers = live([900], [300])
    started.first_runs(Path("feeds.npz"))
    assert started.cold_ns == (7, 900, 300)
    assert answers.log == [("feed", {"path": "feeds.npz"}), ("block", {"runs": 1}), ("block", {"runs": 1})]


def test_a_warm_up_ends_as_soon_as_three_windows_are_steady() -> None:
    started, answers = live([900, 800, 850], [500], [300, 400], [400, 402], [400], [400], [400])
    # medians 850, 500, 350, 401, 400, 400: the last three are the first that are close
    assert started.warm_up(10.0)
    assert started.windows == [850e-9, 500e-9, 350e-9, 401e-9, 400e-9, 400e-9]
    assert len(answers.log) == 6


def test_a_warm_up_that_does_not_become_steady_ends_when_its_time_is_up() -> None:
    started, answers = live(*([1000 * 2**i] for i in range(30)))
    assert not started.warm_up(0.5)
    assert len(answers.log) == 0.5e9 / WINDOW_NS


@pytest.mark.parametrize(("last", "expected"), [(400, True), (500, False)])
def test_a_warm_up_that_becomes_steady_with_its_last_window_was_steady(last: int, expected: bool) -> None:
    started, answers = live([400], [400], [last])
    assert started.warm_up(3 * WINDOW_NS / 1e9) is expected
    assert len(answers.log) == 3


def test_without_time_there_is_no_warm_up_and_nothing_steady() -> None:
    started, answers = live()
    assert not started.warm_up(0.0)
    assert answers.log == []
