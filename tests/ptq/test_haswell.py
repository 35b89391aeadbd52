"""Files for CPUs without VNNI, run on one: QEMU's Haswell adds products of bytes in 16 bits, as vpmaddubsw does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from tests import tiny
from tests.models import normal

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="needs qemu-user-static (Debian)"),
]
RUN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.save(sys.argv[2] + ".out.npy", session.run(None, {"x": np.load(sys.argv[2])})[0])
"""


def on_haswell(model: Path, x: np.ndarray) -> np.ndarray:
    """The first output of the model on an emulated Haswell."""
    file = model.with_suffix(".npy")
    np.save(file, x)
    paths = json.dumps([p for p in sys.path if "site-packages" in p])
    python = str(Path(sys.executable).resolve())
    command = [str(QEMU), "-cpu", "Haswell", python, "-c", RUN, str(model), str(file), paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: np.ndarray = np.load(f"{file}.out.npy")
    return found


def made(path: Path, **choices: Any) -> tuple[np.ndarray, np.ndarray]:
    """(input, float output) of a layer whose neighbouring weights are all large and of one sign, and its int8 file."""
    w = 2.0 + 0.1 * np.abs(normal(64, 256))
    model = tiny.proto(
        "g (float[N,256] x) => (float[N,64] y) { [p] y = Gemm <transB = 1> (x, w, b) }", w=w, b=normal(64)
    )
    feeds = [{"x": 3 + 0.2 * np.abs(normal(4, 256, seed=i))} for i in range(40)]
    edgeopt.quantize(
        model.SerializeToString(),
        feeds,
        output=path,
        mode="static",
        include=("p",),
        measure=False,
        effort="fast",
        **choices,
    )
    x = 3 + 0.2 * np.abs(normal(16, 256, seed=99))
    return x, x @ w.T + normal(64)


@pytest.mark.parametrize("target", ["cpu-x86-avx2", "cpu-portable"])
def test_a_guarded_file_answers_on_haswell_as_its_integers_say(target: str, tmp_path: Path) -> None:
    x, y = made(tmp_path / "q.onnx", target=target)
    found = on_haswell(tmp_path / "q.onnx", x)
    (expected,) = tiny.run(ir.load(tmp_path / "q.onnx"), {"x": x}, level="none")  # Q/DQ one by one, in float
    step = float(np.ptp(y)) / 255
    assert float(np.abs(found - expected).max()) <= 1.01 * step
    assert float(np.abs(found - y).max() / np.abs(y).max()) < 0.02


def test_without_the_guard_the_same_layer_saturates_there(tmp_path: Path) -> None:
    x, y = made(tmp_path / "q.onnx", target="cpu-x86-vnni")
    assert float(np.abs(on_haswell(tmp_path / "q.onnx", x) - y).max() / np.abs(y).max()) > 0.1
