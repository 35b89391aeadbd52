"""The grid against its algebra, the ONNX node tests in the onnx wheel, and ONNX Runtime."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.backend.test.case import node as onnx_node
from onnx.backend.test.case.node import dequantizelinear, quantizelinear

from edgeopt.numbers.grid import (
    BIAS,
    INT4_WEIGHT,
    INT8,
    INT8_WEIGHT,
    STORAGE,
    UINT8,
    QParams,
    QType,
    choose,
    dequantize,
    fake_quantize,
    quantize,
    weight_params,
)
from tests import tiny

LAW = settings(max_examples=100, deadline=None, derandomize=True)
UINT8_SYMMETRIC = QType("uint8", 0, 255, symmetric=True)
QTYPES = [
    UINT8,
    INT8,
    INT8_WEIGHT,
    INT4_WEIGHT,
    UINT8_SYMMETRIC,
    QType("uint8", 0, 127, symmetric=False),
    QType("uint16", 0, 65535, symmetric=False),
    QType("int16", -32768, 32767, symmetric=False),
    QType("int16", -32767, 32767, symmetric=True),
    QType("uint4", 0, 15, symmetric=False),
]
qtypes = st.sampled_from(QTYPES)
ends = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def every_integer(qtype: QType) -> np.ndarray:
    return np.arange(qtype.qmin, qtype.qmax + 1).astype(qtype.numpy_dtype)


@LAW
@given(ends, ends, qtypes)
def test_quantize_after_dequantize_is_the_identity_on_the_grid(a: float, b: float, qtype: QType) -> None:
    p = choose(min(a, b), max(a, b), qtype)
    q = every_integer(qtype)
    assert np.array_equal(quantize(dequantize(q, p), p), q)


@LAW
@given(ends, ends, qtypes, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_error_inside_the_range_is_at_most_half_a_step(
    a: float, b: float, qtype: QType, places: list[float]
) -> None:
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    p = choose(lo, hi, qtype)
    x = np.clip(lo + (hi - lo) * np.array([0.0, 1.0, *places]), lo, hi).astype(np.float32)
    error = np.abs(fake_quantize(x, p).astype(np.float64) - x)
    # x / scale, q - zero_point and the product are float32: each is off by 2^-24 of a number of up to `levels` + 1
    # steps
    assert error.max() <= p.scale * (0.5 + 4 * 2.0**-24 * (qtype.levels + 1))


@LAW
@given(ends, ends, qtypes)
def test_zero_is_exactly_on_the_grid(a: float, b: float, qtype: QType) -> None:
    p = choose(min(a, b), max(a, b), qtype)
    assert qtype.qmin <= int(p.zero_point) <= qtype.qmax
    assert fake_quantize(np.zeros(3, np.float32), p).tolist() == [0, 0, 0]


@LAW
@given(ends, ends, qtypes)
def test_the_stated_range_is_what_the_extreme_integers_mean(a: float, b: float, qtype: QType) -> None:
    p = choose(min(a, b), max(a, b), qtype)
    extremes = dequantize(np.array([qtype.qmin, qtype.qmax], qtype.numpy_dtype), p)
    np.testing.assert_allclose(p.range, extremes, rtol=2.0**-23)  # one float32 product against one float64 product


@LAW
@given(arrays(np.float32, 20, elements=st.floats(-(2.0**60), 2.0**60, width=32)), ends, ends, qtypes)
def test_quantization_keeps_order_and_stays_in_its_integers(x: np.ndarray, a: float, b: float, qtype: QType) -> None:
    # beyond 2^60 over a range below 2^-60, x / scale would leave float32
    q = quantize(np.sort(x), choose(min(a, b), max(a, b, 2.0**-60), qtype)).astype(np.int64)
    assert (np.diff(q) >= 0).all()
    assert q.min() >= qtype.qmin and q.max() <= qtype.qmax


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda t: f"{t.dtype}-{t.qmax}-{t.symmetric}")
@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-39])
def test_a_dead_range_gets_scale_one(qtype: QType, peak: float) -> None:
    p = choose(-peak, peak, qtype)
    assert p.scale == 1
    assert fake_quantize(np.zeros(2, np.float32), p).tolist() == [0, 0]


def test_a_dead_channel_does_not_disturb_the_others() -> None:
    p = choose(np.zeros(3), np.array([127.0, 0.0, 254.0]), INT8_WEIGHT, axis=0)
    assert p.scale.tolist() == [1, 1, 2]


def test_a_range_near_the_end_of_float32_has_a_grid() -> None:
    top = 2.0**127  # the grid may end half a step beyond, which float32 must still hold
    p = choose(-top, top, UINT8)
    error = np.abs(fake_quantize(np.float32([-top, 0, top]), p).astype(np.float64) - [-top, 0, top])
    assert (error <= p.scale * 0.5001).all()  # half a step and float32 rounding


def test_a_symmetric_grid_has_zero_point_zero_or_the_middle() -> None:
    assert int(choose(-1, 3, INT8_WEIGHT).zero_point) == 0
    assert int(choose(-1, 3, UINT8_SYMMETRIC).zero_point) == 128


def test_rounding_goes_to_the_even_neighbour() -> None:
    p = QParams(np.float32(1), np.int8(0), INT8)
    assert quantize(np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]), p).tolist() == [-2, -2, 0, 0, 2, 2]


def test_a_scalar_is_quantized_like_any_tensor() -> None:
    p = QParams(np.float32(0.5), np.uint8(3), UINT8)
    q = quantize(np.array(2.0, np.float32), p)
    assert q.shape == () and q == 7 and dequantize(q, p) == 2.0 and dequantize(q, p).shape == ()


def test_an_int32_grid_saturates_at_its_ends() -> None:
    p = QParams(np.float32(1), np.int32(0), BIAS)
    assert quantize(np.float32([-1e30, 1e30]), p).tolist() == [BIAS.qmin, BIAS.qmax]


def test_blocks_repeat_their_scale_along_the_axis() -> None:
    scale = np.float32([[1, 2, 3], [10, 20, 30]])
    p = QParams(scale, np.zeros_like(scale, np.int8), INT4_WEIGHT, axis=0, block=2)
    x = dequantize(np.ones((4, 3), np.int8), p)
    assert x.tolist() == [[1, 2, 3], [1, 2, 3], [10, 20, 30], [10, 20, 30]]
    assert quantize(x, p).tolist() == np.ones((4, 3)).tolist()


def test_a_channel_axis_counts_from_the_end_too() -> None:
    p = QParams(np.float32([1, 2]), np.int8([0, 0]), INT8, axis=-1)
    assert dequantize(np.int8([[1, 1]]), p).tolist() == [[1, 2]]


def test_integers_that_the_storage_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="int8 cannot hold"):
        QType("int8", -129, 127, symmetric=False)


def test_nothing_changes_the_arrays_it_was_given() -> None:
    x, q = np.float32([1, 2, 3]), np.uint8([1, 2, 3])
    p = choose(0, 3, UINT8)
    quantize(x, p), dequantize(q, p)
    assert x.tolist() == [1, 2, 3] and q.tolist() == [1, 2, 3]


# The ONNX node tests


@functools.cache
def node_tests() -> list[Any]:
    """QuantizeLinear and DequantizeLinear cases whose integers, inputs and outputs this module can state.

    Importing an operator's module adds its cases to the list; `collect_testcases` would import those of all
    operators, which takes ten seconds.
    """
    cases = []
    assert {quantizelinear.__name__, dequantizelinear.__name__} <= sys.modules.keys()
    for case in onnx_node._NodeTestCases:
        types = [
            onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()
            for v in (*case.model.graph.input, *case.model.graph.output)
        ]
        stated = {t for t in types if t != "float"}
        if len(stated) == 1 and stated <= STORAGE.keys() and types.count("float") == 2:
            cases.append(case)
    return cases


def as_array(tensor: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(tensor) if isinstance(tensor, onnx.TensorProto) else np.asarray(tensor)


def stated_grid(case: Any, inputs: list[np.ndarray]) -> QParams:
    node = case.model.graph.node[0]
    kinds = {
        onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower()
        for v in (*case.model.graph.input, *case.model.graph.output)
    }
    (dtype,) = kinds - {"float"}
    qtype = QType(dtype, *STORAGE[dtype], symmetric=False)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    scale = inputs[1]
    zero_point = inputs[2].astype(qtype.numpy_dtype) if len(inputs) > 2 else np.zeros(scale.shape, qtype.numpy_dtype)
    return QParams(
        scale,
        zero_point,
        qtype,
        attributes.get("axis", 1) if scale.ndim else None,
        attributes.get("block_size") or None,
    )


def test_the_wheel_ships_the_node_tests_that_this_file_relies_on() -> None:
    names = {c.name for c in node_tests()}
    wanted = {
        "test_quantizelinear",
        "test_quantizelinear_axis",
        "test_quantizelinear_uint16",
        "test_quantizelinear_int16",
        "test_quantizelinear_int4",
    }
    wanted |= {
        "test_dequantizelinear",
        "test_dequantizelinear_axis",
        "test_dequantizelinear_uint16",
        "test_dequantizelinear_int16",
    }
    assert wanted <= names


@pytest.mark.parametrize("case", node_tests(), ids=lambda c: c.name)
def test_agrees_exactly_with_the_onnx_node_test(case: Any) -> None:
    for inputs, outputs in case.data_sets:
        arrays_in = [as_array(a) for a in inputs]
        p = stated_grid(case, arrays_in)
        expected = as_array(outputs[0])
        if case.model.graph.node[0].op_type == "QuantizeLinear":
            found = quantize(arrays_in[0], p)
            assert np.array_equal(found, expected.astype(found.dtype))
        else:
            assert np.array_equal(dequantize(arrays_in[0].astype(p.qtype.numpy_dtype), p), expected)


# ONNX Runtime

RUNTIME_TYPES = {"uint8": UINT8, "int8": INT8, "uint16": QTYPES[6], "int16": QTYPES[7]}


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("dtype", RUNTIME_TYPES)
def test_agrees_exactly_with_onnx_runtime_on_random_data(dtype: str, axis: int | None) -> None:
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((5, 6, 40)) * 10.0 ** rng.integers(-6, 6, (1, 6, 1))).astype(np.float32)
    halves = rng.integers(-40, 40, x.shape).astype(np.float32) / 2  # ties, once the scale is 1
    x[0] = halves[0]
    lo, hi = (x.min(), x.max()) if axis is None else (x.min((0, 2)) / 2, x.max((0, 2)) / 2)
    p = choose(lo, hi, RUNTIME_TYPES[dtype], axis)
    attributes = "" if axis is None else f"<axis = {axis}>"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[5,6,40] x) => ({dtype}[5,6,40] q, float[5,6,40] y) {{
        q = QuantizeLinear {attributes} (x, scale, zero)
        y = DequantizeLinear {attributes} (q, scale, zero)
    }}"""
    q, y = tiny.run(tiny.model(text, scale=p.scale, zero=p.zero_point), {"x": x})
    assert np.array_equal(quantize(x, p), q)
    assert np.array_equal(dequantize(q, p), y)


def test_agrees_exactly_with_onnx_runtime_on_ties() -> None:
    p = QParams(np.float32(0.25), np.uint8(100), UINT8)
    x = np.arange(-300, 300, dtype=np.float32) / 8
    text = "g (float[600] x) => (uint8[600] q) { q = QuantizeLinear(x, scale, zero) }"
    (q,) = tiny.run(tiny.model(text, scale=p.scale, zero=p.zero_point), {"x": x})
    assert np.array_equal(quantize(x, p), q)


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_agrees_exactly_with_onnx_runtime_on_blocks_of_four_bits(dtype: str) -> None:
    rng = np.random.default_rng(3)
    low, high = STORAGE[dtype]
    qtype = QType(dtype, low, high, symmetric=False)
    q = rng.integers(low, high + 1, (64, 8)).astype(qtype.numpy_dtype)
    zero_point = rng.integers(low, high + 1, (4, 8)).astype(qtype.numpy_dtype)
    p = QParams(rng.uniform(0.5, 2, (4, 8)).astype(np.float32), zero_point, qtype, axis=0, block=16)
    kind = onnx.TensorProto.INT4 if dtype == "int4" else onnx.TensorProto.UINT4
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1] unused) => (float[64,8] y) { y = DequantizeLinear <axis = 0, block_size = 16> (q, scale, zero) }"""
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(onnx.numpy_helper.from_array(p.scale, "scale"))
    for name, a in (("q", q), ("zero", zero_point)):
        made.graph.initializer.append(onnx.helper.make_tensor(name, kind, a.shape, a.reshape(-1).tolist()))
    (y,) = tiny.run(tiny.graph.canonical(tiny.graph.load(made)), {"unused": np.zeros(1, np.float32)})
    assert np.array_equal(dequantize(q, p), y)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_scale_that_is_a_power_of_two_is_the_smallest_that_covers_the_range(low: float, high: float) -> None:
    free, pow2 = (QType("int8", -127, 127, symmetric=True, power_of_two=p) for p in (False, True))
    exact, found = choose(-low, high, free), choose(-low, high, pow2)
    assert np.frexp(found.scale)[0] == 0.5 and found.zero_point == 0
    assert exact.scale <= found.scale < 2 * exact.scale or np.isclose(found.scale, exact.scale)


def test_one_scale_for_all_of_a_weight_covers_its_largest_channel_and_its_floor() -> None:
    w = np.float32([[1, -2], [30, 4]])
    found = weight_params(w, 0, INT8_WEIGHT, per_channel=False)
    assert found.scale.shape == () and found.axis is None and found.scale == pytest.approx(30 / 127)
    assert weight_params(w, 0, INT8_WEIGHT, np.float32([0.1, 0.5]), per_channel=False).scale == pytest.approx(0.5)
