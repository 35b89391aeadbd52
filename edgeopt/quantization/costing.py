"""Measured costs of nodes: from the file given by `--costs`, else from the book of this machine, and timed here if this
machine is the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import onnx_ir as ir

from edgeopt.errors import DataError, UsageError
from edgeopt.hardware import target as targets
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import choose
from edgeopt.options.quantize import Quantize
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.ptq.grids import quantization_params, untie
from edgeopt.ptq.place import place, refusal
from edgeopt.quantization.state import State
from edgeopt.runtime import costs
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.meter import HereMeter, Meter
from edgeopt.runtime.probe import Probe
from edgeopt.runtime.spread import Spread

_MOST_TIMES = 50_000  # in a book


class Timing(TypedDict):
    """Fields of `Resources`."""

    spread: Spread | None
    meter: Meter | None
    timed: bool
    book: Path | None


def timing(options: Quantize, target: Target, meter: Meter | None, spread: Spread | None) -> Timing:
    """Who does independent work, who times models, whether that places nodes, and where their times are kept."""
    of_device = meter is not None
    if meter is None and target.name in (targets.host(), "cpu-portable"):
        meter = HereMeter()
    timed = options.measure and meter is not None and meter.profiles and (of_device or target.name == targets.host())
    kept = options.by_clock and options.measure and meter is not None
    return {
        "spread": spread,
        "meter": meter,
        "timed": timed,
        "book": (options.book or costs.book(meter.host)) if kept and meter else None,
    }


def costed(state: State, probes: Mapping[str, Probe], exclude: frozenset[str]) -> Costs | None:
    """Costs of nodes: those known already or read from the file, and missing ones measured here where possible.

    None if no costs are known and none can be measured.

    Raises:
        DataError: the file is not a file of costs. UsageError: it cannot be written, or it does not exist and cannot
          be created here.
    """
    resources, model = state.resources, state.source
    known, path = resources.cache.costs, resources.costs_path
    if known is None:
        known = _noted(state) if path is None else costs.load(path)
    nodes = [n for n in model.graph if refusal(n, probes) is None]
    missing = [n for n in nodes if known is None or not known.tried(n, probes)]
    if not missing or not (resources.timed and (known is None or known.host == _host(state))):
        if known is None and path is not None:
            raise UsageError(
                f"--costs {path}: no such file, and here nothing can be measured for {state.target.name}: "
                "make it on a machine that is one"
            )
        if missing and known is not None:
            resources.listener.note(
                f"costs: {len(missing)} of {len(nodes)} nodes are not in the file: by the target's table"
            )
        return known
    with resources.cache.timed("costs"):
        known = _measured(state, probes, nodes, exclude, known)
    resources.listener.note(f"costs: {len(nodes)} nodes timed in floats and in integers{_kept(state, known)}")
    return known


def _host(state: State) -> str:
    return costs.here() if state.resources.meter is None else state.resources.meter.host


def _kept(state: State, known: Costs) -> str:
    """Write `known` to the user's file, or to the book, and say where it is."""
    path, book = state.resources.costs_path, state.resources.book
    try:
        if path is not None:
            costs.save(known, path)
        elif book is not None:
            book.parent.mkdir(parents=True, exist_ok=True)
            costs.save(costs.merged(known, _noted(state)), book)  # with what another process added meanwhile
            return f", kept in {book} (--costs table does without)"
    except (OSError, UsageError) as e:
        if path is not None:
            raise UsageError(f"--costs {path}: cannot be written ({e})") from e
        return f"; {book} cannot be written ({e}), and the times are not kept"
    return ""


def _noted(state: State) -> Costs | None:
    """What the book holds; one that is broken or has grown too long is begun anew."""
    book = state.resources.book
    try:
        found = None if book is None else costs.load(book)
        return None if found is not None and len(found.times) > _MOST_TIMES else found
    except DataError as e:
        state.resources.listener.note(f"costs: begun anew: {e}")
        return None


def _measured(
    state: State, probes: Mapping[str, Probe], nodes: list[ir.Node], exclude: frozenset[str], known: Costs | None
) -> Costs:
    """Time a version of the model with every node in integers; its grids come from one sample, which is enough since
    they do not affect the time.
    """
    every, model, target = frozenset(str(n.name) for n in nodes), state.source, state.target
    plan = place(model, target, probes, exclude=exclude - every, include=every)
    grids = {v: choose(probes[s].lo, probes[s].hi, target.activation_type) for v, s in plan.grids.items()}
    untied = untie(model, plan)
    integer = fold_weights(insert_qdq(untied, plan, quantization_params(untied, plan, grids, target)))
    meter, feed = state.resources.meter, state.resources.feeds[0]
    by = None if meter is None else (meter.host, meter.profiled)
    return costs.measured(model, integer, nodes, plan.clamps, feed, probes, known, by)
