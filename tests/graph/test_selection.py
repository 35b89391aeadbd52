"""What enters a selection stands for the outputs that it decides."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.graph.selection import before_selection
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


def detector() -> ir.Model:
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


def test_boxes_and_scores_before_the_selection_stand_for_what_it_leaves() -> None:
    found = before_selection(detector())
    names = [str(v.name) for v in found.graph.outputs]
    assert names == ["features", "before NonMaxSuppression: select.0", "before NonMaxSuppression: select.1"]
    feed = {"x": normal(1, 3, 32, 32)}
    features, boxes, scores = tiny.run(found, feed)
    assert boxes.shape == (1, 256, 4) and scores.shape == (1, 1, 256)
    chosen, of_chosen, same = tiny.run(detector(), feed)
    assert np.array_equal(features, same)
    assert {tuple(b) for b in chosen} <= {tuple(b) for b in boxes[0]} and set(of_chosen) <= set(scores[0, 0])


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }",
        "g (float[N,8] x) => (float[N,4] y) { t, i = TopK(x, k)  y = MatMul(t, v) }",  # layers follow
        "g (float[N,8] x) => (float[N,3] y) { y, i = TopK(x, k) }",  # of an input itself
    ],
)
def test_a_model_without_a_selection_at_its_end_stays_itself(text: str) -> None:
    weights = {"w": normal(8, 4), "v": normal(3, 4), "k": np.int64([3])}
    model = tiny.model(text, **{k: v for k, v in weights.items() if f", {k})" in text})
    assert before_selection(model) is model


def test_a_detector_that_ends_in_a_selection_is_quantized_and_judged_before_it() -> None:
    feeds = [{"x": normal(1, 3, 32, 32, seed=i)} for i in range(24)]
    report = edgeopt.quantize(detector(), feeds, mode="static", measure=False, include=("Conv",)).report
    assert [o.output for o in report.outputs] == [
        "features",
        "before NonMaxSuppression: select.0",
        "before NonMaxSuppression: select.1",
    ]
    assert report.worst_sqnr_db > 15 and report.integer_nodes
    assert any("outputs boxes, scores are what a selection leaves" in note for note in report.notes)
