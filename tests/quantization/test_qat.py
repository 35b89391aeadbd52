"""Training after quantization: nearer to float than before or not taken, and no pair of weights that saturates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.cli import main
from edgeopt.errors import UsageError
from edgeopt.ptq.grids import largest_pair, reduction_rows
from edgeopt.ptq.guard import guarded
from edgeopt.quantization.candidates import Draft

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
QAT: dict[str, Any] = {
    "mode": "static", "target": "cpu-x86-avx2", "measure": False, "samples": 32, "qat": True, "qat_epochs": 1,
}  # fmt: skip
PRODUCTS = ("Conv", "Gemm", "MatMul")


def integer_weights(model: ir.Model) -> dict[str, tuple[ir.Node, np.ndarray, int]]:
    """(the product, its integers, the axis of their scales) by name of the integers, depthwise convolutions left
    out.
    """
    found = {}
    for node in model.graph:
        dq = node.inputs[1].producer() if node.op_type in PRODUCTS and node.inputs[1] is not None else None
        q = dq.inputs[0].const_value if dq is not None and dq.inputs[0] is not None else None
        if dq is None or q is None or (node.attributes.get_int("group", 1) > 1 and q.shape[1] == 1):
            continue
        found[str(dq.inputs[0].name)] = (node, q.numpy(), dq.attributes.get_int("axis", 1) % len(q.shape))
    return found


def worst_pair(model: ir.Model) -> float:
    kept = integer_weights(model).values()
    return max(float(largest_pair(reduction_rows(q.astype(np.float32), n.op_type, a)).max()) for n, q, a in kept)


@pytest.fixture(scope="module")
def made() -> edgeopt.Result:
    return edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", **QAT)


def test_what_is_kept_is_the_nearer_of_both_and_both_are_told(made: edgeopt.Result) -> None:
    before, after, nearest = made.report.candidates
    assert "nearest" in nearest.mode and nearest.verdict == "to compare with" and nearest.worst_sqnr_db is not None
    assert (before.mode, after.mode) == ("static", "static, then QAT")
    assert before.worst_sqnr_db is not None and after.worst_sqnr_db is not None
    chance = after.verdict.endswith(", but by chance")
    nearer = before.worst_sqnr_db if chance else max(before.worst_sqnr_db, after.worst_sqnr_db)
    assert made.report.worst_sqnr_db == pytest.approx(nearer)
    not_kept = "no nearer to float than before QAT" + ", but by chance" * chance
    verdicts = {after.mode: ("before QAT", "kept"), before.mode: ("asked for", not_kept)}
    assert (before.verdict, after.verdict) == verdicts[made.report.mode]


def test_no_pair_saturates_where_the_target_sums_pairs_in_16_bits(made: edgeopt.Result) -> None:
    assert len(integer_weights(made.model)) >= 2
    assert worst_pair(made.model) <= 128


def test_weights_that_learning_moved_beyond_the_guard_come_back(made: edgeopt.Result) -> None:
    wild = made.model.clone()
    for name, (_, q, _) in integer_weights(wild).items():
        moved = np.random.default_rng(0).integers(-127, 128, q.shape, np.int8)
        wild.graph.initializers[name].const_value = ir.tensor(moved, name=name)
    before = graph.proto_bytes(wild)
    assert worst_pair(wild) > 200 and worst_pair(guarded(wild)) == 128
    assert graph.proto_bytes(wild) == before
    assert graph.proto_bytes(guarded(made.model)) == graph.proto_bytes(made.model)


def test_training_that_makes_it_worse_leaves_the_static_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", **{**QAT, "qat": False})

    def spoilt(job: Any, kept: Any) -> Any:
        model = kept.model.clone()
        for name, (_, q, _) in integer_weights(model).items():
            model.graph.initializers[name].const_value = ir.tensor(np.zeros_like(q), name=name)
        return Draft("QAT", replace(kept.state, model=model))

    monkeypatch.setattr("edgeopt.quantization.qat.trained", spoilt)
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "q.onnx", **QAT)
    assert found.report.mode == "static" and graph.proto_bytes(found.model) == graph.proto_bytes(plain.model)
    assert [c.verdict for c in found.report.candidates][1] == "no nearer to float than before QAT"
    assert [p.name for p in tmp_path.iterdir()] == ["q.onnx"]


def test_training_whose_result_fails_a_check_leaves_the_static_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(job: Any, kept: Any) -> Any:
        model = kept.model.clone()
        next(iter(model.graph)).op_type = "Nonsense"
        return Draft("QAT", replace(kept.state, model=model))

    monkeypatch.setattr("edgeopt.quantization.qat.trained", broken)
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "q.onnx", **QAT)
    assert found.report.mode == "static" and "Nonsense" in found.report.candidates[1].verdict
    edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "plain.onnx", **{**QAT, "qat": False})
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_a_result_that_is_not_static_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="qat trains a static result, not mode dynamic"):
        edgeopt.quantize(
            DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "q.onnx", **{**QAT, "mode": "dynamic"}
        )
    assert not list(tmp_path.iterdir())


def test_from_the_command_line_the_report_tells_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["quantize", str(DIGITS / "digits.onnx"), "--calib", str(DIGITS / "calib"), "-o", str(tmp_path / "q.onnx")]
    argv += ["--mode", "static", "--target", "cpu-x86-avx2", "--no-measure", "--samples", "32"]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--qat", "--qat-epochs", "1", "--report", str(tmp_path / "r.json"), "--format", "json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [c["mode"] for c in told["candidates"]] == [
        "static",
        "static, then QAT",
        "static, weights to the nearest",
    ]
    assert json.loads((tmp_path / "r.json").read_text())["candidates"] == told["candidates"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.onnx", "r.json"]
