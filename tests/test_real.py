"""The real models of `scripts/fetch_models` (marker `real`, skipped where they are not) and the embedded classifier,
through the default command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import edgeopt
from edgeopt.runtime.session import open_session

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "calibration_data" / "digits"
NAMES = (
    "efficientnet_lite0",
    "mobilenetv2",
    "minilm_l6",
    "minilm_l3",
    "ppocr_det",
    "ppocr_rec",
    "ppocr_cls",
    "silero",
    "silero_ifless",
)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tasks as module

    yield module
    for name in ("tasks", "task_ocr", "task_material"):
        sys.modules.pop(name, None)


def digits_accuracy(model: Path) -> float:
    files = sorted((DIGITS / "test").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(f), np.float32) for f in files])[:, None]
    feed = {"image": (images / 255 - np.float32(0.1307)) / np.float32(0.3081)}
    return float(np.mean(open_session(model).run(feed)[0].argmax(1) == [int(f.parent.name) for f in files]))


@pytest.mark.parametrize(
    ("mode", "smaller"), [("auto", 3.0), ("static", 3.0), ("dynamic", 0.99), ("weights", 3.0), ("fp16", 1.9)]
)
def test_the_embedded_classifier_keeps_its_accuracy_in_every_mode(mode: str, smaller: float, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=out, mode=mode, measure=False).report
    # 500 digits: one more or fewer right is .002
    assert digits_accuracy(out) >= digits_accuracy(DIGITS / "digits.onnx") - 0.006
    assert report.worst_sqnr_db > 30
    assert report.input_bytes / report.output_bytes > smaller
    assert report.output_bytes == out.stat().st_size


def test_the_deprecated_package_and_its_successor_fuse_a_gelu_each_in_a_process_of_its_own(tmp_path: Path) -> None:
    # the Gelu of exporters at opset 11, which is what the 2021 package knows
    text = """<ir_version: 6, opset_import: ["" : 11]>
    g (float[2,4,8] x, float[2,4,8] y) => (float[2,4,8] z)
    <float two = {1.4142135}, float one = {1.0}, float half = {0.5}> {
      a = Add(x, y)
      b = Div(a, two)
      c = Erf(b)
      d = Add(c, one)
      e = Mul(a, d)
      z = Mul(e, half)
    }"""
    path = tmp_path / "gelu.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    for backend in ("onnxruntime-tools", "onnxruntime"):
        fused = edgeopt.simplify(path, transformer="bert", backend=backend)
        assert {n.op_type for n in fused.model.graph} <= {"Add", "Gelu", "BiasGelu", "FastGelu"}
        assert fused.nodes[1] < fused.nodes[0]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_default_command_makes_every_real_model_valid_close_and_no_slower(
    name: str, tasks: object, tmp_path: Path
) -> None:
    task = tasks.TASKS[name]  # type: ignore[attr-defined]
    if not task.model.is_file():
        pytest.skip("scripts/fetch_models brings it")
    result = edgeopt.quantize(task.model, list(task.calibration()), output=tmp_path / "out.onnx")
    assert result.report.latency is not None
    # a tie may fall on either side of 1 by the noise of one measurement
    assert result.report.latency.speedup_high >= 0.97
    session = open_session(tmp_path / "out.onnx")
    before, after = (task.score(run) for run in (open_session(task.model).run, session.run))
    # three standard errors of the smallest task set (20 images) would be .3; the others hold .03
    tolerance = 0.11 if name == "efficientnet_lite0" else 0.03
    assert (after - before if task.higher_is_better else before - after) >= -tolerance
