"""Simplify a model without changing its results: ONNX Runtime's basic optimizations and further passes with a measured
benefit, in the order in which they help each other.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt import graph
from edgeopt.passes.carried import read_from_outside
from edgeopt.passes.clips import clips
from edgeopt.passes.fold_affine import fold_affine
from edgeopt.passes.gated import OPSET, fuse_hardswish
from edgeopt.runtime.basic import basic


def simplify(model: ir.Model) -> ir.Model:
    """`model` (canonical) simplified, in canonical form, at opset 14 or later (for HardSwish and per-channel
    DequantizeLinear); the outputs are equal up to float rounding.
    """
    return fold_affine(fuse_hardswish(clips(graph.raise_opset(basic(read_from_outside(model)), OPSET))))
