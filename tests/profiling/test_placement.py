"""Placement and time by node: on assignments and traces written by hand, and on a real session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeopt.errors import WorkerError
from edgeopt.profiling.arms import Arm
from edgeopt.profiling.inputs import write_feeds
from edgeopt.profiling.live import live
from edgeopt.profiling.placement import Trace, ops, placement, read_trace, refuse_fallback
from edgeopt.profiling.results import Ops
from edgeopt.runtime.providers import CPU
from tests import tiny

NPU = "NpuExecutionProvider"
Span = tuple[str, str, float, float]  # op name, provider, start and length in us from the run's start


def event(span: Span, at: float, index: int) -> dict[str, Any]:
    """As ONNX Runtime writes it."""
    op, provider, start, length = span
    args = {
        "op_name": op.split()[0],
        "provider": provider,
        "node_index": str(index),
        "input_type_shape": [{"float": [1, 4]}, {"int64": []}],
    }
    return {"cat": "Node", "name": f"{op}_kernel_time", "ts": at + start, "dur": length, "args": args}  # fmt: skip


def traced(folder: Path, runs: Sequence[Sequence[Span]], wall: float = 100.0) -> Trace:
    """The trace of two cold runs, which take much longer, and `runs`, each `wall` us long and 10 us after the one
    before; an event is written when its node ends, as ONNX Runtime does it.
    """
    cold: list[Span] = [("Conv a", CPU, 0, 900)]
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5}]
    at = 10.0
    for spans, length in [(cold, 1000.0), (cold, 1000.0), *((r, wall) for r in runs)]:
        names = [op for op, *_ in spans]
        ended = sorted(spans, key=lambda s: (s[2] + s[3], -s[2]))
        events += [event(s, at, names.index(s[0])) for s in ended]
        events.append({"cat": "Session", "name": "model_run", "ts": at, "dur": length})
        at += length + 10
    path = folder / "trace.json"
    path.write_text(json.dumps(events))
    return read_trace(path)


def told(trace: Trace) -> Ops:
    found = ops(trace)
    assert found is not None
    return found


def balanced(found: Ops) -> None:
    """Every sum that must come out even, to float64 rounding."""
    total = sum(n.time_ms for n in found.nodes)
    assert total + found.unexplained_ms == pytest.approx(found.wall_ms, rel=1e-12)
    assert sum(t.time_ms for t in found.types) == pytest.approx(total, rel=1e-12)
    assert sum(found.by_kind_ms.values()) == pytest.approx(total, rel=1e-12)
    assert found.types[-1].cumulative == pytest.approx(total / found.wall_ms, rel=1e-12)
    assert sum(t.nodes for t in found.types) == len(found.nodes)


# time


def test_the_cold_runs_do_not_count(tmp_path: Path) -> None:
    found = told(traced(tmp_path, [[("Conv a", CPU, 0, 60)]] * 3))
    assert found.wall_ms == 0.1 and [n.time_ms for n in found.nodes] == [0.06]


def test_the_nodes_and_what_is_unexplained_are_the_wall_time(tmp_path: Path) -> None:
    runs = [[("Conv a", CPU, 0, 40.0 + i), ("Relu b", CPU, 45, 10), ("Conv c", CPU, 60, 20)] for i in range(5)]
    found = told(traced(tmp_path, runs))
    balanced(found)
    assert [(n.name, n.time_ms) for n in found.nodes] == [("Conv a", 0.042), ("Conv c", 0.02), ("Relu b", 0.01)]
    assert [(t.op, t.nodes) for t in found.types] == [("Conv", 2), ("Relu", 1)]
    assert found.unexplained_ms == pytest.approx(0.1 - 0.072, rel=1e-9)
    assert found.nodes[0].shapes == "1x4, scalar" and found.nodes[0].share == pytest.approx(0.42, rel=1e-12)


def test_a_node_that_some_runs_leave_out_counts_nothing_there(tmp_path: Path) -> None:
    runs: list[list[Span]] = [
        [("Conv a", CPU, 0, 50)],
        [("Conv a", CPU, 0, 50), ("Exp b", CPU, 50, 30)],
        [("Conv a", CPU, 0, 50)],
    ]
    found = told(traced(tmp_path, runs))
    assert {n.name: n.time_ms for n in found.nodes} == {"Conv a": 0.05, "Exp b": 0.0}


def test_a_node_that_runs_again_and_again_in_a_loop_counts_as_often(tmp_path: Path) -> None:
    body: list[Span] = [("MatMul m", CPU, 10 + 20 * i, 15) for i in range(4)]
    found = told(traced(tmp_path, [[("Loop l", CPU, 0, 100), *body]] * 3))
    balanced(found)
    assert {n.name: n.time_ms for n in found.nodes} == {"MatMul m": 0.06, "Loop l": 0.04}


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_the_body_is_not_counted_again_in_the_node_that_holds_it(op: str, tmp_path: Path) -> None:
    spans: list[Span] = [
        ("Conv a", CPU, 0, 20),
        (f"{op} b", CPU, 20, 70),
        ("MatMul m", CPU, 30, 40),
        ("Add c", CPU, 75, 10),
    ]
    found = told(traced(tmp_path, [spans] * 3, wall=90))
    balanced(found)
    assert {n.op: n.time_ms for n in found.nodes} == {"Conv": 0.02, op: 0.02, "MatMul": 0.04, "Add": 0.01}
    assert found.unexplained_ms == pytest.approx(0, abs=1e-12)


def test_a_body_in_a_body_is_counted_once(tmp_path: Path) -> None:
    spans: list[Span] = [
        ("Loop l", CPU, 0, 100),
        ("If i", CPU, 10, 60),
        ("MatMul m", CPU, 15, 50),
        ("Add c", CPU, 75, 10),
    ]
    found = told(traced(tmp_path, [spans] * 3))
    assert {n.op: n.time_ms for n in found.nodes} == {"Loop": 0.03, "If": 0.01, "MatMul": 0.05, "Add": 0.01}
    assert found.unexplained_ms == pytest.approx(0, abs=1e-12)


def test_a_body_as_long_as_its_node_leaves_the_node_nothing(tmp_path: Path) -> None:
    # microseconds are coarse: two conditions around one operator may have the same start and length
    spans: list[Span] = [("MatMul m", CPU, 10, 50), ("If inner", CPU, 10, 50), ("If outer", CPU, 10, 50)]
    found = told(traced(tmp_path, [spans] * 3))
    assert min(n.time_ms for n in found.nodes) >= 0
    assert sum(n.time_ms for n in found.nodes) == pytest.approx(0.05, rel=1e-12)


def test_a_body_that_seems_to_outlast_its_node_since_times_are_cut_to_microseconds_is_in_it_all_the_same(
    tmp_path: Path,
) -> None:
    # the node ran from 10.9 for 5.9 us, its body from 11.0 for 5.7
    spans: list[Span] = [("MatMul m", CPU, 11, 5), ("If i", CPU, 10, 5)]
    found = [event(s, 0, i) for i, s in enumerate(spans)]
    runs = [{"cat": "Session", "name": "model_run", "ts": t, "dur": 100} for t in (-300, -200, 0)]
    (tmp_path / "t.json").write_text(json.dumps([*found, *runs]))
    assert {n.op: n.time_ms for n in told(read_trace(tmp_path / "t.json")).nodes} == {"MatMul": 0.005, "If": 0.0}


def test_a_trace_of_cold_runs_only_tells_nothing(tmp_path: Path) -> None:
    assert ops(traced(tmp_path, [])) is None


@pytest.mark.parametrize("text", ["", "{", "[1, 2"])
def test_a_file_that_is_no_trace_is_an_error_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(WorkerError, match=r"t\.json cannot be read"):
        read_trace(tmp_path / "t.json")
    with pytest.raises(WorkerError, match=r"nowhere\.json cannot be read"):
        read_trace(tmp_path / "nowhere.json")


# who


SPLIT = [
    [NPU, [["a", "Conv"], ["b", "Relu"]]],
    [CPU, [["c", "Resize"]]],
    [NPU, [["d", "Conv"]]],
    [CPU, [["e", "Resize"], ["f", "TopK"]]],
]


def test_coverage_and_fallback_are_counts_of_the_assignment() -> None:
    found = placement(NPU, SPLIT, None)
    assert found.nodes == {NPU: 3, CPU: 3} and found.coverage_nodes == 0.5
    assert found.fallback_ops == {"Resize": 2, "TopK": 1} and list(found.fallback_ops) == ["Resize", "TopK"]
    assert found.fallback_nodes == ("c", "e", "f")
    assert found.coverage_time is None and found.agrees is None


def test_coverage_of_one_provider_and_fallback_are_the_whole() -> None:
    for requested in (NPU, CPU):
        found = placement(requested, SPLIT, None)
        total = sum(found.nodes.values())
        assert found.coverage_nodes + len(found.fallback_nodes) / total == 1
        assert sum(found.fallback_ops.values()) == len(found.fallback_nodes)


def test_a_provider_that_takes_nothing_covers_nothing() -> None:
    found = placement("Other", SPLIT, None)
    assert found.coverage_nodes == 0 and found.partitions == 0 and len(found.fallback_nodes) == 6


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(NPU, 5)], 1),
        ([(NPU, 5), (CPU, 1), (NPU, 3)], 2),
        ([(NPU, 5), (NPU, 3)], 2),  # compiled apart
        ([(NPU, 1), (NPU, 1), (NPU, 1)], 1),  # a provider that runs single nodes
        ([(NPU, 1), (CPU, 1), (NPU, 1)], 2),
        ([(NPU, 1), (NPU, 1), (CPU, 2), (NPU, 1), (NPU, 4)], 3),
        ([(CPU, 1)], 0),
        ([], 0),
    ],
)
def test_partitions_are_compiled_subgraphs_and_stretches_of_single_nodes(
    parts: list[tuple[str, int]], expected: int
) -> None:
    assignment = [[name, [[f"n{i}", "Conv"] for i in range(n)]] for name, n in parts]
    assert placement(NPU, assignment, None).partitions == expected


def test_the_cpu_is_one_partition_however_many_nodes_it_runs() -> None:
    assert placement(CPU, [[CPU, [[f"n{i}", "Conv"]]] for i in range(4)], None).partitions == 1


def test_coverage_of_time_is_that_of_the_medians(tmp_path: Path) -> None:
    runs: list[list[Span]] = [[("Conv a", NPU, 0, 60.0 + i), ("TopK f", CPU, 80, 20)] for i in (-9, 0, 8)]
    found = placement(NPU, SPLIT, traced(tmp_path, runs))
    assert found.coverage_time == 60 / 80


@pytest.mark.parametrize(("provider", "agrees"), [(NPU, True), (CPU, True), ("GpuExecutionProvider", False)])
def test_the_trace_agrees_if_it_shows_no_provider_that_was_not_told(
    provider: str, agrees: bool, tmp_path: Path
) -> None:
    assert placement(NPU, SPLIT, traced(tmp_path, [[("Conv a", provider, 0, 60)]])).agrees is agrees


def test_without_an_assignment_the_trace_tells_who_computes_and_nothing_confirms_it(tmp_path: Path) -> None:
    runs: list[list[Span]] = [[("Conv a", NPU, 0, 60), ("Relu b", NPU, 60, 5), ("TopK f", CPU, 80, 20)]]
    found = placement(NPU, None, traced(tmp_path, runs))
    assert found.nodes == {NPU: 2, CPU: 1} and found.fallback_ops == {"TopK": 1}
    assert found.fallback_nodes == ("TopK f",) and found.partitions == 1 and found.agrees is None
    assert placement(NPU, None, None).coverage_nodes == 0


def test_fallback_is_refused_by_the_names_of_its_nodes() -> None:
    with pytest.raises(WorkerError) as caught:
        refuse_fallback(placement(NPU, SPLIT, None))
    assert str(caught.value).startswith(f"{NPU} leaves 3 of 6 nodes to others (2 Resize, 1 TopK): c, e, f;")
    assert "--allow-fallback" in str(caught.value)


def test_the_first_five_of_many_fallback_nodes_are_named() -> None:
    with pytest.raises(WorkerError, match=r"7 of 7 .*: n0, n1, n2, n3, n4 \.\.\.;"):
        refuse_fallback(placement(NPU, [[CPU, [[f"n{i}", "Conv"] for i in range(7)]]], None))


def test_nothing_is_refused_where_nothing_falls_back() -> None:
    refuse_fallback(placement(NPU, [[NPU, [["a", "Conv"]]]], None))
    with pytest.raises(WorkerError):  # so that this says something
        refuse_fallback(placement(CPU, [[NPU, [["a", "Conv"]]]], None))


# a real session

NESTED = """g (float[8,8] x, bool c) => (float[8,8] y) <int64 trip = {3}, bool on = {1}> {
    [first] a = MatMul(x, w)
    [loop] l = Loop(trip, on, a) <body = b (int64 i, bool k, float[8,8] s) => (bool k2, float[8,8] t) {
        [keep] k2 = Identity(k)
        [branch] t = If(c) <then_branch = p () => (float[8,8] u) { [inner] u = MatMul(s, w) },
                            else_branch = q () => (float[8,8] v) { [other] v = Exp(s) }>
    }>
    [last] y = Tanh(l)
}"""


def session(folder: Path, made: onnx.ModelProto, feed: dict[str, np.ndarray]) -> tuple[Trace, list[Any]]:
    onnx.save(made, folder / "m.onnx")
    write_feeds([feed], folder / "f.npz")
    with live(Arm(folder / "m.onnx"), assignment=True, profile=str(folder / "trace")) as started:
        started.worker.ask("feed", path=str(folder / "f.npz"))
        started.worker.ask("block", runs=8)
        return read_trace(Path(started.worker.ask("trace")["path"])), started.opened["assignment"]


def test_a_model_on_the_cpu_is_covered_and_the_trace_agrees(tmp_path: Path) -> None:
    made = tiny.proto(
        "g (float[N,4] x) => (float[N,2] y) { a = Relu(x)  b = MatMul(a, w)  y = Softmax(b) }",
        w=np.ones((4, 2), np.float32),
    )
    trace, assignment = session(tmp_path, made, {"x": np.ones((3, 4), np.float32)})
    found = placement(CPU, assignment, trace)
    assert found.coverage_nodes == found.coverage_time == 1.0 and found.agrees
    assert found.partitions == 1 and found.nodes == {CPU: 3} and not found.fallback_nodes
    refuse_fallback(found)
    assert len(trace.wall_us) == 6
    balanced(told(trace))


def test_no_node_of_a_real_model_with_bodies_has_less_than_no_time(tmp_path: Path) -> None:
    made = tiny.proto(NESTED, w=np.eye(8, dtype=np.float32))
    trace, assignment = session(tmp_path, made, {"x": np.ones((8, 8), np.float32), "c": np.array(True)})
    found = told(trace)
    balanced(found)
    assert {n.op for n in found.nodes} >= {"Loop", "If", "MatMul", "Tanh"}
    assert all(us >= 0 for n in trace.nodes.values() for us in n.us.values())
    assert placement(CPU, assignment, trace).agrees


def test_nodes_without_names_are_told_apart_by_their_operator(tmp_path: Path) -> None:
    made = tiny.proto("g (float[4] x) => (float[4] y) { a = Exp(x)  b = Exp(a)  y = Tanh(b) }")
    trace, _ = session(tmp_path, made, {"x": np.zeros(4, np.float32)})
    assert sorted(n.op for n in told(trace).nodes) == ["Exp", "Exp", "Tanh"]
