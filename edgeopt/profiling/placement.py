"""Assignment of nodes to providers as ONNX Runtime reports it, and time by operator from the trace of a few runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edgeopt.errors import WorkerError
from edgeopt.profiling.results import NodeTime, Ops, Placement, TypeTime
from edgeopt.runtime.elsewhere import partitions
from edgeopt.runtime.kernels import kind
from edgeopt.runtime.trace import KernelRun, kernel_runs, read_events

_NESTING = frozenset({"If", "Loop", "Scan"})
_COLD_RUNS = 2
TRACED_RUNS = 12
_NAMED = 5


@dataclass
class _Seen:
    """A node over the traced runs."""

    op: str
    provider: str
    shapes: str
    us: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Time in each run, in microseconds."""


@dataclass(frozen=True)
class Trace:
    """A trace without its cold runs."""

    nodes: Mapping[str, _Seen]
    """By name and index."""
    wall_us: Sequence[float]
    """Wall time of each run."""
    events: Sequence[dict[str, Any]]
    """The raw events of ONNX Runtime."""

    def node_us(self, node: _Seen) -> float:
        """Median time over the runs in microseconds; 0 for runs in which a branch skipped the node."""
        return median([node.us.get(i, 0.0) for i in range(len(self.wall_us))])


def read_trace(path: Path) -> Trace:
    """The trace at `path`, without the first two runs.

    Raises:
        WorkerError: it is not a trace.
    """
    events = read_events(path)
    runs = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == "model_run")[_COLD_RUNS:]
    nodes: dict[str, _Seen] = {}
    timed = kernel_runs(events)
    for index, (start, duration) in enumerate(runs):
        inside = [r for r in timed if start <= r.start_us <= start + duration]
        for r, own_us in _own_times(inside):
            shapes = ", ".join("x".join(map(str, s)) or "scalar" for _, s in r.shapes("input_type_shape"))
            key = f"{r.name} #{r.args.get('node_index', '')}"
            nodes.setdefault(key, _Seen(r.op, r.provider, shapes)).us[index] += own_us
    return Trace(nodes, [d for _, d in runs], events)


def _own_times(runs: Sequence[KernelRun]) -> list[tuple[KernelRun, float]]:
    """Every kernel run with its own time: that of an If, Loop or Scan excludes the nodes in its body.

    Times are truncated to whole microseconds, so a body may seem to end after its node.
    """
    own = {id(r): r.us for r in runs}
    around: list[KernelRun] = []
    for r in sorted(runs, key=lambda r: (r.start_us, -r.us, r.op not in _NESTING)):
        while around and not (r.start_us < around[-1].end_us or r.end_us <= around[-1].end_us):
            around.pop()
        if around:
            own[id(around[-1])] -= r.us
        if r.op in _NESTING:
            around.append(r)
    return [(r, max(0.0, own[id(r)])) for r in runs]


def ops(trace: Trace) -> Ops | None:
    """Time by node and by operator type; None if the trace has no run."""
    if not trace.wall_us:
        return None
    wall = median(trace.wall_us)
    times = {key: trace.node_us(node) for key, node in trace.nodes.items()}
    by_type: dict[str, list[str]] = defaultdict(list)
    for key, node in trace.nodes.items():
        by_type[node.op].append(key)
    types, cumulative = [], 0.0
    for op, keys in sorted(by_type.items(), key=lambda item: -sum(times[k] for k in item[1])):
        us = sum(times[k] for k in keys)
        cumulative += us / wall
        types.append(
            TypeTime(op=op, kind=kind(op), nodes=len(keys), time_ms=us / 1e3, share=us / wall, cumulative=cumulative)
        )
    nodes = [
        NodeTime(
            name=key.rpartition(" #")[0],
            op=n.op,
            provider=n.provider,
            time_ms=times[key] / 1e3,
            share=times[key] / wall,
            shapes=n.shapes,
        )
        for key, n in sorted(trace.nodes.items(), key=lambda item: -times[item[0]])
    ]
    kinds: Counter[str] = Counter()
    for t in types:
        kinds[t.kind] += t.time_ms  # type: ignore[assignment]
    unexplained = (wall - sum(times.values())) / 1e3
    return Ops(wall_ms=wall / 1e3, unexplained_ms=unexplained, types=tuple(types), nodes=tuple(nodes), by_kind_ms=kinds)


def placement(requested: str, assignment: Sequence[Sequence[Any]] | None, trace: Trace | None) -> Placement:
    """The placement for the provider `requested`; from the trace alone if ONNX Runtime does not report its
    assignment.
    """
    if assignment is None:
        executed = list(trace.nodes.items()) if trace else []
        assignment = [[n.provider, [[key.rpartition(" #")[0], n.op]]] for key, n in executed]
        told = None
    else:
        told = {str(name) for name, _ in assignment}
    nodes = Counter({str(name): 0 for name, _ in assignment})
    for name, members in assignment:
        nodes[str(name)] += len(members)
    fallback = [(n, op) for name, members in assignment if name != requested for n, op in members]
    shown = {n.provider for n in trace.nodes.values()} if trace else None
    total = sum(nodes.values())
    return Placement(
        requested=requested,
        nodes=dict(nodes),
        coverage_nodes=nodes[requested] / total if total else 0.0,
        coverage_time=_coverage_time(requested, trace),
        partitions=partitions(requested, assignment),
        fallback_ops=dict(Counter(op for _, op in fallback).most_common()),
        fallback_nodes=tuple(n for n, _ in fallback),
        agrees=None if told is None or shown is None else shown <= told,
    )


def _coverage_time(requested: str, trace: Trace | None) -> float | None:
    if trace is None or not trace.nodes:
        return None
    times = [(n.provider, trace.node_us(n)) for n in trace.nodes.values()]
    total = sum(us for _, us in times)
    return sum(us for name, us in times if name == requested) / total if total else None


def refuse_fallback(found: Placement) -> None:
    """Refuse nodes that are on other providers than the requested one.

    Raises:
        WorkerError: names the nodes.
    """
    if not found.fallback_nodes:
        return
    names = ", ".join(found.fallback_nodes[:_NAMED]) + (" ..." if len(found.fallback_nodes) > _NAMED else "")
    by = ", ".join(f"{n} {op}" for op, n in found.fallback_ops.items())
    raise WorkerError(
        f"{found.requested} leaves {len(found.fallback_nodes)} of {sum(found.nodes.values())} nodes to others ({by}):"
        f" {names}; --allow-fallback measures it as it is"
    )
