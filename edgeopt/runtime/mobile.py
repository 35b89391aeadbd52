"""How many nodes NNAPI and CoreML take, in how many pieces, by the tables of operators that ONNX Runtime's package has:
by operator only, without types and attributes.
"""

from __future__ import annotations

from pathlib import Path

import onnx

_COREML = "coreml_supported_mlprogram_ops.md"
_SHOWN = 5


def mobile_nodes(path: Path, provider: str) -> str:
    """What `provider` ("nnapi" or "coreml") takes of the file at `path`, in words."""
    from onnxruntime.tools.mobile_helpers import usability_checker  # which takes a while, and few targets need

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        if provider == "coreml":
            found = usability_checker.check_coreml_partitions(model, False, _COREML)
        else:
            found = usability_checker.check_nnapi_partitions(model, False)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, LookupError, ZeroDivisionError) as e:
        return f"not told by ONNX Runtime's table of operators: {str(e).splitlines()[0]}"
    missing, pieces = sorted(found.unsupported_ops), found.num_partitions
    more = " ..." if len(missing) > _SHOWN else ""
    without = f"; without {', '.join(op.rpartition(':')[2] for op in missing[:_SHOWN])}{more}" if missing else ""
    taken = f"{found.num_supported_nodes} of {found.num_nodes} by ONNX Runtime's table of operators"
    return f"{taken}, in {pieces} partition{'s' * (pieces != 1)}{without}"
