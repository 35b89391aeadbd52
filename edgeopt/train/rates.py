"""The learning rate by trial: a few rates train the same few steps from the same weights, each with the schedule of a
whole run in small, and the one with the lowest loss on the batches that come next is taken.

What a network can bear differs by orders of magnitude: random weights of a small network want .01, a pruned one that
was trained before .0003. A short run tells them apart, and with its decaying rate it is not blinded by the noise of a
high one (compare Smith 2017, arXiv:1506.01186, whose rate only rises).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from edgeopt.options.distill import Distill
from edgeopt.train.batches import Batch
from edgeopt.train.ranks import Ranks
from edgeopt.train.steps import Lesson, Moment, NotFiniteError, optimizer_of, set_rate, take

_LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
FIRST: Mapping[str, float] = {"adamw": 3e-4, "sgd": 1e-2}
"""Where the search begins, by optimizer; what is taken where a run is too short for it."""
_STEPS, _SHARE = 30, 20  # of a trial: so many, or 1/20 of the run
_FEWEST = 5
_JUDGED = 16  # batches


def climbed(loss: Callable[[float], float], first: float) -> dict[float, float]:
    """The losses of the rates that were tried: from `first` upwards as long as it helps; downwards, if it does not."""
    found, start = {first: loss(first)}, _LADDER.index(first)
    for way in (1, -1):
        here = start
        while 0 <= here + way < len(_LADDER):
            found[_LADDER[here + way]] = loss(_LADDER[here + way])
            if not found[_LADDER[here + way]] < found[_LADDER[here]]:
                break
            here += way
        if here != start:
            break
    return found


def tried(
    modules: nn.ModuleList,
    average: nn.Module | None,
    lesson: Lesson,
    epoch_batches: Callable[[int], Iterator[Batch]],
    total: int,
    options: Distill,
    ranks: Ranks,
    late: Callable[[], bool],
) -> dict[float, float]:
    """The losses of the rates that were tried for a run of `total` steps, the weights being left as they were; empty if
    it is too short. `late`: whether there is no time for another one, whose loss is infinite then.
    """
    steps = min(_STEPS, total // _SHARE)
    if steps < _FEWEST:
        return {}
    start = {k: v.clone() for k, v in modules.state_dict().items()}

    def loss(rate: float) -> float:
        if late():
            return math.inf
        modules.load_state_dict(start)
        batches = itertools.chain.from_iterable(epoch_batches(epoch) for epoch in range(steps + _JUDGED))
        optimizer = optimizer_of(modules, options, rate)
        try:
            for step in range(steps):
                set_rate(optimizer, rate, step, steps, options.warm_up)
                take(modules, optimizer, lesson, batches, Moment(step / total, average), options, ranks)
        except NotFiniteError:
            return math.inf
        with torch.no_grad():
            values = [lesson(b, Moment(steps / total, average)).item() for b in itertools.islice(batches, _JUDGED)]
        value, count = ranks.total([sum(values), len(values)])
        return value / max(1.0, count) if math.isfinite(value) else math.inf

    modules.train()
    found = climbed(loss, FIRST[options.optimizer])
    modules.load_state_dict(start)
    modules.zero_grad()
    return found
