"""Models that cannot be read or handled, and options that cannot be: each is refused with the right error, which
names what and where.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.data import InputSpec, read
from edgeopt.errors import CalibrationError, DataError, ModelError, UsageError, ValidityError
from edgeopt.options.distill import Distill
from tests import models, tiny
from tests.models import STATIC, Ears, normal

X = models.normal(30, 4)


def refused(model: Any, data: Any = X, **choices: Any) -> str:
    """The message of the ModelError that `quantize` must raise."""
    with pytest.raises(ModelError) as caught:
        edgeopt.quantize(model, data, **{"measure": False, **choices})
    return str(caught.value)


def parsed(text: str) -> bytes:
    """A model of opset 17 that is not checked, since the tests want invalid ones too."""
    return onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text).SerializeToString()


# the file


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"a text\n" * 20,
        pickle.dumps({"weights": [1.0]}),
        b"PK\x03\x04" + bytes(60),
        bytes(range(256)),
        b"\xff" * 100,
    ],
    ids=["empty", "png", "text", "pickle", "zip", "bytes", "ones"],
)
def test_a_file_that_is_no_model_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "thing.onnx"
    file.write_bytes(content)
    assert str(file) in refused(file)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_model_is_refused_by_name(share: float, tmp_path: Path) -> None:
    file, whole = tmp_path / "cut.onnx", models.convolution()
    file.write_bytes(whole[: int(share * len(whole))])
    message = refused(file)
    assert str(file) in message
    assert "complete" in message


@pytest.mark.parametrize("name", ["nowhere.onnx", "folder", "n" * 300 + ".onnx", "nul\0.onnx"])
def test_a_model_that_is_not_there_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert name in refused(tmp_path / name)


# external data


LIES = {
    "missing": {"location": "nowhere.data"},
    "cut short": {"location": "w.data", "offset": 16},
    "shorter than its tensor": {"location": "w.data", "length": 32},
    "above the folder": {"location": "../secret.data"},
    "above it by a detour": {"location": "sub/../../secret.data"},
    "symbolic link out of the folder": {"location": "link.data"},
    "a folder": {"location": "sub"},
    "nothing": {"location": ""},
    "negative offset": {"location": "w.data", "offset": -16},
    "no number": {"location": "w.data", "offset": "here"},
    "huge offset": {"location": "w.data", "offset": 10**30},
    "long name": {"location": "n" * 300},
    "nul": {"location": "w\0.data"},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A model's folder: w.data of 64 bytes; beside the folder secret.data, which a link in the folder points to."""
    folder = tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.data").write_bytes(models.normal(4, 4).tobytes())
    (tmp_path / "secret.data").write_bytes(models.normal(4, 4, seed=9).tobytes())
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    return folder


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant node"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_external_data_that_cannot_be_trusted_are_refused(lie: dict[str, Any], constant: bool, home: Path) -> None:
    (home / "m.onnx").write_bytes(models.external(**lie, constant=constant))
    assert "m.onnx" in refused(home / "m.onnx", **STATIC)


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant node"])
def test_absolute_external_data_are_refused(constant: bool, home: Path) -> None:
    secret = str(home.parent / "secret.data")
    (home / "m.onnx").write_bytes(models.external(secret, constant=constant))
    assert secret in refused(home / "m.onnx", **STATIC)


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "Constant node"])
def test_external_data_in_the_folder_are_used(constant: bool, home: Path) -> None:
    (home / "m.onnx").write_bytes(models.external("w.data", constant=constant))
    made = graph.canonical(graph.load(home / "m.onnx"))
    assert np.array_equal(tiny.weights_of(made)["w"], models.normal(4, 4))


@pytest.mark.parametrize("location", ["absolute", "../secret.data", "link.data", "nowhere.data"])
def test_a_model_in_memory_cannot_reach_files_outside(
    location: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    location = str(home.parent / "secret.data") if location == "absolute" else location
    assert location in refused(models.external(location), **STATIC)
    assert location in refused(onnx.load_model_from_string(models.external(location)), **STATIC)


# what the graph holds


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("g (float[N,4] x) => (float[N,4] x) { }", "no nodes"),
        ("g (float[N,4] x) => () { y = Relu(x) }", "no outputs"),
        ("g (float[N,4] x) => (float[1] y) { y = Constant <value_floats = [1.0]> () }", ""),
        ("g (seq(float[N,4]) x) => (float[N,4] y) { i = Constant <value_int = 0> ()  y = SequenceAt(x, i) }", "'x'"),
        ("g (optional(float[N,4]) x) => (float[N,4] y) { y = OptionalGetElement(x) }", "'x'"),
        ("g (string[N] x) => (string[N] y) { y = Identity(x) }", "'x'"),
        ("g (float[N,4] x) => (seq(float[N,4]) y, float[N,4] r) { y = SequenceConstruct(x)  r = Relu(x) }", "'y'"),
        ("g (float[N,4] x) => (float[N,4] y) { y = Add(x, nowhere) }", "nowhere"),
        ("g (float[N,4] x) => (float[N,4] y) { a = Add(x, b)  b = Relu(a)  y = Relu(b) }", ""),
        ("g (float[N,4] x) => (float[N,4] y) { y = Relu(x)  y = Tanh(x) }", ""),
        ("g (float[N,4] x) => (float[N,4] y) { y = Bogus(x) }", "Bogus"),
    ],
    ids=[
        "no nodes",
        "no outputs",
        "only a constant",
        "sequence",
        "optional",
        "string",
        "sequence out",
        "undefined",
        "cycle",
        "twice",
        "unknown",
    ],
)
def test_a_graph_that_cannot_be_handled_is_refused_with_the_reason(text: str, named: str) -> None:
    message = refused(parsed(text))
    assert named in message
    assert "basic.onnx" not in message  # a file of our own that the user never saw


@pytest.mark.parametrize(
    "header", ['<ir_version: 9, opset_import: ["" : 99]>', '<ir_version: 99, opset_import: ["" : 17]>']
)
def test_a_model_of_the_future_is_refused(header: str) -> None:
    made = onnx.parser.parse_model(header + "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert "99" in refused(made)


def test_functions_that_call_themselves_are_refused() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[N,4] x) => (float[N,4] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 17, "own" : 1]> f (a) => (b) { b = own.f(a) }"""
    refused(onnx.parser.parse_model(text))


def raw(content: bytes) -> onnx.TensorProto:
    """A weight w [4, 4] whose bytes are `content`."""
    return onnx.TensorProto(name="w", dims=[4, 4], data_type=onnx.TensorProto.FLOAT, raw_data=content)


@pytest.mark.parametrize(
    "weight",
    [
        raw(bytes(60)),
        raw(bytes(63)),
        raw(bytes(80)),
        onnx.TensorProto(name="w", dims=[4, 4], data_type=onnx.TensorProto.FLOAT, float_data=[1.0] * 15),
        onnx.TensorProto(name="w", dims=[4, 4], data_type=onnx.TensorProto.FLOAT, int64_data=[1] * 16),
        onnx.TensorProto(name="w", dims=[4, 4], data_type=onnx.TensorProto.FLOAT),
        onnx.TensorProto(name="w", dims=[4, -4], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(64)),
        onnx.TensorProto(name="w", dims=[2**40, 2**40], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(64)),
        onnx.TensorProto(name="w", dims=[4, 4], data_type=99, raw_data=bytes(64)),
        onnx.TensorProto(name="w", dims=[4, 4], raw_data=bytes(64)),
    ],
    ids=["short", "odd", "long", "15 floats", "integers", "nothing", "negative", "huge", "type 99", "no type"],
)
def test_a_weight_that_is_not_what_it_claims_is_refused(weight: onnx.TensorProto) -> None:
    made = onnx.load_model_from_string(models.dense())
    (old,) = [t for t in made.graph.initializer if t.name == "w"]
    old.CopyFrom(weight)
    refused(made.SerializeToString(), **STATIC)


# sound models that look odd


SQUARE = {"w": models.normal(4, 4), "b": models.normal(4, seed=1)}


@pytest.mark.parametrize(
    "last", ["y = Relu(c)", "lo = Constant <value_float = 0.0> ()  y = Clip(c, lo)"], ids=["Relu", "Clip"]
)
def test_a_model_that_ends_in_a_clamp_is_quantized(last: str) -> None:
    made = tiny.proto(f"g (float[N,4] x) => (float[N,4] y) {{ c = Gemm(x, w, b)  {last} }}", **SQUARE)
    result = edgeopt.quantize(made, X, **STATIC)
    assert len(result.report.integer_nodes) == 1
    assert result.report.worst_sqnr_db > 20  # 8 bits of a normal distribution: about 35 dB


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_scalar_constant_becomes_an_integer(op: str) -> None:
    made = tiny.proto(
        f"g (float[N,4] x) => (float[N,4] y) {{ c = Gemm(x, w, b)  y = {op}(c, s) }}", s=np.float32(0.5), **SQUARE
    )
    result = edgeopt.quantize(made, X, mode="static", include=("Gemm", op), measure=False)
    assert len(result.report.integer_nodes) == 2
    assert result.report.worst_sqnr_db > 20


@pytest.mark.parametrize("mode", ["dynamic", "weights", "fp16", "auto"])
def test_a_product_over_nothing_is_done_or_refused(mode: str) -> None:
    made = tiny.proto("g (float[N,0] x) => (float[N,4] y) { y = MatMul(x, w) }", w=models.normal(0, 4))
    try:
        edgeopt.quantize(made, models.normal(30, 0), mode=mode, measure=False)
    except (UsageError, ValidityError, DataError) as e:
        assert mode in str(e) or "finite" in str(e) or "is empty" in str(e)


def test_an_output_that_declares_no_shape_is_quantized() -> None:
    made = onnx.load_model_from_string(models.dense())
    made.graph.output[0].type.tensor_type.ClearField("shape")
    assert edgeopt.quantize(made, X, **STATIC).report.integer_nodes


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_weight_with_nan_is_refused_by_name(dtype: type) -> None:
    broken = np.ones((4, 4), dtype)
    broken[1, 2] = np.nan
    text = "g (float[N,4] x) => (float[N,4] y) { w = Cast <to = 1> (stored)  y = MatMul(x, w) }"
    assert "'stored'" in refused(tiny.proto(text, stored=broken).SerializeToString())


@pytest.mark.parametrize("mode", ["auto", "dynamic", "weights"])
def test_an_infinite_weight_never_becomes_integers(mode: str) -> None:
    infinite = models.normal(64, 64)
    infinite[1, 2] = np.inf
    text = "g (float[N,64] x) => (float[N,64] z) { y = MatMul(x, w)  z = MatMul(y, v) }"
    made = tiny.proto(text, w=models.normal(64, 64, seed=1), v=infinite).SerializeToString()
    result = edgeopt.quantize(made, models.normal(30, 64), mode=mode, measure=False)
    assert any(np.isinf(w).any() for w in tiny.weights_of(result.model).values() if w.dtype.kind == "f" and w.ndim == 2)


# quantized already


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_what_edgeopt_made_is_not_quantized_again(mode: str, tmp_path: Path) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { y = Gemm(x, w, b) }"
    made = tiny.proto(text, w=models.normal(64, 64), b=models.normal(64)).SerializeToString()
    choices = {"mode": mode, "measure": False, "include": ("Gemm",)}
    edgeopt.quantize(made, models.normal(30, 64), output=tmp_path / "q.onnx", **choices)
    assert "quantized already" in refused(tmp_path / "q.onnx", models.normal(30, 64))


@pytest.mark.parametrize(
    "text",
    [
        (
            "g (uint8[2,4] x, uint8[4,4] w, float s, uint8 z) => (uint8[2,4] y) { y = QLinearMatMul(x, s, z, w, s, z,"
            " s, z) }"
        ),
        "g (uint8[2,4] x, uint8[4,4] w) => (int32[2,4] y) { y = MatMulInteger(x, w) }",
        "g (uint8[1,3,8,8] x, uint8[4,3,1,1] w) => (int32[1,4,8,8] y) { y = ConvInteger(x, w) }",
    ],
    ids=["QLinearMatMul", "MatMulInteger", "ConvInteger"],
)
def test_a_model_of_integer_operators_is_refused(text: str) -> None:
    assert "quantized already" in refused(parsed(text), "random")


# activations


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_calibration_sample_that_is_not_finite_is_named(broken: float) -> None:
    data = X.copy()
    data[20, 1] = broken
    with pytest.raises(CalibrationError, match=r"value 'x' is not finite on sample sample\[20\]"):
        edgeopt.quantize(models.dense(), data, **STATIC)


@pytest.mark.parametrize("choices", [STATIC, {"measure": False}], ids=["static", "auto"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_held_out_sample_that_is_not_finite_is_named(at: int, choices: dict[str, Any]) -> None:
    data = X.copy()
    row = np.random.default_rng(0).permutation(len(X))[at]  # the first ones of this order are held out
    data[row, 1] = np.nan
    with pytest.raises(CalibrationError, match=rf"sample\[{row}\]"):
        edgeopt.quantize(models.dense(), data, **choices)


def test_an_activation_that_overflows_is_named() -> None:
    made = tiny.proto(
        "g (float[N,4] x) => (float[N,4] y) { h = Exp(x)  y = Gemm(h, w, b) }",
        w=models.normal(4, 4),
        b=models.normal(4),
    )
    data = X.copy()
    data[20] = 200.0  # exp(200) is above the largest float32, exp(88)
    with pytest.raises(CalibrationError, match=r"value 'h' is not finite on sample sample\[20\]"):
        edgeopt.quantize(made, data, **STATIC)


GAPS = "g (float[N,4] x, bool[N,4] there) => (float[N,4] y) { h = Gemm(x, w, b)  y = Where(there, h, gap) }"


def gaps(share: float) -> tuple[Any, list[dict[str, Any]]]:
    made = tiny.proto(GAPS, w=models.normal(4, 4), b=models.normal(4), gap=np.float32(np.nan))
    there = np.random.default_rng(1).random((len(X), 1, 4)) >= share
    return made, [{"x": x[None], "there": t} for x, t in zip(X, there, strict=True)]


def test_nan_that_a_model_puts_in_place_of_missing_values_is_no_fault() -> None:
    made, data = gaps(0.2)
    found = edgeopt.quantize(made, data, mode="static", include=("Gemm",), measure=False)
    assert 10 < found.report.worst_sqnr_db < 200


def test_nan_of_some_outputs_alone_is_told_and_not_compared() -> None:
    ears = Ears()
    made = tiny.proto(
        "g (float[1,4] x) => (float[1,4] y, float[1,4] z) { y = Gemm(x, w, b)  z = Log(y) }",
        w=models.normal(4, 4),
        b=models.normal(4) + 3,
    )
    found = edgeopt.quantize(made, X, listener=ears.listener, **STATIC)
    assert any("nothing is compared" in line for line in ears.told("output 'z' of the float model has "))
    assert not ears.told("output 'y'") and 0 < found.report.worst_sqnr_db < 200


def test_nan_everywhere_or_of_a_layer_is_one() -> None:
    made, data = gaps(1.1)
    with pytest.raises(CalibrationError, match=r"output 'y' of the float model has 4 NaN of 4 values on sample"):
        edgeopt.quantize(made, data, **STATIC)
    w = models.normal(4, 4)
    w[1, 1] = np.nan
    with pytest.raises(ModelError, match="'w' holds NaN"):
        edgeopt.quantize(tiny.proto(GAPS, w=w, b=models.normal(4), gap=np.float32(np.nan)), data, **STATIC)


@pytest.mark.parametrize("mode", ["auto", "dynamic", "fp16"])
def test_a_model_that_answers_nan_to_everything_is_never_called_exact(mode: str) -> None:
    made = tiny.proto(
        "g (float[N,4] x) => (float[N,4] y) { h = Sqrt(x)  y = Gemm(h, w, b) }",
        w=models.normal(4, 4),
        b=models.normal(4),
    )
    with pytest.raises(CalibrationError, match="NaN of 4 values"):
        edgeopt.quantize(made, -np.abs(X) - 1, mode=mode, measure=False)


# options


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"exclude": ("Gem",)}, "did you mean 'Gemm'"),
        ({"include": ("no_such_node",)}, "no_such_node"),
        ({"exclude": ("layer*",)}, "layer*"),
        ({"keep": ("Gem",), "mode": "fp16"}, "did you mean 'Gemm'"),
        ({"target": "cpu-arm"}, "did you mean 'cpu-arm64'"),
        ({"target": "zzz"}, "cpu-portable"),
        ({"mode": "statik"}, "did you mean 'static'"),
        ({"range_rule": "mes"}, "did you mean 'mse'"),
        ({"samples": 0}, "samples"),
        ({"bits": 5}, "bits"),
        ({"max_ram": -1}, "max"),
        ({"max_ram": 0}, "max"),
        ({"io_types": "fp8", "mode": "fp16"}, "fp8"),
        ({"min_sqnr": float("nan")}, "nan"),
        ({"min_agreement": 90.0}, "90"),
        ({"mode": "weights"}, "--mode weights"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_with_its_value(choices: dict[str, Any], named: str) -> None:
    # no weight in the model: `--mode weights` has nothing to do
    with pytest.raises(UsageError) as caught:
        edgeopt.quantize(
            parsed("g (float[4,4] x) => (float[4,4] y) { y = Gemm(x, x) }"), X[:24], measure=False, **choices
        )
    assert named in str(caught.value)


def test_the_tiniest_memory_cap_is_kept_by_more_passes_and_rounds_to_the_nearest() -> None:
    ears = Ears()
    made = edgeopt.quantize(models.dense(), X, max_ram=1, listener=ears.listener, **STATIC)
    assert ears.told("calibration: ") and ears.told("within --max-ram; to the nearest")
    nearest = edgeopt.quantize(models.dense(), X, effort="fast", **STATIC)
    assert tiny.frozen(made.model) == tiny.frozen(nearest.model)


# nothing to quantize


def tree() -> bytes:
    """One split at .5 of the first feature."""
    h = onnx.helper
    attributes = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "n_targets": 1,
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
    }  # fmt: skip
    node = h.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    value = lambda name, n: h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, n])  # noqa: E731
    graph = h.make_graph([node], "g", [value("x", 4)], [value("y", 1)])
    opsets = [h.make_opsetid("ai.onnx.ml", 3), h.make_opsetid("", 17)]
    return bytes(h.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def test_a_model_of_trees_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"computed by TreeEnsembleRegressor, which has no weights.*edgeopt distill"):
        edgeopt.quantize(tree(), models.normal(30, 4), measure=False)


def test_a_model_without_weights_stays_float_and_the_reason_is_true() -> None:
    made = tiny.proto("g (float[N,16] x) => (float[N,16] y) { a = Sin(x)  y = Cos(a) }").SerializeToString()
    found = edgeopt.quantize(made, models.normal(30, 16), measure=False).report
    assert "nothing to quantize: no node has a constant weight" in found.reason


LOOP = """g (float[1,4096] x) => (float[1,4096] y, float[M,1,4096] s) {
    y, s = Loop (n, , x) <body = b (int64 i, bool c, float[1,4096] a) => (bool d, float[1,4096] e, float[1,4096] f) {
        d = Identity(c)  e = Relu(a)  f = Identity(a) }> }"""


@pytest.mark.parametrize("command", ["quantize", "simplify", "profile", "distill"])
def test_a_loop_that_fills_the_memory_is_given_up(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeopt.runtime.session.RUN_S", 5.0)  # where the memory of earlier tests is filled first
    bomb = tiny.proto(LOOP, n=np.int64(10**6))
    (tmp_path / "bomb.onnx").write_bytes(bomb.SerializeToString())
    with pytest.raises(DataError, match=r"a loop of the model takes more than (5 s|1\.5 GB)"):
        if command == "quantize":
            edgeopt.quantize(tmp_path / "bomb.onnx", "random", samples=2)
        elif command == "simplify":
            edgeopt.simplify(tmp_path / "bomb.onnx")
        elif command == "profile":
            edgeopt.profile([tmp_path / "bomb.onnx"], seconds=0.1)
        else:
            edgeopt.distill(tmp_path / "bomb.onnx", "random", teacher=tmp_path / "bomb.onnx", samples=2)


def test_random_samples_are_few_unless_many_are_asked_for() -> None:
    inputs = [InputSpec("x", np.dtype(np.float32), (1, 4))]
    counts = [len(read("random", inputs, o, lambda feed: []).samples) for o in (Distill(), Distill(samples=2000))]
    assert counts == [264, 2008]


def test_types_behind_operators_of_other_domains_come_from_onnx_runtime() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N,32] x) => (float[N,16] y) {
        a = MatMul(x, w)  b = com.microsoft.Gelu(a)  c = Relu(b)  y = MatMul(c, v) }"""
    model = tiny.proto(text, w=normal(32, 64), v=normal(64, 16))
    report = edgeopt.quantize(model, "random", mode="fp16", measure=False).report
    assert report.worst_sqnr_db > 50 and report.bytes_after == {"float16": 2 * (32 * 64 + 64 * 16)}


def test_values_of_bfloat16_are_no_obstacle() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[N,32] x) => (float[N,16] y) {
        h = Cast <to = 16> (x)  k = Cast <to = 1> (h)  a = MatMul(k, w)  y = Relu(a) }"""
    model = tiny.proto(text, w=normal(32, 16))
    assert edgeopt.inspect(model).macs == 32 * 16
    report = edgeopt.quantize(model, "random", mode="static", include=("MatMul",), measure=False).report
    assert report.integer_nodes and report.worst_sqnr_db > 25
