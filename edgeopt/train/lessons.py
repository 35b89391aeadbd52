"""The training loss of a batch: labels, teacher, peers, hints and intermediate classifiers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeopt.errors import UsageError
from edgeopt.runtime.session import open_session, with_outputs
from edgeopt.train import batches as data_of
from edgeopt.train import losses, teachers
from edgeopt.train.attachments import Heads, Hints, check_heads
from edgeopt.train.batches import Batch
from edgeopt.train.job import Job
from edgeopt.train.loop import Lesson
from edgeopt.train.network.module import OnnxModule
from edgeopt.train.network.taps import inner_values
from edgeopt.train.pairs import matched


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
    return Hints(names, ours, {n: torch.from_numpy(y) for n, y in theirs.items()})


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
    return Heads({n: values[n] for n in names}, output.shape[-1])


def lesson_of(
    job: Job, networks: list[OnnxModule], teach: teachers.Teacher | None, hints: Hints | None, heads: Heads | None
) -> Lesson:
    """The loss function of a batch: from labels, teachers or peers, and auxiliary modules."""
    options, pairs = job.options, job.pairs
    taps = (*(hints.names if hints else ()), *(heads.names if heads else ()))
    aims = [losses.Objective(p.loss, options.temperature, options.alpha, p is pairs[0]) for p in pairs]
    outputs = [matched(job.student, m, options.match if m is job.teacher else {}) for m in job.peers]

    def lesson(batch: Batch, average: nn.Module | None) -> Tensor:
        feed = {k: v.to(options.device) for k, v in batch.feed.items()}
        labels = None if batch.labels is None or "mixup" in options.augment else batch.labels.to(options.device)
        ours = job.module(feed, taps)
        theirs: Mapping[str, Tensor] = {}
        total = torch.zeros((), device=options.device)
        if teach is not None:
            theirs = teach(batch)
        elif average is not None and options.by == "average" and options.kind == "self":
            with torch.no_grad():
                theirs = average(feed)
        elif job.peers:
            answers = [
                n(teachers.fed(n.inputs, feed), tuple(hints.names.values()) if hints and n is networks[1] else ())
                for n in networks[1:]
            ]
            theirs = answers[0]
            all_values = [[p.ours(ours[p.student]) for p in pairs]]
            all_values += [
                [p.theirs(y[names[p.student]]) for p in pairs] for y, names in zip(answers, outputs, strict=True)
            ]
            return _mutual(aims, all_values, labels) + _hung(ours, theirs, labels)
        elif labels is not None:
            total = total + losses.supervised(pairs[0].loss, ours[pairs[0].student], labels)
        if theirs:
            total = sum(
                (
                    aim(p.ours(ours[p.student]), p.theirs(theirs[p.teacher]), labels)
                    for aim, p in zip(aims, pairs, strict=True)
                ),
                total,
            )
        return total + _hung(ours, theirs, labels)

    def _hung(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        total = torch.zeros((), device=options.device)
        if hints is not None:
            total = total + options.hint_weight * hints(ours, {n: theirs[n].detach() for n in hints.names.values()})
        if heads is not None:
            total = total + heads(ours, ours[pairs[0].student], labels, options.temperature, options.alpha)
        return total

    return lesson


def _mutual(aims: list[losses.Objective], values: list[list[Tensor]], labels: Tensor | None) -> Tensor:
    """Mutual learning: every network learns from the labels and from each of the others."""
    terms = [
        aim(own, other.detach(), labels) / (len(values) - 1)
        for i, mine in enumerate(values)
        for j, others in enumerate(values)
        if i != j
        for aim, own, other in zip(aims, mine, others, strict=True)
    ]
    return torch.stack(terms).sum()
