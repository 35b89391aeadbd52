"""What steps need from the samples, computed once and cached: statistics of values, moments of layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from edgeopt.data import Feed, oddities
from edgeopt.graph.facts import size_bytes
from edgeopt.graph.living import peak_bytes
from edgeopt.graph.ops import macs_of
from edgeopt.graph.plan import Plan
from edgeopt.hardware.host import cores, free_bytes
from edgeopt.numbers.observers import Statistics
from edgeopt.numbers.scores import Outputs
from edgeopt.ptq.grids import by_weight
from edgeopt.ptq.moments import Layer, LayerMoments, gather, layers, name, parts
from edgeopt.quantization.state import State
from edgeopt.runtime import calibrate
from edgeopt.runtime.probe import Probe

_SESSIONS = 2  # at a time, each with the weights
_RUN = 2  # memory of a run relative to the values that are alive: layouts of its own, and what cannot be used again
_ROOM = 1_000_000_000  # bytes of values without --max-ram; not by the memory that is free: groups decide fusions
_MUCH = 2_000_000_000  # multiply-accumulate operations for one sample
_FEWEST = 6
_COMPARED = 200_000_000  # bytes of samples with the outputs of one candidate
_LEAST_COMPARED = 4  # samples that any figure needs
_LARGEST = 8 << 30  # bytes for one layer without --max-ram


def widened(p: Probe, statistics: Statistics) -> Probe:
    """`p` with the extremes over all samples: the first sample may not contain a mask."""
    return replace(p, lo=min(p.lo, statistics.minmax.lo), hi=max(p.hi, statistics.minmax.hi))


def affordable(model: ir.Model, probes: Mapping[str, Probe], samples: int) -> int:
    """How many of `samples` are looked at more than once: fewer of a model with much work for each. By its work and not
    by the clock, so that results do not depend on the machine.
    """
    shapes = {name: p.shape for name, p in probes.items()}
    work = sum(macs_of(node, shapes) for node in model.graph)
    return max(min(samples, _FEWEST), min(samples, samples * _MUCH // max(work, 1)))


def comparable(feed: Feed, outputs: Outputs, max_ram: int | None) -> int:
    """How many samples are compared at the most that are as large as one and its outputs: several candidates' are in
    memory at a time.
    """
    most = _COMPARED if max_ram is None else min(_COMPARED, max_ram // 8)
    return max(_LEAST_COMPARED, most // max(1, sum(x.nbytes for x in (*feed.values(), *outputs))))


def sources(plans: Iterable[Plan | None]) -> frozenset[str]:
    """The values whose statistics decide the grids of some plans."""
    return frozenset(v for plan in plans if plan is not None and plan.integer for v in plan.grids.values())


def room_of(model: ir.Model, probes: Mapping[str, Probe], max_ram: int | None) -> int:
    """Bytes of values of `model` that may be in memory at once beside its sessions and what their runs take: of
    `max_ram`, at least a sixteenth; without a limit `_ROOM`, or half of the free memory if that is less.
    """
    if max_ram is None:
        return min(_ROOM, free_bytes() // 2)
    sizes = {v: 4 * probes[str(v.name)].size for node in model.graph for v in node.outputs if v.name in probes}
    taken = _SESSIONS * size_bytes(model) + cores() * _RUN * peak_bytes(model, sizes)
    return max(max_ram - taken, max_ram // 16)


def observe(state: State, wanted: frozenset[str]) -> Mapping[str, Statistics]:
    """Statistics of `wanted` values, and of all that were observed before, over the calibration samples.

    What several attempts need is best asked for at once: a run of all samples takes much longer than one more value.
    """
    known = state.resources.cache.statistics.setdefault(id(state.source), {})
    if missing := sorted(wanted - known.keys()):
        known |= _observed(state, missing)
    return known


def _observed(state: State, values: Sequence[str]) -> Mapping[str, Statistics]:
    """Statistics of `values`; the first time, announce the expected cost."""
    resources, total = state.resources, len(state.samples)
    listener, cache = resources.listener, resources.cache
    first, probes = "calibrate" not in cache.seconds, cache.probes.get(id(state.source), state.probes)
    room = room_of(state.source, probes, resources.max_ram)
    with cache.timed("calibrate"):
        if first:
            expected = calibrate.forecast(state.source, values, probes, room)
            passes = "one pass" if expected.passes == 1 else f"{expected.passes} passes"
            start = time.perf_counter()
            resources.run(resources.feeds[0])
            seconds = 2 * (time.perf_counter() - start) * expected.passes * total
            cost = f"about {max(1, round(seconds))} s and {expected.ram_bytes / 1e6:.0f} MB"
            listener.note(f"calibration: {len(values)} tensors, {total} samples, {passes}; {cost}")
        found = calibrate.observe(
            state.source,
            values,
            state.samples,
            probes=probes,
            room=room,
            progress=lambda done, of: listener.progress("calibrating", done, of),
            by=resources.spread,
        )
        if first:
            for line in (*(f"skipped: {reason}" for reason in found.skipped.values()), *_oddities(state)):
                listener.note(line)
    return found.statistics


def _oddities(state: State) -> Iterator[str]:
    """One line on constant samples and one on repeated samples among the calibration samples."""
    looks, names = state.resources.cache.looks, [name for name, _ in state.samples]
    others = [name for name in looks if name not in set(names)]
    return oddities({n: looks[n] for n in (*others, *names) if n in looks}, set(names))


def layer_moments(state: State, samples: int) -> Iterator[Mapping[str, LayerMoments]]:
    """Moments of the integer layers: all at once and kept in the cache, or in parts that fit into memory."""
    resources, found = state.resources, layer_parts(state)
    known = resources.cache.moments.setdefault(id(state.source), {})
    for part in found:
        missing = [layer for layer in part if _nodes(layer) not in known]
        with resources.cache.timed("moments"):
            gathered = (
                gather(
                    state.model,
                    missing,
                    state.samples[: affordable(state.source, state.probes, samples)],
                    lambda done, total: resources.listener.progress("looking at what layers read", done, total),
                    resources.spread,
                )
                if missing
                else {}
            )
        new = {_nodes(layer): gathered[name(layer)] for layer in missing if name(layer) in gathered}
        if len(found) == 1:
            known |= new
        yield {name(x): m for x in part if (m := known.get(_nodes(x)) or new.get(_nodes(x))) is not None}


def _nodes(layer: Layer) -> tuple[str, ...]:
    return tuple(str(n.name) for n in layer)


def layer_parts(state: State) -> list[list[Layer]]:
    """The layers with integer weights whose moments can be collected, in parts that fit into memory."""
    assert state.plan is not None
    integer = frozenset(
        str(n.name) for layer in by_weight(state.model.graph).values() for n in layer if name(layer) in state.params
    )
    limit = state.resources.max_ram
    room = room_of(state.source, state.probes, limit)
    read_bytes = {name: 4 * p.size for name, p in state.probes.items()}
    found, large = parts(layers(state.model, integer), room, (limit or _LARGEST) // 2, read_bytes)
    for layer in large:
        state.resources.listener.note(
            f"{layer[0].name}: too large to be rounded by what it reads within --max-ram; to the nearest"
        )
    return found
