"""The canonical form, opset and saving: the same numbers as the model before, and never half a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import ModelError, UsageError
from edgeopt.files import staged
from edgeopt.graph.serialization import embedded
from edgeopt.passes.simplifying import simplify
from edgeopt.runtime.session import open_session
from tests import tiny

SMALL = "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
DENSE = "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, w)  y = Relu(h) }"


def dense(rows: int = 64) -> ir.Model:
    w = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    return tiny.model(DENSE.replace("N,64] x", f"N,{rows}] x"), w=w)


def raw_run(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


# canonical


def test_constant_nodes_become_initializers() -> None:
    text = """g (float[2] x) => (float[2] y) {
        c = Constant <value = float[2] {1, 2}> ()
        d = Constant <value_float = 3.0> ()
        z = Mul(x, c)
        y = Add(z, d)
    }"""
    made = tiny.model(text)
    assert tiny.operators(made) == ["Mul", "Add"]
    assert sorted(a.tolist() for a in tiny.weights_of(made).values() if a.ndim) == [[1, 2]]
    assert tiny.run(made, {"x": np.float32([5, 7])})[0].tolist() == [8, 17]


def test_constant_nodes_inside_a_body_are_lifted_too() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] a) { k = Constant <value = float {10}> ()  a = Add(x, k) },
            else_branch = e () => (float[2] b) { k2 = Constant <value = float {20}> ()  b = Add(x, k2) }
        >
    }"""
    made = tiny.model(text)
    assert not any(n.op_type == "Constant" for n in made.graph.all_nodes())
    for flag, shift in ((True, 10), (False, 20)):
        (y,) = tiny.run(made, {"c": np.array(flag), "x": np.float32([1, 2])})
        assert y.tolist() == [1 + shift, 2 + shift]


def test_initializers_are_not_inputs() -> None:
    proto = tiny.proto("g (float[1,2] x, float[2,2] w) => (float[1,2] y) { y = MatMul(x, w) }", w=np.eye(2, dtype="f"))
    made = graph.canonical(graph.load(proto))
    assert [v.name for v in made.graph.inputs] == ["x"]
    assert list(made.graph.initializers) == ["w"]


def test_functions_are_inlined() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.twice(x) }
    <domain: "mine", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add(a, a) }"""
    made = tiny.model(text)
    assert tiny.operators(made) == ["Add"] and not made.functions
    assert set(made.opset_imports) == {""}
    assert tiny.run(made, {"x": np.float32([1, 2])})[0].tolist() == [2, 4]


@pytest.mark.parametrize("dim", [0, -1])
def test_a_bogus_dimension_of_an_input_may_vary(dim: int) -> None:
    proto = tiny.proto(SMALL)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = dim
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    made = graph.canonical(graph.load(proto))
    assert not isinstance(made.graph.inputs[0].shape[0], int)
    assert made.graph.inputs[0].shape[1] == 4
    assert tiny.run(made, {"x": np.ones((3, 4), np.float32)})[0].shape == (3, 4)


def test_unused_domains_and_dead_nodes_are_dropped() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1, "elsewhere" : 3]>
    g (float[2] x) => (float[2] y) { dead = Exp(x)  y = Relu(x) }"""
    made = tiny.model(text)
    assert set(made.opset_imports) == {""} and tiny.operators(made) == ["Relu"]


def test_the_operators_may_be_imported_under_their_long_name() -> None:
    made = tiny.model('<ir_version: 9, opset_import: ["ai.onnx" : 17]>' + SMALL)  # the ONNX spec: the same as ""
    assert made.opset_imports[""] == 17


def test_nodes_are_sorted_and_every_node_has_a_name_of_its_own() -> None:
    proto = tiny.proto("g (float[2] x) => (float[2] y) { a = Relu(x)  b = Relu(a)  y = Add(a, b) }")
    nodes = list(proto.graph.node)
    nodes[0].name = nodes[1].name = "same"
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    made = graph.canonical(graph.load(proto))
    names = [n.name for n in made.graph]
    assert tiny.operators(made) == ["Relu", "Relu", "Add"]
    assert all(names) and len(set(names)) == 3


def test_canonical_leaves_its_argument_alone_and_is_idempotent() -> None:
    text = "g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> ()  y = Mul(x, c) }"
    source = graph.load(tiny.proto(text))
    before = tiny.frozen(source)
    once = graph.canonical(source)
    assert tiny.frozen(source) == before
    assert tiny.frozen(graph.canonical(once)) == tiny.frozen(once)


def test_an_input_that_is_no_tensor_of_numbers_is_refused() -> None:
    proto = tiny.proto("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    with pytest.raises(ModelError, match="input 'x'"):
        graph.canonical(graph.load(proto))


@pytest.mark.parametrize("source", [b"", b"nonsense", onnx.ModelProto()])
def test_what_is_no_model_is_refused(source: bytes | onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="the model in memory"):
        graph.load(source)


# opset and types


@pytest.mark.parametrize("opset", [9, 11])
def test_an_old_opset_is_raised_with_the_same_outputs(opset: int) -> None:
    text = f"""<ir_version: 7, opset_import: ["" : {opset}]>
    g (float[1,3,8,8] x) => (float[1,5] y, float[1,4,1,1] p) {{
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        n = BatchNormalization (c, s, o, m, v)
        r = Relu(n)
        q = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
        p = GlobalAveragePool(q)
        f = Flatten(p)
        g2 = Gemm (f, dense)
        u = Unsqueeze <axes = [0]> (g2)
        z = Squeeze <axes = [0]> (u)
        y = Softmax(z)
    }}"""
    if opset < 11:
        text = text.replace("Gemm (f, dense)", "Gemm (f, dense, bias)")
    rng = np.random.default_rng(opset)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "dense": rng.standard_normal((4, 5)),
        "b": rng.standard_normal(4),
    }
    weights |= {"s": rng.uniform(0.5, 1, 4), "o": rng.standard_normal(4), "m": rng.standard_normal(4)}
    weights |= {"v": rng.uniform(0.5, 1, 4), **({"bias": rng.standard_normal(5)} if opset < 11 else {})}
    proto = tiny.proto(text, **{k: a.astype(np.float32) for k, a in weights.items()})
    made = graph.raise_opset(graph.canonical(graph.load(proto)), 13)
    assert made.opset_imports[""] == 13
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    feed = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    for y, r in zip(tiny.run(made, feed, level="all"), raw_run(proto, feed), strict=True):
        np.testing.assert_allclose(y, r, rtol=1e-5, atol=1e-6)  # the same float32 operators, perhaps fused otherwise


def test_a_new_opset_is_left_as_it_is() -> None:
    made = tiny.model(SMALL)
    assert graph.raise_opset(made, 13) is made


def test_an_operator_that_cannot_be_raised_is_named() -> None:
    text = """<ir_version: 7, opset_import: ["" : 9]>
    g (float[1,1,2,2] x) => (float[1,1,4,4] y) { y = Upsample(x, s) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 1, 2, 2]), "s"))
    made = graph.canonical(graph.load(proto))
    try:
        raised = graph.raise_opset(made, 13)
    except ModelError as e:
        assert "opset 9" in str(e) and "13" in str(e)
    else:  # a converter that knows Upsample must give its numbers
        x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
        assert np.array_equal(tiny.run(raised, {"x": x})[0], x.repeat(2, 2).repeat(2, 3))


def test_typed_gives_every_value_an_element_type() -> None:
    made = graph.typed(dense())
    assert {v.dtype for n in made.graph for v in n.outputs} == {ir.DataType.FLOAT}


def test_typed_says_where_the_inference_fails() -> None:
    proto = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + DENSE)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 64), np.float32), "w"))
    with pytest.raises(ModelError, match="MatMul"):
        graph.typed(graph.canonical(graph.load(proto)))


# sizes and saving


def test_sizes_are_those_of_the_initializers() -> None:
    text = "g (float[N,4] x) => (float[N,2] y) { y = Gemm(x, w, b) }"
    made = tiny.model(text, w=np.ones((4, 2), np.float32), b=np.ones(2, np.float32))
    assert graph.size_bytes(made) == 40 and graph.bytes_by_dtype(made) == {"float": 40}


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert graph.write(dense(), path) == [path]
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert tiny.frozen(graph.load(path)) == tiny.frozen(dense())


def test_a_lean_file_has_no_shapes_that_inference_finds_and_no_notes_of_exporters(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N,4] x) => (float[N,4] y) {
        a = Relu(x)  b = com.microsoft.Gelu(a)  k = ReduceMax<keepdims = 0>(b)  t = Cast<to = 9>(k)
        y = If (t) <then_branch = p () => (z) { m = Neg(b) z = Neg(m) }, else_branch = q () => (v) { v = Relu(b) }> }"""
    made = graph.load(onnx.parser.parse_model(text))
    for node in made.graph.all_nodes():
        node.doc_string, node.metadata_props["stack_trace"] = "as exported", "File model.py, line 3" * 10
        for v in node.outputs:
            v.type = ir.TensorType(ir.DataType.BOOL if v.name == "t" else ir.DataType.FLOAT)
            v.shape = ir.Shape([] if v.name in ("k", "t") else ["N", 4])
    made.metadata_props["author"] = "me"
    whole, lean = tmp_path / "whole.onnx", tmp_path / "lean.onnx"
    graph.write(made, whole)
    graph.write(made, lean, lean=True)
    assert lean.stat().st_size < whole.stat().st_size / 3
    proto = onnx.load(lean)
    assert [v.name for v in proto.graph.value_info] == ["b"]  # of a contrib operator, which the standard does not infer
    nodes = list(graph.load(lean).graph.all_nodes())
    assert not any(n.doc_string or n.metadata_props for n in nodes) and len(nodes) == 8
    assert proto.metadata_props[0].value == "me"
    feed = tiny.feeds(1, x=(2, 4))[0]
    assert np.array_equal(tiny.run(graph.load(lean), feed)[0], tiny.run(graph.load(whole), feed)[0])


def test_a_lean_file_keeps_fixed_sizes_that_are_computed_in_the_graph(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[2,8] x, int64[2] size) => (float[M,N] y)
        <float[4,4] b, float[4,4] c, float[P,Q] d, float[4,4] e, float[4,4] w = {1,2,3,4,5,6,7,8,9,1,1,2,3,4,5,6}>
        { b = Reshape(x, size)  c = Relu(b)  d = Neg(b)  e = Neg(w)  f = Add(c, e)  y = Neg(f) }"""
    model = graph.load(onnx.parser.parse_model(text))
    assert model.graph.initializers["w"].shape == (4, 4)  # which is written as that of a value too
    graph.write(model, tmp_path / "m.onnx", lean=True)
    info = {v.name: v.type.tensor_type.shape.dim for v in onnx.load(tmp_path / "m.onnx").graph.value_info}
    assert {name: [d.dim_value for d in dims] for name, dims in info.items()} == {"b": [4, 4], "c": [4, 4]}


def test_a_large_model_has_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = dense(), tmp_path / "m.onnx"
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    (expected,) = tiny.run(made, {"x": x})
    monkeypatch.setattr("edgeopt.graph.facts.PROTOBUF_LIMIT", 1000)
    assert graph.write(made, path) == [tmp_path / "m.onnx.data", path]
    assert path.stat().st_size < 2000 and (tmp_path / "m.onnx.data").stat().st_size >= 64 * 64 * 4
    onnx.checker.check_model(str(path))
    assert np.array_equal(open_session(path, level="none").run({"x": x})[0], expected)
    assert tiny.frozen(graph.load(path)) == tiny.frozen(dense())


def test_a_large_model_in_memory_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = dense(), np.ones((1, 64), np.float32)
    (expected,) = tiny.run(made, {"x": x})
    monkeypatch.setattr("edgeopt.graph.facts.PROTOBUF_LIMIT", 1000)
    assert np.array_equal(tiny.run(made, {"x": x})[0], expected)


def mapped(tmp_path: Path) -> Path:
    """A model file whose weights lie in a data file."""
    path = tmp_path / "mapped.onnx"
    onnx.save(ir.to_proto(dense()), path, save_as_external_data=True, location="mapped.bin", size_threshold=0)
    return path


def test_mapped_weights_stay_mapped_and_run(tmp_path: Path) -> None:
    made = graph.canonical(graph.load(mapped(tmp_path)))
    assert isinstance(made.graph.initializers["w"].const_value, ir.ExternalTensor)
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    assert np.array_equal(tiny.run(made, {"x": x})[0], tiny.run(dense(), {"x": x})[0])


@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_a_mapped_model_round_trips_over_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = mapped(tmp_path)
    source = graph.load(path)
    monkeypatch.setattr("edgeopt.graph.facts.PROTOBUF_LIMIT", limit)
    with staged(path) as stage:
        graph.write(source, stage / path.name)
    assert np.array_equal(tiny.weights_of(graph.load(path))["w"], tiny.weights_of(dense())["w"])
    x = np.ones((1, 64), np.float32)
    assert np.array_equal(open_session(path, level="none").run({"x": x})[0], tiny.run(dense(), {"x": x})[0])


def test_embedded_pulls_the_weights_in_and_leaves_the_argument_mapped(tmp_path: Path) -> None:
    made = graph.load(mapped(tmp_path))
    whole = embedded(made)
    assert not isinstance(whole.graph.initializers["w"].const_value, ir.ExternalTensor)
    (tmp_path / "mapped.bin").unlink()
    assert np.array_equal(tiny.weights_of(whole)["w"], tiny.weights_of(dense())["w"])
    assert isinstance(made.graph.initializers["w"].const_value, ir.ExternalTensor)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "in").mkdir()
    path = mapped(tmp_path / "in")
    (tmp_path / "outside.bin").write_bytes((tmp_path / "in" / "mapped.bin").read_bytes())
    proto = onnx.load(path, load_external_data=False)
    entry = next(e for e in proto.graph.initializer[0].external_data if e.key == "location")
    entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"outside the model's folder|not a readable"):
        graph.load(path)


def test_missing_and_short_weights_are_refused(tmp_path: Path) -> None:
    path = mapped(tmp_path)
    data = tmp_path / "mapped.bin"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="cut short"):
        graph.load(path)
    data.unlink()
    with pytest.raises(ModelError, match="missing"):
        graph.load(path)


def test_a_stage_moves_everything_and_the_model_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moved = tmp_path / "m.onnx", []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moved.append(self.name), replace(self, to))[1])
    with staged(path) as stage:
        for name in ("m.onnx", "m.onnx.data", "a.json", "z.txt"):
            (stage / name).write_text(name)
    assert moved[-1] == "m.onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "m.onnx", "m.onnx.data", "z.txt"]
    assert path.read_text() == "m.onnx"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), ModelError("no"), OSError("disk full")])
def test_a_stage_leaves_nothing_after_an_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(UsageError if isinstance(error, OSError) else type(error)), staged(path) as stage:
        (stage / "m.onnx").write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and path.read_text() == "old"


def test_a_folder_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"), staged(tmp_path / "nowhere" / "m.onnx"):
        pytest.fail("the stage was opened")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    graph.write(dense(), tmp_path / "a.onnx")
    graph.write(dense(), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("change", [graph.typed, lambda m: graph.raise_opset(m, 18)], ids=["typed", "raised"])
def test_weights_in_a_file_of_their_own_survive_what_goes_through_onnx(change: Any, tmp_path: Path) -> None:
    w = np.arange(64, dtype=np.float32).reshape(4, 16)
    made = tiny.proto(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[N,4] x) => (float[N,16] y) { y = MatMul(x, w) }', w=w
    )
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = change(graph.canonical(graph.load(tmp_path / "m.onnx")))
    assert np.array_equal(tiny.weights_of(found)["w"], w)
    (tmp_path / "elsewhere").mkdir()
    graph.write(found, tmp_path / "elsewhere" / "m.onnx")
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(tiny.run(graph.load(tmp_path / "elsewhere" / "m.onnx"), {"x": x})[0], x @ w)


# files as people have them


def old(opset: int, ir_version: int) -> onnx.ModelProto:
    """A file in which every weight is an input too, as IR version 3 wanted it."""
    made = tiny.proto(f'<ir_version: 8, opset_import: ["" : {opset}]> {DENSE}', w=np.eye(64, dtype=np.float32) * 2)
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 64]))
    made.ir_version = ir_version
    return made


@pytest.mark.parametrize(("opset", "ir_version"), [(8, 3), (9, 3), (11, 3), (14, 3), (13, 6)])
def test_weights_that_are_inputs_too_are_weights(opset: int, ir_version: int) -> None:
    made = graph.raise_opset(graph.canonical(graph.load(old(opset, ir_version))), 17)
    assert [v.name for v in made.graph.inputs] == ["x"] and made.ir_version >= 4
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    x = np.ones((1, 64), np.float32)
    assert np.array_equal(open_session(made).run({"x": x})[0], 2 * x)


def test_a_file_without_an_ir_version_gets_the_one_of_its_operators() -> None:
    made = tiny.proto(SMALL)
    made.ClearField("ir_version")
    result = ir.to_proto(graph.canonical(graph.load(made)))
    assert result.ir_version == 8
    onnx.checker.check_model(result, full_check=True)


def gained() -> onnx.ModelProto:
    """y = gain * (x w), in which `gain` is an input with the default 3."""
    made = tiny.proto(
        "g (float[N,8] x, float gain) => (float[N,8] y) { h = MatMul(x, w)  y = Mul(h, gain) }",
        w=np.eye(8, dtype=np.float32),
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3), "gain"))
    return made


def test_an_input_with_a_default_stays_one_through_every_pass(tmp_path: Path) -> None:
    made = graph.canonical(graph.load(gained()))
    assert [v.name for v in made.graph.inputs] == ["x", "gain"] and "gain" not in made.graph.initializers
    x = np.ones((1, 8), np.float32)
    for result in (made, simplify(made), graph.raise_opset(made, 21), graph.typed(made), graph.canonical(made)):
        graph.write(result, tmp_path / "m.onnx")
        session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, {"x": x})[0], 3 * x)
        assert np.array_equal(session.run(None, {"x": x, "gain": np.array(0.5, np.float32)})[0], x / 2)
        assert not any(
            p.key.startswith("edgeopt") for v in onnx.load(tmp_path / "m.onnx").graph.input for p in v.metadata_props
        )


def test_an_input_with_a_default_may_be_fed_or_left_out_when_quantized() -> None:
    feeds = tiny.feeds(24, x=(1, 8))
    for samples in (feeds, [{**f, "gain": np.array(0.1, np.float32)} for f in feeds]):
        made = edgeopt.quantize(gained(), samples, mode="dynamic", measure=False)
        assert "inputs with a default stay inputs: gain" in made.report.notes
        x = np.ones((1, 8), np.float32)
        assert np.allclose(open_session(made.model).run({"x": x})[0], 3 * x, atol=0.05)
        assert np.allclose(open_session(made.model).run({"x": x, "gain": np.array(1, np.float32)})[0], x, atol=0.05)


def test_functions_that_double_are_refused_before_they_are_inlined() -> None:
    domain = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my", 1)]

    def body(i: int) -> list[onnx.NodeProto]:
        if i == 40:
            return [onnx.helper.make_node("Relu", ["a"], ["b"])]
        call = f"F{i + 1}"
        return [
            onnx.helper.make_node(call, ["a"], ["t"], domain="my"),
            onnx.helper.make_node(call, ["t"], ["b"], domain="my"),
        ]

    made = tiny.proto(SMALL)
    made.graph.node[0].CopyFrom(onnx.helper.make_node("F0", ["x"], ["y"], domain="my"))
    made.opset_import.append(domain[1])
    made.functions.extend(onnx.helper.make_function("my", f"F{i}", ["a"], ["b"], body(i), domain) for i in range(41))
    with pytest.raises(ModelError, match=f"its functions make {2**40} nodes"):
        graph.canonical(graph.load(made))


def test_inspect_gives_a_loop_that_fills_the_memory_up() -> None:
    text = """g (float[1,4096] x) => (float[1,4096] y, float[K,1,4096] s) {
        y, s = Loop (n, , x) <body = b (int64 i, bool c, float[1,4096] a) =>
            (bool d, float[1,4096] e, float[1,4096] f) { d = Identity(c)  e = Relu(a)  f = Identity(a) }>
    }"""
    found = edgeopt.inspect(tiny.proto(text, n=np.int64(10**7)).SerializeToString())
    assert found.macs is None and "does not run" in found.why


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(64), "a picture"),
        ("net.py", b"import torch\n", r"a \.py file"),
        ("net.pt", b"PK\x03\x04" + bytes(64), "edgeopt export"),
        ("old.pt", b"\x80\x02}q\x00" + bytes(64), "a pickle .* edgeopt export"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
        ("m.ort", b"\x1c\0\0\0ORTM" + bytes(64), r"an \.ort file"),
        ("m.onnx", b"", "an empty file"),
    ],
)
def test_what_is_certainly_no_model_is_called_what_it_is(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=told):
        graph.load(tmp_path / name)


def test_a_misspelt_model_and_a_folder_are_answered_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.proto(SMALL).SerializeToString())
    with pytest.raises(ModelError, match=r"no such file; did you mean 'model\.onnx'\?"):
        graph.load(tmp_path / "modle.onnx")
    with pytest.raises(ModelError, match=r"a folder; name a model in it: model\.onnx"):
        graph.load(tmp_path)


def test_weights_are_weights_though_only_some_are_listed_as_inputs() -> None:
    text = "g (float[1,4] x, float[4,4] w, float k) => (float[1,4] y) { h = Gemm(x, w, b)  y = Mul(h, k) }"
    made = graph.canonical(graph.load(tiny.proto(text, w=np.eye(4, dtype="f"), b=np.ones(4, "f"), k=np.float32(2))))
    assert [v.name for v in made.graph.inputs] == ["x", "k"] and set(made.graph.initializers) == {"w", "b"}


def test_an_input_with_a_default_is_no_place_for_a_label() -> None:
    rows = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    options = {"mode": "dynamic", "measure": False}
    plain = edgeopt.quantize(gained(), rows, **options).report.outputs
    labelled = edgeopt.quantize(gained(), [(r[None], np.int64(7)) for r in rows], **options).report.outputs
    assert plain[0].sqnr_db == pytest.approx(labelled[0].sqnr_db, abs=3)


def test_a_default_is_in_what_a_result_gives_and_has_the_type_of_its_input(tmp_path: Path) -> None:
    feeds = tiny.feeds(24, x=(1, 8))
    made = edgeopt.quantize(gained(), feeds, mode="fp16", io_types="fp16", measure=False, output=tmp_path / "h.onnx")
    for source in (made.proto.SerializeToString(), str(tmp_path / "h.onnx")):
        session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"x": np.ones((1, 8), np.float16)})[0], 3)


def test_names_that_are_no_text_are_refused() -> None:
    content = tiny.proto(SMALL).SerializeToString().replace(b"Relu", b"Re\xfeu")
    with pytest.raises(ModelError, match=r"no UTF-8|not a readable ONNX model"):
        graph.load(content)


def test_a_bias_with_a_default_stays_an_input_though_it_is_fused() -> None:
    text = """g (float[1,64] x, float[64] b) => (float[1,8] y) {
        h = MatMul(x, w)  k = Add(h, b)  r = Relu(k)  y = MatMul(r, v) }"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 64)), "v": rng.standard_normal((64, 8)), "b": rng.standard_normal(64)}
    made = tiny.proto(text, **{k: v.astype(np.float32) for k, v in weights.items()})
    for mode in ("weights", "fp16", "dynamic"):
        result = edgeopt.quantize(made, tiny.feeds(24, x=(1, 64)), mode=mode, measure=False)
        assert [v.name for v in result.model.graph.inputs] == ["x", "b"]
        zero = {"x": np.ones((1, 64), np.float32), "b": np.zeros(64, np.float32)}
        plain = open_session(graph.canonical(graph.load(made))).run(zero)[0]
        assert tiny.sqnr_db(plain, open_session(result.model).run(zero)[0]) > 20
