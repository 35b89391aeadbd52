"""Integers as inputs and outputs: the same answers, with the first and the last step outside of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.numbers.ends import Ends, ends_of
from edgeopt.numbers.grid import dequantize, quantize
from edgeopt.passes.integer_ends import integer_ends
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

TWO = """g (float[1,4] x) => (float[1,4] y, float[1,4] z) {
  q = QuantizeLinear(x, s, o)  d = DequantizeLinear(q, s, o)  r = Relu(d)
  p = QuantizeLinear(r, t, o)  y = DequantizeLinear(p, t, o)  z = Neg(y) }"""
GRIDS = {"s": np.float32(0.1), "t": np.float32(0.2), "o": np.uint8(3)}


def test_what_is_left_out_is_what_the_caller_does() -> None:
    before = tiny.model(TWO, **GRIDS)
    after, inputs, outputs = integer_ends(before)
    assert list(inputs) == ["x"] and list(outputs) == ["y"]
    assert [n.op_type for n in after.graph] == ["DequantizeLinear", "Relu", "QuantizeLinear", "DequantizeLinear", "Neg"]
    assert [v.dtype for v in after.graph.inputs] == [ir.DataType.UINT8]
    x = normal(1, 4)
    for_y, for_z = tiny.run(after, {"x": quantize(x, inputs["x"])})
    y, z = tiny.run(before, {"x": x})
    assert for_y.dtype == np.uint8 and np.array_equal(dequantize(for_y, outputs["y"]), y) and np.array_equal(for_z, z)


@pytest.mark.parametrize(
    "text",
    [
        "q = QuantizeLinear(x, s, o)  d = DequantizeLinear(q, s, o)  y = Add(d, x)",  # read in floats too
        "q = QuantizeLinear(x, s, o)  p = QuantizeLinear(x, t, o)  d = DequantizeLinear(q, s, o)"
        "  e = DequantizeLinear(p, t, o)  y = Add(d, e)",  # on two grids
        "y = Identity(x)",
    ],
)
def test_an_end_that_is_not_on_one_grid_stays(text: str) -> None:
    model = tiny.model(f"g (float[1,4] x) => (float[1,4] y) {{ {text} }}", **GRIDS)
    after, inputs, outputs = integer_ends(model)
    assert not inputs and not outputs and [v.dtype for v in after.graph.inputs] == [ir.DataType.FLOAT]


def test_the_metadata_tell_the_grids_and_broken_ones_count_for_none() -> None:
    _, inputs, outputs = integer_ends(tiny.model(TWO, **GRIDS))
    told = Ends(inputs, outputs).metadata()
    types = {"x": "uint8", "y": "uint8", "b": "uint8", "c": "float", "d": "float"}
    broken = {
        f"edgeopt.grid.input.{name}": text
        for name, text in (("b", "uint8 x 0"), ("c", "float 1 0"), ("d", "uint8 1 0"), ("e", "uint8 1 0"))
    }
    again = ends_of({**told, **broken, "other": "1"}, types)
    assert again.metadata() == told
    for grid in ("uint8 nan 0", "uint8 0 0", "uint8 -1 0", "uint8 inf 0", "uint8 1 256", "uint8 1e-60 0"):
        assert not ends_of({"edgeopt.grid.input.b": grid}, types).inputs
    assert (again.inputs["x"].scale, again.inputs["x"].zero_point) == (np.float32(0.1), 3)


def test_a_file_with_integers_at_its_ends_answers_as_the_file_with_floats(tmp_path: Path) -> None:
    text = "g (float[N,8] x) => (float[N,4] y) { y = Gemm(x, w, b) }"
    model = tiny.proto(text, w=normal(8, 4), b=normal(4)).SerializeToString()
    feeds = [{"x": normal(1, 8, seed=i)} for i in range(40)]
    files = {}
    for io in ("float", "quantized"):
        files[io] = tmp_path / f"{io}.onnx"
        found = edgeopt.quantize(
            model,
            feeds,
            output=files[io],
            io=io,
            target="qnn-htp",
            mode="static",
            measure=False,  # type: ignore[arg-type]
        )
        assert found.report.worst_sqnr_db > 20
    small = graph.load(files["quantized"])
    assert [v.dtype for v in (*small.graph.inputs, *small.graph.outputs)] == [ir.DataType.UINT8] * 2
    ours, theirs = (open_session(file).run(feeds[0])[0] for file in files.values())
    assert ours.dtype == theirs.dtype == np.float32 and np.array_equal(ours, theirs)
    assert any("uint8" in note and "(q -" in note for note in found.report.notes)
    checked = edgeopt.check(files["quantized"], target="qnn-htp", data=feeds)
    assert not checked.problems


def test_a_result_without_a_grid_at_its_ends_is_left_as_it_is(tmp_path: Path) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
    model = tiny.proto(text, w=normal(64, 64)).SerializeToString()
    feeds = [{"x": normal(4, 64, seed=i)} for i in range(40)]
    found = edgeopt.quantize(model, feeds, mode="weights", io="quantized", measure=False)
    assert any("no input or output of" in note for note in found.report.notes)


def test_an_input_with_a_default_keeps_it() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, o)  y = DequantizeLinear(q, s, o) }"
    model = tiny.model(text, **GRIDS)
    model.graph.inputs[0].const_value = ir.Tensor(np.zeros((1, 4), np.float32), name="x")
    model.graph.register_initializer(model.graph.inputs[0])
    after, inputs, _ = integer_ends(model)
    assert not inputs and [v.dtype for v in after.graph.inputs] == [ir.DataType.FLOAT]
