"""Networks of a few dozen weights, samples for them, and who listens: what the tests of training share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt import graph
from edgeopt.listener import Listener
from tests import tiny

PERCEPTRON = "g (float[N,4] x) => (float[N,{classes}] y) {{ h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }}"
QUICK: dict[str, Any] = {"epochs": 4, "learning_rate": 3e-2, "batch_size": 16}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def perceptron(seed: int = 0, *, wide: int = 8, classes: int = 3) -> onnx.ModelProto:
    """x [N,4] -> y [N,classes] by way of h and r [N,wide], with weights a and b."""
    return tiny.proto(PERCEPTRON.format(classes=classes), a=normal(seed, 4, wide), b=normal(seed + 1, wide, classes))


def samples(count: int = 80, *, labels: bool = False) -> list[dict[str, np.ndarray]]:
    """Feeds of a `perceptron`; labels: the class that the one of seed 7 tells."""
    teacher = tiny.model(PERCEPTRON.format(classes=3), a=normal(7, 4, 8), b=normal(8, 8, 3))
    feeds = [{"x": normal(100 + i, 1, 4)} for i in range(count)]
    if not labels:
        return feeds
    return [{**f, "label": np.array([int(tiny.run(teacher, f)[0].argmax())])} for f in feeds]


def stopping(after: int) -> Listener:
    """Interrupts a run when so many epochs are over, before the last of them is in the checkpoint."""
    seen: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == after:
            raise KeyboardInterrupt

    return Listener(progress=progress)


def nodes(model: onnx.ModelProto) -> list[bytes]:
    """Every node, bit by bit, whether it says that its domain is the default or leaves it out."""
    found = []
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        if not copy.domain:
            copy.ClearField("domain")
        found.append(copy.SerializeToString())
    return found


def same_bytes(a: ir.Model, b: ir.Model) -> bool:
    return graph.proto_bytes(a) == graph.proto_bytes(b)


def write(folder: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
    """The feeds as a folder of .npz: 000.npz, 001.npz, ..."""
    folder.mkdir()
    for i, feed in enumerate(feeds):
        np.savez(folder / f"{i:03}.npz", **feed)


BRANCHED = (
    "g (float[N,4] x) => (float[N,3] y, float[N,2] z) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b)  z = MatMul(r,"
    " c) }"
)


def branched(seed: int = 0) -> onnx.ModelProto:
    """A `perceptron` with a second output z [N,2] by way of weights c."""
    return tiny.proto(BRANCHED, a=normal(seed, 4, 8), b=normal(seed + 1, 8, 3), c=normal(seed + 2, 8, 2))
