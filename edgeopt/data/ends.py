"""The ends of a model, as its metadata tell them."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.numbers.ends import Ends, ends_of


def ends(model: ir.Model) -> Ends:
    """The grids of inputs and outputs that are integers, and the inputs that are pixels."""
    values = (*model.graph.inputs, *model.graph.outputs)
    return ends_of(model.metadata_props, {str(v.name): v.dtype.name.lower() for v in values if v.dtype is not None})
