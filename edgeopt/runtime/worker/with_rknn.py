"""The worker process for Rockchip's toolkit: the same protocol as `__main__`, as far as checking a file needs it. It
needs only rknn-toolkit2 and numpy, and runs files on the toolkit's simulator of an RK3588.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]
import numpy as np
from rknn.api import RKNN

PROTOCOL = 1


class Server:
    """One loaded model and its feeds."""

    model: Any = None
    feeds: list[dict[str, Any]]

    def hello(self) -> dict[str, Any]:
        """Versions of this interpreter."""
        return {"protocol": PROTOCOL, "rknn": metadata.version("rknn-toolkit2"), "numpy": np.__version__}

    def open(self, model: str, inputs: list[str], outputs: list[str], device: str = "rk3588") -> dict[str, Any]:
        """Load and build a model as it is; inputs, outputs: their names in order, which the toolkit does not tell."""
        start = time.perf_counter_ns()
        self.model, self.inputs, self.names = RKNN(verbose=False), inputs, outputs
        steps: tuple[tuple[str, dict[str, Any]], ...] = (
            ("config", {"target_platform": device}),
            ("load_onnx", {"model": model}),
            ("build", {"do_quantization": False}),
            ("init_runtime", {}),
        )
        for name, options in steps:
            if getattr(self.model, name)(**options) != 0:
                raise RuntimeError(f"the toolkit's {name} refuses the model")
        return {"create_ns": time.perf_counter_ns() - start, "outputs": outputs}

    def feed(self, path: str) -> dict[str, Any]:
        """Read feeds from an .npz with entries `index/input`."""
        found: dict[int, dict[str, Any]] = {}
        with np.load(path, allow_pickle=False) as archive:
            for entry in archive.files:
                index, name = entry.split("/", 1)
                found.setdefault(int(index), {})[name] = archive[entry]
        self.feeds = [found[i] for i in sorted(found)]
        return {"feeds": len(self.feeds)}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write the outputs for every feed to an .npz with entries `index/output`."""
        found: dict[str, Any] = {}
        for i, feed in enumerate(self.feeds):
            given = [feed[name] for name in self.inputs]
            formats = ["nchw" if x.ndim == len("nchw") else "undefined" for x in given]
            answers = self.model.inference(inputs=given, data_format=formats)
            if answers is None:
                raise RuntimeError("the toolkit's inference fails")
            found |= {f"{i}/{name}": y for name, y in zip(self.names, answers, strict=True)}
        np.savez(path, **found)
        return {"outputs": self.names}


def serve() -> None:
    """Answer requests until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Server()
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            answer = {"ok": getattr(worker, do)(**request)}
        except (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError) as e:
            answer = {"error": str(e) or repr(e), "type": type(e).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
