"""Files for ARM, run by the aarch64 build of ONNX Runtime on an emulated CPU (edgeopt env cpu-arm64 makes what it
needs).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.hardware import target
from edgeopt.runtime.environments import home_of
from tests import tiny
from tests.models import normal

HOME = home_of(target.load("cpu-arm64"))  # in the user's cache
pytestmark = [pytest.mark.slow, pytest.mark.skipif(HOME is None, reason="needs edgeopt env cpu-arm64")]
DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
RUN = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.load(sys.argv[2])
np.save(sys.argv[2] + ".out.npy", session.run(None, {session.get_inputs()[0].name: x})[0])
"""


def on_arm(model: Path, x: np.ndarray, cpu: str) -> np.ndarray:
    """The first output of the model on an emulated ARM CPU."""
    file = model.with_suffix(".npy")
    np.save(file, x)
    command = [str(HOME) + "/bin/python", "-c", RUN, str(model), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "QEMU_CPU": cpu})
    assert done.returncode == 0, done.stderr[-2000:]
    found: np.ndarray = np.load(f"{file}.out.npy")
    return found


@pytest.mark.parametrize("cpu", ["cortex-a72", "neoverse-n1"])  # without and with products of bytes in 32 bits
@pytest.mark.parametrize("name", ["cpu-arm64", "cpu-portable"])
def test_a_layer_answers_on_arm_as_its_integers_say(name: str, cpu: str, tmp_path: Path) -> None:
    text = "g (float[N,32,6,6] x) => (float[N,64,6,6] y) { [p] y = Conv <pads = [1,1,1,1]> (x, w, b) }"
    model = tiny.proto(text, w=2.0 + 0.1 * np.abs(normal(64, 32, 3, 3)), b=normal(64)).SerializeToString()
    feeds = [{"x": 3 + 0.2 * np.abs(normal(1, 32, 6, 6, seed=i))} for i in range(40)]
    path = tmp_path / "q.onnx"
    edgeopt.quantize(model, feeds, output=path, mode="static", include=("p",), measure=False, target=name)
    found = on_arm(path, feeds[0]["x"], cpu)
    (expected,) = tiny.run(ir.load(path), feeds[0], level="none")  # Q/DQ one by one, in float
    assert float(np.abs(found - expected).max()) <= 1.01 * float(tiny.weights_of(ir.load(path))["y_scale"])


def test_the_embedded_classifier_in_int8_tells_the_digits_on_arm(tmp_path: Path) -> None:
    path, calib = tmp_path / "q.onnx", DIGITS / "calib"
    edgeopt.quantize(DIGITS / "digits.onnx", calib, output=path, mode="static", measure=False, target="cpu-arm64")
    x = normal(16, 1, 28, 28)
    found, here = on_arm(path, x, "neoverse-n1"), tiny.run(ir.load(path), {"image": x})[0]
    assert tiny.sqnr_db(here, found) > 30
