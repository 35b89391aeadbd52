"""Prepares and checks a `Job` from student, teacher and data, for every kind of distillation."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from edgeopt.data import Data, Feed, InputSpec, Samples, read, specs
from edgeopt.data.spec import check_feed
from edgeopt.errors import DataError, ModelError, UsageError, suggestion
from edgeopt.graph.serialization import proto_bytes
from edgeopt.hardware import target
from edgeopt.hardware.host import cores
from edgeopt.listener import Listener
from edgeopt.options.distill import Distill
from edgeopt.options.reading import Preprocess
from edgeopt.ptq.guard import guarded
from edgeopt.runtime.kernels import kind
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import Session, open_session, try_loops, with_outputs
from edgeopt.train import batches as data_of
from edgeopt.train import losses, views
from edgeopt.train.batches import Examples
from edgeopt.train.network.module import OnnxModule, write_back
from edgeopt.train.network.qdq import masters
from edgeopt.train.pairs import Pair, class_names, matched, named_like, paired, same, to_tensors
from edgeopt.train.ranks import Ranks
from edgeopt.train.teachers import Panel, PortablePanel, answers, together

_LOOKED_AT = 4
_NORM_BATCH = 32
_DYNAMIC = "DynamicQuantizeLinear"


@dataclass(frozen=True)
class Job:
    """Everything that training needs, checked."""

    options: Distill
    listener: Listener
    ranks: Ranks
    student: ir.Model
    teacher: ir.Model
    """The first of them; for kind self, the student."""
    module: OnnxModule
    train: Examples
    held: Examples
    size: int
    """Batch size."""
    pairs: tuple[Pair, ...]
    peers: tuple[ir.Model, ...] = ()
    whole: Sequence[Feed] = ()
    """All samples, of which `train` and `held` are parts."""
    others: tuple[ir.Model, ...] = ()
    """The teachers beside the first."""
    identity: str = ""  # digest of models, samples and options

    def written(self, module: OnnxModule) -> ir.Model:
        """The student with the weights of `module`, as it is evaluated and saved."""
        model = write_back(self.student, module.arrays())
        grid = _grid(self.options)
        return guarded(model) if grid is not None and grid.saturates else model

    def panel(self, threads: int) -> Panel:
        """The teachers that were given."""
        models, names = self._asked()
        return Panel([open_session(m, threads=threads) for m in models], names)

    def portable_panel(self) -> PortablePanel:
        """The teachers that were given, for other processes."""
        models, names = self._asked()
        return PortablePanel([proto_bytes(m) for m in models], names)

    def _asked(self) -> tuple[list[ir.Model], list[dict[str, str]]]:
        """(the teachers, how outputs of those beside the first are called): see `Panel`."""
        wanted = [*dict.fromkeys([*(p.teacher for p in self.pairs), *self.options.hints.values()])]
        names = []
        for model in self.others:
            of = named_like(self.student, model, self.options.match)
            names.append({p.teacher: of[p.student] for p in self.pairs if p.student in of})
        return [with_outputs(self.teacher, wanted), *self.others], names

    @property
    def threads(self) -> int:
        """Threads for a session in this process."""
        return max(1, cores() // self.ranks.local)


def _grid(options: Distill) -> target.Grid | None:
    """What the target demands of the grids of a quantized student."""
    return target.load(options.target).grid if options.quantized else None


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # AssertionError: torch was built without CUDA
        raise UsageError(f"--device {device}: {str(e).splitlines()[0]}") from e


def check_roles(options: Distill, teacher: bool) -> None:
    if options.kind == "offline" and not teacher:
        raise UsageError("--kind offline needs --teacher MODEL")
    if options.kind == "online" and not teacher and not options.peers:
        raise UsageError("--kind online needs --teacher MODEL or --peer MODEL, who learn too")
    if options.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs it: pip install tensorboard")


def prepare(
    student: ir.Model, teacher: ir.Model, data: Data, options: Distill, here: Ranks, others: tuple[ir.Model, ...] = ()
) -> Job:
    """Everything checked; `others`: the teachers beside the first."""
    listener = options.listener if here.first else Listener()
    teachers = {"teacher" if not i else f"teacher {i + 1}": m for i, m in enumerate((teacher, *others))}
    examples = _examples(student, list(teachers.values()), data, options, listener)
    if options.augment:
        fixed = {s.name for m in (student, *teachers.values()) for s in specs(m) if s.shape and s.fixed(1) is not None}
        views.check(options.augment, examples.feeds[0], fixed)
    train, held = (examples.part(i) for i in data_of.divide(examples, options.seed))
    limits = [x for x in (data_of.batch_limit(specs(m)) for m in (student, *teachers.values())) if x is not None]
    size = min([batch := options.batch(len(train)), *limits])
    if size < batch and limits:
        listener.note(f"batches of {size}, which a model fixes (not {batch}); --accumulate makes steps of several")
    _check_quantized(student, options)
    module = _module(student, options, here, size)
    for line in (f"{a} and {b} are equal but apart: each learns for itself" for a, b in module.choice.twins):
        listener.note(line)
    size, seen = _looked_at({"student": student, **teachers}, held, size, listener)
    names, labelled = matched(student, teacher, options.match), partial(_labelled, examples, options)
    pairs = paired(names, seen["student"], seen["teacher"], options, labelled)
    why = _unlabelled(examples, options, pairs[0], seen["student"][pairs[0].student][0].shape[-1])
    if examples.labels is not None and why:
        listener.note(why)
        train, held = (replace(e, labels=None) for e in (train, held))
    identity = _identity((student, teacher, *others), (train, held), options)
    here.check_same(identity)
    job = Job(
        options,
        listener,
        here,
        student,
        teacher,
        module,
        train,
        held,
        size,
        pairs,
        others=others,
        identity=identity,
        whole=examples.feeds,
    )
    _check_labels(job)
    if others:
        check_alike(job, others, "--teacher")
    _check_hints(job)
    return job


def _looked_at(
    models: Mapping[str, ir.Model], held: Examples, size: int, listener: Listener
) -> tuple[int, dict[str, dict[str, list[torch.Tensor]]]]:
    """(the batch size at which samples go together, the answers of each model to some samples)."""
    sessions = {who: open_session(m, threads=1 if who == "student" else cores()) for who, m in models.items()}
    if size > 1 and held.rows == 1 and not all(together(s, held) for s in sessions.values()):
        listener.note(
            "samples do not go together along their first axis: one at a time (--accumulate makes steps of several)"
        )
        size = 1
    some = held.part(range(min(_LOOKED_AT * size, len(held))))
    return size, {who: _answers(who, session, some, size) for who, session in sessions.items()}


def _module(student: ir.Model, options: Distill, here: Ranks, size: int) -> OnnxModule:
    update = options.batch_norm == "update"
    module = OnnxModule(
        student,
        options.freeze,
        options.train,
        quantized=options.quantized,
        grid=_grid(options),
        update_norms=update,
    ).to(options.device)
    if not module.trained:
        raise ModelError("the student has no float weights to train")
    if update and not module.statistics:
        raise UsageError("--bn update: the student has no BatchNormalization (exporters fold it into convolutions)")
    if update and here.count > 1:
        raise UsageError("--bn update: statistics of several processes are not brought together; train in one")
    if update and size < _NORM_BATCH:
        options.listener.note(
            f"--bn update: statistics of {size} samples are noisy; --batch-size {_NORM_BATCH} or more"
        )
    return module


def with_peers(job: Job, peers: tuple[ir.Model, ...]) -> Job:
    """`job` with networks that learn along, which its identity tells too."""
    digest = hashlib.sha256(job.identity.encode())
    for peer in peers:
        digest.update(proto_bytes(peer))
    return replace(job, peers=peers, identity=digest.hexdigest())


def check_alike(job: Job, models: Sequence[ir.Model], option: str) -> None:
    """Refuse a peer, or a teacher beside the first, that lacks an output or whose outputs have different shapes."""
    some = job.held.part(range(1))
    ours = to_tensors(answers(open_session(job.student), some, 1))
    for model in models:
        names = named_like(job.student, model, job.options.match)
        theirs = to_tensors(answers(open_session(model), some, 1))
        for pair in job.pairs:
            if pair.student not in names:
                raise UsageError(f"{option}: one has no output that goes with {pair.student!r}")
            values = theirs[names[pair.student]]
            same(ours[pair.student][0], values[0], pair)
            likely = losses.guess(values)[0] == "probabilities"
            if option == "--teacher" and job.options.loss == "auto" and likely != (pair.loss == "probabilities"):
                raise UsageError(f"{option}: one gives probabilities and another scores, which have no mean")


def _examples(
    student: ir.Model, teachers: Sequence[ir.Model], data: Data, options: Distill, listener: Listener
) -> Examples:
    ours = specs(student)
    # inputs that only teachers have, e.g. token types
    known, theirs = {s.name for s in ours}, list[InputSpec]()
    for found in map(specs, teachers):
        if known & {s.name for s in found}:
            theirs += [s for s in found if s.name not in known | {t.name for t in theirs}]
    wanted = [*ours, *theirs]
    samples = read(data, wanted, options, open_session(student).run, norm_distance(student))
    names = class_names(options.student_classes) if options.student_classes else ()
    more = Samples([]) if options.unlabelled is None else _more(student, wanted, options, samples.resolved)
    examples, problems = data_of.read(samples.samples, options.labels, names, more.samples)
    for line in [
        *samples.notes,
        *(f"--unlabelled: {n}" for n in more.notes),
        *(f"skipped: {p}" for p in problems.values()),
    ]:
        listener.note(line)
    others, first = {s.name for s in theirs}, len(examples) - examples.extra
    for i, who in [(0, "the first sample"), *((i, "an --unlabelled sample") for i in range(first, len(examples)))]:
        own = {k: v for k, v in examples.feeds[i].items() if k not in others}
        check_feed(own, student, who)
        if not i:
            try_loops(student, own)
    return examples


def _more(student: ir.Model, wanted: Sequence[InputSpec], options: Distill, recipe: Preprocess | None) -> Samples:
    """The samples without labels, their pictures prepared as those with labels."""
    assert options.unlabelled is not None
    update = {"data_option": "--unlabelled", **({} if recipe is None else {"preprocess": recipe})}
    reading = options.model_copy(update=update)
    return read(options.unlabelled, wanted, reading, open_session(student).run, norm_distance(student))


def _answers(who: str, session: Session, some: Examples, size: int) -> dict[str, list[torch.Tensor]]:
    """A model's outputs for some samples, by name.

    Raises:
        DataError: it cannot run on them.
        ModelError: an output has NaN.
    """
    try:
        found = answers(session, some, size)
    except DataError as e:
        inputs = ", ".join(f"{i.name} {i.shape}" for i in session.raw.get_inputs())
        raise DataError(f"the {who} cannot take the samples (its inputs: {inputs}): {e}") from e
    for name, values in found.items():
        if any(np.isnan(y).any() for y in values if np.issubdtype(y.dtype, np.floating)):
            raise ModelError(
                f"output {name!r} of the {who} holds NaN before any training: mend the model or the samples"
            )
    return to_tensors(found)


def _labelled(examples: Examples, options: Distill, width: int) -> bool:
    """Whether the labels are those of an output of so many classes; folders that are as many may be."""
    if examples.labels is None:
        return False
    if examples.classes and options.labels is None and options.student_classes is None:
        return len(examples.classes) == width
    return int(examples.labels.max()) < width


def _unlabelled(examples: Examples, options: Distill, pair: Pair, classes: int) -> str:
    """Why labels are not used: the output tells no classes, or they are just folder names whose number differs from the
    student's classes; empty if they are.
    """
    count = len(examples.classes)
    if count not in (0, classes) and options.labels is None and options.student_classes is None:
        return (
            f"{count} folders ({', '.join(examples.classes[:3])} ...) are no labels for {classes} classes: trained"
            " without; --labels FILE.csv or --student-classes say otherwise"
        )
    if pair.loss not in losses.CLASSES:
        return f"labels are not used: output {pair.student!r} tells no classes (--loss {pair.loss})"
    return ""


def _identity(models: Sequence[ir.Model], examples: Sequence[Examples], options: Distill) -> str:
    """A digest of everything that determines a run, so that a checkpoint is resumed only by the same one."""
    digest = hashlib.sha256()
    for model in models:
        digest.update(proto_bytes(model))
    for part in examples:
        for feed in part.feeds:
            for name in sorted(feed):
                digest.update(f"{name}{feed[name].shape}".encode() + np.ascontiguousarray(feed[name]).tobytes())
        digest.update(b"" if part.labels is None else part.labels.tobytes())
    kept = {k: v for k, v in vars(options).items() if k not in _FORGET}
    digest.update(repr((options.batch(len(examples[0])), *sorted(kept.items()))).encode())
    return digest.hexdigest()


# options that may differ when a run is resumed, or that are checked elsewhere
_FORGET = frozenset(
    {
        "checkpoint", "resume", "log", "tensorboard", "cache", "minutes", "patience", "device", "epochs", "accumulate",
        "tokenizer", "listener", "teacher", "output", "force", "unlabelled", "jobs", "cluster", "executor",
    }
)  # fmt: skip


def _check_quantized(student: ir.Model, options: Distill) -> None:
    found = masters(student)
    dynamic = next((n for n in student.graph if n.op_type == _DYNAMIC or kind(n.op_type) == "integer"), None)
    if dynamic is not None:
        raise ModelError(
            f"the student is quantized (node {dynamic.name!r} is a {dynamic.op_type}): give its float form, or a static"
            " int8 file with --qat"
        )
    if found and not options.quantized:
        raise ModelError(
            f"the student is quantized ({len(found)} integer weights): train it through its Q/DQ with --qat, or give"
            " its float form"
        )
    if options.quantized and not found:
        raise ModelError("--qat trains a quantized student, and this one has no Q/DQ: edgeopt quantize makes it")


def _check_hints(job: Job) -> None:
    known = [str(v.name) for node in job.teacher.graph for v in node.outputs]
    for name in job.options.hints.values():
        if name not in known:
            raise UsageError(f"--hint: the teacher has no value {name!r}{suggestion(name, known)}")


def _check_labels(job: Job) -> None:
    labels = [e.labels for e in (job.train, job.held) if e.labels is not None]
    if not labels:
        if job.options.kind != "offline" or job.options.classifiers:
            raise UsageError(
                f"--kind {job.options.kind} learns from labels too: a folder for each class, an entry 'label' in every"
                " .npz, or --labels FILE.csv"
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
            else (
                f"labels cannot be used with output {job.pairs[0].student!r} {list(y.shape)}: --no-labels, or --match"
                " another output"
            )
        )
