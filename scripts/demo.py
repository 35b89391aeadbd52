"""The main job on the embedded sample: quantize `digits.onnx` in three modes and count right answers on held-out
labelled digits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

import edgeopt

SAMPLE = Path(__file__).resolve().parent.parent / "calibration_data" / "digits"


def accuracy(model: Path) -> float:
    """Share of right answers on the labelled test digits, preprocessed as `preprocess.toml` says."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    files = sorted((SAMPLE / "test").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(f), np.float32) for f in files])[:, None]
    logits = session.run(None, {"image": (images / 255 - np.float32(0.1307)) / np.float32(0.3081)})[0]
    return float(np.mean(logits.argmax(1) == [int(f.parent.name) for f in files]))


def main() -> None:
    source = SAMPLE / "digits.onnx"
    print(f"{'model':26} {'accuracy':>8} {'size':>10} {'speed':>7} {'SQNR':>8}")
    print(f"{'float':26} {accuracy(source):8.1%} {source.stat().st_size / 1e3:7.1f} kB {'1.00x':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("auto", "weights", "fp16"):
            out = Path(folder) / f"{mode}.onnx"
            report = edgeopt.quantize(source, SAMPLE / "calib", output=out, mode=mode).report
            speed = f"{report.latency.speedup:.2f}x" if report.latency else "-"
            name = f"--mode {mode}" + (f" (kept: {report.mode})" if mode == "auto" else "")
            print(
                f"{name:26} {accuracy(out):8.1%} {report.output_bytes / 1e3:7.1f} kB {speed:>7}"
                f" {report.worst_sqnr_db:5.1f} dB"
            )
    print("\nYour own: .venv/bin/edgeopt quantize model.onnx --calib images/")


if __name__ == "__main__":
    main()
