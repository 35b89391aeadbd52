"""The options of `distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SkipValidation, model_validator

from edgeopt.listener import Listener
from edgeopt.options.declare import NO_STEP, Callbacks, Flag, Force, Output
from edgeopt.options.quantize import Targeted
from edgeopt.options.reading import Reading
from edgeopt.options.texts import NAMES, Text, whole

_AVERAGE = 0.999  # Tarvainen and Valpola 2017, arXiv:1703.01780
_RATE, _QAT_RATE = 3e-4, 1e-4
Kind = Literal["offline", "online", "self"]
SelfTeacher = Literal["generations", "average", "heads"]
LossName = Literal["auto", "kd", "dkd", "dist", "mse", "cosine", "similarity", "bce", "probabilities"]
Augmentation = Literal["flip", "crop", "mixup"]
Initializers = Annotated[tuple[str, ...], Flag(text=Text("NAME|GLOB", str))]


class Distill(Reading):
    """Options of `distill`."""

    teacher: Annotated[Any, SkipValidation, Flag(text=Text("PATH", Path))] = Field(
        default=None, description="The model to learn from (not with --kind self)."
    )
    output: Output = Field(default=None, description="File to write. [default: STUDENT.distilled.onnx]")
    force: Force = Field(default=False, description="Overwrite the output.")
    kind: Kind = Field(
        default="offline", description="A fixed teacher, networks that learn together, or the student itself."
    )
    peers: Annotated[tuple[Path, ...], Flag("--peer", step=False)] = Field(
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
    temperature: float = Field(default=2.0, gt=0, description="Softens the class scores of both.")
    alpha: float = Field(default=0.9, ge=0, le=1, description="Share of the teacher, where there are labels.")
    epochs: int = Field(default=20, ge=1, description="Passes over the samples, at the most.")
    minutes: float | None = Field(default=None, gt=0, description="Stop after so long, if the epochs are not over.")
    batch_size: int = Field(default=32, ge=1, description="Samples a batch.")
    accumulate: int = Field(default=1, ge=1, description="Batches a step.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="How weights are updated.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of --optimizer sgd.")
    learning_rate: Annotated[float | None, Flag("--lr")] = Field(
        default=None, gt=0, description=f"Highest rate of a step. [default: {_RATE:g}, or {_QAT_RATE:g} with --qat]"
    )
    warm_up: float = Field(default=0.05, ge=0, le=1, description="Share of the steps in which the rate rises.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of matrices.")
    ema: float = Field(default=0.0, ge=0, le=1, description="Judge a moving average of the weights, e.g. 0.999.")
    generations: int = Field(default=1, ge=1, description="Number of generations of --kind self.")
    patience: int = Field(default=0, ge=0, description="Stop after so many epochs without a better one; 0: never.")
    augment: Annotated[tuple[Augmentation, ...], Flag(text=NAMES)] = Field(
        default=(), description="flip, crop, mixup: the same view to teacher and student."
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

    @property
    def rate(self) -> float:
        """The learning rate: as chosen, or lower for a quantized student."""
        return self.learning_rate if self.learning_rate is not None else _QAT_RATE if self.quantized else _RATE

    @property
    def average(self) -> float:
        """Decay of the moving average of the weights; it has a default if the average is the teacher."""
        return self.ema or (_AVERAGE if self.kind == "self" and self.by == "average" else 0.0)

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
        if self.kind != "self" and (self.by != "generations" or self.generations > 1):
            raise ValueError("{by} and {generations} go with {kind} self")
        if self.by != "generations" and self.generations > 1:
            raise ValueError(f"{{generations}} goes with {{by}} generations, not {self.by}")
        if self.cache is not None and (self.augment or self.kind == "online"):
            raise ValueError("{cache} keeps answers to fixed views: not with {augment} or {kind} online")
        if self.loss == "dkd" and "mixup" in self.augment:
            raise ValueError("{loss} dkd needs labels, and {augment} mixup has none that fit")
        if "mixup" in self.augment and (self.kind == "online" or self.classifiers):
            raise ValueError("{augment} mixup has no labels that fit, and {kind} online and {heads} learn from labels")
        if self.peers and self.kind != "online":
            raise ValueError("{peers} goes with {kind} online")
        if (self.student_classes is None) != (self.teacher_classes is None):
            raise ValueError("{student_classes} and {teacher_classes} go together: a class name a line")
        if self.hints and self.kind == "self":
            raise ValueError("{hints} needs a {teacher} or a {peers}")
        return self
