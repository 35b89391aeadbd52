"""From a model and data to a `Job`: the simplified model, samples to calibrate with, held-out samples and the float
model's answers on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Data, Feed, Look, Sample, look, oddities, read, readable, specs, split
from edgeopt.data.spec import check_feed
from edgeopt.errors import CalibrationError, DataError, ModelError
from edgeopt.graph.ops import constant
from edgeopt.graph.select import select
from edgeopt.hardware import target as targets
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import Target
from edgeopt.listener import Listener
from edgeopt.numbers.scores import Outputs
from edgeopt.options.quantize import Quantize
from edgeopt.passes.simplifying import simplify
from edgeopt.quantization.metric import Metric, metric
from edgeopt.runtime.session import Session, finite, open_session, run_all

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

    options: Quantize
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


def prepare(source: ir.Model, data: Data, options: Quantize, listener: Listener) -> Job:
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
    given = read(data, specs(model), options, session.run)
    looks: dict[str, Look] = {}
    checked = [(name, partial(_checked, reader, model, name, looks)) for name, reader in given.samples]
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
        given.recipe,
        notes,
        looks,
    )
    if options.metric is not None:
        job = replace(job, metric=metric(options.metric, session, reference))
    for line in [*given.notes, *_warnings(calibration, feeds, problems)]:
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


def _warnings(calibration: list[Sample], held: list[tuple[str, Feed]], problems: Mapping[str, str]) -> list[str]:
    lines = [f"skipped: {reason}" for reason in problems.values()]
    if len(calibration) < _FEW:
        lines.append(
            f"only {len(calibration)} samples to calibrate with: ranges may be too narrow; 100 or more are better"
        )
    if calibration and len(calibration) == len(held) == 1:
        lines.append(f"sample {held[0][0]} both calibrates and checks: the figures below are not held out")
    return lines[:10] + ([f"... and {len(lines) - 10} more"] if len(lines) > 10 else [])
