"""`distill(student, data, teacher=...)`: fine-tune an ONNX student against a teacher; ONNX in, the same ONNX with better
weights out.

offline: the teacher is an ONNX Runtime session and stays as it is. online: student, teacher and peers learn together from
the labels and from each other (deep mutual learning, Zhang et al. 2018, arXiv:1706.00384). self: the teacher is the
student of the generation before (born-again networks, Furlanello et al. 2018, arXiv:1805.04770), its moving average, or
its own output for classifiers on inner values. What comes back is the best by the held-out metric measured in ONNX
Runtime, the input included.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeopt import graph
from edgeopt.data import specs
from edgeopt.errors import DataError, ModelError, UsageError, ValidityError, suggestion
from edgeopt.options import Data, Listener, Options, check_place
from edgeopt.prepare import samples_of
from edgeopt.runtime.session import Session, check_feed, cores, open_session, with_outputs
from edgeopt.train import batches as data_of
from edgeopt.train import losses, teachers
from edgeopt.train.attachments import Heads, Hints, check_heads
from edgeopt.train.batches import Batch, Examples
from edgeopt.train.fake_quant import masters
from edgeopt.train.loop import Epoch, Lesson, Progress, fit
from edgeopt.train.module import Choice, OnnxModule, write_back
from edgeopt.train.options import DistillOptions
from edgeopt.train.pairs import Pair, class_names, matched, paired, to_tensors
from edgeopt.train.ranks import Ranks, ranks
from edgeopt.train.taps import inner_values

PARITY = 1e-3  # relative: further from ONNX Runtime than this nothing is trained
HALF_PARITY = 0.02  # of a float16 student, which is trained in float32
QUANTIZED_PARITY = 0.05  # a value on the edge between two integers may fall to either side
_LOOKED_AT = 4
Model = str | Path | bytes | onnx.ModelProto | ir.Model


@dataclass(frozen=True)
class Distilled:
    """The student with its best weights and the evidence. metric: what before, after and teacher are of, higher is
    better; diverged: where the loss stopped being a number, if it did.
    """

    model: ir.Model
    path: Path | None
    metric: str
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

    @property
    def improved(self) -> bool:
        """Whether the result is better than the input."""
        return self.after > self.before


@dataclass(frozen=True)
class _Job:
    """What every kind needs. teacher: the student itself with kind self; size: of a batch."""

    options: DistillOptions
    listener: Listener
    ranks: Ranks
    student: ir.Model
    teacher: ir.Model
    module: OnnxModule
    train: Examples
    held: Examples
    size: int
    pairs: tuple[Pair, ...]
    peers: tuple[ir.Model, ...] = ()

    @property
    def threads(self) -> int:
        """For a session of this process."""
        return max(1, cores() // self.ranks.local)


def distill(
    student: Model,
    data: Data,
    *,
    teacher: Model | None = None,
    output: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
    **choices: Any,
) -> Distilled:
    """Fine-tune `student` on `data` against `teacher`; the fields of `DistillOptions` are keyword arguments.

    data: as `edgeopt.quantize` takes it. teacher: None with kind "self". output: the file to write, only if it is better.

    Raises:
        EdgeoptError: see `edgeopt.errors`; nothing was written.
    """
    options, start = DistillOptions(**choices), time.perf_counter()
    path = None if output is None else Path(output)
    if path is not None:
        check_place(path, force)
    _check_roles(options, teacher is not None)
    small = graph.canonical(graph.load(student))
    large = small if options.kind == "self" else graph.canonical(graph.load(teacher or options.peers[0]))
    with ranks(options.device) as here, torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        job = _job(small, large, data, options, (listener or Listener()) if here.first else Listener(), here)
        if options.kind == "online":
            more = options.peers if teacher is not None else options.peers[1:]
            job = replace(job, peers=(large, *(graph.canonical(graph.load(p)) for p in more)))
        parity = _parity(job)
        taught, score = _scores(job)
        progress = _trained(job, score)
        result = write_back(small, job.module.arrays())
        parity = max(parity, _parity(replace(job, student=result)))
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


def _check_roles(options: DistillOptions, teacher: bool) -> None:
    if options.kind == "self" and teacher:
        raise UsageError("--kind self has no --teacher")
    if options.kind == "offline" and not teacher:
        raise UsageError("--kind offline needs --teacher MODEL")
    if options.kind == "online" and not teacher and not options.peers:
        raise UsageError("--kind online needs --teacher MODEL or --peer MODEL, who learn too")
    if options.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs it: pip install tensorboard")


def _job(
    student: ir.Model, teacher: ir.Model, data: Data, options: DistillOptions, listener: Listener, here: Ranks
) -> _Job:
    examples = _examples(student, teacher, data, options, listener)
    train, held = (examples.part(i) for i in data_of.divide(len(examples), options.seed))
    limits = [x for x in (data_of.batch_limit(specs(m)) for m in (student, teacher)) if x is not None]
    size = min([options.batch_size, *limits])
    module = OnnxModule(student, options.freeze, options.train, quantized=options.quantized)
    _check_form(student, module, options)
    some = held.part(range(min(_LOOKED_AT * size, len(held))))
    pairs = paired(
        matched(student, teacher, options.match),
        to_tensors(_answers(open_session(student), some, size)),
        to_tensors(_answers(open_session(teacher, threads=cores()), some, size)),
        options,
    )
    if examples.labels is not None and pairs[0].loss not in losses.CLASSES:
        listener.note(f"labels are not used: output {pairs[0].student!r} tells no classes (--loss {pairs[0].loss})")
        train, held = (Examples(e.feeds, None) for e in (train, held))
    job = _Job(options, listener, here, student, teacher, module.to(options.device), train, held, size, pairs)
    _check_labels(job)
    return job


def _examples(
    student: ir.Model, teacher: ir.Model, data: Data, options: DistillOptions, listener: Listener
) -> Examples:
    reader = Options(
        samples=options.samples,
        preprocess=options.preprocess,
        overrides=options.overrides,
        tokenizer=options.tokenizer,
        data_option="--data",
    )
    ours = specs(student)
    shared = {s.name for s in ours} & {s.name for s in specs(teacher)}
    more = [
        s for s in specs(teacher) if shared and s.name not in shared
    ]  # token types, say, that only the teacher takes
    samples, _, told = samples_of(data, [*ours, *more], reader, open_session(student))
    names = class_names(options.student_classes) if options.student_classes else ()
    examples, problems = data_of.read(samples, options.labels, names)
    for line in [*told, *(f"skipped: {p}" for p in problems.values())]:
        listener.note(line)
    for feed in examples.feeds[:1]:
        others = {s.name for s in more}
        check_feed({k: v for k, v in feed.items() if k not in others}, student, "the first sample")
    return examples


def _check_form(student: ir.Model, module: OnnxModule, options: DistillOptions) -> None:
    found = masters(student)
    if found and not options.quantized:
        raise ModelError(
            f"the student is quantized ({len(found)} integer weights): train it through its Q/DQ with --qat, or give its float form"
        )
    if options.quantized and not found:
        raise ModelError("--qat trains a quantized student, and this one has no Q/DQ: edgeopt quantize makes it")
    if not module.trained:
        raise ModelError("the student has no float weights to train")


def _check_labels(job: _Job) -> None:
    labels = [e.labels for e in (job.train, job.held) if e.labels is not None]
    if not labels:
        if job.options.kind != "offline" or job.options.heads:
            raise UsageError(
                f"--kind {job.options.kind} learns from labels too: a folder for each class, an entry 'label' in every .npz, or --labels FILE.csv"
            )
        return
    y = _answers(open_session(job.student), job.held.part(range(1)), 1)[job.pairs[0].student][0]
    worst = max(int(x.max()) for x in labels)
    if y.ndim != 2 or worst >= y.shape[-1]:
        raise DataError(
            f"label {worst} is out of range: the model has {y.shape[-1]} classes"
            if y.ndim == 2
            else f"labels cannot be used with output {job.pairs[0].student!r} {list(y.shape)}: --no-labels, or --match another output"
        )


def _answers(session: Session, examples: Examples, size: int) -> dict[str, list[np.ndarray]]:
    """A session's values by name of output, batch by batch, in order."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in session.outputs}
    for batch in data_of.batches(examples, size):
        for name, y in teachers.outputs(session, batch).items():
            found[name].append(y)
    return found


def _scores(job: _Job) -> tuple[float | None, Callable[[nn.Module], float]]:
    """(the teacher's accuracy, what measures a student): accuracy where there are labels, else minus the loss to the
    teacher's answers, on the held-out samples and in ONNX Runtime.
    """
    labels = [b.labels for b in data_of.batches(job.held, job.size) if b.labels is not None]
    theirs: dict[str, list[np.ndarray]] = {}
    taught = None
    if job.ranks.first and job.options.kind != "self":
        theirs = _answers(open_session(job.teacher, threads=cores()), job.held, job.size)
    if labels and theirs:
        first = job.pairs[0]
        taught = _accuracy([first.ordered(torch.from_numpy(y)) for y in theirs[first.teacher]], labels)
        classes = theirs[first.teacher][0].shape[-1]
        if taught < 2 / classes and job.options.kind == "offline":
            job.listener.note(
                f"the teacher tells only {taught:.1%} of the held-out samples right: are its classes in another order? (--student-classes, --teacher-classes)"
            )

    def score(module: nn.Module) -> float:
        assert isinstance(module, OnnxModule)
        ours = _answers(open_session(write_back(job.student, module.arrays()), threads=cores()), job.held, job.size)
        if labels:
            return _accuracy([torch.from_numpy(y) for y in ours[job.pairs[0].student]], labels)
        values = [
            float(losses.LOSSES[p.loss](torch.from_numpy(y), p.ordered(torch.from_numpy(t)), 1.0, None))
            for p in job.pairs
            for y, t in zip(ours[p.student], theirs[p.teacher], strict=True)
        ]
        return -sum(values) / len(values)

    return taught, score


def _accuracy(answers: list[Tensor], labels: list[Tensor]) -> float:
    return float((torch.cat([y.argmax(-1) for y in answers]) == torch.cat(labels)).double().mean())


def _parity(job: _Job) -> float:
    """The largest difference between torch and ONNX Runtime on a held-out batch, relative to the output's size.

    Raises:
        ModelError: above `PARITY`.
    """
    batch = next(data_of.batches(job.held, job.size))
    theirs = open_session(job.student)
    wanted = teachers.outputs(theirs, batch)
    with torch.no_grad():
        ours = job.module.eval()({k: v.to(job.options.device) for k, v in batch.feed.items()})
    worst = 0.0
    for name, y in wanted.items():
        if np.issubdtype(y.dtype, np.floating):
            size = float(np.abs(y).max()) or 1.0
            worst = max(worst, float(np.abs(ours[name].cpu().numpy() - y).max()) / size)
    limit = QUANTIZED_PARITY if job.options.quantized else HALF_PARITY if job.module.half else PARITY
    if not worst <= limit:
        raise ModelError(
            f"torch and ONNX Runtime differ by {worst:.1e} on this student (the limit is {limit:g}): it cannot be trained faithfully"
        )
    return worst


def _trained(job: _Job, score: Callable[[nn.Module], float]) -> Progress:
    """Train by the kind; the module is left with its best weights. A generation of kind self starts where the first did,
    with the one before as its teacher.
    """
    count = job.options.generations if job.options.by == "generations" and job.options.kind == "self" else 1
    start = {k: v.clone() for k, v in job.module.state_dict().items()}
    teacher, best = job.teacher, None
    for generation in range(count):
        if generation:
            teacher = write_back(job.student, job.module.arrays())
            job.module.load_state_dict(start)
            job.listener.note(f"generation {generation + 1}")
        found = _generation(job, teacher, generation, score)
        if best is None:
            best = found
        elif found.best > best.best:
            best = replace(found, first=best.first)
    assert best is not None
    job.module.load_state_dict(best.weights)
    return best


def _generation(job: _Job, teacher: ir.Model, generation: int, score: Callable[[nn.Module], float]) -> Progress:
    options = job.options
    if generation and options.checkpoint is not None:
        name = f"{options.checkpoint.name}.{generation + 1}"
        options = replace(options, checkpoint=options.checkpoint.with_name(name))
    networks = [job.module, *(OnnxModule(m).to(options.device) for m in job.peers)]
    with ExitStack() as stack:
        teach = None
        if options.kind == "offline" or (options.kind == "self" and options.by == "generations"):
            seen = with_outputs(
                teacher, list(dict.fromkeys([*(p.teacher for p in job.pairs), *options.hints.values()]))
            )
            store = None
            if not options.augment:
                place = teachers.kept(options.cache, graph.proto_bytes(seen), job.train, job.ranks.rank)
                store = stack.enter_context(place)
            teach = teachers.fixed(open_session(seen, threads=job.threads), store, options.device)
        hints, heads = _hints(job), _heads(job)
        return fit(
            nn.ModuleList([*networks, *(m for m in (hints, heads) if m is not None)]).to(options.device),
            _lesson(job, networks, teach, hints, heads),
            lambda epoch: data_of.shuffled(
                job.train, job.size, (options.seed, epoch), options.augment, (job.ranks.rank, job.ranks.count)
            ),
            sum(1 for _ in data_of.groups(job.train, job.size, range(len(job.train)))),
            score,
            options,
            job.listener,
            job.ranks,
        )


def _example(job: _Job, taps: tuple[str, ...]) -> tuple[Batch, dict[str, Tensor]]:
    """A held-out batch and the student's values on it."""
    batch = next(data_of.batches(job.held, job.size))
    with torch.no_grad():
        return batch, job.module({k: v.to(job.options.device) for k, v in batch.feed.items()}, taps)


def _hints(job: _Job) -> Hints | None:
    names = job.options.hints
    if not names:
        return None
    known = [str(v.name) for node in job.teacher.graph for v in node.outputs]
    for other in names.values():
        if other not in known:
            raise UsageError(f"--hint: the teacher has no value {other!r}{suggestion(other, known)}")
    batch, ours = _example(job, tuple(names))
    theirs = teachers.outputs(open_session(with_outputs(job.teacher, list(names.values()))), batch)
    return Hints(names, ours, {n: torch.from_numpy(y) for n, y in theirs.items()})


def _heads(job: _Job) -> Heads | None:
    names = job.options.heads
    if not names:
        return None
    if names == ("auto",):
        names = inner_values(job.student)
        job.listener.note(f"classifiers on {', '.join(names)}")
    _, values = _example(job, names)
    output = values[job.pairs[0].student]
    check_heads(job.pairs, output)
    return Heads({n: values[n] for n in names}, output.shape[-1])


def _lesson(
    job: _Job, networks: list[OnnxModule], teach: teachers.Teacher | None, hints: Hints | None, heads: Heads | None
) -> Lesson:
    """The loss of a batch: by the labels, by who teaches, and by what hangs on the student."""
    options, pairs = job.options, job.pairs
    taps = (*(hints.names if hints else ()), *(heads.names if heads else ()))
    aims = [losses.Objective(p.loss, options.temperature, options.alpha) for p in pairs]
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
            all_values = [[ours[p.student] for p in pairs]]
            all_values += [
                [p.ordered(y[names[p.student]]) for p in pairs] for y, names in zip(answers, outputs, strict=True)
            ]
            return _mutual(aims, all_values, labels) + _hung(ours, theirs, labels)
        elif labels is not None:
            total = sum((losses.supervised(p.loss, ours[p.student], labels) for p in pairs), total)
        if theirs:
            total = sum(
                (
                    aim(ours[p.student], p.ordered(theirs[p.teacher]), labels)
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
    """Every network learns from the labels and from each of the others."""
    terms = [
        aim(own, other.detach(), labels) / (len(values) - 1)
        for i, mine in enumerate(values)
        for j, others in enumerate(values)
        if i != j
        for aim, own, other in zip(aims, mine, others, strict=True)
    ]
    return torch.stack(terms).sum()


def _write(model: ir.Model, path: Path) -> None:
    """Checked, then renamed into place.

    Raises:
        ValidityError: the result is not valid ONNX.
    """
    with graph.staged(path) as stage:
        graph.write(model, stage / path.name)
        try:
            onnx.checker.check_model(str(stage / path.name))
        except (onnx.checker.ValidationError, ValueError) as e:
            raise ValidityError(f"the result is not valid ONNX: {e}") from e
        open_session(stage / path.name)
