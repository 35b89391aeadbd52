"""Files in their targets' own runtimes: OpenVINO, and Qualcomm's simulator. Skipped where `edgeopt env NAME` was not
run.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import edgeopt
from edgeopt.hardware import target
from edgeopt.runtime.environments import python_of

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"


PYTHON = {name: python_of(target.load(name)) for name in ("openvino", "qnn-htp", "qnn-htp:a16")}  # of the user's cache


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(PYTHON[name] is None, reason=f"needs edgeopt env {name}")


def made(name: str, folder: Path, by: str = "") -> edgeopt.Checked:
    """The digits model for target `by`, checked for target `name` against float."""
    file = folder / "q.onnx"
    choices = {"include": ["*"], "mode": "static"} if by else {}
    edgeopt.quantize(
        DIGITS / "digits.onnx", DIGITS / "calib", target=by or name, output=file, measure=False, dims={"batch": 1},
        **choices,
    )  # fmt: skip
    model = DIGITS / "digits.onnx"
    return edgeopt.check(file, target=name, data=DIGITS / "calib", float_model=model, python=PYTHON[name])


@needs("openvino")
def test_openvino_computes_every_quantized_layer_in_integers_and_answers_as_the_cpu_provider(tmp_path: Path) -> None:
    found = made("openvino", tmp_path)
    assert found.problems == () and found.ran is not None and found.ran.layers is not None
    assert found.ran.runtime.startswith("OpenVINO 2026") and found.ran.layers[0] >= 7
    assert found.outputs[0].sqnr_db > 20 and abs(found.outputs[0].sqnr_db - found.on_cpu[0].sqnr_db) < 1


@needs("qnn-htp")
@pytest.mark.parametrize("name", ["qnn-htp", "qnn-htp:a16"])
def test_the_simulated_npu_takes_the_network_in_one_piece(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    assert found.problems == () and found.ran is not None
    assert found.ran.partitions == 1 and set(found.ran.elsewhere.values()) <= {"QuantizeLinear", "DequantizeLinear"}
    assert found.outputs[0].sqnr_db > (30 if name.endswith("a16") else 20)


@needs("qnn-htp")
def test_what_the_npu_leaves_to_the_cpu_is_told(tmp_path: Path) -> None:
    found = made("qnn-htp", tmp_path, by="cpu-x86-vnni")  # gives floats behind the last product
    assert found.ran is not None and not found.ok
    assert any(problem.startswith("Gemm gives floats, and needs a grid") for problem in found.problems)
    assert any("on the CPU" in problem for problem in found.problems)


@needs("openvino")
def test_a_file_that_the_runtime_refuses_is_wrong_and_the_reason_is_told(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[1,4] x) => (float[1,4] y) { y = own.Nothing(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(edgeopt.EdgeoptError, match="Nothing"):  # the CPU provider does not run it either
        edgeopt.check(tmp_path / "m.onnx", target="openvino", python=PYTHON["openvino"])
