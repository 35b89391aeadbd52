"""Search for a static result that is closer to float and not slower, or faster and close enough, within a time budget.

It is used for `--effort high` and to repair a result that misses its threshold. The moves are those of `moves.MOVES`,
and quantization-aware training if torch is installed. A move is kept only if it improves the result; the next move
starts from it. Accuracy is measured on calibration samples (or by the user's metric), speed on this machine if it is
the target; the held-out samples of the report are not used. A move that fails is reported in a note and skipped. All
attempts are in the `Journal`, so that a killed search does not repeat them.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeopt.data import Feed, readable
from edgeopt.errors import EdgeoptError, LostError
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import arithmetic
from edgeopt.listener import Listener
from edgeopt.numbers.scores import Outputs, lowest_agreement, lowest_sqnr_db, short_db
from edgeopt.quantization.candidates import Draft, draft
from edgeopt.quantization.check import measurable
from edgeopt.quantization.journal import Journal, Verdict, journal
from edgeopt.quantization.judge import Figures, near_enough, nearer
from edgeopt.quantization.looking import comparable
from edgeopt.quantization.moves import MOVES, Move
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.steps import SELECTION
from edgeopt.runtime.meter import Timed
from edgeopt.runtime.session import open_session, run_all

_GAIN_DB = 0.2  # a move must gain at least this much SQNR
_SLOWER = 1.03
FASTER = 1.02
_MEASURED_S = 0.5
_TRAINING_S = 60.0  # with less time left, training is not worth starting
_EPOCHS = 12


@dataclass(frozen=True)
class Attempt:
    """A model that was tried."""

    what: str
    draft: Draft
    score: float
    """The metric, 0 without one."""
    sqnr_db: float
    speed: float
    """Relative to the first model, 1 if not measured."""
    agreement: float | None = None
    """Top-1 agreement of class scores, None if there are none."""
    short_db: float = 0.0
    """How far what counts of the outputs' kinds is below its bar."""

    @property
    def figures(self) -> Figures:
        """How close it is to float."""
        return Figures(self.score, self.sqnr_db, self.agreement, self.short_db)


_LEAST_SHARE = 1 / 3


@dataclass
class Search:
    """The state of a search."""

    task: Task
    feeds: Sequence[tuple[str, Feed]]
    reference: Sequence[Outputs]
    deadline: float
    clock: Callable[[], float]
    first: Draft
    journal: Journal
    enough: float | None = None
    """Speed relative to the first model that a closer result must have; None: that of the fastest one kept so far."""
    attempts: list[Attempt] = field(default_factory=list)
    """All attempts, in order."""
    tried: list[Verdict] = field(default_factory=list)
    """What was said of them."""
    best: Attempt = field(init=False)
    """The best attempt so far."""
    fastest: float = 1.0  # highest speed of the attempts that were kept
    longest: float = 0.0  # seconds of the slowest attempt; a new one starts only if as much time is left

    def __post_init__(self) -> None:
        self.best = self._attempt("as it was", self.first)
        self.attempts.append(self.best)

    def run(self) -> None:
        """Try all moves within the budget, then training; the result is `best`."""
        for _ in self.kept():
            pass
        self.train()

    def kept(self, moves: Sequence[Move] | None = None) -> Iterator[Draft]:
        """Each model that improves the result, move by move; moves: None for all in the order of the table."""
        for move in MOVES if moves is None else moves:
            try:
                yield from self._moved(move)
            except LostError:
                raise
            except EdgeoptError as e:
                self.task.note(f"search: some moves cannot be tried: {e}")
            self.journal.keep(self.task.cache.costs)

    def all_attempts(self) -> list[Attempt]:
        """All attempts and the float model, which is exact; if nothing was timed it counts as the slowest."""
        exact = self._attempt("float", Draft("float", self.task.start))
        return [*self.attempts, exact if self._timed else replace(exact, speed=0.0)]

    @property
    def _timed(self) -> bool:
        return self.task.options.measure and measurable(self.task)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the best attempt so far."""
        return self.best.draft.recipe or self.task.recipe

    def left(self) -> float:
        """Time left, in seconds."""
        return self.deadline - self.clock()

    def _attempt(self, what: str, made: Draft) -> Attempt:
        options, shown = arithmetic(self.task.target), self.task.shown(made.model)
        session = open_session(made.model, options=options)
        judging = session if shown is made.model else open_session(shown, options=options)
        outputs = run_all(judging, self.feeds, workers=cores())
        errors = self.task.compared(judging.outputs, [f for _, f in self.feeds], self.reference, outputs)
        metric, speed = self.task.metric, 1.0
        score = 0.0 if metric is None else metric(session, self.reference, outputs)
        if made is not self.first and self._timed:
            feed, meter = self.feeds[0][1], self.task.start.resources.meter
            models = {"first": Timed(self.first.model, feed), "new": Timed(made.model, feed, session)}
            speed = 1.0 if meter is None else meter.interleaved(models, "first", seconds=_MEASURED_S)["new"].speedup
        return Attempt(what, made, score, lowest_sqnr_db(errors), speed, lowest_agreement(errors), short_db(errors))

    def consider(self, what: str, made: Draft, *, faster: bool = False) -> str:
        """Keep `made` if it is closer to float and not slower, or for `faster` if it is faster and close enough.

        Returns "kept", or the reason why not.
        """
        attempt, best = self._attempt(what, made), self.best
        verdict = self._faster(attempt) if faster else self._nearer(attempt)
        change = f"{attempt.sqnr_db - best.sqnr_db:+.1f} dB, {attempt.speed / best.speed:.2f}x"
        figures = "" if self.task.metric is None else f", {self.task.metric.name} {attempt.score:.4g}"
        if best.short_db and not self.task.options.judged_by_user:
            figures = f", {attempt.short_db:.1f} dB short of the bar after {best.short_db:.1f}"
        self.task.note(f"search: {what}: {attempt.sqnr_db:.1f} dB ({change}){figures}, {verdict}")
        if verdict == "kept":
            self.best = attempt
            self.fastest = max(self.fastest, attempt.speed)
        elif self.task.options.pareto is None:  # the model is not needed again: free its memory
            attempt = replace(attempt, draft=replace(made, state=self.task.start))
        self.attempts.append(attempt)
        return verdict

    def _nearer(self, a: Attempt) -> str:
        if not nearer(self.task, a.figures, self.best.figures, _GAIN_DB):
            return "no gain"
        return "slower" if a.speed * _SLOWER < (self.enough or self.fastest) else "kept"

    def _faster(self, a: Attempt) -> str:
        if a.speed < self.best.speed * FASTER:
            return "no faster"
        return "kept" if near_enough(self.task, a.figures, self.best.figures) else "too far from float"

    def _moved(self, move: Move) -> Iterator[Draft]:
        """Each model of `move` that improves the result; recipes rejected in the journal are not built again."""
        for what, recipe in move.moves(self.best.draft.state, self.recipe):
            if self.left() < self.longest:
                return
            against = self.recipe
            known = self.journal.find(recipe, against)
            if known is not None and not known.kept and self.task.options.pareto is None:  # a front needs all models
                if known not in self.tried:
                    self.task.note(f"search: {what}: {known.verdict} (known from before)")
                continue
            verdict = self._tried(what, recipe, move.faster)
            self.tried.append(Verdict(recipe, against, what, verdict))
            self.journal.add(self.tried[-1])
            if verdict == "kept":
                yield self.best.draft

    def _tried(self, what: str, recipe: Recipe, faster: bool) -> str:
        start = self.clock()
        try:
            made = draft(self.task, recipe, "static")
            if made is None or not made.static:
                return "no node in integers"
            return self.consider(what, made, faster=faster)
        except LostError:
            raise
        except EdgeoptError as e:
            self.task.note(f"search: {what}: passed over: {e}")
            return f"failed: {e}"
        finally:
            self.longest = max(self.longest, self.clock() - start)

    def train(self) -> None:
        """Train the best model so far, if there is enough time and torch is installed."""
        if self.left() < _TRAINING_S or importlib.util.find_spec("torch") is None:
            return
        from edgeopt.quantization.qat import trained

        minutes = max(0.5, self.left() / 60 - 0.5)
        options = self.task.options.model_copy(update={"qat_minutes": minutes, "qat_epochs": _EPOCHS})
        start, listener = self.task.start, Listener(progress=self.task.listener.progress)
        quiet = replace(start, resources=replace(start.resources, listener=listener))
        task = replace(self.task, options=options, start=quiet)
        try:
            self.consider("training through the Q/DQ", trained(task, self.best.draft))
        except LostError:
            raise
        except EdgeoptError as e:
            self.task.note(f"search: training is not possible: {e}")


def own_time() -> Callable[[], float]:
    """A clock in seconds of the processors, of which half are taken to be at work: load on the machine must not change
    what a repair finds. It shows at least a third of the elapsed time.
    """
    wall, cpu, at_work = time.monotonic(), time.process_time(), (1 + cores()) / 2

    def now() -> float:
        return max((time.process_time() - cpu) / at_work, (time.monotonic() - wall) * _LEAST_SHARE)

    return now


def start(task: Task, first: Draft, output: Path | None = None, *, enough: float | None = None) -> Search | None:
    """A search that starts from `first` (static) with the task's time budget; its journal is beside `output`.

    enough: see `Search`. None if `first` is not static or no calibration sample can be read.

    Raises:
        DataError: the user's metric fails on the first result.
    """
    count = min(SELECTION, comparable(task.held[0][1], task.reference[0], task.options.max_ram))
    feeds, _ = readable(task.start.samples[:count], total=len(task.start.samples))
    if not feeds or not first.static:
        return None
    clock = time.monotonic if task.options.searches or task.options.budget_s is not None else own_time()
    deadline = clock() + task.options.search_s
    reference = run_all(task.judging, feeds, workers=cores())
    known = journal(task, output)
    task.cache.costs = task.cache.costs or known.costs
    try:
        found = Search(task, feeds, reference, deadline, clock, first, known, enough)
    except EdgeoptError:
        known.remove()
        raise
    if math.isfinite(found.best.sqnr_db):
        task.note(f"search: from {found.best.sqnr_db:.1f} dB on {len(feeds)} calibration samples")
    return found
