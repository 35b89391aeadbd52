"""ONNX Runtime's basic optimizations, with the result as standard ONNX: constants and BatchNorm are folded, MatMul +
Add become Gemm, LayerNorm is recognized.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.files import temporary_folder
from edgeopt.graph.facts import above_protobuf
from edgeopt.graph.form import canonical
from edgeopt.graph.serialization import embedded
from edgeopt.runtime.session import open_session


def basic(model: ir.Model) -> ir.Model:
    """`model` after ONNX Runtime's basic optimizations, in canonical form, with its original metadata; a model above
    2 GB is returned unchanged.
    """
    if above_protobuf(model):
        return model
    with temporary_folder() as folder:
        path = folder / "basic.onnx"
        open_session(model, level="basic", optimized=path)
        optimized = ir.load(path, format="protobuf")
        if len(optimized.graph) == 0:
            raise ModelError("nothing is computed from the inputs: the outputs are constants")
        with embedded(optimized) as whole:
            result = canonical(whole)
    _share(result, model)
    result.metadata_props.update(model.metadata_props)
    for domain in set(result.opset_imports) - set(model.opset_imports):
        if not any(n.domain == domain for n in result.graph.all_nodes()):
            result.opset_imports.pop(domain, None)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result


def _share(result: ir.Model, model: ir.Model) -> None:
    """Let `result` share unchanged weights with `model`, so that they are in memory only once."""
    for name, value in result.graph.initializers.items():
        new = value.const_value
        old = model.graph.initializers[name].const_value if name in model.graph.initializers else None
        same_type = new is not None and old is not None and new.dtype == old.dtype and new.shape == old.shape
        if same_type and new is not None and old is not None and np.array_equal(new.numpy(), old.numpy()):
            value.const_value = old
