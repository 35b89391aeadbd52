"""The same numbers from fewer nodes: ONNX Runtime's basic optimizations and what measurably adds to them, in the order
in which they help each other.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt import graph
from edgeopt.passes.fold_affine import fold_affine
from edgeopt.passes.hardswish import OPSET, fuse_hardswish
from edgeopt.runtime.basic import basic


def simplify(model: ir.Model) -> ir.Model:
    """`model` (canonical) simplified, in canonical form, at opset 14 or later (HardSwish, per-channel
    DequantizeLinear); outputs equal to float rounding.
    """
    return fold_affine(fuse_hardswish(graph.raise_opset(basic(model), OPSET)))
