"""The learning rate by trial: a few rates train the same few steps from the same weights, each with the schedule of a
whole run in small, and the one with the lowest loss on held-out batches is taken.

What a network can bear differs by orders of magnitude: random weights of a small network want .01, a pruned one that
was trained before .0003. A short run tells them apart, and with its decaying rate it is not blinded by the noise of a
high one (compare Smith 2017, arXiv:1506.01186, whose rate only rises). The shorter it is, the higher is the rate that
wins (Wu et al. 2018, arXiv:1803.02021), so that it has a fixed share of the steps.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgeopt.options.distill import Distill
from edgeopt.train.batches import Batch
from edgeopt.train.ranks import Ranks
from edgeopt.train.steps import Course, Moment, NotFiniteError, optimizer_of, set_rate, take

_LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
FIRST: Mapping[str, float] = {"adamw": 3e-4, "sgd": 1e-2}
"""Where the search begins, by optimizer; what is taken where a run is too short for it."""
_LEAST, _MOST, _SHARE = 100, 200, 25  # steps of a trial: 1/25 of the run, since a high rate wins every short one
_FEWEST = 5  # steps that tell anything
_JUDGED = 16  # batches
_TRIALS = 5  # that there are, mostly
_ENOUGH = 0.95  # of what the best rate gains: a whole run wants a lower one than a short run
_TIMED = 2  # steps


def climbed(loss: Callable[[float], float], first: float) -> dict[float, float]:
    """The losses of the rates that were tried: from `first` upwards as long as it helps; downwards, if it does not."""
    found, start = {first: loss(first)}, _LADDER.index(first)
    for way in (1, -1):
        here = start
        while 0 <= here + way < len(_LADDER):
            found[_LADDER[here + way]] = loss(_LADDER[here + way])
            diverged = way < 0 and found[_LADDER[here]] == math.inf  # a lower one still may not
            if not diverged and not found[_LADDER[here + way]] < found[_LADDER[here]]:
                break
            here += way
        if here != start:
            break
    return found


def chosen(losses: Mapping[float, float]) -> float | None:
    """The lowest rate that gains nearly as much as the best over not training at all (a rate of 0 in `losses`); None if
    no loss is finite.
    """
    finite = {rate: loss for rate, loss in losses.items() if rate and math.isfinite(loss)}
    if not finite:
        return None
    best = min(finite.values())
    bar = best + (1 - _ENOUGH) * max(0.0, losses[0.0] - best)
    return min(rate for rate, loss in finite.items() if loss <= bar)


@dataclass(frozen=True)
class Trials:
    """Short runs from the weights that `modules` have."""

    modules: nn.ModuleList
    average: nn.Module | None
    """The student's moving average, if the lesson reads it."""
    course: Course
    epoch_steps: int
    """Steps of an epoch."""
    total: int
    """Steps of the run that a rate is looked for."""
    options: Distill
    ranks: Ranks

    def train(self, rate: float, count: int) -> None:
        """Take so many steps.

        Raises:
            NotFiniteError: the loss or its gradient is NaN or infinite.
        """
        self.modules.zero_grad()  # of a rate that diverged
        self.modules.train()
        optimizer, batches = optimizer_of(self.modules, self.options, rate), iter(tuple[Batch, ...]())
        for step in range(count):
            if step % self.epoch_steps == 0:
                batches = self.course.epoch_batches(step // self.epoch_steps)
            set_rate(optimizer, rate, step, count, self.options.warm_up)
            moment = Moment(step / self.total, self.average)
            take(self.modules, optimizer, self.course.lesson, batches, moment, self.options, self.ranks)

    def loss(self, rate: float, steps: int) -> float:
        """The held-out loss after so many steps; infinite if they diverge."""
        try:
            self.train(rate, steps if rate else 0)
        except NotFiniteError:
            return math.inf
        self.modules.eval()
        moment = Moment(steps / self.total, self.average)
        with torch.no_grad():
            values = [self.course.lesson(b, moment).item() for b in itertools.islice(self.course.held(), _JUDGED)]
        (value,) = self.ranks.told([sum(values) / max(1, len(values))])
        return value if math.isfinite(value) else math.inf

    def seconds(self, count: int) -> float:
        """The time of a step, from so many."""
        begun = time.monotonic()
        with contextlib.suppress(NotFiniteError):
            self.train(FIRST[self.options.optimizer], count)
        return self.ranks.told([(time.monotonic() - begun) / count])[0]


def tried(trials: Trials, limit_s: float | None) -> dict[float, float]:
    """The losses of the rates that were tried, and of a rate of 0, the weights being left as they were; empty if the
    run is too short. `limit_s`: how long all trials may take, about.
    """
    steps = min(_MOST, max(trials.total // _SHARE, min(_LEAST, trials.total)))
    start = {k: v.clone() for k, v in trials.modules.state_dict().items()}

    def loss(rate: float) -> float:
        trials.modules.load_state_dict(start)
        return trials.loss(rate, steps)

    try:
        if limit_s is not None:
            if trials.seconds(1) > limit_s / _FEWEST:  # the first is slower
                return {}
            steps = min(steps, int(limit_s / _TRIALS / max(trials.seconds(_TIMED), 1e-9)) - _JUDGED // 2)
        return {0.0: loss(0.0), **climbed(loss, FIRST[trials.options.optimizer])} if steps >= _FEWEST else {}
    finally:
        trials.modules.load_state_dict(start)
        trials.modules.zero_grad()
