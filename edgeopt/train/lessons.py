"""The training loss of a batch: labels, teacher, peers, hints and intermediate classifiers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from edgeopt.errors import UsageError
from edgeopt.runtime.session import open_session, with_outputs
from edgeopt.train import batches as data_of
from edgeopt.train import losses, teachers
from edgeopt.train.attachments import Heads, Hints, check_heads
from edgeopt.train.batches import Batch
from edgeopt.train.job import Job
from edgeopt.train.network.module import OnnxModule
from edgeopt.train.network.taps import channels_first, inner_values
from edgeopt.train.pairs import named_like
from edgeopt.train.steps import Lesson, Moment

Values = Mapping[str, Tensor]
_RISE = 0.3  # share of the steps in which the weight of a teacher that learns rises


def _example(job: Job, taps: tuple[str, ...]) -> tuple[Batch, dict[str, Tensor]]:
    """A held-out batch, and the student's outputs and taps for it."""
    batch = next(data_of.batches(job.held, job.size))
    with torch.no_grad():
        return batch, job.module({k: v.to(job.options.device) for k, v in batch.feed.items()}, taps)


def hints_of(job: Job) -> Hints | None:
    names = job.options.hints
    if not names:
        return None
    batch, ours = _example(job, tuple(names))
    theirs = teachers.outputs(open_session(with_outputs(job.teacher, list(names.values()))), batch)
    first = (_first(job.student, names), _first(job.teacher, names.values()))
    return Hints(names, ours, {n: torch.from_numpy(y) for n, y in theirs.items()}, first)


def _first(model: ir.Model, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if channels_first(model, name))


def heads_of(job: Job) -> Heads | None:
    names = job.options.classifiers
    if not names:
        return None
    if names == ("auto",):
        names = inner_values(job.student)
        job.listener.note(f"classifiers on {', '.join(names)}")
    _, values = _example(job, names)
    output = values[job.pairs[0].student]
    check_heads(job.pairs, output)
    for name in names:
        if values[name].shape[:1] != output.shape[:1]:
            raise UsageError(f"--heads {name}: {list(values[name].shape)} has no row for each of {len(output)} samples")
    return Heads({n: values[n] for n in names}, output.shape[-1], _first(job.student, names))


def lesson_of(
    job: Job, networks: list[OnnxModule], teach: teachers.Teacher | None, hints: Hints | None, heads: Heads | None
) -> Lesson:
    """The loss function of a batch: from labels, teachers or peers, and auxiliary modules."""
    aims = [
        losses.Objective(
            p.loss, job.options.softening, job.options.share, p is job.pairs[0], job.options.label_smoothing
        )
        for p in job.pairs
    ]
    return _Lesson(job, networks, teach, hints, heads, aims)


@dataclass(frozen=True)
class _Lesson:
    job: Job
    networks: list[OnnxModule]
    teach: teachers.Teacher | None
    hints: Hints | None
    heads: Heads | None
    aims: list[losses.Objective]

    def __call__(self, batch: Batch, moment: Moment) -> Tensor:
        options, pairs = self.job.options, self.job.pairs
        feed = {k: v.to(options.device) for k, v in batch.feed.items()}
        labels = None if batch.labels is None or "mixup" in options.augment else batch.labels.to(options.device)
        taps = (*(self.hints.names if self.hints else ()), *(self.heads.names if self.heads else ()))
        ours = self.job.module(feed, taps)
        theirs, trust = self._theirs(batch, feed, moment)
        if self.job.peers:
            total = self._mutual(ours, theirs, labels, trust)
        elif theirs:
            values = [(p.ours(ours[p.student]), p.theirs(theirs[0][p.teacher])) for p in pairs]
            terms = [aim(own, other, labels, trust) for aim, (own, other) in zip(self.aims, values, strict=True)]
            total = torch.stack(terms).sum()
        elif labels is not None:
            total = losses.supervised(pairs[0].loss, ours[pairs[0].student], labels, options.label_smoothing)
        else:
            total = torch.zeros((), device=options.device)
        if self.hints is not None:
            wanted = {n: theirs[0][n].detach() for n in self.hints.names.values()}
            total = total + options.hint_weight * self.hints(ours, wanted)
        if self.heads is not None:
            total = total + self.heads(
                ours, ours[pairs[0].student], labels, options.softening, options.share, options.label_smoothing
            )
        return total

    def _theirs(self, batch: Batch, feed: Values, moment: Moment) -> tuple[list[Values], float]:
        """(the answers of the teacher, the moving average or the peers; the trust in them)."""
        if self.teach is not None:
            return [self.teach(batch)], 1.0
        options = self.job.options
        if moment.average is not None and options.by == "average" and options.kind == "self":
            with torch.no_grad():
                return [moment.average(feed)], _trust(moment.done)
        taps = tuple(self.hints.names.values()) if self.hints else ()
        peers = self.networks[1:]
        return [n(teachers.fed(n.inputs, feed), taps if n is peers[0] else ()) for n in peers], _trust(moment.done)

    def _mutual(self, ours: Values, theirs: list[Values], labels: Tensor | None, trust: float) -> Tensor:
        """Mutual learning: every network learns from the labels and from the mean answer of the others."""
        job = self.job
        values = [[p.ours(ours[p.student]) for p in job.pairs]]
        for model, answers in zip(job.peers, theirs, strict=True):
            names = named_like(job.student, model, job.options.match)
            values.append([p.theirs(answers[names[p.student]]) for p in job.pairs])
        terms = []
        for i, mine in enumerate(values):
            others = zip(*(v for j, v in enumerate(values) if j != i), strict=True)
            means = [torch.stack(answers).mean(0).detach() for answers in others]
            terms += [aim(own, mean, labels, trust) for aim, own, mean in zip(self.aims, mine, means, strict=True)]
        return torch.stack(terms).sum()


def _trust(done: float) -> float:
    """In teachers that begin to learn themselves: from e^-5 to 1 (Laine and Aila 2017, arXiv:1610.02242), at a share
    `done` of the steps.
    """
    return math.exp(-5 * (1 - min(1.0, done / _RISE)) ** 2)
