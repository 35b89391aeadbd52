"""One step of training: the gradients of its batches, brought together over ranks, clipped, and applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeopt.options.distill import Distill
from edgeopt.train.batches import Batch
from edgeopt.train.ranks import Ranks

_FUSED = frozenset({"cpu", "cuda"})  # where one pass over memory updates a weight


@dataclass(frozen=True)
class Moment:
    """Where training stands at a step."""

    done: float
    """Share of all steps that were taken."""
    average: nn.Module | None
    """The student's moving average, if there is one."""


Lesson = Callable[[Batch, Moment], Tensor]


@dataclass(frozen=True)
class Course:
    """What is taught, and to what end."""

    lesson: Lesson
    """The loss of a batch at a moment."""
    epoch_batches: Callable[[int], Iterator[Batch]]
    """This rank's batches of an epoch, by its number."""
    batch_count: int
    """Batches of an epoch, of all ranks."""
    score: Callable[[nn.Module], float]
    """The held-out metric of a module, higher is better; called on rank 0."""
    first: float
    """The score of the student as it is."""
    held: Callable[[], Iterable[Batch]] = tuple
    """Held-out batches, on which rates are compared."""


class NotFiniteError(Exception):
    """The loss or its gradient is NaN or infinite."""


def optimizer_of(modules: nn.ModuleList, options: Distill, rate: float) -> torch.optim.Optimizer:
    """The optimizer of the weights that are trained; no decay for biases, scales and norms."""
    parameters = _trained(modules)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = {p.device.type for p in parameters} <= _FUSED
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, total: int, warm_up: float) -> None:
    """Set the rate of a step of `total`: linear warm-up to `rate`, then cosine to 0."""
    for group in optimizer.param_groups:
        group["lr"] = rate * _share(step, total, warm_up)


def _share(step: int, total: int, warm_up: float) -> float:
    first = max(1, round(warm_up * total))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - first) / max(1, total - first))))


def take(
    modules: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    batches: Iterator[Batch],
    moment: Moment,
    options: Distill,
    ranks: Ranks,
) -> tuple[float, int]:
    """Take a step on the next batches of this rank; (sum of their losses, their number). Every rank takes every step,
    with or without a batch.

    Raises:
        NotFiniteError: on every rank, if it is so on one.
    """
    total, count = 0.0, 0
    for _ in range(options.accumulate):
        batch = next(batches, None)
        if batch is None:
            break
        value = lesson(batch, moment)
        (value / (options.accumulate * ranks.count)).backward()
        if not torch.isfinite(value):
            _poison(modules)
        total, count = total + value.item(), count + 1
    ranks.sum_gradients(iter(_trained(modules)))
    norm = nn.utils.clip_grad_norm_([p for p in modules.parameters() if p.grad is not None], options.clip)
    if not torch.isfinite(norm):
        raise NotFiniteError
    optimizer.step()
    optimizer.zero_grad()
    return total, count


def _trained(modules: nn.ModuleList) -> list[nn.Parameter]:
    return [p for p in modules.parameters() if p.requires_grad]


def _poison(modules: nn.ModuleList) -> None:
    """Set a gradient to NaN, so that every rank sees the failure."""
    parameter = _trained(modules)[0]
    parameter.grad = torch.full_like(parameter, math.nan)
