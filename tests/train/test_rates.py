"""A rate by trial: the best of a ladder where losses have one valley, the weights as they were, whoever asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeopt import distill
from edgeopt.options.distill import Distill
from edgeopt.train.ranks import Ranks
from edgeopt.train.rates import _LADDER, FIRST, Trials, chosen, climbed, tried
from edgeopt.train.steps import Course
from tests import tiny
from tests.train import toys


@pytest.mark.parametrize("first", FIRST.values())
@pytest.mark.parametrize("best", _LADDER)
def test_of_losses_with_one_valley_its_lowest_rate_is_found(best: float, first: float) -> None:
    asked: list[float] = []

    def loss(rate: float) -> float:
        asked.append(rate)
        return abs(math.log(rate / best))

    found = climbed(loss, first)
    assert min(found, key=lambda rate: found[rate]) == best
    assert len(asked) == len(set(asked)) == len(found)  # no rate is tried twice


def test_a_rate_that_diverges_ends_the_way_up() -> None:
    found = climbed(lambda rate: math.inf if rate > 1e-3 else 1 - rate, 3e-4)
    assert list(found) == [3e-4, 1e-3, 3e-3]


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({0.0: 6.5, 3e-3: 5.0, 1e-2: 3.8, 3e-2: 3.7}, 1e-2),  # 96 % of the best gain
        ({0.0: 6.5, 3e-3: 5.0, 1e-2: 4.9, 3e-2: 3.7}, 3e-2),
        ({0.0: 1.0, 1e-4: 1.2, 3e-4: 1.1, 1e-3: math.inf}, 3e-4),  # nothing gains: what loses least
        ({0.0: 1.0, 3e-4: math.inf}, None),
        ({}, None),
    ],
)
def test_the_lowest_rate_is_taken_that_gains_nearly_as_much_as_the_best(
    losses: dict[float, float], rate: float | None
) -> None:
    assert chosen(losses) == rate


class Bowl(nn.Module):
    """Weights that want to be 1, each with another curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(8))

    def loss(self) -> Tensor:
        return ((self.w - 1).square() * torch.linspace(0.1, 1, 8)).sum()


def search(total: int, *, limit_s: float | None = None, **choices: Any) -> tuple[dict[float, float], Bowl]:
    bowl = Bowl()

    def batches(epoch: int) -> Iterator[Any]:
        yield from range(3)

    modules, options = nn.ModuleList([bowl]), Distill(**choices)
    course = Course(lambda b, m: bowl.loss(), batches, 3, lambda m: 0.0, 0.0, lambda: batches(0))
    trials = Trials(modules, None, course, 3, total, options, Ranks())
    found = tried(trials, limit_s)
    return found, bowl


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_are_left_as_they_were_and_the_best_rate_reaches_furthest(optimizer: str) -> None:
    found, bowl = search(1000, optimizer=optimizer)
    assert torch.equal(bowl.w, torch.zeros(8)) and (bowl.w.grad is None or not bowl.w.grad.any())
    best = chosen(found)
    assert best is not None and best >= 0.01 and found[best] < 0.2 * found[0.0]
    assert found[0.0] == pytest.approx(Bowl().loss().item())


def test_a_run_that_is_too_short_or_out_of_time_tries_nothing() -> None:
    assert search(4)[0] == {}
    assert search(5)[0] and search(5, limit_s=60.0)[0]
    found, bowl = search(1000, limit_s=1e-6)
    assert found == {} and torch.equal(bowl.w, torch.zeros(8))


def test_without_lr_a_student_learns_more_than_at_the_first_rate_and_a_run_goes_on_with_its_own(tmp_path: Any) -> None:
    data, how = toys.samples(200, labels=True), {"teacher": toys.perceptron(7), "epochs": 20, "batch_size": 8}
    notes: list[str] = []
    made = distill(toys.perceptron(), data, listener=toys.Listener(note=notes.append), **how)
    low = distill(toys.perceptron(), data, learning_rate=FIRST["adamw"], **how)
    assert made.after > low.after and made.log[1].learning_rate > 3 * low.log[1].learning_rate
    assert any(line.startswith("--lr 0.") and "held-out loss after a few steps" in line for line in notes)
    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        distill(toys.perceptron(), data, checkpoint=state, listener=toys.stopping(4), **how)
    notes.clear()
    listener = toys.Listener(note=notes.append)
    resumed = distill(toys.perceptron(), data, checkpoint=state, resume=True, listener=listener, **how)
    assert toys.same_bytes(resumed.model, made.model) and not any(line.startswith("--lr") for line in notes)


def test_a_rate_that_diverges_leaves_nothing_to_the_next_and_lower_ones_are_tried() -> None:
    def cliff(limit: float) -> dict[float, float]:
        bowl = Bowl()

        def lesson(batch: Any, moment: Any) -> Tensor:
            return bowl.loss() if bowl.w.abs().max() < limit else bowl.loss() * math.nan

        batches: Any = lambda epoch: iter(range(3))  # noqa: E731
        course = Course(lesson, batches, 3, lambda m: 0.0, 0.0, lambda: batches(0))
        modules, options = nn.ModuleList([bowl]), Distill(optimizer="sgd", clip=1e9)
        return tried(Trials(modules, None, course, 3, 1000, options, Ranks()), None)

    for limit in (0.3, 0.03):  # how far a weight may go before nothing is a number
        found = cliff(limit)
        rate = chosen(found)
        assert found[FIRST["sgd"]] == math.inf and rate is not None and 0 < rate < FIRST["sgd"]


def test_rates_are_tried_with_batch_normalization_and_a_last_batch_of_one() -> None:
    text = """g (float[N,4] x) => (float[N,3] y) {
        h = MatMul(x, a)  n = BatchNormalization(h, s, b, m, v)  y = MatMul(n, c) }"""
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    weights = {"a": toys.normal(0, 4, 8), "c": toys.normal(1, 8, 3), "s": ones, "b": zeros, "m": zeros, "v": ones}
    how: dict[str, Any] = {"teacher": toys.perceptron(7), "batch_norm": "update", "epochs": 3, "batch_size": 8}
    found = distill(tiny.proto(text, **weights), toys.samples(45), **how)  # 9 are held out
    assert found.samples == {"train": 36, "held_out": 9} and found.improved
