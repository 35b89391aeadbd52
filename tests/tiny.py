"""Tiny models as ONNX text, run by ONNX Runtime: what many tests share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt import graph
from edgeopt.runtime.session import Feed, open_session


def proto(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """The model that ONNX `text` describes, with `weights` as initializers of the main graph by name; without a
    header it is opset 17.
    """
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 9, opset_import: ["" : 17]>' + text
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    onnx.checker.check_model(made, full_check=True)
    return made


def model(text: str, **weights: np.ndarray) -> ir.Model:
    """The same in canonical form."""
    return graph.canonical(graph.load(proto(text, **weights)))


def run(model: ir.Model, feed: Feed, *, level: str = "none") -> list[np.ndarray]:
    """Outputs of `model` on one feed under ONNX Runtime's optimization `level`."""
    return open_session(model, level=level).run(feed)


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    """Initializers of the main graph by name."""
    return {
        str(name): v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None
    }


def operators(model: ir.Model) -> list[str]:
    """Operator types of the main graph in order."""
    return [n.op_type for n in model.graph]


def frozen(model: ir.Model) -> bytes:
    """Every bit of `model`, to see that nobody changed it."""
    return graph.proto_bytes(model)


def sqnr_db(reference: np.ndarray, result: np.ndarray) -> float:
    """10 log10(sum r^2 / sum (r - y)^2)."""
    r, y = reference.astype(np.float64), result.astype(np.float64)
    noise = float(np.square(r - y).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(r).sum()) / noise)


def feeds(count: int, seed: int = 0, **shapes: tuple[int, ...]) -> list[Mapping[str, np.ndarray]]:
    """`count` feeds of standard normal float32 values by input name."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)
    ]
