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

TYPES = (
    "bert",
    "bart",
    "bert_keras",
    "bert_tf",
    "clip",
    "conformer",
    "gpt2",
    "phi",
    "sam2",
    "swin",
    "t5",
    "tnlr",
    "unet",
    "vae",
    "vit",
)
BACKENDS = {"onnxruntime": "onnxruntime.transformers.optimizer", "onnxruntime-tools": "onnxruntime_tools.optimizer"}
_PROGRAM = """
import sys
module, source, out, kind, heads, hidden = sys.argv[1:]
package, _, name = module.rpartition(".")
optimizer = getattr(__import__(package, fromlist=[name]), name)
fused = optimizer.optimize_model(source, model_type=kind, num_heads=int(heads), hidden_size=int(hidden), \
opt_level=0, use_gpu=False)
fused.save_model_to_file(out)
"""


def fuse(model: ir.Model, kind: str, *, backend: str = "onnxruntime", heads: int = 0, hidden: int = 0) -> ir.Model:
    """`model` with the fusions of `backend` for transformers of type `kind`.

    heads, hidden: number of attention heads and hidden size; 0: found by the backend.

    Raises:
        UsageError: the backend is not installed, or `kind` is unknown. ModelError: the backend failed; the message
          contains its last line.
    """
    if kind not in TYPES:
        raise UsageError(f"no transformer type {kind!r}; known: {', '.join(TYPES)}")
    with temporary_folder() as folder:
        source, out = folder / "source.onnx", folder / "fused.onnx"
        write(model, source)
        arguments = [BACKENDS[backend], str(source), str(out), kind, str(heads), str(hidden)]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if "ModuleNotFoundError" in last:
                missing = "legacy" if backend == "onnxruntime-tools" else "transformers"
                raise UsageError(f"{backend} is not complete ({last}): {extra(missing)}")
            raise ModelError(f"{backend} failed on this model: {last}")
        with embedded(load(out)) as whole:
            return canonical(whole, defaults.names(model))
