"""What a Loop carries without changing it: read from outside with the same results, and then stored like any weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.passes.carried import read_from_outside
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

LOOP = """g (float[N,32] x) => (float[N,32] y{shown}) {{
    count = Constant <value = int64 {{3}}> ()
    y, other, {result} = Loop (count, , x, b, w) <body = step
        (int64 i, bool go, float[N,32] h, float[32] bias, float[32,32] m)
        => (bool on, float[N,32] next, float[32] changed, float[32,32] kept) {{
            on = Identity(go)  p = MatMul(h, m)  s = Add(p, bias)  next = Tanh(s)  changed = Neg(bias)  {keeps} }}>
}}"""


def loop(keeps: str = "kept = Identity(m)", shown: str = "", result: str = "same") -> ir.Model:
    text = LOOP.format(keeps=keeps, shown=shown, result=result)
    return graph.canonical(graph.load(tiny.proto(text, w=normal(32, 32) / 6, b=normal(32))))


def carried(model: ir.Model) -> int:
    (node,) = (n for n in model.graph.all_nodes() if n.op_type == "Loop")
    body = node.attributes["body"].as_graph()
    assert len(node.inputs) == len(body.inputs) and len(node.outputs) == len(body.outputs) - 1 == len(body.inputs) - 2
    return len(body.inputs) - 2


@pytest.mark.parametrize("keeps", ["kept = Identity(m)", "k = Identity(m)  kept = Identity(k)"])
def test_weights_are_no_longer_carried_and_the_results_stay(keeps: str) -> None:
    model, feed = loop(keeps), {"x": normal(2, 32)}
    found = read_from_outside(model)
    assert (carried(model), carried(found)) == (3, 2)  # the bias changes its sign each time
    before, after = (open_session(m).run(feed)[0] for m in (model, found))
    assert np.array_equal(before, after)
    assert [v.name for v in found.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "model",
    [loop("kept = Neg(m)"), loop(shown=", float[32,32] z", result="z")],
    ids=["it changes", "an output of the model shows it"],
)
def test_others_stay(model: ir.Model) -> None:
    assert read_from_outside(model) is model


@pytest.mark.parametrize(
    ("outputs", "more"),
    [
        ("float[32] ho, float[32,32] wo, float[32,32] scan", "ho = Neg(h)  wo = Identity(m)  scan = Identity(m)"),
        ("float[32] ho, float[32,32] wo", "ho = Identity(h)  wo = Identity(m)"),
    ],
    ids=["a row of it is collected", "nothing changes"],
)
def test_a_loop_that_gives_what_it_carries_stays_valid(outputs: str, more: str) -> None:
    scan = ", rows" if "scan" in outputs else ""
    text = f"""g (float[32] x) => (float[32] y{", float[2,32,32] rows" if scan else ""}) {{
        count = Constant <value = int64 {{2}}> ()
        f, v{scan} = Loop (count, , x, w) <body = step (int64 i, bool go, float[32] h, float[32,32] m)
            => (bool on, {outputs}) {{ on = Identity(go)  {more} }}>
        y = MatMul(f, v) }}"""
    model, feed = graph.canonical(graph.load(tiny.proto(text, w=normal(32, 32)))), {"x": normal(32)}
    before, after = (open_session(m).run(feed) for m in (model, read_from_outside(model)))
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("broken", ["no body", "an input less", "an output less"])
def test_a_loop_that_is_broken_is_left_for_onnx_runtime_to_tell(broken: str) -> None:
    model = loop()
    (node,) = (n for n in model.graph.all_nodes() if n.op_type == "Loop")
    if broken == "no body":
        del node.attributes["body"]
    elif broken == "an input less":
        node.resize_inputs(4)
    else:
        node.attributes["body"].as_graph().outputs.pop(3)
    assert read_from_outside(model) is model


def test_weights_that_a_loop_carried_are_stored_in_integers() -> None:
    data = [{"x": normal(1, 32, seed=i)} for i in range(12)]
    found = edgeopt.quantize(loop(), data, mode="weights", measure=False)
    assert found.report.worst_sqnr_db > 25
    assert graph.size_bytes(found.model) < 0.4 * graph.size_bytes(loop())
