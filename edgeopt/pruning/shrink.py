"""`shrink(model) -> Shrunk`: derives a student from a model: the same network with narrower layers or fewer blocks.

Importance "norm" needs no data. "first-order" needs data: with y the outputs and r random and normal, the change of y .
r on removal of unit u is to first order sum_{w in u} w d(y . r)/dw; its square, averaged over r, is the squared change
of y (Molchanov et al. 2019, arXiv:1906.10771, with a random projection in place of a loss).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Feed
from edgeopt.data.made_up import feed_for
from edgeopt.errors import EdgeoptError, ModelError, UnchangedError, UsageError, ValidityError, extra
from edgeopt.files import check_place, put, staged, temporary_folder
from edgeopt.files.cloud import anywhere
from edgeopt.graph.facts import tensors
from edgeopt.graph.ops import macs_of, rule
from edgeopt.graph.select import select
from edgeopt.options import takes
from edgeopt.options.models import Shrink
from edgeopt.options.texts import goal
from edgeopt.passes.simplifying import simplify
from edgeopt.passes.static_sizes import Known, known, static_sizes
from edgeopt.pruning import depth as deep
from edgeopt.pruning import width as wide
from edgeopt.pruning.goal import blocks, costs_of, globally, reached
from edgeopt.pruning.rank import low_rank
from edgeopt.pruning.teaching import Point, drawn, settled_reading, taught
from edgeopt.pruning.units import Units
from edgeopt.runtime.costs import node_times
from edgeopt.runtime.feeds import feeds_of
from edgeopt.runtime.probe import shapes, sizes
from edgeopt.runtime.session import finite, open_session


@dataclass(frozen=True)
class Shrunk:
    """The student and what was removed."""

    model: ir.Model
    path: Path | None
    parameters: tuple[int, int]
    """Number of parameters before and after."""
    macs: tuple[int, int]
    """Multiply-accumulates before and after."""
    widths: Mapping[str, tuple[int, int]]
    """Units before and after, by layer."""
    influence: Mapping[str, float]
    """Influence of each residual block."""
    removed: tuple[str, ...]
    """The removed residual blocks."""
    ranks: Mapping[str, tuple[int, int]]
    """Ranks before and after, of layers that became products."""
    curve: tuple[Point, ...] = ()
    """With `minutes`: what was left and what it was worth after each step."""


@takes(Shrink)
@anywhere
def shrink(model: graph.Source, options: Shrink) -> Shrunk:
    """A smaller network with the same inputs and outputs: a share `width` of the channels (and attention heads) of
    every layer that is free, a share `depth` of the residual blocks, a share `rank` of the weights. It must be trained
    (`edgeopt.distill`) to be useful.

    Raises:
        UsageError: an invalid share, importance that needs data, or an output that is the model itself.
        ModelError: nothing can be removed. UnchangedError: nothing has to be, at these shares.
        ValidityError: the result does not run; nothing was written.
    """
    path, dims = options.output, options.dims
    if options.curve is not None:
        check_place(options.curve, options.force, (options.data, model))
        if path is not None and options.curve.resolve() == path.resolve():
            raise UsageError(f"--curve {path}: is where the model goes; choose another name")
    if path is not None:
        check_place(path, options.force, (options.data,))
        if isinstance(model, str | Path) and Path(model).resolve() == path.resolve():
            raise UsageError(f"{path}: is the model itself, which the student is to learn from; choose another name")
    source = graph.canonical(graph.load(model))
    _check_weights(source)
    options = settled_reading(source, options)
    simple, numbers = _settled(simplify(source), dims)
    feeds = _feeds(source, options)
    feed = feeds[0]
    kept = select([simple], options.keep)
    result, influence, removed = simple, dict[str, float](), tuple[str, ...]()
    if options.depth < 1:
        result, influence, removed = _shallower(simple, options.depth, feeds, kept)
    widths: dict[str, tuple[int, int]] = {}
    looked_at = feeds if options.importance == "first-order" else []
    if options.width < 1:
        result, widths = _narrowed(result, options.width, looked_at, feed, kept, numbers)
    given = feeds if options.data is not None else []
    result, ranks = low_rank(result, options.rank, given, kept) if options.rank < 1 else (result, {})
    curve: tuple[Point, ...] = ()
    if options.to is not None:
        result, widths, curve = _to_goal(source, result, options, looked_at, feed)
    elif options.minutes is not None:
        result, point = taught(source, result, options, options.minutes, feed)
        curve = (replace(point, macs=_macs(result, feed), parameters=_parameters(result)),)
    _write(result, source, feed, path)
    if options.curve is not None:
        put(options.curve, drawn(curve))
    return Shrunk(
        model=result,
        path=path,
        parameters=(_parameters(simple), _parameters(result)),
        macs=(_macs(simple, feed), _macs(result, feed)),
        widths=widths,
        influence=influence,
        removed=removed,
        ranks=ranks,
        curve=curve,
    )


def _to_goal(
    source: ir.Model, model: ir.Model, options: Shrink, looked_at: Sequence[Feed], feed: Feed
) -> tuple[ir.Model, dict[str, tuple[int, int]], tuple[Point, ...]]:
    """`model` pruned to the goal in `options.steps` steps of the same ratio, and taught by `source` after each."""
    assert options.to is not None
    (share, of), steps = goal(options.to), options.steps
    measure = _parameters if of == "parameters" else partial(_macs, feed=feed)
    whole, curve = measure(simplify(source)), list[Point]()
    widths: dict[str, tuple[int, int]] = {}
    for step in range(1, steps + 1):
        simple, numbers = _settled(simplify(model), options.dims)
        kept = select([simple], options.keep)
        most = whole * share ** (step / steps)
        model, narrowed = _narrowed_to(simple, most, measure, options, looked_at, feed, kept, numbers)
        widths |= {k: (widths.get(k, n)[0], n[1]) for k, n in narrowed.items()}
        if options.minutes is not None:
            model, point = taught(source, model, options, options.minutes / steps, feed)
            curve.append(replace(point, macs=_macs(model, feed), parameters=_parameters(model)))
            options.listener.note(f"step {step} of {steps}: {curve[-1].told()}")
    return model, widths, tuple(curve)


def _narrowed_to(
    model: ir.Model,
    most: float,
    measure: Callable[[ir.Model], int],
    options: Shrink,
    feeds: Sequence[Feed],
    example: Feed,
    kept: frozenset[str],
    numbers: Known,
) -> tuple[ir.Model, dict[str, tuple[int, int]]]:
    """`model` with at most `most` MACs or parameters."""
    if measure(model) <= most:
        return model, {}
    units, scores = _scored(model, feeds, example, kept, numbers)
    pick = partial(wide.chosen, units, scores)
    if options.widths == "global":
        costs = costs_of(model, units, _node_costs(model, example, options))
        pick = partial(globally, units, scores, blocks(units, scores, costs))
    return reached(model, units, pick, measure, most)


def _node_costs(model: ir.Model, example: Feed, options: Shrink) -> dict[str, float]:
    """The MACs of each node, or its measured time; where that cannot be told, by its MACs."""
    ran = shapes(model, example)
    macs = {str(n.name): float(macs_of(n, ran)) for n in model.graph}
    if options.cost == "macs":
        return macs
    times = {name: time for name, time in node_times(model, example).items() if macs.get(name)}
    if not times:
        raise UsageError("--cost time: the time of no layer can be told apart here; --cost macs")
    share = sum(times.values()) / sum(macs[name] for name in times)
    return {name: times.get(name, share * count) for name, count in macs.items()}


def _settled(model: ir.Model, dims: Mapping[str, int]) -> tuple[ir.Model, Known]:
    """(`model` with values that depend only on fixed sizes folded, so that heads can be removed once their width is no
    function of the channels; the elements of other computed sizes that are fixed).
    """
    if not any(n.op_type == "Shape" for n in model.graph):
        return model, {}
    one = feed_for(model, dims)
    other = feed_for(model, {**dims, **_doubled(model, one)})
    try:
        found, numbers = sizes(model, one)
        settled = simplify(static_sizes(model, known(model, numbers, sizes(model, other)[1]), found))
        return settled, known(settled, sizes(settled, one)[1], sizes(settled, other)[1])
    except EdgeoptError:
        return model, {}  # it does not run with other sizes: nothing is known


def _doubled(model: ir.Model, feed: Feed) -> dict[str, int]:
    """The free dimensions of the inputs, 2 n + 1 for n in `feed`, so that few sizes are equal by chance."""
    found = {}
    for value in model.graph.inputs:
        for i, d in enumerate(value.shape or ()):
            if not isinstance(d, int):
                found[str(d.value) if d.value else f"{value.name}.{i}"] = 2 * feed[str(value.name)].shape[i] + 1
    return found


def _check_weights(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        if tensor.dtype == ir.DataType.FLOAT16:
            raise ModelError(
                f"weight {name!r} is float16: give the float32 model; edgeopt quantize --mode fp16 comes last"
            )
        w = tensor.numpy()
        layer = any(i in rule(node).weights or i == rule(node).bias for node, i in value.uses())
        if np.isnan(w).any() or (layer and not np.isfinite(w).all()):  # -inf in a mask is meant
            raise ModelError(f"weight {name!r} holds NaN or infinity: train or export the model again")


def _feeds(model: ir.Model, options: Shrink) -> list[Feed]:
    if options.data is None:
        return [feed_for(model, options.dims)]
    found, notes = feeds_of(model, options.data, options, options.samples, judged=True)
    for line in notes:
        options.listener.note(line)
    return [feed for _, feed in found]


def _shallower(
    model: ir.Model, depth: float, feeds: Sequence[Feed], kept: frozenset[str]
) -> tuple[ir.Model, dict[str, float], tuple[str, ...]]:
    """(the model without the blocks of least influence, influence by block, the removed blocks)."""
    found = [b for b in deep.blocks(model, shapes(model, feeds[0])) if b.node not in kept]
    if not found:
        raise ModelError("--depth: no residual block (an Add of a value and what layers make of it) was found")
    influence = deep.influences(model, found, feeds)
    removed = deep.least(influence, depth)
    if not removed:
        raise UnchangedError(f"nothing to shrink: at --depth {depth:g} all {len(found)} blocks stay")
    return deep.without_blocks(model, found, removed), influence, removed


def _narrowed(
    model: ir.Model, width: float, feeds: Sequence[Feed], example: Feed, kept: frozenset[str], numbers: Known
) -> tuple[ir.Model, dict[str, tuple[int, int]]]:
    units, scores = _scored(model, feeds, example, kept, numbers)
    gone, widths = wide.chosen(units, scores, width)
    if not gone:
        if wide.chosen(units, scores, 0.0)[0]:
            raise UnchangedError(f"nothing to shrink: at --width {width:g} every layer keeps all its channels")
        raise ModelError("--width: no layer is free to be narrower (inputs and outputs keep their sizes)")
    return wide.without(model, units, gone), widths


def _scored(
    model: ir.Model, feeds: Sequence[Feed], example: Feed, kept: frozenset[str], numbers: Known
) -> tuple[Units, wide.Wide]:
    """(the units of `model`, their importance): of first order on `feeds`, without any by norm."""
    units = wide.units_of(model, shapes(model, example), [n for n in model.graph if n.name in kept], numbers)
    if feeds:
        try:
            from edgeopt.train.first_order import products
        except ModuleNotFoundError as e:
            if e.name != "torch":
                raise
            raise UsageError(f"--importance first-order needs torch: {extra('train')}") from e
        return units, np.mean([wide.by_slices(units, found) for found in products(model, feeds)], axis=0)
    return units, wide.by_norm(model, units)


def _parameters(model: ir.Model) -> int:
    return sum(t.size for t in tensors(model) if t.dtype.is_floating_point())


def _macs(model: ir.Model, feed: Feed) -> int:
    ran = shapes(model, feed)
    return sum(macs_of(n, ran) for n in model.graph)


def _write(model: ir.Model, source: ir.Model, feed: Feed, path: Path | None) -> None:
    """Check that the result is valid, runs, and has the same output names, types and shapes; then move it into place.

    Raises:
        ValidityError: a check failed.
    """
    with temporary_folder() as folder, staged(path or folder / "model.onnx") as stage:
        final = stage / (path.name if path is not None else "model.onnx")
        graph.write_valid(model, final, "the smaller model")
        before = open_session(source)
        old = before.run(feed)
        try:
            after = open_session(final)
            new = after.run(feed)
        except EdgeoptError as e:
            raise ValidityError(
                f"the smaller model does not run ({e}); nothing was written. Layers that it names can stay: --keep"
            ) from e
        if before.outputs != after.outputs or [(y.shape, y.dtype) for y in old] != [(y.shape, y.dtype) for y in new]:
            raise ValidityError("the smaller model has other outputs than the model before; nothing was written")
        if finite(old) and not finite(new):
            raise ValidityError("the smaller model's outputs are not finite; nothing was written")
