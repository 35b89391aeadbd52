"""Metrics of a variant on samples: outputs and intermediate values against the float model, labels, and a user metric.

All variants are evaluated on the same samples: those of `data.eval`, or those of `data.path` not used for calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt import graph
from edgeopt.data import Data, Feed, Sample, read, readable, specs
from edgeopt.data.made_up import feed_for
from edgeopt.data.spec import alike, check_feed, without_label
from edgeopt.errors import DataError, EdgeoptError
from edgeopt.files import packed_bytes
from edgeopt.hardware.host import cores
from edgeopt.numbers.intervals import wilson
from edgeopt.numbers.scores import Outputs, class_scores, lowest_agreement, lowest_sqnr_db
from edgeopt.options.quantize import Quantize
from edgeopt.passes.qdq import dequantized_names
from edgeopt.profiling.results import Range
from edgeopt.quantization.check import against_chance, later_of
from edgeopt.quantization.judge import too_far
from edgeopt.quantization.outputs import STEPS
from edgeopt.quantization.prepare import Task, prepare
from edgeopt.release.build.actions import Context, data_choices, import_from_root
from edgeopt.release.build.shares import fall
from edgeopt.release.document import Evaluation, Layer, LayerHistogram
from edgeopt.release.project.names import free_dims
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import Session, open_session, run_all, with_outputs

_MOST = 1000
_LAYER_SAMPLES = 4
_SHOWN = 6  # layers whose values are drawn
_BINS = 40
_EXACT_DB = 200.0  # reported for zero error
_MAYBE_FLOAT = (ir.DataType.FLOAT, None)  # many files have no types for intermediate values


@dataclass(frozen=True)
class Jury:
    """The evaluation samples with the float model's outputs."""

    task: Task
    feeds: Sequence[tuple[str, Feed]]
    """(name, feed) of each sample."""
    reference: Sequence[Outputs]
    """The float model's outputs for each sample."""
    labels: Sequence[int] | None
    """Class of each sample, [samples]."""
    read: Callable[[ir.Model], Sequence[Sample]]
    """All samples of the source, as another model takes them."""

    def feeds_of(self, model: ir.Model) -> Sequence[tuple[str, Feed]]:
        """The evaluation samples as `model` (canonical) takes them, whose inputs may be pixels by now.

        Raises:
            DataError: one of them cannot be read so.
        """
        if alike(model, self.task.source):
            return self.feeds
        readers = dict(self.read(model))
        missing = [name for name, _ in self.feeds if name not in readers]
        if missing:
            raise DataError(f"{missing[0]}: is no sample for a file whose inputs are others")
        return [(name, without_label(readers[name](), model)) for name, _ in self.feeds]


def jury(context: Context) -> Jury:
    """The evaluation set of the project.

    Raises:
        EdgeoptError: the model or the data cannot be used; no labels where they are asked for.
    """
    import_from_root(context, "data.path", "data.eval", "accuracy.eval")
    data, accuracy = context.project.data, context.project.accuracy
    options = Quantize(
        measure=False, metric=accuracy.eval, data_option="data.path", **data_choices(context.project, context.root)
    )
    task = prepare(graph.load(context.model), context.data, options)
    feeds, reference = task.held, task.reference
    names = [name for name, _ in (*task.held, *task.start.samples, *task.rest)]
    where = context.data
    if data.eval is not None:
        where = data.eval if ":" in data.eval else str(context.root / data.eval)
        samples = read(where, specs(task.source), options, task.float_session.run, norm_distance(task.source)).samples
        names = [name for name, _ in samples]
        found, _ = readable(samples[:_MOST])
        for name, feed in found:
            check_feed(feed, task.source, name)
        feeds = tuple((name, without_label(feed, task.source)) for name, feed in found)
        reference = tuple(run_all(task.judging, feeds, workers=cores()))
    labels = _labels([name for name, _ in feeds], names, reference[0][0]) if accuracy.labels else None
    return Jury(task, feeds, reference, labels, partial(_read_again, where, options))


def _read_again(where: Data, options: Quantize, model: ir.Model) -> Sequence[Sample]:
    return read(where, specs(model), options, open_session(model).run, norm_distance(model)).samples


def _labels(names: Sequence[str], everyone: Sequence[str], scores: NDArray[Any]) -> list[int]:
    """Class labels from the folder of each sample: the number, or the index among the sorted folder names of
    `everyone`, which must be as many as `scores` [rows, classes] has classes.
    """
    if scores.ndim != 2 or not class_scores([scores]):
        raise DataError("accuracy.labels: the first output gives no class scores, one row a sample")
    folders, classes = [PurePath(name).parent.name for name in names], scores.shape[-1]
    if all(f.isdecimal() for f in folders):
        found = [int(f) for f in folders]
    else:
        known = sorted({PurePath(name).parent.name for name in everyone})
        if len(known) != classes:
            raise DataError(
                f"accuracy.labels: {len(known)} folders ({', '.join(known[:3])} ...) for {classes} classes; name"
                " folders by class number"
            )
        found = [known.index(f) for f in folders]
    if max(found) >= classes:
        raise DataError(f"accuracy.labels: folder {max(found)} of {classes} classes; they count from 0")
    return found


def evaluate(j: Jury, path: Path) -> Evaluation:
    """The metrics of the model at `path` on the samples of `j`.

    Raises:
        EdgeoptError: it does not run, or gives outputs of other shapes.
    """
    model = graph.load(path)
    session, feeds = open_session(path), j.feeds_of(graph.canonical(model))
    judging = session if j.task.selection is None else open_session(j.task.shown(graph.canonical(model)))
    outputs = run_all(judging, feeds, workers=cores())
    seen = j.task.compared(judging.outputs, [feed for _, feed in j.feeds], j.reference, outputs)
    errors = [against_chance(o, j.task.chance_db) for o in seen]
    far = {o.output: too_far(o) for o in errors}
    far |= {f"{o.output} after {STEPS} steps": too_far(o) for o in later_of(j.task, judging)}
    files = [path, *graph.external_files(model)]
    found = {
        "size.file": float(sum(f.stat().st_size for f in files)),
        "size.download": float(packed_bytes(files)),
        "quant.sqnr": max(-_EXACT_DB, min(_EXACT_DB, lowest_sqnr_db(errors))),
        "accuracy.cosine": min((e.cosine for e in errors), default=1.0),
        "accuracy.close": sum(not texts for texts in far.values()) / max(len(far), 1),
    }
    shares, drops = _shares(j, outputs, lowest_agreement(errors))
    if j.task.metric is not None:
        found["accuracy.eval"] = j.task.metric(session, j.reference, outputs)
    layers = _layers(j, model) if feeds is j.feeds else []
    if layers:
        found["quant.min_layer_sqnr"] = layers[0].sqnr_db
    why = tuple(f"output {name}: {text}" for name, texts in far.items() for text in texts)
    return Evaluation(
        metrics=found | {name: x.value for name, x in shares.items()},
        intervals=shares,
        drops=drops,
        layers=tuple(layers),
        far=why,
        opset=model.opset_imports.get("", 0),
    )


def _shares(j: Jury, outputs: Sequence[Outputs], agreement: float | None) -> tuple[dict[str, Range], dict[str, Range]]:
    """(accuracies that are shares of samples, their drops below the float model), with 95 % intervals."""
    shares, drops = dict[str, Range](), dict[str, Range]()
    if agreement is not None:
        rows = [y[0].shape[0] if y[0].ndim == 2 else 1 for y in outputs]  # positions of a sequence are not independent
        shares["accuracy.agreement"] = x = Range.of(wilson(agreement, sum(rows)))
        drops["accuracy.agreement"] = Range(value=1 - x.value, low=1 - x.high, high=1 - x.low)
    if j.labels is not None:
        theirs, ours = _hits(outputs, j.labels), _hits(j.reference, j.labels)
        for name, now in theirs.items():
            shares[name] = Range.of(wilson(float(now.mean()), len(now)))
            drops[name] = fall(int((ours[name] & ~now).sum()), int((now & ~ours[name]).sum()), len(now))
    return shares, drops


def answers(path: Path, dims: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Outputs of the model at `path` for `made_up` inputs: shape and first 8 values of each numeric output; None for
    NaN and infinity.
    """
    session = open_session(path)
    outputs = session.run(made_up(path, dims or {}))
    return [
        {"output": name, "shape": list(y.shape), "first": [_figure(x) for x in y.reshape(-1)[:8].astype(float)]}
        for name, y in zip(session.outputs, outputs, strict=True)
        if isinstance(y, np.ndarray) and y.dtype.kind in "fiu"
    ]


def _figure(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None


def made_up(path: Path, dims: Mapping[str, int]) -> Feed:
    """Generated inputs for the model at `path`, with those of `dims` that are free in it."""
    model = graph.free_sizes(graph.load(path))
    free = set(free_dims(model))
    return feed_for(model, {name: size for name, size in dims.items() if name in free})


def _hits(outputs: Sequence[Outputs], labels: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Top-1 and top-5 hits of each sample: bool [samples] by metric name."""
    rows = np.concatenate([y[0] for y in outputs])
    if len(rows) != len(labels):
        raise DataError("accuracy.labels: a sample holds several rows, and a folder names one class")
    order = np.argsort(-rows, axis=-1, kind="stable")
    want = np.asarray(labels)[:, None]
    return {f"accuracy.top{k}": (order[:, :k] == want).any(1) for k in (1, 5)}


def _layers(j: Jury, theirs: ir.Model) -> list[Layer]:
    """SQNR of the intermediate values that both models have, lowest first; empty if there are none."""
    ours = j.task.start.model
    known = {str(v.name): v for n in theirs.graph for v in n.outputs}
    pairs = {}
    read = dequantized_names(theirs)
    for node in ours.graph:
        for value in node.outputs[:1]:
            name = str(value.name)
            twin = read.get(name) or (name if name in known else None)
            if twin is not None and value.dtype in _MAYBE_FLOAT and not value.is_graph_output():
                pairs[name] = (twin, node.op_type)
    if not pairs:
        return []
    try:
        sessions = (
            open_session(with_outputs(ours, list(pairs))),
            open_session(with_outputs(theirs, [t for t, _ in pairs.values()])),
        )
        signal, noise = _powers(j, list(pairs), sessions)
    except EdgeoptError:
        return []  # this runtime cannot make the value an output: no histogram, no SQNR
    db = {
        n: min(_EXACT_DB, 10 * math.log10(signal[n] / noise[n])) if noise[n] else _EXACT_DB
        for n in pairs
        if signal[n] > 0
    }
    worst = sorted(db, key=lambda n: db[n])
    drawn = _histograms(j, worst[:_SHOWN], {n: _clip(known[pairs[n][0]]) for n in worst[:_SHOWN]})
    return [Layer(name=n, op=pairs[n][1], sqnr_db=db[n], histogram=drawn.get(n)) for n in worst]


def _powers(
    j: Jury, names: Sequence[str], sessions: tuple[Session, Session]
) -> tuple[dict[str, float], dict[str, float]]:
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for _, feed in j.feeds[:_LAYER_SAMPLES]:
        for name, r, y in zip(names, sessions[0].run(feed), sessions[1].run(feed), strict=True):
            if not (_floats(r) and _floats(y) and r.shape == y.shape):
                continue
            a, b = r.astype(np.float64), y.astype(np.float64)
            mask = np.isfinite(a) & np.isfinite(b)
            signal[name] += float(np.square(a[mask]).sum())
            noise[name] += float(np.square((a - b)[mask]).sum())
    return signal, noise


def _floats(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _clip(value: ir.Value) -> tuple[float, float] | None:
    """The range that the quantization grid of a dequantized value covers; None unless it is per tensor and constant."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    arrays = [v.const_value.numpy() if v is not None and v.const_value is not None else None for v in node.inputs[1:3]]
    if arrays[0] is None or arrays[1] is None or arrays[0].size != 1:
        return None
    scale, zero, info = float(arrays[0].reshape(-1)[0]), int(arrays[1].reshape(-1)[0]), np.iinfo(arrays[1].dtype)
    return (info.min - zero) * scale, (info.max - zero) * scale


def _histograms(j: Jury, names: Sequence[str], clips: dict[str, Any]) -> dict[str, LayerHistogram]:
    if not names:
        return {}
    session = open_session(with_outputs(j.task.start.model, list(names)))
    seen: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for _, feed in j.feeds[:_LAYER_SAMPLES]:
        for name, x in zip(names, session.run(feed), strict=True):
            seen[name].append(x.reshape(-1)[np.isfinite(x.reshape(-1))])
    found = {}
    for name, parts in seen.items():
        values = np.concatenate(parts)
        if values.size:
            counts, edges = np.histogram(values, _BINS)
            found[name] = LayerHistogram(
                edges=tuple(map(float, edges)), counts=tuple(map(int, counts)), clip=clips[name]
            )
    return found
