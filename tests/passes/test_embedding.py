"""Embedding tables in int8: within half a step of each row, and gathered before they are widened."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.passes.embedding import quantize_embeddings
from tests import tiny

RNG = np.random.default_rng(0)
TABLE = (RNG.standard_normal((1024, 64)) * np.geomspace(0.01, 10, 1024)[:, None]).astype(np.float32)
TABLE[7] = 0
TEXT = "g (int64[N,5] ids) => (float[N,5,64] y) { [look] y = Gather(t, ids) }"
IDS = {"ids": np.array([[0, 7, 1023, 512, -1], [3, 3, 3, 9, 1]])}


def test_every_row_is_within_half_a_step_of_its_own_scale() -> None:
    model = tiny.model(TEXT, t=TABLE)
    before = tiny.frozen(model)
    result = quantize_embeddings(model)
    assert tiny.frozen(model) == before
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    rows = TABLE[IDS["ids"]]
    step = np.abs(rows).max(-1, keepdims=True) / 127
    for level in ("none", "all"):
        (y,) = tiny.run(result, IDS, level=level)
        assert (np.abs(y - rows) <= step * 0.5001).all()  # and float32 rounding
    assert {a.dtype for a in tiny.weights_of(result).values() if a.size > 1024} == {np.dtype(np.int8)}


def test_a_second_time_changes_nothing() -> None:
    once = quantize_embeddings(tiny.model(TEXT, t=TABLE))
    assert tiny.frozen(quantize_embeddings(once)) == tiny.frozen(once)


@pytest.mark.parametrize(
    ("text", "table", "only"),
    [
        (TEXT, TABLE[:480], None),
        (TEXT, TABLE, frozenset({"another"})),
        ("g (int64[5] ids) => (float[1024,5] y) { [look] y = Gather <axis = 1> (t, ids) }", TABLE, None),
    ],
    ids=["small", "not asked for", "columns"],
)
def test_a_table_that_does_not_pay_stays(text: str, table: np.ndarray, only: frozenset[str] | None) -> None:
    model = tiny.model(text, t=table.copy())
    assert tiny.frozen(quantize_embeddings(model, only)) == tiny.frozen(model)


def test_a_table_that_a_product_reads_too_serves_both() -> None:
    text = "g (int64[5] ids) => (float[5,1024] y) { e = Gather(t, ids)  y = Gemm <transB = 1> (e, t) }"
    model = tiny.model(text, t=TABLE)
    result = quantize_embeddings(model)
    feed = {"ids": IDS["ids"][0]}
    assert tiny.sqnr_db(tiny.run(model, feed)[0], tiny.run(result, feed)[0]) >= 38


def test_two_readers_share_one_table() -> None:
    text = "g (int64[5] a, int64[5] b) => (float[5,64] y) { p = Gather(t, a)  q = Gather(t, b)  y = Add(p, q) }"
    result = quantize_embeddings(tiny.model(text, t=TABLE))
    assert sum(a.dtype == np.int8 for a in tiny.weights_of(result).values()) == 1
    feed = {"a": IDS["ids"][0], "b": IDS["ids"][1]}
    expected = TABLE[feed["a"]] + TABLE[feed["b"]]
    assert tiny.sqnr_db(expected, tiny.run(result, feed)[0]) >= 38
