"""Pads of convolutions over one long axis: what they give stays, and ONNX Runtime leaves them apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.passes.narrow import own_pads, padded
from edgeopt.quantization.prepare import prepare
from edgeopt.runtime.probe import shapes
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

LONG = """g (float[N,4,64,W] x) => (float[N,8,M,W] y) {{
    [first] c = Conv <pads = [{pads}], kernel_shape = [{kernel}]> (x, w)  y = Relu(c) }}"""


def long(kernel: int = 9, pads: str = "4, 0, 4, 0", side: int = 1) -> ir.Model:
    text = LONG.format(pads=pads, kernel=f"{kernel}, {side}")
    return graph.canonical(graph.load(tiny.proto(text, w=normal(8, 4, kernel, side))))


def quantized(made: onnx.ModelProto, data: list[dict[str, np.ndarray]]) -> bool:
    return edgeopt.quantize(made, data, mode="weights").report.worst_sqnr_db > 20


def simplified(made: onnx.ModelProto, data: list[dict[str, np.ndarray]]) -> bool:
    return edgeopt.simplify(made, data=data).worst_sqnr_db > 70


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


@pytest.mark.parametrize("pads", ["4, 0, 4, 0", "8, 0, 0, 0", "3, 0, 5, 0"])
def test_a_long_kernel_gets_a_pad_of_its_own_that_is_computed_alike_and_not_fused(pads: str, tmp_path: Path) -> None:
    model = long(pads=pads)
    feed = {"x": normal(2, 4, 64, 1)}
    found = own_pads(model, shapes(model, feed))
    assert ops(found) == {"Pad": 1, "Conv": 1, "Relu": 1}
    assert not next(n for n in found.graph if n.op_type == "Conv").attributes.get_ints("pads", ())
    before, after = (open_session(m).run(feed)[0] for m in (model, found))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    open_session(found, optimized=tmp_path / "m.onnx")
    assert "Pad" in ops(ir.load(tmp_path / "m.onnx", format="protobuf"))


@pytest.mark.parametrize(
    "model",
    [long(3, "1, 0, 1, 0"), long(pads="0, 0, 0, 0"), long(9, "4, 1, 4, 1", 3)],
    ids=["a short kernel", "no pads", "pads on both axes"],
)
def test_others_stay(model: ir.Model) -> None:
    assert padded(model) == [] and own_pads(model, {"x": (1, 4, 64, 1)}) is model


def test_a_picture_stays_and_so_does_what_computes_in_integers() -> None:
    model = long()
    assert len(padded(model)) == 1 and own_pads(model, {"x": (1, 4, 64, 64)}) is model
    made = edgeopt.quantize(
        model, [{"x": normal(1, 4, 64, 1, seed=i)} for i in range(12)], mode="static", include=("Conv",), measure=False
    )
    assert "Pad" not in ops(made.model)


def test_stored_weights_and_a_simplified_file_have_them(tmp_path: Path) -> None:
    data = [{"x": normal(1, 4, 64, 1, seed=i)} for i in range(12)]
    made = edgeopt.quantize(long(), data, mode="weights", measure=False)
    assert ops(made.model)["Pad"] == 1
    edgeopt.simplify(long(), data=data, output=tmp_path / "s.onnx")
    assert ops(graph.load(tmp_path / "s.onnx"))["Pad"] == 1


@pytest.mark.parametrize("way", [quantized, simplified])
@pytest.mark.parametrize("fault", ["a size of 0", "two nodes of one name"])
def test_what_only_the_canonical_form_can_do_is_done_with_it(way: Any, fault: str) -> None:
    rows = "0" if fault == "a size of 0" else "N"
    made = tiny.proto("g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, w)  y = Relu(h) }", w=normal(16, 16))
    if rows == "0":
        for value in (*made.graph.input, *made.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 0
    else:
        for node in made.graph.node:
            node.name = "q"
    assert way(made, [{"x": normal(1, 16, seed=i)} for i in range(12)])


def test_results_are_compared_with_the_model_as_it_was_given() -> None:
    text = """g (float[N,16] x) => (float[N,16] y) {
        z = Constant <value = float[1] {0.0}> ()  h = Add(x, z)  y = MatMul(h, w) }"""
    given = graph.load(tiny.proto(text, w=normal(16, 16)))
    task = prepare(given, [{"x": normal(1, 16, seed=i)} for i in range(12)], edgeopt.Quantize())
    assert task.given is given and task.source is not given
    assert [n.op_type for n in task.given.graph] == ["Constant", "Add", "MatMul"]
