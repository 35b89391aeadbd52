"""Infers the kind of each output of a model: from names, the operator that produces it, shapes, and values on the
samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.graph.selection import origin
from edgeopt.numbers.channels import change
from edgeopt.numbers.figure import are_probabilities, as_probabilities
from edgeopt.numbers.kinds import KINDS, Kind, figures, vectors
from edgeopt.numbers.pixels import class_axis
from edgeopt.numbers.scores import OutputReport, Outputs, holds_nan
from edgeopt.runtime.session import Feed, Session, finite

_LEVELS = 3  # of noise
STEPS = 20  # in which recurrent states are fed back
_NAMES: tuple[tuple[str, Kind], ...] = (
    (r"embed|feature|descriptor|vector|pooled|hidden", "embedding"),
    (r"mask|segm|heat|salien", "mask"),
    (r"logit|class|label|score|prob", "classes"),
)
_STATES = re.compile(r"(?i)\b[hc](x|n|t|\d|_|\b)|state|hidden|cell|cache|mem|past|present|carry|rnn|lstm|gru|prev|next")
_EXPLAINED = 0.9  # of the power of an output by an input
_ALIKE = 3  # letters that names have in common
_LINEAR = frozenset({"MatMul", "Gemm", "Add", "Conv"})
_NEIGHBOURS = 0.5  # of the variance, that columns next to each other share
_MOSTLY, _SURE_ROWS = 0.9, 0.5  # of the positions, that one class wins; mean of the largest probability
_POOLS = frozenset({"GlobalAveragePool", "ReduceMean", "Relu", "Tanh", "LayerNormalization", "BatchNormalization"})
_SURE = 0.2  # smallest mean of the largest probability for class logits
_FIXED = 0.35  # of the variance: what samples have in common of landmarks; .1 to .2 of the scores of classifiers
_FEW_CLASSES = 10  # with fewer classes the largest probability may be high by chance
_MANY = 16
_PLANE = 8  # smallest side of a mask
_BOXES = 100  # smallest number of rows
_MANY_CHANNELS = 4
_COLUMNS = 5  # four sides and a score
_LANDMARKS = 32  # largest number of columns of an output of sides and landmarks only


def kinds(
    model: ir.Model, feed: Feed, reference: Sequence[Outputs], given: Mapping[str, Kind], flag: str = "--kind"
) -> dict[str, Kind]:
    """The kind of each output of `model`; `reference`: its values on the samples, the first on `feed`.

    Raises:
        UsageError: `given` names an unknown output or kind.
        DataError: the samples do not suffice for a given kind.
    """
    names = [str(v.name) for v in model.graph.outputs]
    found: dict[str, Kind] = {}
    for name, kind in given.items():
        if name not in names:
            raise UsageError(
                f"{flag} {name}: no output of the model{suggestion(name, names)} It has {', '.join(names)}"
            )
        if kind not in KINDS:
            raise UsageError(f"{flag} {name}={kind}: no kind{suggestion(kind, KINDS)} Known: {', '.join(KINDS)}")
    fed = fed_back(model, feed, reference[0])
    images = [x for x in feed.values() if x.ndim == 4]
    for i, value in enumerate(model.graph.outputs):
        name, seen = str(value.name), [r[i] for r in reference]
        found[name] = given.get(name) or ("state" if i in fed else _kind(value, seen, reference[0], images))
        if name in given and found[name] not in ("state", "signal") and any(holds_nan(x) for x in seen):
            raise DataError(
                f"{flag} {name}={found[name]}: the float model leaves some of it open (NaN), so that it is judged as a "
                "signal by the rest"
            )
        if name in given and found[name] != "state" and not _suffices(found[name], seen):
            raise DataError(
                f"{flag} {name}={found[name]}: {len(seen)} held-out sample{'s' if len(seen) > 1 else ''} of shape "
                f"{list(seen[0].shape)} cannot be judged so; give more samples, or another kind"
            )
    return found


def _suffices(kind: Kind, seen: Outputs) -> bool:
    if kind in ("classes", "probabilities", "tokens") and seen[0].shape[-1:] == (1,):  # one class is always the largest
        return False
    try:
        return bool(figures(kind, seen, seen))
    except (ValueError, IndexError):  # of a rank that the kind does not have
        return False


def fed_back(model: ir.Model, feed: Feed, outputs: Outputs) -> dict[int, str]:
    """Position of each output that is a recurrent state -> the input that takes it in the next step.

    A state has the shape and type of an input. The first input and the first output are the data. One of a row for each
    item of a number that is free, [n, columns], and a vector are only taken for a state if the names say
    so.
    """
    inputs = [str(v.name) for v in model.graph.inputs][1:]
    found: dict[int, str] = {}
    for i, (value, y) in enumerate(zip(model.graph.outputs, outputs, strict=True)):
        alike = [n for n in inputs if n in feed and feed[n].shape == y.shape and feed[n].dtype == y.dtype]
        alike = [n for n in alike if n not in found.values() and y.size > 1]
        if y.ndim == 1 or (y.ndim == 2 and not _fixed(value)):
            alike = [n for n in alike if _STATES.search(f"{n} {value.name}") or _common(n, str(value.name)) >= _ALIKE]
        if i and alike and np.issubdtype(y.dtype, np.floating):
            found[i] = max(alike, key=lambda n: _common(n, str(value.name)))
    return found


def _fixed(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)


def _common(a: str, b: str) -> int:
    """Length of the common prefix of two names."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def levels(feeds: Sequence[Feed], reference: Sequence[Outputs], kinds: Sequence[Kind]) -> tuple[tuple[int, ...], ...]:
    """Positions of the samples in up to three groups by the level of the noise that the model removes, as those of
    diffusion do: an output, a signal, has the shape of an input, and another input is one number that differs between
    the samples. Empty if it does not, or with fewer than four samples.
    """
    shapes = {x.shape for x in feeds[0].values() if x.ndim >= 3}
    denoised = any(k == "signal" and y.shape in shapes for k, y in zip(kinds, reference[0], strict=True))
    numbers = [
        n for n in feeds[0] if all(f[n].size == 1 for f in feeds) and len({float(f[n].item()) for f in feeds}) > 1
    ]
    count = min(_LEVELS, len(feeds) // 2)
    if not denoised or len(numbers) != 1 or count < 2:
        return ()
    order = sorted(range(len(feeds)), key=lambda i: float(feeds[i][numbers[0]].item()))
    return tuple(tuple(int(i) for i in part) for part in np.array_split(order, count))


def changed(
    names: Sequence[str], feeds: Sequence[Feed], reference: Sequence[Outputs], kinds: Mapping[str, Kind]
) -> dict[str, tuple[str, float]]:
    """Each output that is an input but for little (a residual network adds a mark, or takes noise away) -> (that input,
    its gain): signals of the same shape, of whose power the input explains all but a tenth.
    """
    found: dict[str, tuple[str, float]] = {}
    for i, output in enumerate(names):
        for name in feeds[0] if kinds[output] == "signal" else ():
            pairs = [(r[i].astype(np.float64), feed[name]) for feed, r in zip(feeds, reference, strict=True)]
            if any(r.shape != x.shape or not np.issubdtype(x.dtype, np.floating) or r.size < _PLANE for r, x in pairs):
                continue
            power, crossed = sum(float((x**2).sum()) for _, x in pairs), sum(float((r * x).sum()) for r, x in pairs)
            whole = sum(float((r**2).sum()) for r, _ in pairs)
            if power * whole > 0 and crossed > 0 and crossed**2 > _EXPLAINED * power * whole:
                found[output] = name, crossed / power
    return found


def with_changes(
    reports: Sequence[OutputReport],
    names: Sequence[str],
    feeds: Sequence[Feed],
    reference: Sequence[Outputs],
    outputs: Sequence[Outputs],
    of: Mapping[str, tuple[str, float]],
) -> list[OutputReport]:
    """The reports, those of outputs that are an input but for little with a figure of what changes (see `changed`)."""
    found = []
    for report in reports:
        if report.output in of:
            (name, gain), i = of[report.output], names.index(report.output)
            inputs = [gain * feed[name] for feed in feeds]
            figures = tuple(change([r[i] for r in reference], [y[i] for y in outputs], inputs))
            report = replace(report, figures=(*report.figures, *figures))
        found.append(report)
    return found


def steps_on(session: Session, feed: Feed, fed: Mapping[int, str], steps: int = STEPS) -> Outputs:
    """The outputs after `steps` runs, each with the states of the one before."""
    values = dict(feed)
    outputs = session.run(values)
    for _ in range(steps - 1):
        outputs = session.run(values | {name: outputs[i] for i, name in fed.items()})
    return outputs


def fed_on(
    session: Session, model: ir.Model, feeds: Sequence[tuple[str, Feed]], outputs: Outputs, kinds: Mapping[str, Kind]
) -> tuple[Mapping[int, str], tuple[Outputs, ...]]:
    """(the states that are fed back, what float gives after that for `feeds`); none if those are no numbers.
    `outputs`: those of the first sample.
    """
    states = {i: n for i, n in fed_back(model, feeds[0][1], outputs).items() if kinds[session.outputs[i]] == "state"}
    later = tuple(steps_on(session, feed, states) for _, feed in feeds if states)
    return (states, later) if finite(y for outputs in later for y in outputs) else ({}, ())


def _may_give_classes(x: NDArray[Any], named: Kind | None, images: Outputs) -> bool:
    """Whether an output [N, C, H, W] or [N, H, W, C] may give each pixel a class: its name says so, or it has the size
    of an image, and probabilities or more channels than images, flows and vectors have.
    """
    if named in ("mask", "classes"):
        return True
    sizes = {size for y in images for size in (y.shape[2:], y.shape[1:3])}
    channels = {c for y in images for c in (y.shape[1], y.shape[3])}
    for axis, size in ((1, x.shape[2:]), (3, x.shape[1:3])):
        many = x.shape[axis] >= _MANY_CHANNELS and x.shape[axis] not in channels
        if size in sizes and (many or (x.shape[axis] > 1 and are_probabilities(np.moveaxis(x, axis, -1)))):
            return True
    return False


def _kind(value: ir.Value, seen: Outputs, all_outputs: Outputs, images: Outputs) -> Kind:
    if not np.issubdtype(seen[0].dtype, np.floating):
        return "exact"
    seen = [np.nan_to_num(x) for x in seen if x.size]
    if not seen:
        return "signal"
    if _enters_suppression(value):
        return "detections"
    first = seen[0]
    last, named = _maker(value), _named(str(value.name))
    if first.ndim == 4 and _may_give_classes(first, named, images) and class_axis(seen) is not None:
        return "mask"
    if first.ndim >= 3 and are_probabilities(first) and first.shape[-1] > 1:
        return "tokens"
    if first.ndim >= 4 and _side(first) >= _PLANE:
        return "mask" if named == "mask" or _is_map(seen) else "signal"
    if first.ndim == 3 and _are_boxes(value, seen, last, all_outputs):
        return "detections"
    if first.ndim == 3 and last == "Sigmoid" and _is_map(seen):
        return "mask"
    rows = [vectors("regression", x) for x in seen]
    if any(x.ndim != 2 for x in rows):
        return _of_rows(seen, last, named) if first.ndim == 3 and first.shape[-1] > 1 else "signal"
    if len({x.shape[1] for x in rows}) > 1 or (named is None and _varies(value)):
        return "signal"
    return _of_vectors(np.concatenate(rows), last, named)


def _enters_suppression(value: ir.Value) -> bool:
    """Whether an output shows the boxes or scores of a NonMaxSuppression."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Identity" else None
    return source is not None and any(n.op_type == "NonMaxSuppression" and i < 2 for n, i in source.uses())


def _varies(value: ir.Value) -> bool:
    """Whether the number of columns of an output varies with a size of an input, as steps of time do and classes do
    not. Exporters lose sizes, so that a free one is no evidence where no input has one beside the batch.
    """
    if value.shape is None or value.shape.rank() < 2 or isinstance(value.shape[-1], int) or value.graph is None:
        return False
    return any(not isinstance(d, int) for v in value.graph.inputs if v.shape is not None for d in list(v.shape)[1:])


def _are_boxes(value: ir.Value, seen: Outputs, last: str, all_outputs: Outputs) -> bool:
    """Whether [batch, rows, columns] are detection boxes: there are many rows, and they are columns of one tensor or
    one of several outputs with as many rows. Where the number of rows is free, only scores beside pixels are evidence.
    """
    first = seen[0]
    few, many = sorted(first.shape[1:])
    if many < _BOXES:
        return False
    one_tensor = _COLUMNS <= few < many // 2
    if value.shape is None or not all(isinstance(d, int) for d in list(value.shape)[1:]):
        return one_tensor and last == "Concat" and _scores_beside_pixels(first)
    others = [y for y in all_outputs if y.ndim == 3 and y.shape[1] == first.shape[1] == many]
    sides = min((y.shape[2] for y in others), default=many) <= _LANDMARKS
    apart = sides and any(y.shape != first.shape for y in others)
    return apart or (one_tensor and (last == "Concat" or (last == "Sigmoid" and not _is_map(seen))))


def _scores_beside_pixels(x: NDArray[Any]) -> bool:
    """Whether of the columns of `x` [batch, rows, columns], or of its transpose, some lie in [0, 1], others beyond."""
    rows = x.reshape(-1, *x.shape[-2:])
    axes = (0, 1) if x.shape[-1] <= x.shape[-2] else (0, 2)
    low, high = rows.min(axes), rows.max(axes)
    return bool(((low >= 0) & (high <= 1)).any() and (high > 1).sum() >= _COLUMNS - 1)


def _of_rows(seen: Outputs, last: str, named: Kind | None) -> Kind:
    """The kind of [batch, positions, columns]."""
    if named == "classes" or last == "LogSoftmax" or (named is None and last in _LINEAR and _are_scores(seen)):
        return "tokens"
    return "embedding" if named == "embedding" or last == "LayerNormalization" else "signal"


def _are_scores(seen: Outputs) -> bool:
    """Whether every position has scores of classes: a clear winner, not nearly always the same, and columns next to
    each other have no more to do with each other than others, as bands of a spectrum have.
    """
    if len({x.shape[-1] for x in seen}) > 1 or seen[0].shape[-1] < _FEW_CLASSES:
        return False
    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen])
    share = np.bincount(rows.argmax(-1)).max() / len(rows)
    if share > _MOSTLY or float(as_probabilities(rows).max(-1).mean()) < _SURE_ROWS:
        return False
    centred = rows - rows.mean(0)
    power = float(np.square(centred).mean())
    return float((centred[:, 1:] * centred[:, :-1]).mean()) < _NEIGHBOURS * power


def _of_vectors(rows: NDArray[Any], last: str, named: Kind | None) -> Kind:
    """The kind of [batch, columns]."""
    size = rows.shape[1]
    if size > 1 and are_probabilities(rows):
        return "probabilities"
    if size == 1:
        return "regression"
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    if named == "embedding" or (size >= _MANY and norms.std() <= 1e-3 * norms.mean()):
        return "embedding"
    sure = float(as_probabilities(rows).max(-1).mean())
    if named == "classes":
        within = rows.min() >= 0 and rows.max() <= 1  # of which several may be high
        return "classes" if sure >= _SURE and not within else "signal" if size >= _MANY else "regression"
    if last in _POOLS:
        return "embedding" if size >= _MANY else "regression"
    several = len(set(rows.argmax(-1).tolist())) > 1
    if size >= _FEW_CLASSES and sure >= _SURE and several and _common_part(rows) < _FIXED:
        return "classes"
    return "embedding" if size >= _MANY and size < 2048 else "regression" if size < _MANY else "signal"


def _common_part(rows: NDArray[Any]) -> float:
    """The share of the variance of `rows` [samples, columns] that columns have in all samples (without the 1 / n of it
    that the mean of n samples has by chance): of the places of a face most, since they lie in one order.
    """
    share = float(rows.mean(0).var() / max(float(rows.var()), float(np.finfo(np.float32).tiny)))
    return (len(rows) * share - 1) / max(len(rows) - 1, 1)


def _is_map(seen: Outputs) -> bool:
    """Whether the values are a map of probabilities: a plane in [0, 1], half of it or more below 0.1 or above 0.9."""
    if _side(seen[0]) < _PLANE:
        return False
    values = np.concatenate([x.reshape(-1) for x in seen])
    return bool(values.min() >= 0 and values.max() <= 1 and ((values < 0.1) | (values > 0.9)).mean() >= 0.5)


def _side(x: NDArray[Any]) -> int:
    """The shorter side of a map [..., H, W] or [N, H, W, 1]."""
    height, width = x.shape[1:3] if x.ndim == 4 and x.shape[-1] == 1 else x.shape[-2:]
    return min(int(height), int(width))


def _maker(value: ir.Value) -> str:
    """The operator that computes a value, skipping those that only change its shape or type."""
    node = origin(value).producer()
    return "" if node is None else node.op_type


def _named(name: str) -> Kind | None:
    return next((kind for pattern, kind in _NAMES if re.search(pattern, name.lower())), None)
