"""From student, teacher and data to a `Job`: what every kind of distillation needs, checked."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import onnx_ir as ir
import torch

from edgeopt.data import specs
from edgeopt.errors import DataError, ModelError, UsageError, suggestion
from edgeopt.options import Data, Listener, Options
from edgeopt.prepare import samples_of
from edgeopt.runtime.session import check_feed, cores, open_session
from edgeopt.train import batches as data_of
from edgeopt.train import losses
from edgeopt.train.batches import Examples
from edgeopt.train.fake_quant import masters
from edgeopt.train.module import OnnxModule
from edgeopt.train.options import DistillOptions
from edgeopt.train.pairs import Pair, class_names, matched, paired, same, to_tensors
from edgeopt.train.ranks import Ranks
from edgeopt.train.teachers import answers

_LOOKED_AT = 4


@dataclass(frozen=True)
class Job:
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


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # torch asserts that it was built with CUDA
        raise UsageError(f"--device {device}: {str(e).splitlines()[0]}") from e


def check_roles(options: DistillOptions, teacher: bool) -> None:
    if options.kind == "self" and teacher:
        raise UsageError("--kind self has no --teacher")
    if options.kind == "offline" and not teacher:
        raise UsageError("--kind offline needs --teacher MODEL")
    if options.kind == "online" and not teacher and not options.peers:
        raise UsageError("--kind online needs --teacher MODEL or --peer MODEL, who learn too")
    if options.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs it: pip install tensorboard")


def prepare(
    student: ir.Model, teacher: ir.Model, data: Data, options: DistillOptions, listener: Listener, here: Ranks
) -> Job:
    examples = _examples(student, teacher, data, options, listener)
    train, held = (examples.part(i) for i in data_of.divide(len(examples), options.seed))
    limits = [x for x in (data_of.batch_limit(specs(m)) for m in (student, teacher)) if x is not None]
    size = min([options.batch_size, *limits])
    module = OnnxModule(student, options.freeze, options.train, quantized=options.quantized)
    _check_form(student, module, options)
    some = held.part(range(min(_LOOKED_AT * size, len(held))))
    pairs = paired(
        matched(student, teacher, options.match),
        to_tensors(answers(open_session(student), some, size)),
        to_tensors(answers(open_session(teacher, threads=cores()), some, size)),
        options,
    )
    if examples.labels is not None and pairs[0].loss not in losses.CLASSES:
        listener.note(f"labels are not used: output {pairs[0].student!r} tells no classes (--loss {pairs[0].loss})")
        train, held = (Examples(e.feeds, None) for e in (train, held))
    job = Job(options, listener, here, student, teacher, module.to(options.device), train, held, size, pairs)
    _check_labels(job)
    known = [str(v.name) for node in teacher.graph for v in node.outputs]
    for name in options.hints.values():
        if name not in known:
            raise UsageError(f"--hint: the teacher has no value {name!r}{suggestion(name, known)}")
    return job


def check_peers(job: Job) -> None:
    """Refuse a peer that lacks an output, or whose outputs have other shapes."""
    some = job.held.part(range(1))
    ours = to_tensors(answers(open_session(job.student), some, 1))
    for peer in job.peers[1:]:
        names = matched(job.student, peer, {})
        theirs = to_tensors(answers(open_session(peer), some, 1))
        for pair in job.pairs:
            if pair.student not in names:
                raise UsageError(f"--peer: one has no output that goes with {pair.student!r}")
            other = theirs[names[pair.student]][0]
            same(ours[pair.student][0], pair.ordered(other) if pair.order else other, pair)


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


def _check_labels(job: Job) -> None:
    labels = [e.labels for e in (job.train, job.held) if e.labels is not None]
    if not labels:
        if job.options.kind != "offline" or job.options.heads:
            raise UsageError(
                f"--kind {job.options.kind} learns from labels too: a folder for each class, an entry 'label' in every .npz, or --labels FILE.csv"
            )
        return
    if job.held.rows > 1:
        raise DataError(
            f"samples hold {job.held.rows} rows each, and a label belongs to one: give single samples, or --no-labels"
        )
    y = answers(open_session(job.student), job.held.part(range(1)), 1)[job.pairs[0].student][0]
    worst = max(int(x.max()) for x in labels)
    if y.ndim != 2 or worst >= y.shape[-1]:
        raise DataError(
            f"label {worst} is out of range: the model has {y.shape[-1]} classes"
            if y.ndim == 2
            else f"labels cannot be used with output {job.pairs[0].student!r} {list(y.shape)}: --no-labels, or --match another output"
        )
