"""What enters a selection stands for the outputs that it decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import ValidityError
from edgeopt.graph.selection import Selection, selection, selects
from edgeopt.runtime.session import types_of
from tests import tiny
from tests.models import normal

DETECTOR = """g (float[1,3,32,32] x) => (float[K,4] boxes, float[K] scores, float[1,8] features) {
    [stem] a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w)  r = Relu(a)
    [score] s = Conv(r, ws)  p = Sigmoid(s)  pr = Reshape(p, as_scores)
    [box] b = Conv(r, wb)  q = Sigmoid(b)  br = Reshape(q, as_boxes)  bt = Transpose <perm = [0,2,1]> (br)
    bm = Mul(bt, size)  bc = Add(bm, grid)
    [select] n = NonMaxSuppression(bc, pr, most, iou, level)
    i = Slice(n, two, three, one)  k = Squeeze(i, one)  flat = Squeeze(bc, zero)  boxes = Gather(flat, k)
    line = Squeeze(pr, both)  scores = Gather(line, k)
    pool = GlobalAveragePool(r)  features = Reshape(pool, as_features)
}"""
BOXES, SCORES = "before NonMaxSuppression: select.0", "before NonMaxSuppression: select.1"


def detector() -> ir.Model:
    """Boxes and scores of 256 places, chosen by a NonMaxSuppression, and features beside them."""
    y, x = np.divmod(np.arange(256), 16)
    corner = 2.0 * np.stack([x, y], 1)
    return tiny.model(
        DETECTOR,
        w=normal(8, 3, 3, 3) / 2,
        ws=normal(1, 8, 1, 1, seed=1),
        wb=normal(4, 8, 1, 1, seed=2) / 3,
        as_scores=np.int64([1, 1, 256]),
        as_boxes=np.int64([1, 4, 256]),
        as_features=np.int64([1, 8]),
        size=np.float32(10),
        grid=np.concatenate([corner, corner + 10], 1)[None].astype(np.float32),
        most=np.int64([60]),
        iou=np.float32([0.5]),
        level=np.float32([0.5]),
        two=np.int64([2]),
        three=np.int64([3]),
        zero=np.int64([0]),
        one=np.int64([1]),
        both=np.int64([0, 1]),
    )


def of(model: ir.Model) -> Selection | None:
    return selection(model, types_of(model))


def test_boxes_and_scores_before_the_selection_stand_for_what_it_leaves() -> None:
    found = of(detector())
    assert found is not None
    shown = found.shown(detector())
    assert [str(v.name) for v in shown.graph.outputs] == [BOXES, SCORES, "features"]
    feed = {"x": normal(1, 3, 32, 32)}
    boxes, scores, features = tiny.run(shown, feed)
    assert boxes.shape == (1, 256, 4) and scores.shape == (1, 1, 256)
    chosen, of_chosen, same = tiny.run(detector(), feed)
    assert np.array_equal(features, same)
    assert {tuple(b) for b in chosen} <= {tuple(b) for b in boxes[0]} and set(of_chosen) <= set(scores[0, 0])


NONE = {
    "no selection": "g (float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }",
    "layers follow": "g (float[N,8] x) => (float[N,4] y) { r = Relu(x)  t, i = TopK(r, k)  y = MatMul(t, v) }",
    "of an input": "g (float[N,8] x) => (float[N,3] y) { y, i = TopK(x, k) }",
    "by a shape": """g (float[N,8] x) => (float[N,4] y) {
        s = Shape(x)  f = Cast <to = 1> (s)  t, i = TopK(f, one)  m = MatMul(x, w)  y = Mul(m, t) }""",
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_a_model_without_a_selection_at_its_end_has_none(text: str) -> None:
    weights = {"w": normal(8, 4), "v": normal(3, 4), "k": np.int64([3]), "one": np.int64([1])}
    model = tiny.model(text, **{k: v for k, v in weights.items() if f", {k})" in text})
    assert of(model) is None


def test_what_compares_and_rounds_belongs_to_the_selection() -> None:
    text = """g (float[1,1,8,8] x, float[8] w) => (float[K] y, int64[M,K] i) {
        h = Sigmoid(x)  p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (h)  e = Equal(h, p)  f = Cast <to = 1> (e)
        m = Mul(h, f)  flat = Reshape(m, line)  y, t = TopK(flat, k)  n = Greater(h, level)  i = NonZero(n) }"""
    arrays = {"line": np.int64([-1]), "k": np.int64([5]), "level": np.float32(0.5)}
    found = of(tiny.model(text, **arrays))
    assert found is not None and {op for _, _, op in found.entries} <= {"Equal", "Mul", "Greater"}
    shown = graph.typed(found.shown(tiny.model(text, **arrays)))
    assert all(v.dtype == ir.DataType.FLOAT for v in shown.graph.outputs)


def test_a_form_without_the_selection_is_refused() -> None:
    found = of(detector())
    assert found is not None
    with pytest.raises(ValidityError, match="'select' with what enters the model's selections is not in the result"):
        found.shown(tiny.model("g (float[1,3,32,32] x) => (float[1,3,32,32] y) { y = Relu(x) }"))


def test_a_detector_that_ends_in_a_selection_is_quantized_and_judged_before_it() -> None:
    feeds = [{"x": normal(1, 3, 32, 32, seed=i)} for i in range(24)]
    result = edgeopt.quantize(
        detector(), feeds, mode="static", measure=False, include=("Conv",), kinds={"scores": "detections"}
    )
    report = result.report
    assert [(o.output, o.kind) for o in report.outputs][:2] == [(BOXES, "detections"), (SCORES, "detections")]
    assert report.worst_sqnr_db > 15 and report.integer_nodes
    assert {"stem", "box", "score"} <= set(report.integer_nodes)
    assert any("outputs boxes, scores are what a selection leaves" in note for note in report.notes)
    assert [v.name for v in result.model.graph.outputs] == ["boxes", "scores", "features"]


def test_a_recurrent_state_behind_a_selection_is_fed_back_and_not_cut_off() -> None:
    text = """g (float[1,64] x, float[1,64] state) => (float[1,64] y, float[1,64] new) {
        a = MatMul(x, w)  c = Tanh(a)  b = Add(c, state)  t, i = TopK(b, k)  y = Relu(b)  new = Tanh(t) }"""
    model = tiny.model(text, w=normal(64, 64) / 8, k=np.int64([64]))
    feeds = [{"x": normal(1, 64, seed=i), "state": normal(1, 64, seed=i + 100)} for i in range(20)]
    report = edgeopt.quantize(model, feeds, mode="dynamic", measure=False).report
    assert [o.output for o in report.outputs] == ["y", "new"] and [o.output for o in report.later] == ["y"]


def at_the_end(op: str) -> ir.Model:
    """The detector with a node behind its boxes that simplifying drops."""
    model = detector()
    boxes = model.graph.outputs[0]
    end = ir.Node("", op, [boxes], name="end")
    end.outputs[0].type, end.outputs[0].shape, end.outputs[0].name = boxes.type, boxes.shape, "found"
    model.graph.append(end)
    model.graph.outputs[0] = end.outputs[0]
    return model


@pytest.mark.parametrize("choices", [{"mode": "auto", "min_sqnr": 200.0}, {"mode": "static", "include": ("Conv",)}])
def test_a_node_behind_the_selection_that_is_dropped_changes_nothing(choices: dict[str, Any]) -> None:
    feeds = [{"x": normal(1, 3, 32, 32, seed=i)} for i in range(24)]
    result = edgeopt.quantize(at_the_end("Identity"), feeds, measure=False, **choices)
    assert [o.output for o in result.report.outputs] == [BOXES, SCORES, "features"]
    assert [v.name for v in result.model.graph.outputs] == ["found", "scores", "features"]


def test_a_project_of_a_detector_is_judged_before_the_selection_too(tmp_path: Path) -> None:
    ir.save(graph.typed(at_the_end("Identity")), tmp_path / "model.onnx")
    for i in range(24):
        np.savez(tmp_path / f"{i}.npz", x=normal(1, 3, 32, 32, seed=i))
    (tmp_path / "edgeopt.toml").write_text("""model = "model.onnx"
[data]
path = "."
[profile]
measure = false
[variants.int8]
steps = [{ step = "quantize", mode = "static", include = ["Conv"], costs = "table" }]
""")
    found = edgeopt.run(tmp_path / "edgeopt.toml")
    assert [v.name for v in found.variants] == ["float", "int8"]
    assert found.variants[1].metrics["accuracy.close"] == 1
    assert not (tmp_path / ".edgeopt.costs.json").exists()


def test_the_layer_whose_peaks_are_picked_stays_float() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        [first] a = Conv <pads = [1,1,1,1]> (x, w)  r = Relu(a)  [last] c = Conv <pads = [1,1,1,1]> (r, v)
        h = Sigmoid(c)  p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (h)  e = Equal(h, p)
        f = Cast <to = 1> (e)  y = Mul(h, f) }"""
    model = tiny.model(text, w=normal(4, 3, 3, 3), v=normal(4, 4, 3, 3))
    found = of(model)
    assert selects(model) and found is not None and "last" in found.nodes and "first" not in found.nodes
