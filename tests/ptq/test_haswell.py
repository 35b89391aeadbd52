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
from edgeopt.ptq.guard import unguarded
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


GEMM = "g (float[N,256] x) => (float[N,64] y) { [p] y = Gemm <transB = 1> (x, w, b) }"
CONV = "g (float[N,32,6,6] x) => (float[N,64,6,6] y) { [p] y = Conv <pads = [1,1,1,1]> (x, w, b) }"
LAYERS = {"gemm": (GEMM, (64, 256), (4, 256)), "conv": (CONV, (64, 32, 3, 3), (1, 32, 6, 6))}


def made(path: Path, layer: str = "gemm", **choices: Any) -> tuple[np.ndarray, np.ndarray]:
    """(input, float output) of a layer whose neighbouring weights are all large and of one sign, and its int8 file."""
    text, shape, sample = LAYERS[layer]
    model = tiny.proto(text, w=2.0 + 0.1 * np.abs(normal(*shape)), b=normal(64))
    feeds = [{"x": 3 + 0.2 * np.abs(normal(*sample, seed=i))} for i in range(40)]
    choices = {"effort": "fast", **choices}
    edgeopt.quantize(
        model.SerializeToString(), feeds, output=path, mode="static", include=("p",), measure=False, **choices
    )
    x = 3 + 0.2 * np.abs(normal(*sample, seed=99))
    return x, tiny.run(ir.from_proto(model), {"x": x})[0]


@pytest.mark.parametrize("choices", [{}, {"effort": "normal"}, {"clip_weights": True, "rounding": "adaround"}], ids=str)
@pytest.mark.parametrize(
    ("target", "layer"), [("cpu-x86-avx2", "gemm"), ("cpu-x86-avx2", "conv"), ("cpu-portable", "gemm")]
)
def test_a_guarded_file_answers_on_haswell_as_its_integers_say(
    target: str, layer: str, choices: dict[str, Any], tmp_path: Path
) -> None:
    x, y = made(tmp_path / "q.onnx", layer, target=target, **choices)
    found = on_haswell(tmp_path / "q.onnx", x)
    assert unguarded(ir.load(tmp_path / "q.onnx")) == []
    (expected,) = tiny.run(ir.load(tmp_path / "q.onnx"), {"x": x}, level="none")  # Q/DQ one by one, in float
    step = (
        float(tiny.weights_of(ir.load(tmp_path / "q.onnx"))["y_scale"]) if layer == "conv" else float(np.ptp(y)) / 255
    )
    assert float(np.abs(found - expected).max()) <= 1.01 * step
    assert float(np.abs(found - y).max() / np.abs(y).max()) < 0.02


def vpmaddubsw(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [n, k] uint8 times w [out, k] int8 as AVX2 has it: products added in pairs, each sum clipped to 16 bits,
    then added up.
    """
    pairs = x[:, None, :].astype(np.int64) * w[None].astype(np.int64)
    sums = pairs.reshape(*pairs.shape[:2], -1, 2).sum(-1)
    return np.clip(sums, -32768, 32767).sum(-1)


@pytest.mark.parametrize("target", ["cpu-x86-vnni", "cpu-x86-avx2"])
def test_haswell_gives_the_integers_of_the_emulated_instruction(target: str, tmp_path: Path) -> None:
    """With the guard the emulation clips nothing; without it, it clips as the machine does."""
    x, _ = made(tmp_path / "q.onnx", target=target)
    w = tiny.weights_of(ir.load(tmp_path / "q.onnx"))
    scale_x, zero_x = float(w["x_scale"]), int(w["x_zero_point"])
    q = np.clip(np.rint(x / scale_x) + zero_x, 0, 255).astype(np.uint8)
    total = vpmaddubsw(q, w["w_quantized"]) - zero_x * w["w_quantized"].astype(np.int64).sum(1) + w["b_quantized"]
    y = total * (scale_x * w["w_scale"].astype(np.float64))
    found = on_haswell(tmp_path / "q.onnx", x)
    step = float(w["y_scale"]) if "y_scale" in w else float(np.ptp(y)) / 255
    assert float(np.abs(found - y).max()) <= 1.01 * step
    exact = q.astype(np.int64) @ w["w_quantized"].astype(np.int64).T
    assert bool((exact == vpmaddubsw(q, w["w_quantized"])).all()) == (target == "cpu-x86-avx2")


def test_without_the_guard_the_same_layer_saturates_there(tmp_path: Path) -> None:
    x, y = made(tmp_path / "q.onnx", target="cpu-x86-vnni")
    assert float(np.abs(on_haswell(tmp_path / "q.onnx", x) - y).max() / np.abs(y).max()) > 0.1
