"""The options of `distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SkipValidation, model_validator

from edgeopt.listener import Listener
from edgeopt.options.declare import NO_STEP, Callbacks, Flag, Force, Output, Spreading
from edgeopt.options.quantize import Targeted
from edgeopt.options.reading import AnySamples, Reading
from edgeopt.options.texts import NAMES, Text, whole

_RATES = {8: 2e-5, 4: 1e-4}  # of quantized weights by their bits: of 4 they have far to go to another integer
_BATCH, _SMALL_BATCH, _FEW = 32, 8, 1000
Kind = Literal["offline", "online", "self"]
_RECIPES: Mapping[Kind, tuple[float, float]] = {  # temperature, alpha; `scripts/sweep_distill` compares them
    "offline": (2.0, 0.9),
    "online": (2.0, 0.5),
    "self": (2.0, 0.5),
}
SelfTeacher = Literal["generations", "average", "heads"]
LossName = Literal["auto", "kd", "dkd", "dist", "mse", "cosine", "similarity", "bce", "probabilities"]
Augmentation = Literal["flip", "scale", "crop", "color", "gain", "noise", "mask", "mixup"]
Initializers = Annotated[tuple[str, ...], Flag(text=Text("NAME|GLOB", str))]


def _by_kind(place: int) -> str:
    """The defaults of the kinds, for a description."""
    return ", ".join(f"{recipe[place]:g} {kind}" for kind, recipe in _RECIPES.items())


class Distill(Reading, Spreading):
    """Options of `distill`."""

    teacher: Annotated[Any, SkipValidation, Flag(text=Text("PATH", Path), several=True)] = Field(
        default=None,
        description="The model to learn from (not with --kind self); of several, the mean of their answers.",
    )
    output: Output = Field(default=None, description="File to write. [default: STUDENT.distilled.onnx]")
    force: Force = Field(default=False, description="Overwrite the output.")
    kind: Kind = Field(
        default="offline", description="A fixed teacher, networks that learn together, or the student itself."
    )
    peers: Annotated[tuple[Path, ...], Flag("--peer")] = Field(
        default=(), description="Models that learn along, with --kind online."
    )
    by: SelfTeacher = Field(
        default="generations",
        description="Who teaches with --kind self: the student before, its moving average, its output.",
    )
    heads: Annotated[tuple[str, ...], Flag(text=Text("VALUE[,VALUE]|auto", NAMES.read, NAMES.show, whole=True))] = (
        Field(default=(), description="Inner values that get a classifier while training.")
    )
    hints: Annotated[Mapping[str, str], Flag("--hint", example="/block3/Add_output_0=/layer4/Add_output_0")] = Field(
        default={}, description="Inner values to bring together, STUDENT=TEACHER."
    )
    hint_weight: float = Field(default=1.0, gt=0, description="Weight of each hint in the loss.")
    loss: LossName = Field(
        default="auto", description="How answers are compared; auto: by what the teacher's look like."
    )
    temperature: float | None = Field(
        default=None, gt=0, description=f"Softens the class scores of both. [default: {_by_kind(0)}]"
    )
    alpha: float | None = Field(
        default=None, ge=0, le=1, description=f"Share of the teacher, where there are labels. [default: {_by_kind(1)}]"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of a label that all classes get.")
    epochs: int = Field(default=20, ge=1, description="Passes over the samples, at the most.")
    minutes: float | None = Field(default=None, gt=0, description="Stop after so long, if the epochs are not over.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description=f"Samples a batch. [default: {_BATCH}; for more steps {_SMALL_BATCH} with --minutes, or of fewer"
        f" than {_FEW} samples]",
    )
    accumulate: int = Field(default=1, ge=1, description="Batches a step.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="How weights are updated.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of --optimizer sgd.")
    learning_rate: Annotated[float | None, Flag("--lr")] = Field(
        default=None,
        gt=0,
        description=f"Highest rate of a step. [default: the best in short runs; with --qat {_RATES[8]:g}, of 4-bit"
        f" weights {_RATES[4]:g}]",
    )
    warm_up: float = Field(default=0.05, ge=0, le=1, description="Share of the steps in which the rate rises.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of matrices.")
    ema: float = Field(default=0.0, ge=0, le=1, description="Judge a moving average of the weights, e.g. 0.999.")
    generations: int = Field(default=2, ge=1, description="Of --kind self; the first learns from the labels alone.")
    patience: int = Field(default=0, ge=0, description="Stop after so many epochs without a better one; 0: never.")
    augment: Annotated[tuple[Augmentation, ...], Flag(text=NAMES)] = Field(
        default=(), description="Views, the same to teacher and student: what fits pictures, sound or text."
    )
    unlabelled: Annotated[AnySamples, Flag(text=Text("PATH", str))] = Field(
        default=None, description="More samples, of which only the teacher tells something."
    )
    labels: Annotated[bool | Path | None, NO_STEP] = Field(
        default=None, description="CSV file: sample's file name, label. [default: names of folders]"
    )
    student_classes: Path | None = Field(default=None, description="File with a class name a line, ...")
    teacher_classes: Path | None = Field(default=None, description="... and the teacher's, if in another order.")
    match: Annotated[Mapping[str, str], Flag(example="logits=output")] = Field(
        default={}, description="Outputs that belong together, STUDENT=TEACHER."
    )
    class_axes: Annotated[Mapping[str, int], Flag("--class-axis", Text("", whole), example="scores=1")] = Field(
        default={}, description="Where an output has its classes, if not last (or second of four axes), OUTPUT=AXIS."
    )
    batch_norm: Annotated[Literal["frozen", "update"], Flag("--bn")] = Field(
        default="frozen", description="Statistics of BatchNormalization: as they are, or those of the batches."
    )
    freeze: Initializers = Field(default=(), description="Initializers that stay as they are.")
    train: Initializers = Field(default=(), description="Initializers to train that would not be.")
    samples: int = Field(default=1_000_000, ge=1, description="How many to read; all are held in memory.")
    quantized: Annotated[bool, Flag("--qat", key="qat")] = Field(
        default=False, description="The student is a QDQ model: train it through its Q/DQ."
    )
    target: Targeted = Field(default="host", description="Hardware of an int8 result (edgeopt targets).")
    seed: int = Field(default=0, ge=0, description="Of everything that is drawn while training.")
    device: Annotated[str, NO_STEP] = Field(default="cpu", description="Where torch computes.")
    checkpoint: Annotated[Path | None, NO_STEP] = Field(default=None, description="Write the state after every epoch.")
    resume: Annotated[bool, NO_STEP] = Field(default=False, description="Go on from the checkpoint.")
    cache: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="Keep the teacher's answers here for the next run."
    )
    log: Annotated[Path | None, NO_STEP] = Field(default=None, description="Write a line an epoch as CSV.")
    tensorboard: Annotated[Path | None, NO_STEP] = Field(
        default=None, description="Write the log to this folder for TensorBoard."
    )
    listener: Callbacks = Field(default=Listener(), description="Receives notes and progress.")

    def rate(self, bits: int) -> float | None:
        """The learning rate: as chosen, or what suits weights of so many bits; None for floats, whose is tried."""
        return _RATES.get(bits) if self.learning_rate is None else self.learning_rate

    def batch(self, samples: int) -> int:
        """Samples a batch: as chosen, or fewer where the time is limited or an epoch of so many samples is short."""
        return self.batch_size or (_BATCH if self.minutes is None and samples >= _FEW else _SMALL_BATCH)

    @property
    def softening(self) -> float:
        """The temperature: as chosen, or that of the kind."""
        return _RECIPES[self.kind][0] if self.temperature is None else self.temperature

    @property
    def share(self) -> float:
        """The share of the teacher: as chosen, or that of the kind."""
        return _RECIPES[self.kind][1] if self.alpha is None else self.alpha

    @property
    def teachers(self) -> tuple[Any, ...]:
        """The models to learn from; none with kind self."""
        several = isinstance(self.teacher, list | tuple)
        return () if self.teacher is None else tuple(self.teacher) if several else (self.teacher,)

    @property
    def rounds(self) -> int:
        """How many generations are trained."""
        return self.generations if self.kind == "self" and self.by == "generations" else 1

    @property
    def averaged(self) -> bool:
        """Whether a moving average of the weights is kept, and judged."""
        return self.ema > 0 or (self.kind == "self" and self.by == "average")

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Intermediate values that get an auxiliary classifier; by default chosen automatically if `by` is "heads"."""
        return self.heads or (("auto",) if self.kind == "self" and self.by == "heads" else ())

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.kind == "self" and self.teacher is not None:
            raise ValueError("{kind} self has no {teacher}: leave it out")
        if self.resume and self.checkpoint is None:
            raise ValueError("{resume} needs {checkpoint} FILE")
        counted = "generations" in self.model_fields_set
        if self.kind != "self" and (self.by != "generations" or (counted and self.generations > 1)):
            raise ValueError("{by} and {generations} go with {kind} self")
        if self.by != "generations" and counted and self.generations > 1:
            raise ValueError(f"{{generations}} goes with {{by}} generations, not {self.by}")
        if self.kind == "online" and len(self.teachers) > 1:
            raise ValueError("{kind} online: the networks that learn along are {peers}, beside one {teacher} at most")
        if self.loss == "dkd" and self.unlabelled is not None:
            raise ValueError("{loss} dkd needs labels, and {unlabelled} samples have none")
        if self.cache is not None and (self.augment or self.kind == "online"):
            raise ValueError("{cache} keeps answers to fixed views: not with {augment} or {kind} online")
        asked = next((n for n in ("jobs", "cluster", "executor") if getattr(self, n) is not None), None)
        if asked is not None and (self.augment or self.kind == "online"):
            raise ValueError(
                f"{{{asked}}} asks a teacher for its answers to fixed views: not with {{augment}} or {{kind}} online"
            )
        if self.loss == "dkd" and "mixup" in self.augment:
            raise ValueError("{loss} dkd needs labels, and {augment} mixup has none that fit")
        if "mixup" in self.augment and (self.kind != "offline" or self.classifiers):
            raise ValueError(
                "{augment} mixup has no labels that fit, and {kind} online or self and {heads} learn from labels"
            )
        if self.label_smoothing and (self.labels is False or "mixup" in self.augment):
            raise ValueError("{label_smoothing} smooths labels, and there are none")
        if self.unlabelled is not None and self.kind == "self" and self.by != "average" and self.rounds == 1:
            raise ValueError("{unlabelled}: nobody tells anything of these samples with {kind} self and one generation")
        if self.peers and self.kind != "online":
            raise ValueError("{peers} goes with {kind} online")
        if (self.student_classes is None) != (self.teacher_classes is None):
            raise ValueError("{student_classes} and {teacher_classes} go together: a class name a line")
        if self.hints and self.kind == "self":
            raise ValueError("{hints} needs a {teacher} or a {peers}")
        return self
