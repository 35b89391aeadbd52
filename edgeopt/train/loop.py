"""The training loop for one student: it minimizes a loss over batches and keeps the weights with the best held-out
score.

AdamW or SGD, cosine schedule after a linear warm-up, gradient clipping. A checkpoint holds the complete state, so a
killed run ends like an uninterrupted one. A time limit determines the number of epochs, and so the length of the
schedule. Several ranks give the result of one process that accumulates over their batches.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.files import replacing
from edgeopt.graph.serialization import MALFORMED
from edgeopt.listener import Listener
from edgeopt.options.distill import Distill
from edgeopt.train.ranks import Ranks
from edgeopt.train.rates import FIRST, Trials, chosen, tried
from edgeopt.train.steps import Course, Moment, NotFiniteError, optimizer_of, set_rate, take


@dataclass(frozen=True)
class Epoch:
    """A line of the training log."""

    epoch: int
    loss: float
    score: float
    """The held-out metric; higher is better."""
    learning_rate: float
    seconds: float
    """Time since the start of training."""


@dataclass
class Progress:
    """State of a run, in the checkpoint beside the states of modules and optimizer."""

    epochs: int = 0
    """Number of epochs that will run, which a time limit may reduce."""
    epoch: int = 0
    step: int = 0
    first: float = -math.inf
    best: float = -math.inf
    best_epoch: int = 0
    """The first epoch with the best score; 0: none was better than the input."""
    kept_epoch: int = 0
    """The last with that score, whose weights are kept."""
    asked: int = 0
    """Number of epochs requested."""
    stopped: bool = False
    diverged: str = ""
    """Where the loss became NaN or infinite."""
    identity: str = ""
    """Digest of the job."""
    rate: float = 0.0
    """The highest learning rate; 0 before it is known."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The best weights so far."""
    log: list[Epoch] = field(default_factory=list)


@dataclass
class TrainingRun:
    """The modules being trained and their training state."""

    modules: nn.ModuleList
    """The student first."""
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    """The student's moving average."""
    progress: Progress
    steps_per_epoch: int
    ranks: Ranks

    @property
    def judged(self) -> nn.Module:
        """The module whose weights are evaluated and kept."""
        return self.average if self.average is not None else self.modules[0]


class Diverged(EdgeoptError):
    """The loss became NaN or infinite before any epoch improved on the input."""


_WINDOW = 20  # the moving average reaches over 1/20 of the steps, if it is not told otherwise
_LOOK = 5  # steps after which the time of an epoch is estimated
_TRYING = 0.15  # share of the minutes in which rates are tried


def fit(
    modules: nn.ModuleList, course: Course, options: Distill, listener: Listener, ranks: Ranks, identity: str = ""
) -> Progress:
    """Train `modules` until epochs, minutes or patience run out; the student is left with its best weights, those that
    it had if nothing beats them. `identity`: digest of the job; a checkpoint of a different one is refused.

    Raises:
        Diverged: the loss became NaN or infinite before any epoch improved on the input; the student has its best
          weights.
    """
    run = _begin(modules, course.batch_count, options, ranks, identity)
    if options.resume and not run.progress.weights:
        listener.note(f"--resume: {options.checkpoint} is not there; from the beginning")
    progress, start = run.progress, time.monotonic()
    if not progress.weights:
        progress.first = progress.best = course.first
        progress.weights = _state(modules[0])
    if not progress.rate:
        progress.rate = options.learning_rate or _tried(run, course, options, listener)
    try:
        while not progress.stopped and progress.epoch < progress.epochs:
            _one(run, course, options, listener, start)
    except NotFiniteError as e:
        progress.diverged = str(e)
        if progress.best_epoch == 0:
            raise Diverged(f"{e}: lower --lr, or raise --warm-up; nothing was written") from e
        listener.note(f"{e}: stopped; the weights of epoch {progress.kept_epoch} are kept (lower --lr to go further)")
    finally:
        modules[0].load_state_dict(progress.weights)
    return progress


def _tried(run: TrainingRun, course: Course, options: Distill, listener: Listener) -> float:
    """The learning rate that is best in short runs."""
    limit_s = None if options.minutes is None else 60 * _TRYING * options.minutes
    total = run.steps_per_epoch * run.progress.epochs
    trials = Trials(run.modules, run.average, course, run.steps_per_epoch, total, options, run.ranks)
    found = tried(trials, limit_s)
    rate = chosen(found)
    if rate is None:
        return FIRST[options.optimizer]
    losses = ", ".join(f"{x:g}: {loss:.4g}" for x, loss in sorted(found.items()))
    listener.note(f"--lr {rate:g}, by the held-out loss after a few steps ({losses})")
    return rate


def _one(run: TrainingRun, course: Course, options: Distill, listener: Listener, start: float) -> None:
    """Train one epoch, evaluate, log and checkpoint. `start`: of training, by the monotonic clock."""
    progress, begun = run.progress, time.monotonic()
    loss = _epoch(run, course, options, start)
    progress.epoch += 1
    if progress.epoch == 1 and progress.step < run.steps_per_epoch:
        seen = f"{progress.step} of {run.steps_per_epoch} steps"
        listener.note(f"the minutes were over after {seen} of the first epoch: more --minutes, or fewer --samples")
    held_out = _scored(run, course.score)
    if held_out > progress.best:
        progress.best, progress.best_epoch = held_out, progress.epoch
    # of equals the last: few held-out samples have many, and it learned more
    if held_out == progress.best and progress.best_epoch:
        progress.kept_epoch, progress.weights = progress.epoch, _state(run.judged)
    left_s = 60 * (options.minutes or 0.0) - (time.monotonic() - start)
    _fit_into_minutes(run, time.monotonic() - begun, left_s, options)
    seconds = time.monotonic() - start
    progress.log.append(Epoch(progress.epoch, loss, held_out, _now(run), round(seconds, 3)))
    left = (time.monotonic() - begun) * (progress.epochs - progress.epoch)
    figures = f"loss {loss:.4f}, held out {held_out:.4f} (best {progress.best:.4f})"
    if options.minutes is None:
        listener.progress("training", progress.epoch, progress.epochs)
        listener.note(f"epoch {progress.epoch}/{progress.epochs}: {figures}, {left:.0f} s left")
    else:  # of time, which is known: how many epochs it holds changes with their speed
        last = progress.epoch == progress.epochs
        total = round(60 * options.minutes)
        listener.progress("training, seconds", total if last else min(round(seconds), total), total)
        listener.note(f"epoch {progress.epoch}: {figures}, {max(0.0, min(left, left_s)):.0f} s left")
    progress.stopped = _enough(run, options, seconds, listener)
    _save(run, options, listener)


def _scored(run: TrainingRun, score: Callable[[nn.Module], float]) -> float:
    return run.ranks.told([score(run.judged) if run.ranks.first else 0.0])[0]


def _begin(modules: nn.ModuleList, batch_count: int, options: Distill, ranks: Ranks, identity: str) -> TrainingRun:
    optimizer = optimizer_of(modules, options, FIRST[options.optimizer])
    steps = math.ceil(batch_count / (options.accumulate * ranks.count))
    average = copy.deepcopy(modules[0]).eval() if options.averaged else None
    progress = Progress(epochs=options.epochs, asked=options.epochs, identity=identity)
    run = TrainingRun(modules, optimizer, average, progress, steps, ranks)
    if options.resume and options.checkpoint is not None:
        content = options.checkpoint.read_bytes() if ranks.first and options.checkpoint.is_file() else None
        content = ranks.sent(content)
        if content is not None:
            _load(run, content, options.checkpoint, options.epochs, identity)
    return run


def _fit_into_minutes(run: TrainingRun, epoch_seconds: float, left: float, options: Distill) -> None:
    """Set the number of epochs (and so the schedule) to what fits into `left` seconds; estimated after the first steps,
    and after every epoch from its duration.
    """
    if options.minutes is not None:
        possible = max(1, run.progress.epoch + int(left / max(epoch_seconds, 1e-9)))
        run.progress.epochs = min(options.epochs, int(run.ranks.told([possible])[0]))


def _epoch(run: TrainingRun, course: Course, options: Distill, begun: float) -> float:
    """One pass, or as much as fits into the minutes since `begun`; returns the mean loss over all ranks."""
    run.modules.train()
    total, count, start, examples = 0.0, 0, time.monotonic(), course.epoch_batches(run.progress.epoch)
    for step in range(run.steps_per_epoch):
        if options.minutes is not None and run.progress.epoch == 0 and step == _LOOK:
            seconds = (time.monotonic() - start) / _LOOK * run.steps_per_epoch
            _fit_into_minutes(run, seconds, 60 * options.minutes - (start - begun), options)
        if step % _LOOK == _LOOK - 1 and _late(run, time.monotonic() - begun, options):
            break
        steps = max(1, run.steps_per_epoch * run.progress.epochs)
        set_rate(run.optimizer, run.progress.rate, run.progress.step, steps, options.warm_up)
        moment = Moment(run.progress.step / steps, run.average)
        try:
            value, taken = take(run.modules, run.optimizer, course.lesson, examples, moment, options, run.ranks)
        except NotFiniteError as e:
            where = f"epoch {run.progress.epoch + 1}, step {step + 1}, at a rate of {_now(run):.2g}"
            raise NotFiniteError(f"the loss or its gradient is not a number in {where}") from e
        total, count = total + value, count + taken
        run.progress.step += 1
        _averaged(run, options)
    total, count_all = run.ranks.total([total, count])
    return total / max(1.0, count_all)


def _now(run: TrainingRun) -> float:
    return float(run.optimizer.param_groups[0]["lr"])


def _averaged(run: TrainingRun, options: Distill) -> None:
    """Let the moving average follow."""
    if run.average is not None:
        share = 1 - _decay(run, options)
        with torch.no_grad():
            for kept, new in zip(run.average.parameters(), run.modules[0].parameters(), strict=True):
                kept.lerp_(new, share)
            for kept, new in zip(run.average.buffers(), run.modules[0].buffers(), strict=True):
                kept.copy_(new)


def _decay(run: TrainingRun, options: Distill) -> float:
    """Decay of the moving average: as told, or by the number of steps; lower in the first steps, whose weights it would
    lag behind (Tarvainen and Valpola 2017, arXiv:1703.01780, say .999, of 150,000 steps).
    """
    total, step = run.steps_per_epoch * run.progress.epochs, run.progress.step
    return min(options.ema or 1 - _WINDOW / max(2 * _WINDOW, total), (1 + step) / (10 + step))


def _late(run: TrainingRun, seconds: float, options: Distill) -> bool:
    """Whether the time limit is over, by the clock of rank 0."""
    return options.minutes is not None and bool(run.ranks.told([float(seconds > 60 * options.minutes)])[0])


def _enough(run: TrainingRun, options: Distill, seconds: float, listener: Listener) -> bool:
    progress = run.progress
    if _late(run, seconds, options) and progress.epoch < progress.epochs:
        listener.note(f"stopped after {progress.epoch} epochs: {options.minutes:g} minutes are over")
        return True
    if options.patience and progress.epoch - progress.best_epoch >= options.patience:
        listener.note(f"stopped after {progress.epoch} epochs: no better for {options.patience}")
        return True
    return False


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _save(run: TrainingRun, options: Distill, listener: Listener) -> None:
    """Write log, checkpoint and TensorBoard; a write error is noted and training continues."""
    if not run.ranks.first:
        return
    for path, write in ((options.log, _write_log), (options.checkpoint, _write_state), (options.tensorboard, _show)):
        if path is None:
            continue
        try:
            write(run, path)
        except (OSError, RuntimeError, UsageError) as e:  # torch.save raises RuntimeError when it cannot write
            why = str(e.__cause__ or e).splitlines()[0][:120]
            listener.note(f"{path} cannot be written ({why}); what it held before is kept")


def _show(run: TrainingRun, folder: Path) -> None:
    """Append the last epoch to the TensorBoard log."""
    from torch.utils.tensorboard import SummaryWriter

    line = run.progress.log[-1]
    with SummaryWriter(str(folder)) as board:
        for name in ("loss", "score", "learning_rate"):
            board.add_scalar(name, getattr(line, name), line.epoch)


def _write_log(run: TrainingRun, path: Path) -> None:
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f.name for f in dataclasses.fields(Epoch)])
        writer.writerows(dataclasses.astuple(line) for line in run.progress.log)


def _write_state(run: TrainingRun, path: Path) -> None:
    progress = {**vars(run.progress), "log": [dataclasses.astuple(line) for line in run.progress.log]}
    state = {
        "modules": run.modules.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "progress": progress,
    }
    with replacing(path) as part:
        torch.save(state, part)


def _load(run: TrainingRun, content: bytes, path: Path, epochs: int, identity: str) -> None:
    """Restore the state of a checkpoint.

    Raises:
        DataError: it is no checkpoint, or one of another student or run.
    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        run.modules.load_state_dict(state["modules"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        progress = state["progress"]
        run.progress = Progress(**{**progress, "log": [Epoch(*line) for line in progress["log"]]})
        if run.progress.weights.keys() != run.modules[0].state_dict().keys():
            raise KeyError("its weights have other names")
    except (*MALFORMED, OSError, EOFError, pickle.UnpicklingError) as e:
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(f"--resume {path}: no checkpoint of this student ({why})") from e
    if run.progress.identity != identity:
        raise DataError(f"--resume {path}: that run had another teacher, other samples or other options")
    if run.progress.asked != epochs:
        raise DataError(
            f"--resume {path}: that run was to take {run.progress.asked} epochs, not {epochs}, and its learning rates"
            " follow from that"
        )
