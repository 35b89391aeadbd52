"""ONNX Runtime's own basic optimizations, written back as standard ONNX: constants and BatchNorm folded, MatMul + Add
to Gemm, LayerNorm recognised.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from edgeopt.graph import PROTOBUF_LIMIT, canonical, embedded, load, size_bytes
from edgeopt.runtime.session import open_session


def basic(model: ir.Model) -> ir.Model:
    """`model` after ONNX Runtime's basic level, in canonical form, with the original's metadata; a model above 2 GB
    comes back as it is.
    """
    if size_bytes(model) > PROTOBUF_LIMIT:
        return model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "basic.onnx"
        open_session(model, level="basic", optimized=path)
        with embedded(load(path)) as whole:
            result = canonical(whole)
    result.metadata_props.update(model.metadata_props)
    for domain in set(result.opset_imports) - set(model.opset_imports):
        if not any(n.domain == domain for n in result.graph.all_nodes()):
            result.opset_imports.pop(domain, None)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result
