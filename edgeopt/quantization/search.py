"""From a static result to a nearer one that is no slower, and then to a faster one that is no further, move by move within a
budget: `--effort high`, and the repair of a result that misses its bar.

Moves are the placement by measured times, those of `statics.MOVES`, products with scales found at run time, the nodes to blame
left in float, and training through the Q/DQ where torch is installed. Each is kept only if it pays, and the next starts from it. Accuracy is seen on calibration
samples (or by the user's metric), speed on this machine if it is the target; the held-out samples of the report have no
say. A move that fails is told and passed over. What was tried is in the `Journal`, so that a search that was killed does
not try it again.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt.data import Feed, readable
from edgeopt.errors import EdgeoptError
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import host
from edgeopt.listener import Listener
from edgeopt.numbers.scores import Outputs, compare, lowest_agreement, lowest_sqnr_db
from edgeopt.quantization.check import measurable
from edgeopt.quantization.journal import Journal, Verdict, journal
from edgeopt.quantization.judge import Figures, near_enough, nearer
from edgeopt.quantization.prepare import Job
from edgeopt.quantization.static import LAST, MOVES, SELECTION, Made, Statics, Tuning
from edgeopt.runtime.measure import interleaved
from edgeopt.runtime.session import open_session, run_all

_GAIN_DB = 0.2  # a move that wins less does not pay
_SLOWER = 1.03
FASTER = 1.02
_MEASURED_S = 0.5
_TRAINING_S = 60.0  # with less left, training would not get far
_EPOCHS = 12


@dataclass(frozen=True)
class Attempt:
    """A model that was tried. score: the metric, or 0 without one; agreement: of class scores, None without them; speed: against
    the first one, 1 if not measured.
    """

    what: str
    made: Made
    score: float
    sqnr_db: float
    speed: float
    agreement: float | None = None

    @property
    def figures(self) -> Figures:
        """How near to float it is."""
        return Figures(self.score, self.sqnr_db, self.agreement)


@dataclass
class Search:
    """What is compared with what; best: so far; points: all that were made, the first one first."""

    job: Job
    statics: Statics
    feeds: Sequence[tuple[str, Feed]]
    reference: Sequence[Outputs]
    deadline: float
    first: Made
    journal: Journal
    points: list[Attempt] = field(default_factory=list)
    best: Attempt = field(init=False)
    fastest: float = 1.0  # of those that were kept

    def __post_init__(self) -> None:
        self.best = self._point("as it was", self.first)
        self.points.append(self.best)

    def run(self) -> None:
        """All moves that there is time for; `best` is what came of them."""
        for moves in (self.placements, self.climb, self.ranges, self.mixtures, self.islands, partial(self.climb, LAST)):
            for _ in self.safely(moves()):
                pass
            self.journal.keep(self.statics.costs)
        self.train()

    def all_points(self) -> list[Attempt]:
        """What was tried, and the float model: none can be nearer to it, and untimed it counts as the slowest."""
        exact = self._point("float", Made("float", self.job.model))
        return [*self.points, exact if self._timed else replace(exact, speed=0.0)]

    @property
    def _timed(self) -> bool:
        return self.job.options.measure and measurable(self.job)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def _point(self, what: str, made: Made) -> Attempt:
        session = open_session(made.model)
        outputs = run_all(session, self.feeds, workers=cores())
        errors = compare(session.outputs, self.reference, outputs)
        score = 0.0 if self.job.metric is None else self.job.metric(session, self.reference, outputs)
        speed = 1.0
        if made is not self.first and self._timed:
            sessions = {"first": open_session(self.first.model), "new": session}
            feed = self.feeds[0][1]
            found = interleaved(sessions, "first", {"first": feed, "new": feed}, seconds=_MEASURED_S)
            speed = found["new"].speedup
        return Attempt(what, made, score, lowest_sqnr_db(errors), speed, lowest_agreement(errors))

    def consider(self, what: str, made: Made, *, faster: bool = False) -> str:
        """Take `made` if it is nearer to float and no slower, or faster and near enough; "kept", or why not."""
        point, best = self._point(what, made), self.best
        verdict = self._faster(point) if faster else self._nearer(point)
        metric = "" if self.job.metric is None else f", {self.job.metric.name} {point.score:.4g}"
        change = f"{point.sqnr_db - best.sqnr_db:+.1f} dB, {point.speed / best.speed:.2f}x"
        self.job.note(f"search: {what}: {point.sqnr_db:.1f} dB ({change}){metric}, {verdict}")
        if verdict == "kept":
            self.best = point
            self.fastest = max(self.fastest, point.speed)
        elif self.job.options.pareto is None:  # nobody asks for the model again
            point = replace(point, made=replace(made, model=self.first.model, source=None))
        self.points.append(point)
        return verdict

    def _nearer(self, p: Attempt) -> str:
        if not nearer(self.job, p.figures, self.best.figures, _GAIN_DB):
            return "no gain"
        return "slower" if p.speed * _SLOWER < self.fastest else "kept"

    def _faster(self, p: Attempt) -> str:
        if p.speed < self.best.speed * FASTER:
            return "no faster"
        return "kept" if near_enough(self.job, p.figures, self.best.figures) else "too far from float"

    def try_all(self, moves: Iterator[tuple[str, Tuning]], *, faster: bool = False) -> Iterator[Made]:
        """Each model of `moves` that pays; what the journal knows not to pay is not made again."""
        for what, tuning in moves:
            if self.left() < 0:
                return
            against = self.best.made.tuning
            known = self.journal.find(tuning, against)
            if known is not None and not known.kept and self.job.options.pareto is None:  # a front wants all models
                self.job.note(f"search: {what}: {known.verdict} (known from before)")
                continue
            verdict = self._tried(what, tuning, faster)
            self.journal.add(Verdict(tuning, against, what, verdict))
            if verdict == "kept":
                yield self.best.made

    def safely(self, moves: Iterator[Made]) -> Iterator[Made]:
        """What `moves` keep, until they end or fail; a failure is told."""
        try:
            yield from moves
        except EdgeoptError as e:
            self.job.note(f"search: some moves cannot be tried: {e}")

    def _tried(self, what: str, tuning: Tuning, faster: bool) -> str:
        try:
            made = self.statics.made(tuning)
            return "no node in integers" if made is None else self.consider(what, made, faster=faster)
        except EdgeoptError as e:
            self.job.note(f"search: {what}: passed over: {e}")
            return f"failed: {e}"

    def climb(self, moves: Sequence[tuple[str, Mapping[str, Any]]] = MOVES) -> Iterator[Made]:
        """Each model that is nearer to float than the one before, by changes of its tuning."""
        for what, changes in moves:
            tuning = self._tuning()
            changed = replace(tuning, **changes)
            if changed != tuning:
                yield from self.try_all(iter([(what, changed)]))

    def ranges(self) -> Iterator[Made]:
        """The best so far with the ranges around its worst nodes by other rules."""
        yield from self.try_all(self.statics.ranges(self.best.made))

    def islands(self) -> Iterator[Made]:
        """The best so far with more and more of its worst nodes in float."""
        yield from self.try_all(self.statics.islands(self.best.made))

    def mixtures(self) -> Iterator[Made]:
        """The best so far with some or all of its matrix products dynamic."""
        yield from self.try_all(self.statics.mixtures(self.best.made))

    def placements(self) -> Iterator[Made]:
        """The best so far placed by measured times, where that is faster."""
        if not (self.job.options.measure and self.job.target.name == host()):
            return
        yield from self.try_all(self.statics.placements(self._tuning()), faster=True)

    def _tuning(self) -> Tuning:
        return self.best.made.tuning or Tuning.of(self.job.options)

    def train(self) -> None:
        """Train the best so far, if there is time and torch."""
        if self.left() < _TRAINING_S or importlib.util.find_spec("torch") is None:
            return
        from edgeopt.quantization.qat import trained

        minutes = max(0.5, self.left() / 60 - 0.5)
        options = self.job.options.model_copy(update={"qat_minutes": minutes, "qat_epochs": _EPOCHS})
        job = replace(self.job, options=options, listener=Listener(progress=self.job.listener.progress))
        try:
            self.consider("training through the Q/DQ", trained(job, self.best.made))
        except EdgeoptError as e:
            self.job.note(f"search: training is not possible: {e}")


def start(job: Job, first: Made, statics: Statics, output: Path | None = None) -> Search | None:
    """A search from `first` (static) with the job's budget, or None where there is nothing to select by; its journal is beside
    `output`.

    Raises:
        DataError: the user's metric fails on the first result.
    """
    feeds, _ = readable(job.calibration[:SELECTION], total=len(job.calibration))
    if not feeds or first.plan is None:
        return None
    deadline = time.monotonic() + job.options.search_s
    reference = run_all(job.float_session, feeds, workers=cores())
    known = journal(job, output)
    statics.costs = statics.costs or known.costs
    try:
        found = Search(job, statics, feeds, reference, deadline, first, known)
    except EdgeoptError:
        known.remove()
        raise
    if math.isfinite(found.best.sqnr_db):
        job.note(f"search: from {found.best.sqnr_db:.1f} dB on {len(feeds)} calibration samples")
    return found
