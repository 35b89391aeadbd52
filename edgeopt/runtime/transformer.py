"""Fuse whole transformer blocks with ONNX Runtime's own tools: `onnxruntime.transformers`, or its predecessor
onnxruntime-tools.

Both write `com.microsoft` operators that only ONNX Runtime's CPU and CUDA providers support. onnxruntime-tools (1.7.0,
2021) is officially deprecated and breaks its successor if both are imported into one process, so each runs in its own
process.
"""

from __future__ import annotations

import subprocess
import sys

import onnx_ir as ir

from edgeopt.errors import ModelError, UsageError, extra
from edgeopt.files import temporary_folder
from edgeopt.graph import defaults
from edgeopt.graph.form import canonical
from edgeopt.graph.serialization import embedded, load, write

BACKENDS = {"onnxruntime": "onnxruntime.transformers.optimizer", "onnxruntime-tools": "onnxruntime_tools.optimizer"}
_UNKNOWN = "no transformer type"
_PROGRAM = f"""
import sys
module, source, out, kind = sys.argv[1:]
package, _, name = module.rpartition(".")
optimizer = getattr(__import__(package, fromlist=[name]), name)
known = getattr(optimizer, "MODEL_TYPES", None) or optimizer.MODEL_CLASSES
if kind not in known:
    sys.exit(f"{_UNKNOWN} {{kind!r}}; known: {{', '.join(known)}}")
fused = optimizer.optimize_model(source, model_type=kind, num_heads=0, hidden_size=0, opt_level=0, use_gpu=False)
fused.save_model_to_file(out)
"""


def fuse(model: ir.Model, kind: str, *, backend: str = "onnxruntime") -> ir.Model:
    """`model` with the fusions of `backend` for transformers of type `kind`.

    Raises:
        UsageError: the backend is not installed, or `kind` is unknown. ModelError: the backend failed; the message
          contains its last line.
    """
    with temporary_folder() as folder:
        source, out = folder / "source.onnx", folder / "fused.onnx"
        write(model, source)
        arguments = [BACKENDS[backend], str(source), str(out), kind]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if last.startswith(_UNKNOWN):
                raise UsageError(last)
            if "ModuleNotFoundError" in last:
                missing = "legacy" if backend == "onnxruntime-tools" else "transformers"
                raise UsageError(f"{backend} is not complete ({last}): {extra(missing)}")
            raise ModelError(f"{backend} failed on this model: {last}")
        return canonical(embedded(load(out)), defaults.names(model))
