"""Early signs that a run cannot pay, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from edgeopt.hardware.host import cores
from edgeopt.runtime.session import open_session
from edgeopt.train import teachers
from edgeopt.train.batches import batches
from edgeopt.train.evaluation import accuracy
from edgeopt.train.job import Job
from edgeopt.train.losses import NO_LABEL
from edgeopt.train.network.module import OnnxModule
from edgeopt.train.pairs import named_like

_HARDLY = 0.005  # of the samples
_APART = 0.1  # training samples told right above held-out ones
_FIT = 0.02  # below the teacher on the samples that it taught
_AGREE = 0.99
_LOOKED_AT = 500


def before(job: Job, teacher: float | None, student: float) -> Iterator[str]:
    """From the held-out accuracies, before the first step."""
    if job.held.labels is None or teacher is None or job.options.kind != "offline":
        return
    some = teachers.answers(open_session(job.student), job.held.part(range(1)), 1)
    classes = some[job.pairs[0].student][0].shape[-1]
    if teacher < min(2 / classes, (1 + 1 / classes) / 2):
        yield (
            f"the teacher tells only {teacher:.1%} of the held-out samples right: are its classes in another order?"
            " (--student-classes, --teacher-classes)"
        )
    elif teacher <= student + _HARDLY:
        than = "worse than" if teacher < student else "hardly better than"
        yield (
            f"the teacher ({teacher:.1%} of the held-out samples) is {than} the student ({student:.1%}): it has little"
            " to teach; a better one, or --kind self"
        )


def after(job: Job, teacher: float | None, student: float) -> Iterator[str]:
    """From how the trained student tells what it was trained with."""
    if job.train.labels is None or job.held.labels is None:
        return
    known = (job.train.labels != NO_LABEL).nonzero()[0][:_LOOKED_AT]
    if not len(known):
        return
    part = job.train.part(known.tolist())
    fitted = accuracy(
        job, teachers.answers(open_session(job.written(job.module), threads=cores()), part, job.size), part
    )
    if fitted > student + _APART:
        yield (
            f"the student tells {fitted:.1%} of its training samples right and {student:.1%} of the held-out ones: more"
            " samples (--unlabelled takes some without labels), --augment or --label-smoothing"
        )
    elif teacher is not None and fitted < teacher - _FIT:
        yield (
            f"the student tells only {fitted:.1%} of its training samples right, the teacher {teacher:.1%} of others:"
            " more --epochs, another --lr, or a larger student"
        )


def agreed(job: Job, networks: Sequence[OnnxModule]) -> Iterator[str]:
    """Whether networks that learn together have anything left to tell each other."""
    first, held = job.pairs[0], job.held
    same, count = torch.zeros(()), 0
    outputs = [named_like(job.student, m, job.options.match)[first.student] for m in job.peers]
    with torch.no_grad():
        for batch in batches(held, job.size):
            feed = {k: v.to(job.options.device) for k, v in batch.feed.items()}
            own, *peers = (n.eval()(teachers.fed(n.inputs, feed)) for n in networks)
            told = [first.ours(own[first.student])]
            told += [first.theirs(y[name]) for y, name in zip(peers, outputs, strict=True)]
            tops = torch.stack([y.argmax(-1).flatten() for y in told]).cpu()
            same, count = same + (tops == tops[0]).all(0).sum(), count + tops.shape[1]
    if count and float(same) >= _AGREE * count:
        yield (
            f"the networks agree on {float(same) / count:.1%} of the held-out samples: they have nothing left to"
            " teach each other; peers of another kind or with other first weights do"
        )
