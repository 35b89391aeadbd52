"""Models in other float types, or with weights stored as integers, become float32 models of the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import ModelError
from edgeopt.passes.weights import weight_only
from edgeopt.passes.widen import unfolded, widened
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

BODY = """{
    [first] a = MatMul(x, v)
    b = Relu(a)
    c = Cast <to = TYPE> (n)
    d = Mul(b, c)
    s = Shape(d)
    e = ConstantOfShape <value = HALF> (s)
    f = Add(d, e)
    [second] y = MatMul(f, w)
}"""
TYPES = {"float16": (10, np.float16), "double": (11, np.float64)}
HALVES = {"float16": "float16[1] {14336}", "double": "double[1] {0.5}"}  # the bits of a half
GRID = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, v)  b = Relu(a)  y = MatMul(b, w) }"


def other(kind: str) -> ir.Model:
    number, dtype = TYPES[kind]
    text = f"g ({kind}[N,64] x, int64[1] n) => ({kind}[N,64] y) " + BODY
    text = text.replace("TYPE", str(number)).replace("HALF", HALVES[kind])
    weights = {name: normal(64, 64, seed=s).astype(dtype) * dtype(0.1) for s, name in enumerate("vw")}
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}')
    made.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return graph.canonical(graph.load(made))


def feeds(kind: str, n: int = 24) -> list[dict[str, Any]]:
    dtype = TYPES[kind][1]
    return [{"x": normal(1, 64, seed=i).astype(dtype), "n": np.int64([2])} for i in range(n)]


@pytest.mark.parametrize("kind", TYPES)
def test_a_widened_model_computes_in_float32_and_keeps_its_interface(kind: str) -> None:
    model = other(kind)
    before = tiny.frozen(model)
    wide = widened(model)
    assert tiny.frozen(model) == before
    assert {
        v.dtype for v in wide.graph.initializers.values() if v.dtype is not None and v.dtype.is_floating_point()
    } == {ir.DataType.FLOAT}
    for a, b in zip(
        (*model.graph.inputs, *model.graph.outputs), (*wide.graph.inputs, *wide.graph.outputs), strict=True
    ):
        assert (a.name, a.dtype, a.shape) == (b.name, b.dtype, b.shape)
    for feed in feeds(kind, 3):
        want, got = (open_session(m).run(feed)[0] for m in (model, wide))
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


def test_a_model_in_float32_stays_as_it_is() -> None:
    model = tiny.model(GRID, v=normal(64, 64), w=normal(64, 64, seed=1))
    assert widened(model) is model and unfolded(model) is model


def test_an_input_that_passes_through_keeps_its_type() -> None:
    model = tiny.model("g (float16[N,4] x) => (float16[N,4] x, float16[N,4] y) { y = Neg(x) }")
    (feed,) = [{"x": normal(2, 4).astype(np.float16)}]
    want, got = (open_session(m).run(feed) for m in (model, widened(model)))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mode", ["static", "weights"])
def test_a_model_in_another_float_type_is_quantized_and_takes_the_same_arrays(
    kind: str, mode: str, tmp_path: Any
) -> None:
    model = graph.proto_bytes(other(kind))
    found = edgeopt.quantize(
        model,
        feeds(kind),
        output=tmp_path / "q.onnx",
        mode=mode,
        include=("MatMul",) if mode == "static" else (),
        measure=False,
    )
    assert found.report.worst_sqnr_db > 25 and found.report.output_bytes < found.report.input_bytes
    session = open_session(tmp_path / "q.onnx")
    want, got = open_session(other(kind)).run(feeds(kind)[0])[0], session.run(feeds(kind)[0])[0]
    assert got.dtype == want.dtype and tiny.sqnr_db(want.astype(np.float64), got.astype(np.float64)) > 25


def test_a_model_in_bfloat16_that_onnxruntime_cannot_run_is_quantized() -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { h = Cast <to = 16> (x)  a = MatMul(h, v)  y = Cast <to = 1> (a) }"
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}')
    half = normal(64, 64).astype(ir.DataType.BFLOAT16.numpy())
    made.graph.initializer.append(ir.to_proto(ir.Tensor(half, dtype=ir.DataType.BFLOAT16, name="v")))
    model = graph.canonical(graph.load(made))
    samples = tiny.feeds(24, x=(1, 64))
    found = edgeopt.quantize(graph.proto_bytes(model), samples, mode="static", include=("MatMul",), measure=False)
    assert found.report.worst_sqnr_db > 25


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_weights_are_unfolded_exactly(bits: int) -> None:
    model = tiny.model(GRID, v=normal(64, 64), w=normal(64, 64, seed=1))
    stored = weight_only(graph.raise_opset(model, 21), bits)
    plain = unfolded(stored)
    assert {n.op_type for n in plain.graph} <= {"MatMul", "Relu", "Mul"}
    (feed,) = tiny.feeds(1, x=(3, 64))
    np.testing.assert_allclose(tiny.run(plain, feed)[0], tiny.run(stored, feed)[0], rtol=1e-5, atol=1e-5)


def test_a_file_of_stored_weights_is_quantized_like_any_other() -> None:
    model = weight_only(tiny.model(GRID, v=normal(64, 64), w=normal(64, 64, seed=1)), 8)
    samples = tiny.feeds(24, x=(1, 64))
    found = edgeopt.quantize(graph.proto_bytes(model), samples, mode="static", include=("MatMul",), measure=False)
    assert found.report.worst_sqnr_db > 25 and len(found.report.integer_nodes) >= 2


def test_a_dynamic_model_is_called_so_where_q_and_dq_stand_before_what_is_dynamic() -> None:
    text = """g (float[1,8] x) => (float[1,4] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        a, b, c = DynamicQuantizeLinear(d)  i = MatMulInteger(a, w, c)  f = Cast <to = 1> (i)  y = Mul(f, b)
    }"""
    weights = {"s": np.float32(0.1), "z": np.uint8(128), "w": np.ones((8, 4), np.int8)}
    with pytest.raises(ModelError, match=r"is a QuantizeLinear: the model is quantized already \(dynamic int8\)"):
        edgeopt.quantize(graph.proto_bytes(tiny.model(text, **weights)), tiny.feeds(8, x=(1, 8)))


def test_a_model_that_computes_in_integers_is_refused_and_told_what_it_is_and_what_takes_it() -> None:
    model = tiny.model(GRID, v=normal(64, 64), w=normal(64, 64, seed=1))
    samples = tiny.feeds(24, x=(1, 64))
    static = edgeopt.quantize(graph.proto_bytes(model), samples, mode="static", include=("MatMul",), measure=False)
    moving = edgeopt.quantize(graph.proto_bytes(model), samples, mode="dynamic", measure=False)
    for result, how in ((static, "static int8"), (moving, "dynamic int8")):
        with pytest.raises(ModelError, match=rf"quantized already \({how}\).*profile, compare and inspect take it"):
            edgeopt.quantize(result.proto, samples)
