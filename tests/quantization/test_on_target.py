"""What a target demands is in the file that is made for it, and each rule has a file that breaks it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.cli import main
from edgeopt.errors import ModelError, UsageError
from edgeopt.hardware import target
from edgeopt.hardware.target import Target
from edgeopt.quantization import on_target
from edgeopt.quantization.fixing import at_fixed_shapes
from edgeopt.quantization.on_target import broken_rules
from tests import tiny

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
TARGETS = [n for n in target.names() if n != "host" and not n.startswith("cpu-")]
TEXT = """<ir_version: 9, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,5] y)
    <float[4,3,3,3] w, float[4] b, float[4,5] m> {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu(c)  s = Sigmoid(r)  t = Mul(r, s)  p = GlobalAveragePool(t)
    f = Flatten(p)  y = MatMul(f, m) }"""


def network(text: str = TEXT) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    weights = {"w": (4, 3, 3, 3), "b": (4,), "m": (4, 5)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    )
    return model


def feeds(count: int = 24) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def made(name: str | Target, **choices: Any) -> onnx.ModelProto:
    choices = {
        "mode": "static" if target.load(name).demands.grids else "auto",
        "measure": False,
        "rounding": "nearest",
        **choices,
    }
    if target.load(name).place.rule == "cut":
        choices["include"] = ["*"]  # the network is too small for integers to pay
    return edgeopt.quantize(network(), feeds(), target=name, **choices).proto


def problems(model: onnx.ModelProto, name: str | Target) -> list[str]:
    return list(broken_rules(graph.canonical(graph.load(model)), target.load(name)))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_for_a_target_breaks_none_of_its_rules(name: str) -> None:
    assert problems(made(name), name) == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_real_network_for_a_target_breaks_none_of_its_rules_and_is_near_to_float(name: str, tmp_path: Path) -> None:
    found = edgeopt.quantize(
        DIGITS / "digits.onnx", DIGITS / "calib", target=name, measure=False, output=tmp_path / "q.onnx"
    )
    assert found.report.worst_sqnr_db > 15
    checked = edgeopt.check(tmp_path / "q.onnx", target=name)
    assert checked.problems == () and checked.ok


def changed(name: str, **tables: Any) -> Target:
    """The target with other values in its tables."""
    base = target.load(name)
    return base.model_copy(
        update={table: getattr(base, table).model_copy(update=values) for table, values in tables.items()}
    )


@pytest.mark.parametrize(
    ("by", "strict", "says"),
    [
        ("cpu-x86-vnni", "nnapi", "inputs without fixed shapes: x"),
        ("cpu-x86-vnni", "rknn", "no zero point"),
        ("cpu-x86-vnni", "tensorrt", "activations in uint8, and int8 is taken"),
        ("cpu-x86-vnni", "tensorrt", "biases in integers"),
        ("xnnpack", "tensorrt", "activations whose zero point is not 0"),
        ("tensorrt", "ryzen-ai", "scales that are no powers of two"),
        ("tensorrt", "ryzen-ai", "weights with a scale for each channel"),
        ("qnn-htp:a16", "nnapi", "activations in uint16, and uint8 is taken"),
    ],
)
def test_each_rule_has_a_file_that_breaks_it(by: str, strict: str, says: str) -> None:
    assert any(problem.startswith(says) for problem in problems(made(by), strict))


def test_a_file_with_scales_found_at_run_time_breaks_the_rule_of_fixed_ones() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[8,64] x) => (float[8,64] y) <float[64,64] w>
        { y = MatMul(x, w) }"""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "w"))
    data = [{"x": rng.standard_normal((8, 64)).astype(np.float32)} for _ in range(12)]
    found = edgeopt.quantize(model, data, mode="dynamic", measure=False)
    assert any("finds its scale at run time" in p for p in problems(found.proto, "openvino"))
    with pytest.raises(UsageError, match=r"--mode dynamic: openvino runs no products"):
        edgeopt.quantize(model, data, mode="dynamic", target="openvino", measure=False)


def test_a_product_without_a_grid_on_its_output_breaks_the_rule_where_that_is_needed() -> None:
    floats = made(changed("qnn-htp", place={"float_output": True}))
    assert any(p.startswith("MatMul gives floats") for p in problems(floats, "qnn-htp"))


def test_sixteen_bits_raise_the_opset_and_fix_the_grid_of_a_sigmoid() -> None:
    model = made("qnn-htp:a16")
    assert next(o.version for o in model.opset_import if o.domain == "") == 21
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    sigmoid = next(n for n in model.graph.node if n.op_type == "Sigmoid").output[0]
    q = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == sigmoid)
    assert constants[q.input[1]] == np.float32(2**-16) and constants[q.input[2]] == 0
    assert constants[q.input[2]].dtype == np.uint16


def test_a_symmetric_grid_stands_behind_the_activation_that_it_cannot_replace() -> None:
    kept, absorbed = made("tensorrt"), made("xnnpack")
    assert "Relu" in {n.op_type for n in kept.graph.node} and "Relu" not in {n.op_type for n in absorbed.graph.node}
    relu = next(n for n in kept.graph.node if n.op_type == "Relu")
    assert [n.op_type for n in kept.graph.node if relu.output[0] in n.input] == ["QuantizeLinear"]
    assert [n.op_type for n in kept.graph.node if n.output[0] == relu.input[0]] == ["Conv"]


def test_a_model_above_the_highest_opset_of_a_target_is_lowered_and_refused_where_that_cannot_be() -> None:
    found = edgeopt.quantize(
        network(TEXT.replace('"" : 17', '"" : 20')), feeds(), target="rknn", mode="static", include=["*"], measure=False
    )
    assert next(o.version for o in found.proto.opset_import if o.domain == "") == 19
    text = TEXT.replace('"" : 17', '"" : 20').replace("Sigmoid(r)", "Gelu(r)")  # which opset 19 has not
    with pytest.raises(ModelError, match=r"opset 20 cannot become 19"):
        edgeopt.quantize(network(text), feeds(), target="rknn", mode="static", include=["*"], measure=False)


def test_free_dimensions_are_fixed_as_the_first_sample_has_them_and_that_is_told() -> None:
    found = edgeopt.quantize(network(), feeds(), target="nnapi", mode="static", measure=False)
    shape = [d.dim_value for d in found.proto.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 8, 8]
    assert any("nnapi takes fixed shapes only: x 1x3x8x8" in line for line in found.report.notes)


def test_sizes_are_given_by_name_for_every_target_and_a_wrong_name_is_refused() -> None:
    two = [{"x": np.concatenate([a["x"], b["x"]])} for a, b in zip(feeds(), feeds()[::-1], strict=True)]
    found = edgeopt.quantize(network(), two, dims={"N": 2}, mode="static", include=["*"], measure=False)
    assert [d.dim_value for d in found.proto.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 8, 8]
    with pytest.raises(UsageError, match=r"M"):
        edgeopt.quantize(network(), two, dims={"M": 2}, mode="static", measure=False)


def test_the_target_without_integers_gets_half_precision() -> None:
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", target="coreml", measure=False)
    assert found.report.mode == "fp16"
    assert not {n.op_type for n in found.proto.graph.node} & {"QuantizeLinear", "DequantizeLinear"}


def test_the_command_ends_with_1_where_a_rule_is_broken_and_says_how_it_was_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(made("cpu-x86-vnni"), tmp_path / "q.onnx")
    with pytest.raises(SystemExit) as end:
        main(["check", str(tmp_path / "q.onnx"), "--target", "tensorrt"])
    told = capsys.readouterr().out
    assert end.value.code == 1 and "by rules only" in told and "WRONG    activations in uint8" in told
    onnx.save(made("tensorrt"), tmp_path / "t.onnx")
    with pytest.raises(SystemExit) as end:
        main(["check", str(tmp_path / "t.onnx"), "--target", "tensorrt"])
    assert end.value.code == 0 and capsys.readouterr().out.endswith("right\n")


def test_every_way_to_a_file_for_a_target_keeps_its_rules() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[8,64] x) => (float[8,64] y) <float[64,64] w>
        { h = MatMul(x, w)  n = Softmax(h)  y = MatMul(n, w) }"""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    w = 30 * rng.standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    data = [{"x": 9 * rng.standard_normal((8, 64)).astype(np.float32)} for _ in range(24)]
    found = edgeopt.quantize(model, data, target="ryzen-ai", measure=False)  # too far: repaired, but by nothing dynamic
    assert problems(found.proto, "ryzen-ai") == []
    with pytest.raises(UsageError, match="--mode weights: ryzen-ai does not read"):
        edgeopt.quantize(model, data, target="ryzen-ai", mode="weights", measure=False)


def test_stored_weights_a_missing_zero_point_and_pairs_that_saturate_break_rules() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[8,64] x) => (float[8,64] y) <float[64,64] w>
        { y = MatMul(x, w) }"""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    w = rng.standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    data = [{"x": rng.standard_normal((8, 64)).astype(np.float32)} for _ in range(12)]
    stored = edgeopt.quantize(model, data, mode="weights", measure=False).proto
    assert any(p.startswith("weights that are only stored") for p in problems(stored, "ryzen-ai"))
    wide = edgeopt.quantize(model, data, mode="static", include=["*"], target="cpu-x86-vnni", measure=False).proto
    assert any(p.startswith("pairs of products that can saturate") for p in problems(wide, "cpu-x86-avx2"))
    assert problems(wide, "cpu-x86-vnni") == []
    assert any("which it does not compute" in p for p in problems(wide, "coreml"))
    plain = """<ir_version: 9, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) <float s = {0.1}>
        { q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s) }"""
    assert any(p.startswith("activations in uint8") for p in problems(onnx.parser.parse_model(plain), "xnnpack"))


def test_a_file_for_a_cpu_is_run_here_and_one_that_does_not_run_is_refused(tmp_path: Path) -> None:
    onnx.save(made("cpu-x86-vnni"), tmp_path / "q.onnx")
    onnx.save(network(), tmp_path / "f.onnx")
    found = edgeopt.check(tmp_path / "q.onnx", data=feeds(), float_model=tmp_path / "f.onnx")
    assert found.ran is not None and found.samples == 8 and found.outputs[0].sqnr_db < 60
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y) { y = NoSuchOp(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "n.onnx")
    with pytest.raises(ModelError, match="NoSuchOp"):
        edgeopt.check(tmp_path / "n.onnx")


def test_an_interpreter_without_the_runtime_is_no_fault_of_the_file(tmp_path: Path) -> None:
    onnx.save(made("openvino"), tmp_path / "q.onnx")
    with pytest.raises(UsageError, match="the runtime of openvino is not there"):
        edgeopt.check(tmp_path / "q.onnx", target="openvino", python=sys.executable)


def test_sizes_without_a_name_are_those_of_their_own_dimension_only() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[?,?,16] x) => (float[?,?,8] y)
        { m = Slice(x, zero, eight, last)  y = Transpose <perm = [1, 0, 2]> (m) }"""
    model = onnx.parser.parse_model(text.replace("?", "N"))
    ends = [onnx.numpy_helper.from_array(np.int64([v]), n) for n, v in (("zero", 0), ("eight", 8), ("last", 2))]
    model.graph.initializer.extend(ends)
    for value in (*model.graph.input, *model.graph.output):
        for dim in list(value.type.tensor_type.shape.dim)[:2]:
            dim.Clear()
    fixed = graph.at_shapes(graph.load(model), {"x": [2, 5, 16]})
    assert [d.value if not isinstance(d, int) else d for d in fixed.graph.outputs[0].shape or ()] == [None, None, 8]
    named = onnx.parser.parse_model(text.replace("?,?", "A,B", 1).replace("?,?", "B,A"))
    named.graph.initializer.extend(ends)
    again = graph.at_shapes(graph.load(named), {"x": [2, 5, 16]})
    assert list(again.graph.outputs[0].shape or ()) == [5, 2, 8]


def test_a_maximum_of_three_values_and_a_mask_of_infinities_stay_float() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[2,8] x, bool[2,8] k) => (float[2,8] y)
        <float low = {-inf}> { a = Relu(x)  b = Sigmoid(x)  m = Max(x, a, b)  w = Where(k, m, low)  y = Softmax(w) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.standard_normal((2, 8)).astype(np.float32), "k": np.arange(16).reshape(2, 8) % 16 >= (i > 0)}
        for i in range(24)
    ]
    found = edgeopt.quantize(model, data, target="qnn-htp", mode="static", measure=False)
    floats = {n.op_type for n in found.proto.graph.node}
    assert {"Max", "Softmax"} <= floats and {"Max_0", "m", "w"}.isdisjoint(found.report.activations)


def test_a_first_sample_of_another_rank_is_passed_over_for_the_shapes() -> None:
    data = [{"x": np.zeros((1, 8), np.float32)}, *feeds(4)]
    told = list[str]()
    fixed, _ = at_fixed_shapes(graph.load(network()), data, edgeopt.Quantize(target="nnapi"), told.append)
    assert list(fixed.graph.inputs[0].shape or ()) == [1, 3, 8, 8] and len(told) == 1


def test_a_target_that_computes_no_grids_is_given_none() -> None:
    for choices, says in (({"mode": "static"}, "computes no QuantizeLinear"), ({"bits": 4}, "--bits 8")):
        with pytest.raises(edgeopt.UsageError, match=says):
            edgeopt.quantize(network(), feeds(), target="webgpu", **{"mode": "weights", "measure": False, **choices})


def test_pixels_go_into_the_network_without_becoming_floats(tmp_path: Path) -> None:
    found = edgeopt.quantize(
        DIGITS / "digits.onnx", DIGITS / "calib", target="qnn-htp", input_image="uint8", output=tmp_path / "q.onnx"
    )
    (image,) = found.proto.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 28, 28, 1]
    assert "Cast" not in {n.op_type for n in found.proto.graph.node} and found.report.worst_sqnr_db > 25
    assert set(found.report.choices) == {"target", "input_image", "output"}


def test_pixels_are_asked_for_where_there_are_no_images() -> None:
    with pytest.raises(edgeopt.UsageError, match="--input-image: the samples are no images"):
        edgeopt.quantize(network(), feeds(), input_image="uint8")


def test_a_file_that_takes_pixels_is_checked_on_pictures_as_it_and_as_float_takes_them(tmp_path: Path) -> None:
    file, float_file = tmp_path / "q.onnx", DIGITS / "digits.onnx"
    edgeopt.quantize(float_file, DIGITS / "calib", input_image="uint8", io="quantized", output=file, measure=False)
    found = edgeopt.check(file, data=DIGITS / "calib", float_model=float_file)
    assert found.ok and found.outputs[0].sqnr_db > 25
    with pytest.raises(edgeopt.UsageError, match="--calib has to give samples"):
        edgeopt.check(file, float_model=float_file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g (uint8[N,1,28,28] x) => (float[N,1,28,28] y) { y = Cast <to = 1> (x) }", "is uint8 already"),
        ("g (float[N,1,28,28] x) => (float[N,1,28,28] y, float[N,1,28,28] x) { y = Relu(x) }", "is an output too"),
    ],
)
def test_an_input_that_cannot_become_pixels_is_refused(text: str, says: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    with pytest.raises(edgeopt.EdgeoptError, match=says):
        edgeopt.quantize(model, DIGITS / "calib", input_image="uint8", preprocess="unit", measure=False)


def test_a_target_file_without_a_runtime_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('like = "wasm"\n[check]\npackages = ["other@1"]\n')
    found = edgeopt.check(DIGITS / "digits.onnx", target=tmp_path / "mine.toml")
    assert found.ran is None and found.why_not.endswith(("mine.toml", "not there"))


@pytest.mark.parametrize("name", ["nnapi", "coreml"])
def test_how_many_nodes_a_phone_takes_is_told_by_onnx_runtimes_tables(name: str, tmp_path: Path) -> None:
    model, file = DIGITS / "digits.onnx", tmp_path / "q.onnx"
    edgeopt.quantize(model, DIGITS / "calib", target=name, dims={"batch": 1}, output=file)
    found = edgeopt.check(file, target=name)
    assert found.ok and found.by_table.endswith("in 1 partition") and found.by_table in found.lines[1]
    text = "g (float[4] x) => (float[4] y) { a = Relu(x)  b = Bernoulli(a)  y = Relu(b) }"
    onnx.save(tiny.proto(text), tmp_path / "odd.onnx")
    told = edgeopt.check(tmp_path / "odd.onnx", target=name).by_table
    assert told.startswith("2 of 3") and told.endswith("in 2 partitions; without Bernoulli")


def test_grids_of_16_bits_in_an_older_model_can_be_fitted_and_looked_into() -> None:
    assert network().opset_import[0].version < 21
    choices = {"target": "qnn-htp:a16", "mode": "static", "measure": False}
    found = edgeopt.quantize(network(), feeds(), refit=True, **choices)
    assert found.proto.opset_import[0].version == 21 and found.report.worst_sqnr_db > 15
    assert edgeopt.sensitivity(network(), feeds(), target="qnn-htp:a16").nodes


def test_a_model_whose_shapes_cannot_be_inferred_is_checked_without_the_table(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)
    del model.opset_import[1]
    model.graph.node[0].domain = "ai.onnx.ml"
    onnx.save(model, tmp_path / "m.onnx")
    told = on_target.mobile_nodes(tmp_path / "m.onnx", "coreml")
    assert told.startswith("not told by ONNX Runtime's table of operators: ")


def test_nodes_without_the_inputs_that_they_need_end_in_no_traceback(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[4] y) { a = Relu(x)  q = Relu(x)  y = Relu(a) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {text}')
    for node, op in zip(model.graph.node, ("Conv", "QuantizeLinear"), strict=False):
        node.op_type = op
    del model.graph.node[0].input[:]
    onnx.save(model, tmp_path / "m.onnx")
    for name in TARGETS:
        if target.load(name).check.kind == "rules":
            assert edgeopt.check(tmp_path / "m.onnx", target=name).target == name
