"""The loop on one weight that goes to 3: what ends it, what is kept, what outlives a kill."""

from __future__ import annotations

import csv
import errno
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeopt import distill
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.listener import Listener
from edgeopt.options.distill import Distill
from edgeopt.train import lessons, loop
from edgeopt.train.loop import Progress, fit
from edgeopt.train.ranks import Ranks
from edgeopt.train.steps import Course
from tests.train import toys

STEPS = 2  # an epoch


class One(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def distance(module: Any) -> Tensor:
    return (module.w - 3).square().sum()


def fitted(
    module: One,
    *,
    factor: Callable[[int], float] = lambda step: 1.0,
    note: Callable[[str], None] = lambda line: None,
    **choices: Any,
) -> Progress:
    """Train `module`; factor: of the loss of a step, counted from 0."""
    steps = iter(range(10**6))

    def lesson(batch: Any, average: Any) -> Tensor:
        return distance(module) * factor(next(steps))

    def batches(epoch: int) -> Iterator[Any]:
        yield from range(STEPS)

    options = Distill(**{"epochs": 5, "learning_rate": 0.2, "weight_decay": 0.0, **choices})
    modules = nn.ModuleList([module])
    score = lambda m: -distance(m).item()  # noqa: E731
    course = Course(lesson, batches, STEPS, score, score(module))
    return fit(modules, course, options, Listener(note=note), Ranks())


def test_a_loss_that_ends_being_a_number_leaves_the_best_weights_and_says_so() -> None:
    module, notes = One(), list[str]()
    found = fitted(module, factor=lambda s: math.nan if s == 2 * STEPS + 1 else 1.0, note=notes.append)
    short = One()
    fitted(short, epochs=5, factor=lambda s: math.nan if s == 2 * STEPS else 1.0)
    assert found.diverged.startswith("the loss or its gradient is not a number in epoch 3, step 2, at a rate of 0.")
    assert found.best_epoch == 2 and len(found.log) == 2
    assert notes[-1] == f"{found.diverged}: stopped; the weights of epoch 2 are kept (lower --lr to go further)"
    assert 0 < module.w.item() == short.w.item()
    assert found.best == -distance(module).item() > found.first


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_at_once_is_an_error_and_the_weights_are_those_before(bad: float) -> None:
    module = One()
    with pytest.raises(EdgeoptError, match=r"not a number in epoch 1, step 2, at a rate of [0-9.]+: lower --lr"):
        fitted(module, factor=lambda s: bad if s == 1 else 1.0)
    assert module.w.item() == 0


def test_a_run_that_only_gets_worse_ends_where_it_began() -> None:
    module = One()
    found = fitted(module, factor=lambda s: -1.0)  # away from 3
    assert found.best == found.first == -9 and found.best_epoch == 0 and module.w.item() == 0


def test_minutes_shorten_the_schedule_and_not_only_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def ten_seconds(step: int) -> float:
        clock[0] += 10
        return 1.0

    found = fitted(One(), factor=ten_seconds, epochs=100, minutes=1.0)
    assert [e.seconds for e in found.log] == [20, 40, 60]
    # the last of 6 steps, one of them warm-up, has (1 + cos(4 pi / 5)) / 2 of the rate left, and not that of 200 steps
    assert found.log[-1].learning_rate == pytest.approx(0.2 * 0.5 * (1 + math.cos(0.8 * math.pi)))


def test_a_run_with_time_enough_is_the_one_without_a_limit() -> None:
    free, limited = One(), One()
    assert [e.learning_rate for e in fitted(free).log] == [e.learning_rate for e in fitted(limited, minutes=1e6).log]
    assert free.w.item() == limited.w.item()


def test_of_epochs_with_the_same_score_the_last_is_kept_and_patience_counts_from_the_first() -> None:
    module = One()
    options = Distill(epochs=9, learning_rate=0.1, patience=4, weight_decay=0.0)
    scores = iter([1.0, 2.0, 2.0, 1.0, 2.0, 1.0])
    seen: list[float] = []

    def score(m: Any) -> float:
        seen.append(m.w.item())
        return next(scores)

    lesson = lambda batch, moment: distance(module)  # noqa: E731
    course = Course(lesson, lambda e: iter(range(2)), 2, score, 0.0)
    found = fit(nn.ModuleList([module]), course, options, Listener(), Ranks())
    assert (found.best_epoch, found.kept_epoch, found.epoch) == (2, 5, 6)
    assert module.w.item() == seen[4]
    modules = nn.ModuleList([one := One()])
    course = Course(lambda b, m: distance(one), lambda e: iter(range(2)), 2, lambda m: 0.0, 0.0)
    as_good = fit(modules, course, options, Listener(), Ranks())
    assert one.w.item() == 0 and as_good.kept_epoch == 0  # the input is not replaced by what is no better


def test_a_moving_average_does_not_lag_behind_a_short_run() -> None:
    free, averaged = (fitted(One(), epochs=20, **more) for more in ({}, {"kind": "self", "by": "average"}))
    assert averaged.best > free.first / 9 and averaged.best == pytest.approx(free.best, abs=0.3)


def test_patience_ends_what_gets_no_better() -> None:
    notes: list[str] = []
    # two good epochs, then away
    found = fitted(One(), factor=lambda s: 1.0 if s < 2 * STEPS else -1.0, patience=2, epochs=50, note=notes.append)
    assert len(found.log) == found.best_epoch + 2 < 50
    assert notes[-1].endswith("no better for 2")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed: no space")]
)
def test_a_full_disk_is_told_and_the_run_goes_on_beside_the_old_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, notes, saved, save = tmp_path / "state.pt", list[str](), list[bytes](), torch.save

    def until_full(state: Any, to: Path) -> None:
        if len(saved) == 2:
            to.write_bytes(b"half of it")
            raise error
        save(state, to)
        saved.append(to.read_bytes())

    monkeypatch.setattr(torch, "save", until_full)
    module, free = One(), One()
    fitted(free)
    found = fitted(module, checkpoint=path, note=notes.append)
    assert len(found.log) == 5 and module.w.item() == free.w.item()
    told = [n for n in notes if "state.pt cannot be written" in n]
    assert len(told) == 3 and all("space" in n and "what it held before is kept" in n for n in told)
    assert path.read_bytes() == saved[-1] and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    again = One()
    assert [e.epoch for e in fitted(again, checkpoint=path, resume=True).log] == [1, 2, 3, 4, 5]
    assert again.w.item() == free.w.item()


def test_a_log_that_has_no_place_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    notes: list[str] = []
    assert len(fitted(One(), log=tmp_path / "gone" / "log.csv", note=notes.append).log) == 5
    assert sum("log.csv cannot be written" in n for n in notes) == 5


def test_the_log_has_a_line_an_epoch(tmp_path: Path) -> None:
    found = fitted(One(), log=tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(int(r["epoch"]), float(r["loss"]), float(r["score"])) for r in rows] == [
        (e.epoch, e.loss, e.score) for e in found.log
    ]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_checkpoint_that_was_cut_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    fitted(One(), checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"--resume .*state\.pt: no checkpoint of this student"):
        fitted(One(), checkpoint=path, resume=True)


@pytest.mark.parametrize("epoch", [2, 6, 8])  # of 4 in each generation
def test_generations_that_were_killed_and_resumed_end_like_those_that_were_not(epoch: int, tmp_path: Path) -> None:
    student, data = toys.perceptron(), toys.samples(labels=True)
    choices = {"kind": "self", "generations": 2, "alpha": 0.3, **toys.QUICK}
    whole = distill(student, data, **choices)
    with pytest.raises(KeyboardInterrupt):
        distill(student, data, checkpoint=tmp_path / "state.pt", listener=toys.stopping(epoch), **choices)
    notes: list[str] = []
    resumed = distill(
        student, data, checkpoint=tmp_path / "state.pt", resume=True, listener=Listener(note=notes.append), **choices
    )
    assert whole.improved and toys.same_bytes(resumed.model, whole.model)
    assert sum(n.startswith("epoch ") for n in notes) == 8 - (epoch - 1)  # and no epoch twice


def test_tensorboard_shows_every_epoch(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(7), epochs=3, tensorboard=tmp_path / "b")
    board = events.EventAccumulator(str(tmp_path / "b"))
    board.Reload()
    assert [x.value for x in board.Scalars("loss")] == pytest.approx([line.loss for line in found.log])


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tensorboard needs it: pip install tensorboard"):
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(7), tensorboard=tmp_path / "board")
    assert not list(tmp_path.iterdir())


def test_a_run_that_patience_ended_is_not_trained_on(tmp_path: Path) -> None:
    def away(step: int) -> float:
        return 1.0 if step < 2 * STEPS else -1.0

    choices: dict[str, Any] = {"patience": 2, "epochs": 50, "checkpoint": tmp_path / "state.pt"}
    module, again = One(), One()
    first = fitted(module, factor=away, **choices)
    asked: list[int] = []
    found = fitted(again, factor=lambda s: asked.append(s) or 1.0, resume=True, **choices)  # type: ignore[func-returns-value]
    assert first.stopped and not asked and found.log == first.log
    assert again.w.item() == module.w.item() != 0


@pytest.mark.parametrize("epochs", [4, 6])
def test_a_checkpoint_of_a_run_of_another_length_is_refused(epochs: int, tmp_path: Path) -> None:
    fitted(One(), checkpoint=tmp_path / "state.pt")
    with pytest.raises(DataError, match=rf"state\.pt: that run was to take 5 epochs, not {epochs}"):
        fitted(One(), checkpoint=tmp_path / "state.pt", resume=True, epochs=epochs)


def test_an_empty_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"--resume .*state\.pt: no checkpoint of this student \(\w+.*\)"):
        fitted(One(), checkpoint=tmp_path / "state.pt", resume=True)


def test_a_new_run_forgets_the_checkpoints_of_an_earlier_one_before_it_has_its_own(tmp_path: Path) -> None:
    for name in ("state.pt", "state.pt.2", "state.pt.10", "state.pt.txt", "state.pt.1st-backup", "other.pt"):
        (tmp_path / name).write_bytes(b"of an earlier run")
    with pytest.raises(KeyboardInterrupt):
        distill(
            toys.perceptron(), toys.samples(labels=True), kind="self", generations=2, checkpoint=tmp_path / "state.pt",
            force=True, listener=toys.stopping(1), **toys.QUICK,
        )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.pt", "state.pt.1st-backup", "state.pt.txt"]


def test_a_second_generation_that_diverges_leaves_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    data, choices, made = toys.samples(labels=True), {"kind": "self", "alpha": 0.3, **toys.QUICK}, list[int]()
    alone = distill(toys.perceptron(), data, **choices)
    real = lessons.lesson_of

    def diverging(*given: Any) -> Any:
        made.append(len(made))
        lesson = real(*given)
        return lesson if len(made) == 1 else lambda batch, average: lesson(batch, average) * math.nan

    monkeypatch.setattr("edgeopt.train.distill.lesson_of", diverging)
    notes: list[str] = []
    found = distill(toys.perceptron(), data, generations=2, listener=Listener(note=notes.append), **choices)
    assert len(made) == 2 and alone.improved and toys.same_bytes(found.model, alone.model)
    assert (
        notes[-1].startswith("the loss or its gradient is not a number") and "generations before are kept" in notes[-1]
    )


def test_minutes_end_a_run_inside_an_epoch_and_what_it_learned_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))  # a second passes with every look at the clock
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    module, seen = One(), list[int]()

    def batches(epoch: int) -> Iterator[int]:
        for i in range(1000):
            seen.append(i)
            yield i

    options, notes = Distill(minutes=0.5, epochs=3, learning_rate=0.2), list[str]()
    modules = nn.ModuleList([module])
    score = lambda m: -distance(m).item()  # noqa: E731
    course = Course(lambda batch, average: distance(module), batches, 1000, score, score(module))
    found = fit(modules, course, options, Listener(note=notes.append), Ranks())
    assert f"after {found.step} of 1000 steps of the first epoch: more --minutes" in notes[0]
    assert 0 < len(seen) < 200 and found.epoch == 1 and found.best > found.first


def test_momentum_is_of_sgd_and_nine_tenths_unless_something_else_is_said() -> None:
    data = toys.samples(labels=True)
    choices = {"teacher": toys.perceptron(7), "optimizer": "sgd", **toys.QUICK}
    default, same, none = (
        distill(toys.perceptron(), data, **choices, **m) for m in ({}, {"momentum": 0.9}, {"momentum": 0})
    )
    assert toys.same_bytes(default.model, same.model) and not toys.same_bytes(default.model, none.model)
