"""`--effort high`: from a static result to a nearer one that is no slower, within a budget.

Moves in order of their cost, each kept only if it pays: other rules for ranges, the nodes to blame left in float, training
through the Q/DQ where torch is installed. What pays is seen on calibration samples; the held-out samples of the report have
no say. After any move the best so far stands.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgeopt.candidates import Ground, Made, ground, made_static
from edgeopt.data import Feed, readable
from edgeopt.errors import EdgeoptError
from edgeopt.options import Listener
from edgeopt.prepare import Job
from edgeopt.ptq.islands import blame
from edgeopt.ptq.moments import Moments
from edgeopt.ptq.place import place
from edgeopt.ptq.quantize import untie
from edgeopt.ranges import RANGES
from edgeopt.report import lowest_sqnr_db
from edgeopt.runtime.compare import Outputs, compare, run_all
from edgeopt.runtime.measure import interleaved
from edgeopt.runtime.session import cores, open_session
from edgeopt.verify import measurable

_SELECTION = 32
_GAIN_DB = 0.2  # a move that wins less does not pay
_SLOWER = 1.03
_SHARES = (0.05, 0.1, 0.2)
_TRAINING_S = 60.0  # with less left, training would not get far
_EPOCHS = 12


@dataclass
class _Search:
    """What is compared with what. sqnr_db, made: the best so far."""

    job: Job
    base: Ground
    moments: dict[str, Moments]
    feeds: list[tuple[str, Feed]]
    reference: list[Outputs]
    deadline: float
    made: Made
    sqnr_db: float = -math.inf

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def score(self, made: Made) -> float:
        """Lowest SQNR of the outputs on the selection, in dB."""
        session = open_session(made.model)
        return lowest_sqnr_db(compare(session.outputs, self.reference, run_all(session, self.feeds, workers=cores())))

    def slower(self, made: Made) -> bool:
        """Whether it measurably takes longer than the best so far."""
        if not (self.job.options.measure and measurable(self.job)):
            return False
        sessions = {"now": open_session(self.made.model), "new": open_session(made.model)}
        feed = self.feeds[0][1]
        return interleaved(sessions, "now", {"now": feed, "new": feed}, seconds=0.5)["new"].speedup < 1 / _SLOWER

    def consider(self, what: str, made: Made) -> bool:
        """Take `made` if it is nearer to float and no slower."""
        found = self.score(made)
        gain = found - self.sqnr_db
        verdict = "kept" if gain >= _GAIN_DB else "no gain"
        if verdict == "kept" and self.slower(made):
            verdict = "slower"
        self.job.note(f"search: {what}: {found:.1f} dB ({gain:+.1f}), {verdict}")
        if verdict == "kept":
            self.made, self.sqnr_db = made, found
        return verdict == "kept"


def search(job: Job, first: Made, budget_s: float) -> Made:
    """The best that is found from `first` (static) within about `budget_s` seconds.

    Raises:
        EdgeoptError: as the moves do.
    """
    start = time.monotonic()
    base = ground(job)
    feeds, _ = readable(job.calibration[:_SELECTION])
    if base is None or not feeds or first.plan is None:
        return first
    reference = run_all(job.float_session, feeds, workers=cores())
    state = _Search(job, base, {}, feeds, reference, start + budget_s, first)
    state.sqnr_db = state.score(first)
    job.note(f"search: from {state.sqnr_db:.1f} dB on {len(feeds)} calibration samples")
    for what, made in _rules(state):
        state.consider(what, made)
    for what, made in _islands(state):
        if not state.consider(what, made):
            break
    if state.left() > _TRAINING_S and importlib.util.find_spec("torch") is not None:
        _train(state)
    return state.made


def _rules(state: _Search) -> Iterator[tuple[str, Made]]:
    used = state.job.options.range_rule
    for rule in RANGES:
        if rule != used and state.left() > 0:
            job = replace(state.job, options=replace(state.job.options, range_rule=rule))
            yield f"ranges by {rule}", made_static(job, state.base.plan, state.base, state.moments)


def _islands(state: _Search) -> Iterator[tuple[str, Made]]:
    """The best so far with more and more of its worst nodes in float."""
    job, plan = state.job, state.made.plan
    if plan is None:
        return
    lost = blame(untie(job.model, plan), state.made.model, plan, [feed for _, feed in state.feeds[:4]])
    worst = [name for name, db in lost.items() if db > 0]
    for share in _SHARES:
        count = max(1, round(share * len(plan.integer)))
        out = frozenset(worst[:count])
        if not out or state.left() < 0:
            return
        smaller = place(job.model, job.target, state.base.probes, exclude=job.exclude | out, include=job.include - out)
        if not smaller.integer:
            return
        yield f"{len(out)} nodes in float", made_static(job, smaller, state.base, state.moments)


def _train(state: _Search) -> None:
    from edgeopt.qat import trained

    options = replace(state.job.options, qat_minutes=max(0.5, state.left() / 60 - 0.5), qat_epochs=_EPOCHS)
    job = replace(state.job, options=options, listener=Listener(progress=state.job.listener.progress))
    try:
        state.consider("training through the Q/DQ", trained(job, state.made))
    except EdgeoptError as e:
        state.job.note(f"search: training is not possible: {e}")
