"""Small models as bytes, folders of samples and files meant to harm: what the tests of bad input and of the readers
share.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

import edgeopt
from tests import tiny

STATIC: Mapping[str, Any] = {"mode": "static", "include": ("Gemm",), "measure": False}
DENSE = "g (float[N,4] x) => (float[N,4] y) { y = Gemm(x, w, b) }"
CONV = """g (float[N,C,8,8] x) => (float[N,4] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    s = Flatten(p)
    y = Gemm(s, f, fb)
}"""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values of `shape`."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(**weights: np.ndarray) -> bytes:
    """One Gemm from x [N, 4] to y [N, 4]; `weights` replace w [4, 4] and b [4]."""
    return tiny.proto(DENSE, **{"w": normal(4, 4), "b": normal(4, seed=1), **weights}).SerializeToString()


def convolution(channels: int = 3, layout: str = "NCHW") -> bytes:
    """A classifier of 4 classes for images x [N, channels, 8, 8]; NHWC: x [N, 8, 8, channels]."""
    text = CONV.replace("C,8,8", f"{channels},8,8")
    if layout == "NHWC":
        text = text.replace(f"{channels},8,8", f"8,8,{channels}").replace(
            "c = Conv <pads = [1, 1, 1, 1]> (x,",
            "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <pads = [1, 1, 1, 1]> (t,",
        )
    weights = {
        "w": normal(8, channels, 3, 3),
        "b": normal(8, seed=1),
        "f": normal(8, 4, seed=2),
        "fb": normal(4, seed=3),
    }
    return tiny.proto(text, **weights).SerializeToString()


def external(location: str, *, offset: object = 0, length: object = 64, constant: bool = False) -> bytes:
    """`dense` whose w [4, 4] lies in the file `location`, as an initializer or as the value of a Constant node."""
    made = onnx.load_model_from_string(dense())
    (w,) = [t for t in made.graph.initializer if t.name == "w"]
    w.ClearField("raw_data")
    w.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        w.external_data.add(key=key, value=str(value))
    if constant:
        node = onnx.helper.make_node("Constant", [], ["w"], value=w)
        made.graph.node.insert(0, node)
        made.graph.initializer.remove(w)
    return made.SerializeToString()


@dataclass(frozen=True)
class Ears:
    """A listener that remembers the notes."""

    notes: list[str] = field(default_factory=list)

    @property
    def listener(self) -> edgeopt.Listener:
        """To be handed to `quantize`."""
        return edgeopt.Listener(note=self.notes.append)

    def told(self, part: str) -> list[str]:
        """The notes that contain `part`."""
        return [line for line in self.notes if part in line]


def pictures(folder: Path, count: int, *, size: tuple[int, int] = (8, 8), suffix: str = "png") -> list[Path]:
    """`count` RGB images of random pixels, `size` (height, width), in `folder`, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    files = [folder / f"{i:02}.{suffix}" for i in range(count)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file)
    return files


def bomb(file: Path, width: int, height: int) -> Path:
    """A PNG of some 60 bytes whose header claims `width` x `height` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return file
