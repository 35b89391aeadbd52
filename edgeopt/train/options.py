"""The choices of `distill`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeopt.data import Preprocess
from edgeopt.errors import UsageError, suggestion

Kind = Literal["offline", "online", "self"]
KINDS: tuple[Kind, ...] = ("offline", "online", "self")
SelfTeacher = Literal["generations", "average", "heads"]
SELF_TEACHERS: tuple[SelfTeacher, ...] = ("generations", "average", "heads")
_AVERAGE = 0.999  # Tarvainen and Valpola 2017, arXiv:1703.01780
OPTIMIZERS = ("adamw", "sgd")
AUGMENTATIONS = ("flip", "crop", "mixup")


@dataclass(frozen=True)
class DistillOptions:
    """What can be chosen. loss "auto": by what the teacher's outputs look like; alpha: share of the teacher where there
    are labels; match, hints: teacher outputs and inner values by the student's; class_axes: by the
    student's output; hint_weight: of each hint; peers: models
    that learn too; by: who teaches with kind "self"; heads: inner values that get a classifier while training ("auto":
    three are chosen); student_classes, teacher_classes: files with a class name a line; cache: folder in which the
    teacher's answers outlive the run; quantized: the student is a QDQ model, trained through its Q/DQ; target: whose
    integer arithmetic its weights keep to.
    """

    kind: Kind = "offline"
    loss: str = "auto"
    temperature: float = 2.0
    alpha: float = 0.9
    epochs: int = 20
    minutes: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    warm_up: float = 0.05
    ema: float = 0.0
    generations: int = 1
    patience: int = 0
    augment: tuple[str, ...] = ()
    labels: bool | Path | None = None
    match: Mapping[str, str] = field(default_factory=dict)
    class_axes: Mapping[str, int] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    hint_weight: float = 1.0
    peers: tuple[Path, ...] = ()
    by: SelfTeacher = "generations"
    heads: tuple[str, ...] = ()
    student_classes: Path | None = None
    teacher_classes: Path | None = None
    cache: Path | None = None
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    samples: int = 1_000_000
    preprocess: str | Preprocess | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    quantized: bool = False
    target: str = "host"
    seed: int = 0
    device: str = "cpu"
    checkpoint: Path | None = None
    resume: bool = False
    log: Path | None = None
    tensorboard: Path | None = None

    @property
    def rate(self) -> float:
        """The learning rate: as chosen, or 3e-4, or 1e-4 for a quantized student."""
        return self.learning_rate if self.learning_rate is not None else 1e-4 if self.quantized else 3e-4

    def __post_init__(self) -> None:
        if self.kind == "self" and self.by == "average" and not self.ema:
            object.__setattr__(self, "ema", _AVERAGE)
        if self.kind == "self" and self.by == "heads" and not self.heads:
            object.__setattr__(self, "heads", ("auto",))
        choices = (
            ("--kind", self.kind, KINDS),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--by", self.by, SELF_TEACHERS),
        )
        for name, value, known in choices:
            if value not in known:
                raise UsageError(f"{name} {value}: unknown{suggestion(value, known)} Known: {', '.join(known)}")
        for value in self.augment:
            if value not in AUGMENTATIONS:
                raise UsageError(
                    f"--augment {value}: unknown{suggestion(value, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}"
                )
        whole = {
            "--epochs": self.epochs,
            "--batch-size": self.batch_size,
            "--accumulate": self.accumulate,
            "--generations": self.generations,
        }
        for name, number in whole.items():
            if number < 1:
                raise UsageError(f"{name} {number}: at least 1")
        positive = {
            "--temperature": self.temperature,
            "--lr": self.rate,
            "--clip": self.clip,
            "--hint-weight": self.hint_weight,
        }
        if self.minutes is not None:
            positive["--minutes"] = self.minutes
        for name, size in positive.items():
            if not 0 < size < float("inf"):
                raise UsageError(f"{name} {size:g}: above 0")
        for name, share in (("--alpha", self.alpha), ("--ema", self.ema), ("--warm-up", self.warm_up)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} {share:g}: from 0 to 1")
        if self.resume and self.checkpoint is None:
            raise UsageError("--resume needs --checkpoint FILE")
        if self.kind != "self" and (self.by != "generations" or self.generations > 1):
            raise UsageError("--by and --generations go with --kind self")
        if self.by != "generations" and self.generations > 1:
            raise UsageError(f"--generations goes with --by generations, not {self.by}")
        if self.cache is not None and (self.augment or self.kind == "online"):
            raise UsageError("--cache keeps answers to fixed views: not with --augment or --kind online")
        if self.loss == "dkd" and "mixup" in self.augment:
            raise UsageError("--loss dkd needs labels, and --augment mixup has none that fit")
        if "mixup" in self.augment and (self.kind == "online" or self.heads):
            raise UsageError("--augment mixup has no labels that fit, and --kind online and --heads learn from labels")
        if self.peers and self.kind != "online":
            raise UsageError("--peer goes with --kind online")
        if (self.student_classes is None) != (self.teacher_classes is None):
            raise UsageError("--student-classes and --teacher-classes go together: a class name a line")
        if self.hints and self.kind == "self":
            raise UsageError("--hint needs a --teacher or a --peer")
