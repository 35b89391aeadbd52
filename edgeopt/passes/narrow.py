"""Pads of float convolutions over one long axis, [N, C, L, 1] with kernels [k, 1], as a Pad of their own.

ONNX Runtime's blocked convolution computes such a Conv row by row as soon as it has pads: 1.4 to 5 times the time of
the same Conv over an input that is padded before (`scripts/bench_passes`). It moves a Pad of zeros into the Conv that
follows, so the value here is 1e-30, below what float32 can add to any product that counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, initializer
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import Shape, array, constant

_LEAST = 5  # length of kernels, below which a Pad costs as much as it saves
_NOTHING = np.array(1e-30, np.float32)


def padded(model: ir.Model) -> list[ir.Node]:
    """The float convolutions with a long kernel [k, 1] and pads along it."""
    return [n for n in model.graph if _padded(n)]


def own_pads(model: ir.Model, shapes: Mapping[str, Shape]) -> ir.Model:
    """A clone in which such convolutions have no pads where their inputs are of width 1; the model itself if there are
    none.

    shapes: by value, on a sample; an input of another width is computed alike.
    """
    inputs = {str(n.name): str(n.inputs[0].name) for n in padded(model) if n.inputs[0] is not None}
    found = {name for name, x in inputs.items() if tuple(shapes.get(x, ()))[3:] == (1,)}
    if not found:
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        if node.name in found:
            before, _, after, _ = node.attributes.get_ints("pads", ())
            name = f"{node.name}_pads"
            sizes = initializer(copy, names, name, np.asarray([0, 0, before, 0, 0, 0, after, 0], np.int64))
            value = initializer(copy, names, f"{name}_value", _NOTHING)
            pad = make(names, "Pad", [node.inputs[0], sizes, value], name)
            copy.graph.insert_before(node, pad)
            node.replace_input_with(0, pad.outputs[0])
            del node.attributes["pads"]
    return copy


def _padded(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    x, w = node.inputs[:2]
    producer = None if x is None else x.producer()
    if not constant(w) or (producer is not None and producer.op_type == "DequantizeLinear"):
        return False
    if array(w).dtype != np.float32:
        return False
    kernel, pads = array(w).shape, node.attributes.get_ints("pads", ())
    return len(kernel) == 4 and kernel[3] == 1 and kernel[2] >= _LEAST and any(pads) and not any(pads[1::2])
