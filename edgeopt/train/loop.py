"""The training loop: one student, a loss over batches, the best by a held-out metric that others measure.

AdamW or SGD, a cosine after a linear warm-up, clipped gradients. Everything that decides the next step is in a checkpoint,
so that a run that was killed ends as if it had not been.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import DataError, EdgeoptError
from edgeopt.options import Listener
from edgeopt.train.batches import Batch
from edgeopt.train.options import DistillOptions


@dataclass(frozen=True)
class Epoch:
    """A line of the log. score: the held-out metric; higher is better."""

    epoch: int
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass
class Progress:
    """Where a run is: what a checkpoint holds beside the states of module, optimizer and schedule. weights: the best so far."""

    epoch: int = 0
    first: float = -math.inf
    best: float = -math.inf
    best_epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    log: list[Epoch] = field(default_factory=list)


@dataclass
class Run:
    """What is trained: modules (the student first), their optimizer and schedule, and the student's moving average."""

    modules: nn.ModuleList
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: nn.Module | None
    progress: Progress

    @property
    def judged(self) -> nn.Module:
        """Whose weights are measured and kept."""
        return self.average if self.average is not None else self.modules[0]


def fit(
    modules: nn.ModuleList,
    loss: Callable[[Batch], Tensor],
    epoch_batches: Callable[[int], Iterator[Batch]],
    steps_per_epoch: int,
    score: Callable[[nn.Module], float],
    options: DistillOptions,
    listener: Listener,
) -> Progress:
    """Train `modules` until the epochs, the minutes or the patience end; the student is left with its best weights.

    epoch_batches: the batches of an epoch by its number; score: a module's held-out metric; higher is better; it is asked
    before the first step, so that a student that only gets worse comes back as it was.

    Raises:
        EdgeoptError: the loss is not a number; the student has its best weights by then.
    """
    run = _begin(modules, steps_per_epoch, options)
    progress, start = run.progress, time.monotonic()
    if not progress.weights:
        progress.first = progress.best = score(run.judged)
        progress.weights = _state(modules[0])
        listener.note(f"before training: {progress.best:.4f}")
    try:
        while progress.epoch < options.epochs:
            seen = _epoch(run, loss, epoch_batches(progress.epoch), options)
            progress.epoch += 1
            found = score(run.judged)
            if found > progress.best:
                progress.best, progress.best_epoch, progress.weights = found, progress.epoch, _state(run.judged)
            rate = run.schedule.get_last_lr()[0]
            progress.log.append(Epoch(progress.epoch, seen, found, rate, round(time.monotonic() - start, 3)))
            listener.progress("training", progress.epoch, options.epochs)
            listener.note(
                f"epoch {progress.epoch}/{options.epochs}: loss {seen:.4f}, held out {found:.4f} (best {progress.best:.4f})"
            )
            _save(run, options)
            if _enough(progress, options, time.monotonic() - start, listener):
                break
    finally:
        modules[0].load_state_dict(progress.weights)
    return progress


def _begin(modules: nn.ModuleList, steps_per_epoch: int, options: DistillOptions) -> Run:
    parameters = [p for p in modules.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": 0.0,
        },  # biases, scales and norms do not decay
    ]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, lr=options.rate)
        if options.optimizer == "adamw"
        else torch.optim.SGD(groups, lr=options.rate, momentum=0.9)
    )
    total = max(1, math.ceil(steps_per_epoch / options.accumulate) * options.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, options.warm_up))
    run = Run(modules, optimizer, schedule, copy.deepcopy(modules[0]) if options.ema else None, Progress())
    if options.resume and options.checkpoint is not None and options.checkpoint.is_file():
        _load(run, options.checkpoint)
    return run


def _rate(step: int, total: int, warm_up: float) -> float:
    """The share of the learning rate at a step: linear up, then a cosine down to 0."""
    first = max(1, round(warm_up * total))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - first) / max(1, total - first))))


def _epoch(run: Run, loss: Callable[[Batch], Tensor], examples: Iterator[Batch], options: DistillOptions) -> float:
    """One pass; the mean loss."""
    run.modules.train()
    values: list[float] = []
    waiting = 0
    for batch in examples:
        value = loss(batch)
        if not torch.isfinite(value):
            raise EdgeoptError(
                f"the loss is {value.item()} in epoch {run.progress.epoch + 1}, step {len(values) + 1}: lower --lr, or raise --warm-up; nothing was written"
            )
        (value / options.accumulate).backward()
        values.append(value.item())
        waiting += 1
        if waiting == options.accumulate:
            _step(run, options)
            waiting = 0
    if waiting:
        _step(run, options)
    return sum(values) / max(1, len(values))


def _step(run: Run, options: DistillOptions) -> None:
    nn.utils.clip_grad_norm_([p for p in run.modules.parameters() if p.grad is not None], options.clip)
    run.optimizer.step()
    run.schedule.step()
    run.optimizer.zero_grad()
    if run.average is not None:
        with torch.no_grad():
            for kept, new in zip(run.average.parameters(), run.modules[0].parameters(), strict=True):
                kept.lerp_(new, 1 - options.ema)


def _enough(progress: Progress, options: DistillOptions, seconds: float, listener: Listener) -> bool:
    if options.minutes is not None and seconds > 60 * options.minutes:
        listener.note(f"stopped after {progress.epoch} epochs: {options.minutes:g} minutes are over")
        return True
    if options.patience and progress.epoch - progress.best_epoch >= options.patience:
        listener.note(f"stopped after {progress.epoch} epochs: no better for {options.patience}")
        return True
    return False


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _save(run: Run, options: DistillOptions) -> None:
    """Write the log and the checkpoint, each by way of a file beside it."""
    if options.log is not None:
        with _replacing(options.log).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([f.name for f in dataclasses.fields(Epoch)])
            writer.writerows(dataclasses.astuple(line) for line in run.progress.log)
        _replacing(options.log).replace(options.log)
    if options.checkpoint is not None:
        progress = {**vars(run.progress), "log": [dataclasses.astuple(line) for line in run.progress.log]}
        state = {
            "modules": run.modules.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "average": run.average.state_dict() if run.average is not None else None,
            "progress": progress,
        }
        torch.save(state, _replacing(options.checkpoint))
        _replacing(options.checkpoint).replace(options.checkpoint)


def _replacing(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _load(run: Run, path: Path) -> None:
    """Go on where the checkpoint at `path` ended.

    Raises:
        DataError: it is no checkpoint, or one of another student.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        run.modules.load_state_dict(state["modules"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        progress = state["progress"]
        run.progress = Progress(**{**progress, "log": [Epoch(*line) for line in progress["log"]]})
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as e:
        raise DataError(f"--resume {path}: no checkpoint of this student ({str(e).splitlines()[0]})") from e
