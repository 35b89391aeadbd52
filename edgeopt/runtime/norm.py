"""What a batch normalization remembers of the data that a model was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.ops import constant
from edgeopt.runtime.session import Feed, reading

_FAR = 8  # nodes between an input and the first normalization
_TINY = 1e-12


def norm_distance(model: ir.Model) -> Callable[[Sequence[Feed]], float] | None:
    """How far feeds are from what the first BatchNormalization of `model` was trained with, as a function of them; None
    if there is none near the inputs.

    Per channel, the values that it reads are compared with its running mean and variance by the divergence of normal
    distributions

        KL = (v / s2 + (m - mu)^2 / s2 - 1 - log(v / s2)) / 2     in nats

    of which the median over the channels is the distance: near 0 for the preprocessing of the training.
    """
    node = next((n for n in model.graph if n.op_type == "BatchNormalization" and _near(n)), None)
    if node is None:
        return None
    mean, variance = (_array(v) for v in node.inputs[3:5])
    read = node.inputs[0]
    if mean is None or variance is None or read is None or not variance.size or variance.min() < 0:
        return None
    variance = variance + node.attributes.get_float("epsilon", 1e-5)

    def distance(feeds: Sequence[Feed]) -> float:
        run = reading(model, [str(read.name)])
        rows = [np.moveaxis(run(f)[str(read.name)], 1, -1).reshape(-1, len(mean)).astype(np.float64) for f in feeds]
        m = np.mean([x.mean(0) for x in rows], axis=0)
        v = np.mean([((x - m) ** 2).mean(0) for x in rows], axis=0)
        ratio = np.maximum(v, _TINY) / variance
        return float(np.median((ratio + (m - mean) ** 2 / variance - 1 - np.log(ratio)) / 2))

    return distance


def _near(node: ir.Node) -> bool:
    """Whether `node` reads, by way of layers that are no normalization, an input of the graph."""
    value, steps = node.inputs[0], 0
    while value is not None and (producer := value.producer()) is not None and steps < _FAR:
        if producer.op_type == "BatchNormalization":
            return False
        value, steps = producer.inputs[0] if producer.inputs else None, steps + 1
    return value is not None and value.is_graph_input()


def _array(value: ir.Value | None) -> NDArray[np.float64] | None:
    if value is None or not constant(value) or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float64)
