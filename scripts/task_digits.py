"""The digits task: 5,000 MNIST digits, shuffled by a fixed seed; the last 1,500 are the test, which nothing else sees.
The teacher is the embedded classifier, the student a plain convolutional network with random weights.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
from task_material import MODELS, Feed

TEACHER = Path(__file__).resolve().parents[1] / "calibration_data" / "digits" / "digits.onnx"
TRAIN = 3500
GRAPH = """<ir_version: 9, opset_import: ["": 17]> g (float[N,1,28,28] image) => (float[N,10] logits) {
    a = Conv <strides = [2,2], pads = [1,1,1,1]> (image, w1, b1)
    r = Relu(a)
    c = Conv <strides = [2,2], pads = [1,1,1,1]> (r, w2, b2)
    s = Relu(c)
    d = Conv <strides = [2,2], pads = [1,1,1,1]> (s, w3, b3)
    t = Relu(d)
    f = Flatten(t)
    logits = Gemm <transB = 1> (f, w4, b4)
}"""
SHAPES = {"w1": (8, 1, 3, 3), "w2": (16, 8, 3, 3), "w3": (32, 16, 3, 3), "w4": (10, 512)}


def student(seed: int) -> onnx.ModelProto:
    """Random weights (He)."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(GRAPH)
    for i, (name, shape) in enumerate(SHAPES.items(), 1):
        w = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(w.astype(np.float32), name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape[0], np.float32), f"b{i}"))
    return model


def digits() -> tuple[list[Feed], list[Feed]]:
    """(3,500 feeds with labels to train with, 1,500 to test); 350 of every class train, 150 test, nearly."""
    with gzip.open(MODELS / "mnist_5k.csv.gz") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    x = ((table[:, :-1] / 255 - 0.1307) / 0.3081).reshape(-1, 1, 1, 28, 28).astype(np.float32)
    feeds = [{"image": image, "label": np.array([int(y)])} for image, y in zip(x, table[:, -1], strict=True)]
    return feeds[:TRAIN], feeds[TRAIN:]
