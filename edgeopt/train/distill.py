"""`distill(student, data, teacher=...)`: fine-tune an ONNX student against a teacher; ONNX in, the same ONNX with better
weights out.

offline: the teacher is an ONNX Runtime session and stays as it is. online: teacher and student learn together from the
labels and from each other (deep mutual learning, Zhang et al. 2018, arXiv:1706.00384). self: the teacher is the student of
the generation before (born-again networks, Furlanello et al. 2018, arXiv:1805.04770). What comes back is the best by the
held-out metric measured in ONNX Runtime, the input included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
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
from edgeopt.runtime.session import Session, check_feed, cores, open_session
from edgeopt.train import batches as data_of
from edgeopt.train import losses
from edgeopt.train.batches import Batch, Examples
from edgeopt.train.fake_quant import masters
from edgeopt.train.loop import Epoch, Progress, fit
from edgeopt.train.module import Choice, OnnxModule, write_back
from edgeopt.train.options import DistillOptions

PARITY = 1e-3  # relative: further from ONNX Runtime than this nothing is trained
QUANTIZED_PARITY = 0.05  # a value on the edge between two integers may fall to either side
_LOOKED_AT = 4


@dataclass(frozen=True)
class Distilled:
    """The student with its best weights and the evidence. metric: what before, after and teacher are of, higher is better."""

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

    @property
    def improved(self) -> bool:
        """Whether the result is better than the input."""
        return self.after > self.before


@dataclass
class _Job:
    """What one generation needs. pairs: teacher output by student output; cached: teacher outputs by sample."""

    options: DistillOptions
    listener: Listener
    student: ir.Model
    module: OnnxModule
    train: Examples
    held: Examples
    size: int
    pairs: Mapping[str, str]
    chosen: Mapping[str, str]


def distill(
    student: str | Path | bytes | onnx.ModelProto | ir.Model,
    data: Data,
    *,
    teacher: str | Path | bytes | onnx.ModelProto | ir.Model | None = None,
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
    options, ears, start = DistillOptions(**choices), listener or Listener(), time.perf_counter()
    path = None if output is None else Path(output)
    if path is not None:
        check_place(path, force)
    if (teacher is None) != (options.kind == "self"):
        raise UsageError(
            "--kind self has no --teacher" if teacher is not None else f"--kind {options.kind} needs --teacher MODEL"
        )
    torch.manual_seed(options.seed)
    small = graph.canonical(graph.load(student))
    large = small if teacher is None else graph.canonical(graph.load(teacher))
    session = open_session(large, threads=cores())
    job = _job(small, large, session, data, options, ears)
    parity = _parity(job)
    taught = None if options.kind == "self" or job.held.labels is None else _score(job, session, job.pairs)
    metric = "held-out accuracy" if job.held.labels is not None else "held-out fidelity to the teacher"
    target = _answers(session, job.held, job.size, job.pairs) if job.held.labels is None else None

    def score(module: nn.Module) -> float:
        assert isinstance(module, OnnxModule)
        return _score(job, open_session(write_back(small, module.arrays())), {n: n for n in job.pairs}, target)

    progress = _generations(job, large, session, score)
    result = write_back(small, job.module.arrays())
    parity = max(parity, _parity(replace(job, student=result)))
    better = progress.best > progress.first
    if path is not None and better:
        _write(result, path)
    return Distilled(
        model=result,
        path=path if better else None,
        metric=metric,
        before=progress.first,
        after=progress.best,
        teacher=taught,
        losses=job.chosen,
        trained=tuple(job.module.trained),
        choice=job.module.choice,
        log=tuple(progress.log),
        parity=parity,
        samples={"train": len(job.train), "held_out": len(job.held)},
        seconds=round(time.perf_counter() - start, 2),
    )


def _job(
    student: ir.Model, teacher: ir.Model, session: Session, data: Data, options: DistillOptions, listener: Listener
) -> _Job:
    reader = Options(
        samples=options.samples,
        preprocess=options.preprocess,
        overrides=options.overrides,
        tokenizer=options.tokenizer,
        data_option="--data",
    )
    samples, _, told = samples_of(data, specs(student), reader, open_session(student))
    examples, problems = data_of.read(samples, options.labels)
    for line in [*told, *(f"skipped: {p}" for p in problems.values())]:
        listener.note(line)
    for feed in examples.feeds[:1]:
        check_feed(feed, student, "the first sample")
    train, held = (examples.part(i) for i in data_of.divide(len(examples), options.seed))
    limits = [x for x in (data_of.batch_limit(specs(m)) for m in (student, teacher)) if x is not None]
    size = min([options.batch_size, *limits])
    pairs = _pairs(student, teacher, options.match)
    module = OnnxModule(student, options.freeze, options.train, quantized=options.quantized)
    _check_form(student, module, options)
    some = _answers(session, held.part(range(min(_LOOKED_AT * size, len(held)))), size, pairs)
    chosen = {
        ours: options.loss if options.loss != "auto" else losses.guess([torch.from_numpy(y) for y in some[ours]])
        for ours in pairs
    }
    for loss in chosen.values():
        if loss not in losses.LOSSES:
            raise UsageError(
                f"--loss {loss}: unknown{suggestion(loss, losses.LOSSES)} Known: auto, {', '.join(losses.LOSSES)}"
            )
    _check_labels(examples, some)
    ours = _answers(open_session(student), held.part(range(1)), 1, {n: n for n in pairs})
    for name in pairs:
        _same(torch.from_numpy(ours[name][0]), torch.from_numpy(some[name][0][: len(ours[name][0])]), name)
    if examples.labels is None and options.kind != "offline":
        raise UsageError(
            f"--kind {options.kind} learns from labels too: a folder for each class, or an entry 'label' in every .npz"
        )
    return _Job(options, listener, student, module, train, held, size, pairs, chosen)


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


def _pairs(student: ir.Model, teacher: ir.Model, match: Mapping[str, str]) -> dict[str, str]:
    """The teacher's output for each output of the student: as asked, by name, or by position."""
    ours, theirs = ([str(v.name) for v in m.graph.outputs] for m in (student, teacher))
    for name, other in match.items():
        for asked, known in ((name, ours), (other, theirs)):
            if asked not in known:
                raise UsageError(
                    f"--match {name}={other}: no output {asked!r}{suggestion(asked, known)} Known: {', '.join(known)}"
                )
    if match:
        return dict(match)
    shared = [n for n in ours if n in theirs]
    if shared:
        return {n: n for n in shared}
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs, strict=True))
    raise UsageError(
        f"outputs {', '.join(ours)} and {', '.join(theirs)}: say which belong together with --match STUDENT=TEACHER"
    )


def _check_labels(examples: Examples, answers: Mapping[str, list[np.ndarray]]) -> None:
    if examples.labels is None:
        return
    classes = max((y[0].shape[-1] for y in answers.values() if y[0].ndim == 2), default=0)
    worst = int(examples.labels.max())
    if worst >= classes:
        raise DataError(f"label {worst} is out of range: the model has {classes} classes")


def _answers(session: Session, examples: Examples, size: int, pairs: Mapping[str, str]) -> dict[str, list[np.ndarray]]:
    """The teacher's values by the student's output name, batch by batch, in order."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    for batch in data_of.batches(examples, size, None):
        for name, y in _outputs(session, batch, pairs).items():
            found[name].append(y)
    return found


def _outputs(session: Session, batch: Batch, pairs: Mapping[str, str]) -> dict[str, np.ndarray]:
    feed, inputs = dict(batch.arrays()), [i.name for i in session.raw.get_inputs()]
    if set(inputs) != set(feed):
        if len(inputs) != len(feed):
            raise DataError(f"the teacher's inputs are {', '.join(inputs)}, the student's {', '.join(feed)}")
        feed = dict(zip(inputs, feed.values(), strict=True))
    values = dict(zip(session.outputs, session.run(feed), strict=True))
    return {ours: values[theirs] for ours, theirs in pairs.items()}


def _score(
    job: _Job, session: Session, pairs: Mapping[str, str], target: Mapping[str, list[np.ndarray]] | None = None
) -> float:
    """Accuracy where there are labels, else minus the distillation loss to `target`, on the held-out samples."""
    answers = _answers(session, job.held, job.size, pairs)
    if job.held.labels is not None:
        name = next(iter(pairs))
        labels = [b.labels.numpy() for b in data_of.batches(job.held, job.size, None) if b.labels is not None]
        return float(np.mean(np.concatenate([y.argmax(-1) for y in answers[name]]) == np.concatenate(labels)))
    if target is None:
        return 0.0
    values = [
        float(losses.LOSSES[job.chosen[name]](torch.from_numpy(y), torch.from_numpy(t), 1.0, None))
        for name in pairs
        for y, t in zip(answers[name], target[name], strict=True)
    ]
    return -sum(values) / len(values)


def _parity(job: _Job) -> float:
    """The largest difference between torch and ONNX Runtime on a held-out batch, relative to the output's size.

    Raises:
        ModelError: above `PARITY`.
    """
    batch = next(data_of.batches(job.held, job.size, None))
    theirs = open_session(job.student)
    wanted = dict(zip(theirs.outputs, theirs.run(batch.arrays()), strict=True))
    with torch.no_grad():
        ours = job.module.eval()({k: v.to(job.options.device) for k, v in batch.feed.items()})
    worst = 0.0
    for name, y in wanted.items():
        if np.issubdtype(y.dtype, np.floating):
            size = float(np.abs(y).max()) or 1.0
            worst = max(worst, float(np.abs(ours[name].cpu().numpy() - y).max()) / size)
    limit = QUANTIZED_PARITY if job.options.quantized else PARITY
    if not worst <= limit:
        raise ModelError(
            f"torch and ONNX Runtime differ by {worst:.1e} on this student (the limit is {limit:g}): it cannot be trained faithfully"
        )
    return worst


def _generations(job: _Job, teacher: ir.Model, session: Session, score: Callable[[nn.Module], float]) -> Progress:
    """Train; a generation of kind self starts from the student's weights with the one before as its teacher."""
    options = job.options
    count = options.generations if options.kind == "self" else 1
    best: Progress | None = None
    start = {k: v.clone() for k, v in job.module.state_dict().items()}
    for generation in range(count):
        modules = [job.module]
        if options.kind == "online":
            modules.append(OnnxModule(teacher))
        if generation:
            session = open_session(write_back(job.student, job.module.arrays()), threads=cores())
            job.module.load_state_dict(start)
            job.listener.note(f"generation {generation + 1}")
        found = fit(
            nn.ModuleList(modules).to(options.device),
            _loss(job, modules, session),
            lambda epoch: data_of.batches(
                job.train, job.size, np.random.default_rng((options.seed, epoch)), options.augment
            ),
            math.ceil(len(job.train) / job.size),
            score,
            options,
            job.listener,
        )
        if best is None or found.best > best.best:
            best = found if best is None else replace(found, first=best.first)
    assert best is not None
    job.module.load_state_dict(best.weights)
    return best


def _loss(job: _Job, modules: list[OnnxModule], session: Session) -> Callable[[Batch], Tensor]:
    """The loss of a batch: against a fixed teacher, whose answers to fixed views are kept, or of peers against each other."""
    options = job.options
    objectives = {name: losses.Objective(loss, options.temperature, options.alpha) for name, loss in job.chosen.items()}
    kept: dict[int, dict[str, Tensor]] = {}
    mixed = "mixup" in options.augment

    def taught(batch: Batch) -> dict[str, Tensor]:
        if not options.augment and all(int(i) in kept for i in batch.indices):
            return {n: torch.stack([kept[int(i)][n] for i in batch.indices]).to(options.device) for n in job.pairs}
        found = {n: torch.from_numpy(y) for n, y in _outputs(session, batch, job.pairs).items()}
        if not options.augment and all(len(y) == len(batch.indices) for y in found.values()):
            for row, i in enumerate(batch.indices):
                kept[int(i)] = {n: y[row] for n, y in found.items()}
        return {n: y.to(options.device) for n, y in found.items()}

    def loss(batch: Batch) -> Tensor:
        feed = {k: v.to(options.device) for k, v in batch.feed.items()}
        labels = None if batch.labels is None or mixed else batch.labels.to(options.device)
        ours = modules[0](feed)
        if len(modules) == 1:
            theirs = taught(batch)
            return sum(
                (objectives[n](_same(ours[n], theirs[n], n), theirs[n], labels) for n in job.pairs), torch.zeros(())
            )
        peer = modules[1](feed)
        total = torch.zeros(())
        for name, other in job.pairs.items():
            total = total + objectives[name](_same(ours[name], peer[other], name), peer[other].detach(), labels)
            total = total + objectives[name](peer[other], ours[name].detach(), labels)
        return total

    return loss


def _same(student: Tensor, teacher: Tensor, name: str) -> Tensor:
    if student.shape != teacher.shape:
        raise UsageError(
            f"output {name!r}: the student gives {list(student.shape)}, the teacher {list(teacher.shape)}; they cannot be compared (--match others?)"
        )
    return student


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
