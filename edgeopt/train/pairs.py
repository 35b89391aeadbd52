"""Pairs outputs of student and teacher, with their losses and the order of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.files import text_of
from edgeopt.options.distill import Distill
from edgeopt.train import losses
from edgeopt.train.teachers import widened

_DENSE = 4


@dataclass(frozen=True)
class Pair:
    """An output of the student and the teacher's output that it is compared with."""

    student: str
    teacher: str
    loss: str
    order: tuple[int, ...] | None = None
    """The teacher's class for each of the student's; None: the same order."""
    axis: int | None = None
    """Of the classes; None: the last, or axis 1 for rank 4 and above, as in [batch, classes, height, width]."""

    def ours(self, y: Tensor) -> Tensor:
        """The student's values with the classes last."""
        return y.movedim(self.axis if self.axis is not None else 1 if y.ndim >= _DENSE else -1, -1)

    def theirs(self, y: Tensor) -> Tensor:
        """The teacher's values with the classes last, in the student's order."""
        y = self.ours(y)
        return y if self.order is None else y.index_select(-1, torch.tensor(self.order, device=y.device))


def matched(student: ir.Model, teacher: ir.Model, match: Mapping[str, str]) -> dict[str, str]:
    """The teacher's output for each output of the student: as given, by name, by position where each then has a
    shape that can be the other's, or the only one of such a shape.

    Raises:
        UsageError: a name that does not exist, or outputs that cannot be paired.
    """
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
    by_place = list(zip(student.graph.outputs, teacher.graph.outputs, strict=False))
    if len(ours) == len(theirs) and all(_alike(a, b) for a, b in by_place):
        return dict(zip(ours, theirs, strict=True))
    fitting = _by_shape(student.graph.outputs, teacher.graph.outputs)
    if len(fitting) == len(ours):
        return fitting
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs, strict=True))
    raise UsageError(
        f"outputs {', '.join(ours)} and {', '.join(theirs)}: say which belong together with --match STUDENT=TEACHER"
    )


def named_like(student: ir.Model, model: ir.Model, match: Mapping[str, str]) -> dict[str, str]:
    """The output of a peer, or of a teacher beside the first, for each of the student's: as `match` says if it has
    those outputs too, else as `matched` finds them.
    """
    known = {str(v.name) for v in model.graph.outputs}
    return matched(student, model, match if known.issuperset(match.values()) else {})


def _alike(ours: ir.Value, theirs: ir.Value) -> bool:
    """Whether nothing that the two files declare of type, rank and sizes tells the values apart."""
    types = [v.dtype.is_floating_point() for v in (ours, theirs) if v.dtype is not None]
    if len(set(types)) > 1:
        return False
    if ours.shape is None or theirs.shape is None:
        return True
    sizes = list(zip(ours.shape, theirs.shape, strict=False))
    return len(ours.shape) == len(theirs.shape) and all(
        a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int)
    )


def _by_shape(ours: Sequence[ir.Value], theirs: Sequence[ir.Value]) -> dict[str, str]:
    """Pairs of which each is the only one whose declared shape can be that of the other."""
    fits = {str(a.name): [str(b.name) for b in theirs if _alike(a, b)] for a in ours}
    wanted = [names[0] for names in fits.values() if len(names) == 1]
    return {a: names[0] for a, names in fits.items() if len(names) == 1 and wanted.count(names[0]) == 1}


def paired(
    names: Mapping[str, str],
    ours: Mapping[str, Sequence[Tensor]],
    theirs: Mapping[str, Sequence[Tensor]],
    options: Distill,
    labelled: Callable[[int], bool] = lambda width: False,
) -> tuple[Pair, ...]:
    """A pair for each of `names`, with its loss; `ours`, `theirs`: values for some batches by output name; `labelled`:
    whether there are labels of so many classes.

    Raises:
        UsageError: an unknown loss, an axis that does not exist, or values that cannot be compared.
    """
    for name in options.class_axes:
        if name not in names:
            raise UsageError(f"--class-axis: no output {name!r} is compared{suggestion(name, names)}")
    order = class_order(options.student_classes, options.teacher_classes)
    found = []
    for name, other in names.items():
        values = [ours[name][0], theirs[other][0]]
        if not all(y.is_floating_point() and y.ndim for y in values):
            if name in options.match:
                raise UsageError(
                    f"--match {name}={other}: {values[0].dtype} and {values[1].dtype}, no numbers to learn"
                )
            continue
        pair = Pair(name, other, options.loss, axis=_axis(options.class_axes.get(name), values[1], name))
        if pair.loss == "auto":
            given = [pair.theirs(y) for y in theirs[other]]
            loss, why = losses.guess(given, pair.axis is not None, labelled(values[1].shape[-1]))
            pair = replace(pair, loss=loss)
            options.listener.note(f"--loss auto: {loss} for {name}: {why}")
        pair = replace(pair, order=_fitting(order, pair.theirs(values[1]), other))
        same(values[0], values[1][: len(values[0])], pair)
        found.append(pair)
    if not found:
        raise UsageError("no output holds numbers that a student could learn: say which with --match STUDENT=TEACHER")
    return tuple(found)


def _fitting(order: tuple[int, ...] | None, values: Tensor, name: str) -> tuple[int, ...] | None:
    if order is not None and values.shape[-1] <= max(order):
        raise UsageError(
            f"--teacher-classes names more classes than the teacher's output {name!r} has: {values.shape[-1]}"
        )
    return order


def _axis(axis: int | None, values: Tensor, name: str) -> int | None:
    if axis is not None and axis not in range(1, values.ndim) and axis not in range(1 - values.ndim, 0):
        raise UsageError(
            f"--class-axis {name}={axis}: the output is {list(values.shape)}; from 1 (0 is the batch) to"
            f" {values.ndim - 1}"
        )
    return axis


def same(student: Tensor, teacher: Tensor, pair: Pair) -> None:
    """Refuse shapes that the pair's loss cannot compare.

    Raises:
        UsageError: says the remedy.
    """
    apart = pair.ours(student).shape != pair.theirs(teacher).shape
    if apart and not (pair.loss in losses.RELATIVE and len(student) == len(teacher)):
        raise UsageError(
            f"output {pair.student!r}: the student gives {list(student.shape)}, the teacher {list(teacher.shape)}; they"
            " cannot be compared. Embeddings of other sizes: --loss similarity; other classes: --student-classes and"
            " --teacher-classes; other outputs: --match"
        )


def class_order(student: Path | None, teacher: Path | None) -> tuple[int, ...] | None:
    """The teacher's class for each of the student's, from two files with one class name a line.

    Raises:
        DataError: a file that cannot be read, a repeated name, or one that the teacher lacks.
    """
    if student is None or teacher is None:
        return None
    ours, theirs = (class_names(path) for path in (student, teacher))
    missing = [n for n in ours if n not in theirs]
    if missing:
        raise DataError(f"{teacher}: no class {missing[0]!r}{suggestion(missing[0], theirs)} It is in {student}")
    return tuple(theirs.index(n) for n in ours)


def class_names(path: Path) -> list[str]:
    """The class names in a file, one a line.

    Raises:
        DataError: it cannot be read, is empty, or repeats a name.
    """
    try:
        names = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as class names ({e})") from e
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path}: {'a class name is there twice' if names else 'no class name'}; one a line")
    return names


def to_tensors(answers: Mapping[str, Sequence[object]]) -> dict[str, list[Tensor]]:
    """Arrays as tensors, float16 as float32."""
    return {name: [widened(torch.as_tensor(y)) for y in values] for name, values in answers.items()}
