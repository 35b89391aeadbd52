"""From a model and data to a `Job`: the simplified model, samples to calibrate with, held-out samples and the float
model's answers on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from pydantic import ValidationError

from edgeopt import graph
from edgeopt.data import (
    PRESETS,
    DataOptions,
    Feed,
    InputSpec,
    Look,
    Preprocess,
    Sample,
    as_samples,
    look,
    oddities,
    open_data,
    random_samples,
    readable,
    specs,
    split,
)
from edgeopt.data.guess import Guess, guess
from edgeopt.data.images import SUFFIXES, image_input, load_toml, resolve
from edgeopt.data.spec import check_feed
from edgeopt.errors import CalibrationError, DataError, ModelError, UsageError, suggestion
from edgeopt.graph.ops import constant
from edgeopt.graph.select import select
from edgeopt.hardware import target as targets
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import Target
from edgeopt.listener import Listener
from edgeopt.numbers.scores import Outputs, class_scores
from edgeopt.passes.simplifying import simplify
from edgeopt.quantization.metric import Metric, metric
from edgeopt.quantization.options import Data, Options
from edgeopt.runtime.session import Session, finite, open_session, run_all

RANDOM = "random"
_GUESS_SAMPLES = 12
_FEW = 16
_LABEL = "label"
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits"}
)


@dataclass(frozen=True)
class Job:
    """All that the candidates share. source: canonical, as the user gave it; model: simplified; rest: samples that
    neither calibrate nor are held out; held: held-out samples with the float model's answers.
    """

    options: Options
    target: Target
    listener: Listener
    source: ir.Model
    model: ir.Model
    calibration: tuple[Sample, ...]
    rest: tuple[Sample, ...]
    held: tuple[tuple[str, Feed], ...]
    reference: tuple[Outputs, ...]
    float_session: Session
    exclude: frozenset[str]
    include: frozenset[str]
    preprocess: str
    notes: list[str]
    looks: dict[str, Look]
    seconds: dict[str, float] = field(default_factory=dict)
    metric: Metric | None = None

    def note(self, line: str) -> None:
        """Tell the user and put it in the report."""
        self.notes.append(line)
        self.listener.note(line)

    def note_oddities(self, samples: Sequence[tuple[str, object]]) -> None:
        """Tell of constant and repeated samples among `samples`, once they have been read."""
        order = [name for name, _ in (*self.held, *self.calibration) if name in self.looks]
        for line in oddities({name: self.looks[name] for name in order}, {name for name, _ in samples}):
            self.note(line)


def prepare(source: ir.Model, data: Data, options: Options, listener: Listener) -> Job:
    """Everything up to the first candidate.

    Raises:
        ModelError: quantized already, NaN weights, or refused by ONNX Runtime. DataError, UsageError: see
          `edgeopt.data`.
    """
    start = time.perf_counter()
    model = graph.canonical(source)
    _check(model)
    notes: list[str] = []
    target = targets.load(options.target)
    simplified = simplify(model)
    # names are looked for in the file as given too: what was folded away is no error
    exclude, include = (select([model, simplified], names) for names in (options.exclude, options.include))
    session = open_session(model, threads=1)
    inputs = specs(model)
    samples, recipe, told = samples_of(data, inputs, options, session)
    looks: dict[str, Look] = {}
    checked = [(name, partial(_checked, read, model, name, looks)) for name, read in samples]
    calibration, held = split(checked, options.samples)
    rest = checked[len(held) + len(calibration) :] if len(checked) > 1 else []
    feeds, problems = readable(held, total=len(calibration) + len(held))
    if not feeds:
        raise DataError(f"no held-out sample can be read: {next(iter(problems.values()), '')}")
    reference = run_all(session, feeds, workers=cores())
    _check_finite(feeds, reference)
    simplified = _ranked(simplified, reference[0])
    job = Job(
        options,
        target,
        listener,
        model,
        simplified,
        tuple(calibration),
        tuple(rest),
        tuple(feeds),
        tuple(reference),
        session,
        exclude,
        include,
        recipe,
        notes,
        looks,
    )
    if options.metric is not None:
        job = replace(job, metric=metric(options.metric, session, reference))
    for line in [*told, *_warnings(calibration, feeds, problems)]:
        job.note(line)
    job.note_oddities(feeds)
    job.seconds["prepare"] = time.perf_counter() - start
    return job


def _check(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        first = node.inputs[0] if node.inputs else None
        stored = node.op_type == "Cast" and constant(first) and first is not None and first.dtype == ir.DataType.INT8
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") or stored:
            raise ModelError(
                f"node {node.name!r} is a {node.op_type}{' of int8 weights' if stored else ''}: the model is quantized already; give the float model"
            )
    for g in model.graphs():
        for value in g.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point() and np.isnan(tensor.numpy()).any():
                raise ModelError(
                    f"weight {value.name!r} holds NaN; the model is broken before quantization: train or export it again"
                )


def _ranked(model: ir.Model, outputs: Outputs) -> ir.Model:
    """A clone whose outputs declare a shape, as a valid file must: at least the rank that they have on a sample."""
    copy = model.clone()
    for value, y in zip(copy.graph.outputs, outputs, strict=True):
        if value.shape is None:
            value.shape = ir.Shape([None] * y.ndim)
    return copy


def _check_finite(feeds: list[tuple[str, Feed]], reference: list[Outputs]) -> None:
    for (name, feed), outputs in zip(feeds, reference, strict=True):
        if not finite(feed.values()):
            raise CalibrationError(f"sample {name} is not finite; mend or remove it")
        if any(np.issubdtype(y.dtype, np.floating) and np.isnan(y).any() for y in outputs):
            raise CalibrationError(
                f"the float model's output is not finite on sample {name}; is the preprocessing right?"
            )


def _checked(read: Callable[[], Feed], model: ir.Model, name: str, looks: dict[str, Look]) -> Feed:
    feed = dict(read())
    if _LABEL not in {str(v.name) for v in model.graph.inputs}:
        feed.pop(_LABEL, None)  # of samples that `distill` reads too
    check_feed(feed, model, name)
    if name not in looks:
        looks[name] = look(feed)
    return feed


def samples_of(
    data: Data, inputs: list[InputSpec], options: Options, session: Session
) -> tuple[list[Sample], str, list[str]]:
    """(samples, the image recipe in words, what to tell the user)."""
    if not isinstance(data, str | Path):
        return as_samples(data, inputs), "", []
    if data == RANDOM:
        warning = "random data: ranges and figures mean nothing for real inputs; use it to try the tool only"
        return random_samples(inputs, options.samples + 8), "", [warning]
    path = Path(data)
    spec = image_input(inputs)
    if spec is None or not _has_images(path):
        return (
            open_data(
                data, inputs, DataOptions(options.samples, tokenizer=options.tokenizer, option=options.data_option)
            ),
            "",
            [],
        )
    recipe, told = _recipe(path, inputs, options, session)
    resolved = resolve(recipe, spec)
    samples = open_data(data, inputs, DataOptions(options.samples, resolved, option=options.data_option))
    return samples, resolved.describe(), [*told, f"images: {resolved.describe()}"]


def _has_images(path: Path) -> bool:
    files = path.rglob("*") if path.is_dir() else [path]
    return any(f.suffix.lower() in SUFFIXES for f in files)


def _recipe(path: Path, inputs: list[InputSpec], options: Options, session: Session) -> tuple[Preprocess, list[str]]:
    """Flags over the preset over `preprocess.toml` over a look at the float model."""
    base, told = options.preprocess, list[str]()
    if isinstance(base, str):
        if base not in PRESETS:
            raise UsageError(f"no preset {base!r}{suggestion(base, PRESETS)} Known: {', '.join(PRESETS)}")
        base = PRESETS[base]
    _merged(base or PRESETS["unit"], options)
    beside = next((f for f in (path / "preprocess.toml", path.parent / "preprocess.toml") if f.is_file()), None)
    if base is None and beside is not None:
        base, told = load_toml(beside), [f"preprocessing: from {beside}"]
    if base is None and not {"scale", "mean", "std"} & options.overrides.keys():
        found = _guess(path, inputs, options, session)
        base, told = PRESETS[found.preset], [found.describe()]
    return _merged(base or PRESETS["unit"], options), told


def _merged(base: Preprocess, options: Options) -> Preprocess:
    """`base` with the fields that flags give."""
    try:
        return Preprocess.model_validate({**base.model_dump(), **options.overrides})
    except ValidationError as e:
        raise UsageError(f"preprocessing: {e}") from e


def _guess(path: Path, inputs: list[InputSpec], options: Options, session: Session) -> Guess:
    spec = image_input(inputs)
    assert spec is not None
    answers: dict[str, np.ndarray | None] = {}
    for name, preset in PRESETS.items():
        samples = open_data(path, inputs, DataOptions(preprocess=resolve(_merged(preset, options), spec)))
        feeds, _ = readable(samples[:_GUESS_SAMPLES], total=len(samples))
        outputs = run_all(session, feeds, workers=cores())
        scores = [[y[0] for y in sample_outputs if y.ndim == 2 and class_scores([y])] for sample_outputs in outputs]
        answers[name] = (
            np.stack([s[0] for s in scores])
            if scores and all(scores) and len({s[0].shape for s in scores}) == 1
            else None
        )
    return guess(answers, "imagenet" if spec.fixed(1) != 1 and spec.fixed(3) != 1 else "unit")


def _warnings(calibration: list[Sample], held: list[tuple[str, Feed]], problems: Mapping[str, str]) -> list[str]:
    lines = [f"skipped: {reason}" for reason in problems.values()]
    if len(calibration) < _FEW:
        lines.append(
            f"only {len(calibration)} samples to calibrate with: ranges may be too narrow; 100 or more are better"
        )
    if calibration and len(calibration) == len(held) == 1:
        lines.append(f"sample {held[0][0]} both calibrates and checks: the figures below are not held out")
    return lines[:10] + ([f"... and {len(lines) - 10} more"] if len(lines) > 10 else [])
