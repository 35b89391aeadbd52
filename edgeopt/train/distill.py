"""`distill(student, data, teacher=...)`: fine-tune an ONNX student against a teacher; the result is the same ONNX graph
with better weights.

offline: a fixed teacher in ONNX Runtime. online: student, teacher and peers train together. self: the teacher is the
student of the previous generation (born-again networks, Furlanello et al. 2018, arXiv:1805.04770), its moving average,
or its own output for classifiers on intermediate values. The weights with the best held-out metric, measured in ONNX
Runtime, are returned; the input's are a candidate too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from edgeopt import graph
from edgeopt.data.reading import Data
from edgeopt.files import staged
from edgeopt.files.cloud import anywhere
from edgeopt.options import takes
from edgeopt.options.distill import Distill
from edgeopt.runtime.session import open_session
from edgeopt.runtime.spread import spread
from edgeopt.train import batches as data_of
from edgeopt.train import signs, teachers
from edgeopt.train.evaluation import parity_of, scores
from edgeopt.train.job import Job, check_alike, check_device, check_roles, prepare, with_peers
from edgeopt.train.lessons import heads_of, hints_of, lesson_of
from edgeopt.train.loop import Diverged, Epoch, Progress, fit
from edgeopt.train.network.choice import Choice
from edgeopt.train.network.module import OnnxModule, restored
from edgeopt.train.places import check_places, checkpoints
from edgeopt.train.ranks import ranks
from edgeopt.train.steps import Course

_LEAST_MINUTES = 1e-3


@dataclass(frozen=True)
class Distilled:
    """The student with its best weights, and the measurements."""

    model: ir.Model
    path: Path | None
    metric: str
    """What `before`, `after` and `teacher` measure; higher is better."""
    before: float
    after: float
    teacher: float | None
    losses: Mapping[str, str]
    trained: tuple[str, ...]
    choice: Choice
    log: tuple[Epoch, ...]
    parity: float
    samples: Mapping[str, int]
    seconds: float
    first_rank: bool = True
    diverged: str = ""
    """Where the loss became NaN or infinite; empty if it did not."""

    @property
    def improved(self) -> bool:
        """Whether the result is better than the input."""
        return self.after > self.before


@takes(Distill)
@anywhere
def distill(student: graph.Source, data: Data, options: Distill) -> Distilled:
    """Fine-tune `student` on `data` (as for `edgeopt.quantize`) against a teacher; written only if it is better.

    Raises:
        EdgeoptError: see `edgeopt.errors`; nothing was written.
    """
    start, path, given = time.perf_counter(), options.output, options.teachers
    check_places(options, path, (student, *given, data, options.unlabelled), force=options.force)
    check_roles(options, bool(given))
    source = graph.load(student)
    small = graph.canonical(source)
    large, *others = (
        [small] if options.kind == "self" else [graph.canonical(graph.load(m)) for m in given or options.peers[:1]]
    )
    check_device(options.device)
    with ranks(options.device) as here, torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        job = prepare(small, large, data, options, here, tuple(others))
        if options.kind == "online":
            more = options.peers if given else options.peers[1:]
            job = with_peers(job, (large, *(graph.canonical(graph.load(p)) for p in more)))
            check_alike(job, job.peers[1:], "--peer")
        parity = parity_of(job)
        taught, score = scores(job)
        (first,) = here.told([score(job.module) if here.first else 0.0])
        for line in (f"before training: {first:.4f}", *signs.before(job, taught, first)):
            job.listener.note(line)
        progress = _trained(job, score, first)
        for line in signs.after(job, taught, progress.best) if here.first else ():
            job.listener.note(line)
        result = job.written(job.module)
        parity = max(parity, parity_of(replace(job, student=result)))
        result = restored(source, result, list(job.module.arrays()))
        better = progress.best > progress.first
        if path is not None and better and here.first:
            _write(result, path)
    return Distilled(
        model=result,
        path=path if better else None,
        metric="held-out accuracy" if job.held.labels is not None else "held-out fidelity to the teacher",
        before=progress.first,
        after=progress.best,
        teacher=taught,
        losses={p.student: p.loss for p in job.pairs},
        trained=tuple(job.module.trained),
        choice=job.module.choice,
        log=tuple(progress.log),
        parity=parity,
        samples={"train": len(job.train), "held_out": len(job.held)},
        seconds=round(time.perf_counter() - start, 2),
        first_rank=here.first,
        diverged=progress.diverged,
    )


def _write(result: ir.Model, path: Path) -> None:
    """Write the result, and open it, before it is moved into place."""
    with staged(path) as stage:
        graph.write(result, stage / path.name)
        graph.check_valid(stage / path.name, "the result")
        open_session(stage / path.name)


def _trained(job: Job, score: Callable[[nn.Module], float], first: float) -> Progress:
    """Train by the kind of distillation, and leave the module with its best weights. Each generation of kind self
    starts from the initial weights; the first learns from the labels alone, each other from the one before it too.
    """
    count = job.options.rounds
    _forget(job)
    start = {k: v.clone() for k, v in job.module.state_dict().items()}
    teacher, best, start_s = job.teacher, None, time.monotonic()
    for generation in range(count):
        if generation:
            teacher = job.written(job.module)
            job.module.load_state_dict(start)
            job.listener.note(f"generation {generation + 1}")
        try:
            left = replace(job, options=_in_time(job.options, start_s, count - generation))
            found = _generation(left, teacher, generation, score, first)
        except Diverged as e:
            if best is None:
                raise
            job.listener.note(f"{e}; the generations before are kept")
            break
        if best is None:
            best = found
        elif found.best > best.best:
            best = replace(found, first=best.first)
    assert best is not None
    job.module.load_state_dict(best.weights)
    return best


def _in_time(options: Distill, start_s: float, rounds: int) -> Distill:
    """`options` with this generation's share of the minutes that are left for so many."""
    if options.minutes is None or options.rounds == 1:
        return options
    left = options.minutes - (time.monotonic() - start_s) / 60
    return options.model_copy(update={"minutes": max(left, _LEAST_MINUTES) / rounds})


def _forget(job: Job) -> None:
    """Delete checkpoints of an earlier run unless it is resumed, so that a later --resume cannot continue them."""
    path = job.options.checkpoint
    if path is None or job.options.resume or not job.ranks.first:
        return
    for old in checkpoints(path):
        with contextlib.suppress(OSError):
            old.unlink()


def _ask(job: Job, panel: teachers.Panel, store: teachers.KeptAnswers, train: data_of.Examples) -> None:
    """Have the teachers asked elsewhere, if that is wanted."""
    options = job.options
    if job.ranks.count > 1:
        return  # every process asks for its own batches
    with spread(options.executor, options.jobs, options.cluster, job.listener.note) as by:
        if by is not None:
            for done in teachers.ask(job.portable_panel(), panel, store, train, job.size, by):
                job.listener.progress("asking the teacher", done, len(train))


def _generation(
    job: Job, teacher: ir.Model, generation: int, score: Callable[[nn.Module], float], first: float
) -> Progress:
    options = job.options
    if generation and options.checkpoint is not None:
        name = f"{options.checkpoint.name}.{generation + 1}"
        options = options.model_copy(update={"checkpoint": options.checkpoint.with_name(name)})
    options = options.model_copy(update={"learning_rate": options.rate(job.module.bits)})
    train = job.train
    if options.kind == "self" and options.by == "generations" and not generation:
        train = train.labelled()  # there is nobody to tell anything of the others
    networks = [job.module, *(OnnxModule(m).to(options.device) for m in job.peers)]
    with ExitStack() as stack:
        teach = None
        if options.kind == "offline" or (options.kind == "self" and generation):
            panel, store = replace(job, teacher=teacher).panel(job.threads), None
            if not options.augment:
                models = b"".join(graph.proto_bytes(m) for m in (teacher, *job.others))
                place = teachers.kept(options.cache, models + repr(panel.outputs).encode(), job.whole, job.ranks.rank)
                store = stack.enter_context(place)
                begun = time.monotonic()
                _ask(replace(job, teacher=teacher), panel, store, train)
                if options.minutes is not None:
                    left = max(options.minutes - (time.monotonic() - begun) / 60, _LEAST_MINUTES)
                    options = options.model_copy(update={"minutes": left})
            teach = teachers.fixed(panel, store, options.device)
        hints, heads = hints_of(job), heads_of(job)
        found = fit(
            nn.ModuleList([*networks, *(m for m in (hints, heads) if m is not None)]).to(options.device),
            Course(
                lesson_of(job, networks, teach, hints, heads),
                lambda epoch: data_of.shuffled(
                    train, job.size, (options.seed, epoch), options.augment, (job.ranks.rank, job.ranks.count)
                ),
                sum(1 for _ in data_of.groups(train, job.size, range(len(train)))),
                score,
                first,
                lambda: data_of.batches(job.held, job.size),
            ),
            options,
            job.listener,
            job.ranks,
            job.identity,
        )
    for line in signs.agreed(job, networks) if job.peers and job.ranks.first else ():
        job.listener.note(line)
    return found
