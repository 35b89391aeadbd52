"""How good a variant is: every figure against a naive computation, and labels by the folders of the samples."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from edgeopt import graph
from edgeopt.errors import DataError, EdgeoptError
from edgeopt.listener import Listener
from edgeopt.release.build.actions import Context, run_step
from edgeopt.release.build.evaluate import Jury, answers, evaluate, jury
from edgeopt.release.document import Layer
from edgeopt.release.project.file import Project
from edgeopt.runtime.session import open_session, run_all, with_outputs
from tests import models, tiny
from tests.models import normal

TEXT = "g (float[N,4] x) => (float[N,6] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"
Judge = Callable[..., tuple[Jury, Context]]


def network(seed: int = 0, text: str = TEXT) -> ModelProto:
    """x [N,4] -> h, r [N,8] -> y [N,6]."""
    return typed(tiny.proto(text, a=normal(4, 8, seed=seed), b=normal(8, 6, seed=seed + 1)))


def typed(model: ModelProto) -> ModelProto:
    """With the types of inner values said, as exporters do."""
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """`judge(model, samples)` is the jury of a project in the folder; more: tables of the project."""

    def call(model: ModelProto | bytes, samples: np.ndarray | None = None, **more: Any) -> tuple[Jury, Context]:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (tmp_path / "model.onnx").write_bytes(data)
        if samples is not None:
            np.save(tmp_path / "x.npy", samples)
        first = {"model": "model.onnx", "data": {"path": "x.npy"}, "variants": {"a": {"steps": [{"step": "fp16"}]}}}
        project = Project.model_validate(first | more)
        context = Context(tmp_path, tmp_path / "model.onnx", str(tmp_path / project.data.path), project, Listener())
        return jury(context), context

    return call


def made(step: int, context: Context, folder: Path) -> Path:
    """The file that a step of the variant a makes of the model."""
    output = folder / "a.onnx"
    run_step(context.project.variants["a"].steps[step], context.model, output, context)
    return output


def figures(j: Jury, path: Path) -> tuple[Mapping[str, float], Sequence[Layer]]:
    """Metrics and layers."""
    found = evaluate(j, path)
    return found.metrics, found.layers


def values(path: Path, names: list[str], feed: Any) -> list[np.ndarray]:
    return open_session(with_outputs(graph.canonical(graph.load(path)), names), level="none").run(feed)


def test_figures_are_those_of_the_definitions(judge: Judge, tmp_path: Path) -> None:
    j, _ = judge(network(), normal(60, 4))
    noisy = tiny.proto(TEXT, a=normal(4, 8) + 0.3 * normal(4, 8, seed=8), b=normal(8, 6, seed=1))
    onnx.save(noisy, tmp_path / "a.onnx")
    found, layers = figures(j, tmp_path / "a.onnx")
    x = np.concatenate([f["x"] for _, f in j.feeds])
    (want,), (have,) = (open_session(tmp_path / f).run({"x": x}) for f in ("model.onnx", "a.onnx"))
    assert found["quant.sqnr"] == pytest.approx(tiny.sqnr_db(want, have), abs=1e-3)
    cosine = float((want * have).sum() / np.sqrt(np.square(want).sum() * np.square(have).sum()))
    assert found["accuracy.cosine"] == pytest.approx(cosine, abs=1e-5)
    assert found["accuracy.agreement"] == pytest.approx((want.argmax(-1) == have.argmax(-1)).mean())
    assert 0.2 < found["accuracy.agreement"] < 1
    data = (tmp_path / "a.onnx").read_bytes()
    assert found["size.file"] == len(data) and found["size.download"] == len(zlib.compress(data, 6))
    assert "accuracy.top1" not in found and "accuracy.eval" not in found
    few = np.concatenate([f["x"] for _, f in j.feeds[:4]])
    inner = {
        n: tiny.sqnr_db(
            *(
                v[0]
                for v in (
                    values(tmp_path / "model.onnx", [n], {"x": few}),
                    values(tmp_path / "a.onnx", [n], {"x": few}),
                )
            )
        )
        for n in ("h", "r")
    }
    assert {x.name: pytest.approx(x.sqnr_db, abs=1e-3) for x in layers} == inner
    assert found["quant.min_layer_sqnr"] == layers[0].sqnr_db == min(x.sqnr_db for x in layers)


def test_outputs_are_close_by_what_each_of_them_is_and_the_figures_that_are_not_are_named(
    judge: Judge, tmp_path: Path
) -> None:
    j, context = judge(network(), normal(60, 4))
    assert evaluate(j, context.model).far == () and evaluate(j, context.model).metrics["accuracy.close"] == 1
    onnx.save(tiny.proto(TEXT, a=normal(4, 8, seed=8), b=normal(8, 6, seed=1)), tmp_path / "a.onnx")
    found = evaluate(j, tmp_path / "a.onnx")
    assert found.metrics["accuracy.close"] == 0
    assert found.far and all(text.startswith("output y: ") and "(bar " in text for text in found.far)


def test_what_comes_out_after_states_were_fed_back_counts_too(judge: Judge, tmp_path: Path) -> None:
    text = """g (float[1,64] x, float[1,64] s) => (float[1,64] y, float[1,64] t) {
        m = Mul(s, k)  t = Add(m, x)  y = Mul(t, two) }"""
    two = np.full(64, 2, np.float32)
    (tmp_path / "feeds").mkdir()
    for i in range(30):
        np.savez(tmp_path / "feeds" / f"{i}.npz", x=normal(1, 64, seed=i), s=normal(1, 64, seed=i + 99) / 4)
    j, context = judge(tiny.proto(text, k=np.full(64, 0.9, np.float32), two=two), data={"path": "feeds"})
    assert evaluate(j, context.model).metrics["accuracy.close"] == 1
    k = np.float32([0.65, 1.15] * 32)  # a half of it grows at every step, and the other one dies away
    onnx.save(tiny.proto(text, k=k, two=two), tmp_path / "a.onnx")
    found = evaluate(j, tmp_path / "a.onnx")
    assert found.metrics["accuracy.close"] < 1 and all("after 20 steps" in t for t in found.far)


def test_the_same_file_has_no_error_at_all(judge: Judge, tmp_path: Path) -> None:
    j, context = judge(network(), normal(40, 4))
    found, layers = figures(j, context.model)
    assert (
        found["quant.sqnr"] == 200.0
        and found["accuracy.agreement"] == 1.0
        and found["accuracy.cosine"] == pytest.approx(1)
    )
    assert {x.sqnr_db for x in layers} == {200.0}


def test_a_model_that_does_not_say_the_types_of_inner_values_has_layers_all_the_same(judge: Judge) -> None:
    j, context = judge(tiny.proto(TEXT, a=normal(4, 8), b=normal(8, 6)), normal(40, 4))
    assert {x.name for x in evaluate(j, context.model).layers} == {"h", "r"}


STEPS = {
    "fp16": {"step": "fp16"},
    "fp16 inputs": {"step": "fp16", "io_types": "fp16"},
    "weights": {"step": "weights"},
    "int8": {"step": "quantize", "mode": "static", "include": ("MatMul",)},
}


@pytest.mark.parametrize("name", list(STEPS))
def test_layers_of_every_kind_of_variant_come_worst_first_with_values_of_the_worst(
    name: str, judge: Judge, tmp_path: Path
) -> None:
    model = typed(tiny.proto(TEXT.replace("[N,6]", "[N,128]"), a=normal(4, 128), b=normal(128, 128, seed=1)))
    j, context = judge(model, normal(60, 4), variants={"a": {"steps": [STEPS[name]]}})
    path = made(0, context, tmp_path)
    found, layers = figures(j, path)
    assert layers
    assert 15 < found["quant.sqnr"] < 200
    db = [x.sqnr_db for x in layers]
    assert db == sorted(db)
    for i, x in enumerate(layers):
        assert (x.histogram is not None) == (i < 6)
        if x.histogram is not None:
            inner = values(context.model, [x.name], {"x": np.concatenate([f["x"] for _, f in j.feeds[:4]])})[0]
            assert sum(x.histogram.counts) == inner.size
            assert (x.histogram.edges[0], x.histogram.edges[-1]) == pytest.approx((inner.min(), inner.max()), rel=1e-5)
    if name == "int8":
        assert any(x.histogram is not None and x.histogram.clip is not None for x in layers)


def test_a_metric_of_the_users_own_runs_on_a_variant_with_fp16_inputs(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metric_fp16.py").write_text(
        "import numpy as np\ndef f(run):\n    return float(run({'x': np.ones((1, 4), np.float32)})[0][0, 0])\n"
    )
    j, context = judge(
        network(),
        normal(40, 4),
        accuracy={"eval": "own_metric_fp16:f"},
        variants={"a": {"steps": [STEPS["fp16 inputs"]]}},
    )
    found, _ = figures(j, made(0, context, tmp_path))
    (want,) = open_session(context.model).run({"x": np.ones((1, 4), np.float32)})
    assert found["accuracy.eval"] == pytest.approx(want[0, 0], rel=0.01, abs=0.01)


def test_an_output_of_another_shape_is_refused(judge: Judge, tmp_path: Path) -> None:
    j, _ = judge(network(), normal(40, 4))
    text = TEXT.replace("float[N,6] y", "float[N,8] y").replace("y = MatMul(r, b)", "y = Relu(r)")
    onnx.save(network(text=text), tmp_path / "a.onnx")
    with pytest.raises(EdgeoptError, match="output 'y' has shape"):
        evaluate(j, tmp_path / "a.onnx")


# labels


def sorted_into(folder: Path, names: list[str], each: int = 6) -> None:
    for i, name in enumerate(names):
        models.pictures(folder / name, each, size=(8, 8))
        for file in (folder / name).iterdir():
            file.rename(file.with_name(f"{i}_{file.name}"))


LABELLED = {"data": {"path": "images", "preprocess": "unit"}, "accuracy": {"labels": True}}


@pytest.mark.parametrize(
    "names", [["0", "1", "2", "3"], ["cat", "dog", "eel", "fox"], ["03", "00", "02", "01"], ["3", "1"]], ids=str
)
def test_scores_are_those_of_a_count_by_hand(names: list[str], judge: Judge, tmp_path: Path) -> None:
    sorted_into(tmp_path / "images", names, 10)
    j, context = judge(models.convolution(), **LABELLED)
    found, _ = figures(j, context.model)
    known = {n: int(n) if n.isdecimal() else sorted(names).index(n) for n in names}
    want = [known[Path(name).parent.name] for name, _ in j.feeds]
    rows = [y[0][0] for y in run_all(open_session(context.model), list(j.feeds))]
    assert found["accuracy.top1"] == pytest.approx(
        np.mean([row.argmax() == w for row, w in zip(rows, want, strict=True)])
    )
    assert found["accuracy.top5"] == 1.0 and len(rows) > 2


@pytest.mark.parametrize(
    ("names", "says"), [(["cat", "dog"], "2 folders"), (["0", "4"], "folder 4 of 4")], ids=str
)  # fmt: skip
def test_folders_that_are_no_classes_are_refused_in_words(
    names: list[str], says: str, judge: Judge, tmp_path: Path
) -> None:
    sorted_into(tmp_path / "images", names, 10)
    with pytest.raises(DataError, match=rf"accuracy\.labels: {says}"):
        judge(models.convolution(), **LABELLED)


def test_a_class_that_no_judged_sample_has_is_counted_all_the_same(judge: Judge, tmp_path: Path) -> None:
    sorted_into(tmp_path / "images", ["cat", "dog", "eel"], 20)
    sorted_into(tmp_path / "images", ["fox"], 1)
    j, _ = judge(models.convolution(), **LABELLED)
    known = ["cat", "dog", "eel", "fox"]
    assert j.labels == [known.index(Path(name).parent.name) for name, _ in j.feeds]


SHAPES = {
    "samples without folders": TEXT,
    "a number": (
        "g (float[N,4] x) => (float y) { h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = ReduceSum <keepdims = 0>"
        " (z) }"
    ),
    "no scores": (
        "g (float[N,4] x) => (float[N] y) { h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = ReduceSum <keepdims ="
        " 0> (z, one) }"
    ),
}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_labels_of_what_has_no_classes_are_refused_in_words(kind: str, judge: Judge, tmp_path: Path) -> None:
    weights = {"a": normal(4, 8), "b": normal(8, 6)} | ({"one": np.array([1])} if kind == "no scores" else {})
    with pytest.raises(DataError, match=r"accuracy\.labels"):
        j, context = judge(tiny.proto(SHAPES[kind], **weights), normal(40, 4), accuracy={"labels": True})
        evaluate(j, context.model)


def test_a_model_that_classifies_every_place_of_a_sequence_has_no_one_class_for_a_folder(
    judge: Judge, tmp_path: Path
) -> None:
    text = (
        "g (float[N,3,8,8] x) => (float[N,8,4] y) { m = ReduceMean <axes = [1], keepdims = 0> (x)  z = MatMul(m, w)  y"
        " = Softmax <axis = -1> (z) }"
    )
    sorted_into(tmp_path / "images", ["0", "1", "2", "3"], 10)
    with pytest.raises(DataError, match=r"accuracy\.labels"):
        j, context = judge(tiny.proto(text, w=normal(8, 4)), **LABELLED)
        evaluate(j, context.model)


# answers


def test_answers_are_the_same_twice_and_tell_shape_and_first_values(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    first = answers(tmp_path / "m.onnx")
    assert first == answers(tmp_path / "m.onnx")
    assert [(a["output"], a["shape"], len(a["first"])) for a in first] == [("y", [1, 6], 6)]


def test_a_dimension_of_minus_one_is_free(tmp_path: Path) -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1  # as Paddle exports batches
    onnx.save(model, tmp_path / "m.onnx")
    assert [a["shape"] for a in answers(tmp_path / "m.onnx")] == [[1, 6]]


def test_the_opset_is_that_of_the_file(judge: Judge) -> None:
    j, context = judge(network(), normal(40, 4))
    assert evaluate(j, context.model).opset == 17


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (bool[N,4] y) { z = Neg(x)  y = Greater(x, z) }",
        "g (float[N,4] x) => (string[N,4] y) { y = Cast <to = 8> (x) }",
        "g (float[N,4] x) => (seq(float[N,2]) y) { y = SplitToSequence <axis = 1> (x) }",
        "g (float[N,4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }",
        "g (float[N,4] x) => (float[M,4] y) { o = Constant <value = int64[1] {0}> ()  y = Slice(x, o, o, o) }",
    ],
    ids=["bool", "string", "sequence", "number", "empty"],
)
def test_outputs_of_any_type_are_told_or_left_out(text: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]>{text}'), tmp_path / "m.onnx")
    for answer in answers(tmp_path / "m.onnx"):
        assert all(isinstance(x, float) for x in answer["first"])


def test_the_file_is_read_a_few_times_and_not_once_a_sample(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    j, context = judge(network(), normal(200, 4))
    read: list[Path] = []
    true = graph.load
    monkeypatch.setattr(graph, "load", lambda source: (read.append(source), true(source))[1])
    evaluate(j, context.model)
    assert len(j.feeds) > 10 and len(read) < 10
