"""PRelu with constant slopes a as a x + (1 - a) relu(x), or as LeakyRelu where all slopes are one.

ONNX Runtime's PRelu on CPUs takes as long as the convolution before it; these operators are vectorized and keep the
blocked layout of images: networks of convolutions and PRelu are 1.4 to 2.6 times as fast so, in float
(`scripts/bench_passes`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, drop_unused, initializer, take_over
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array, constant


def split_prelu(model: ir.Model) -> ir.Model:
    """A clone without such nodes; the model itself if it has none."""
    if not any(_constant_slopes(n) for n in model.graph):
        return model
    copy = model.clone()
    names = Names(copy)
    for node in tuple(copy.graph):
        if not _constant_slopes(node):
            continue
        x, slopes, name = node.inputs[0], array(node.inputs[1]), str(node.name)
        if (slopes == slopes.flat[0]).all():
            made = [make(names, "LeakyRelu", [x], name, [ir.AttrFloat32("alpha", float(slopes.flat[0]))])]
        else:
            parts = {"slope": slopes, "rest": np.asarray(1 - slopes, np.float32)}
            a, b = (initializer(copy, names, f"{name}_{part}", values) for part, values in parts.items())
            relu = make(names, "Relu", [x], f"{name}_Relu")
            below = make(names, "Mul", [x, a], f"{name}_Mul_slope")
            above = make(names, "Mul", [relu.outputs[0], b], f"{name}_Mul_rest")
            made = [relu, below, above, make(names, "Add", [below.outputs[0], above.outputs[0]], f"{name}_Add")]
        copy.graph.insert_before(node, made)
        take_over(copy.graph, node, made[-1].outputs[0])
    drop_unused(copy)
    return copy


def _constant_slopes(node: ir.Node) -> bool:
    if node.op_type != "PRelu" or node.domain or not constant(node.inputs[1]) or node.inputs[0] is None:
        return False
    slopes = array(node.inputs[1])
    return slopes.dtype == np.float32 and slopes.size > 0 and bool(np.isfinite(slopes).all())
