"""Matrices that are one and the same are stored once, and what computes with them stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.passes.tie import of_tables, tied
from edgeopt.runtime.basic import basic
from edgeopt.runtime.kernels import kernels
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

HEADS = {
    "transposed": "t = Transpose <perm = [1,0]> (table)  y = MatMul(r, t)",
    "through an identity": "i = Identity(table)  t = Transpose <perm = [1,0]> (i)  y = MatMul(r, t)",
    "as it is": "f = Reshape(r, flat)  y = Gemm <transB = 1> (f, table)",
}
ROWS, WIDTH = 1000, 96
FEEDS = [{"ids": np.random.default_rng(i).integers(0, ROWS, (1, 7))} for i in range(24)]


def language_model(head: str) -> ir.Model:
    """Rows of a table, a layer, and the table once more as the last layer."""
    shape = "M,1000" if "Gemm" in head else "1,L,1000"
    text = (
        f"g (int64[1,L] ids) => (float[{shape}] y) {{ e = Gather(table, ids)  h = MatMul(e, w)  r = Tanh(h)  {head} }}"
    )
    flat = {"flat": np.int64([-1, WIDTH])} if "flat" in head else {}
    return tiny.model(text, table=normal(ROWS, WIDTH), w=normal(WIDTH, WIDTH, seed=1) / 10, **flat)


def bytes_of(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_table_that_folding_doubled_is_stored_once_and_gives_the_same(head: str, tmp_path: Path) -> None:
    model = language_model(head)
    folded = basic(model)
    before = tiny.frozen(folded)
    found = tied(folded)
    assert tiny.frozen(folded) == before
    assert bytes_of(found) <= bytes_of(model) + 100 < 2 * ROWS * WIDTH * 4
    for feed in FEEDS[:3]:
        np.testing.assert_array_equal(tiny.run(found, feed)[0], tiny.run(folded, feed)[0])
    open_session(found, optimized=tmp_path / "o.onnx")
    assert "Transpose" not in {n.op_type for n in ir.load(tmp_path / "o.onnx").graph}  # it is folded again


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    ("mode", "smaller"), [("static", 3.4), ("dynamic", 3.4), ("weights", 3.6), ("fp16", 1.9)], ids=lambda x: str(x)
)
def test_a_tied_table_is_stored_once_in_every_mode(head: str, mode: str, smaller: float, tmp_path: Path) -> None:
    model = language_model(head)
    include = {"include": ("MatMul", "Gemm")} if mode == "static" else {}
    include = {"include": ("MatMul",)} if mode == "static" and "Gemm" not in head else include
    report = edgeopt.quantize(
        model, FEEDS, mode=mode, target="cpu-x86-vnni", measure=False, output=tmp_path / "q.onnx", **include
    ).report
    assert report.input_bytes / report.output_bytes > smaller and report.worst_sqnr_db > 30
    if mode == "static":
        open_session(tmp_path / "q.onnx", optimized=tmp_path / "o.onnx")
        assert sum(kernels(tmp_path / "o.onnx").integer.values()) == 2


def test_matrices_that_only_look_alike_stay_apart() -> None:
    w = normal(64, 64)
    other = w.copy()
    other[0, 1] += 1  # beside the diagonal
    model = tiny.model("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w)  y = MatMul(a, v) }", w=w, v=other)
    assert tiny.frozen(tied(model)) == tiny.frozen(model)
    assert of_tables(model) == frozenset()


def test_what_equals_a_table_is_known_in_either_direction() -> None:
    assert of_tables(basic(language_model(HEADS["transposed"]))) >= {"table"}
    assert len(of_tables(basic(language_model(HEADS["transposed"])))) == 2
    assert of_tables(language_model(HEADS["as it is"])) == {"table"}
