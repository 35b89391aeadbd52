"""The worker process for OpenVINO: the same protocol as `__main__`, as far as checking a file needs it. It needs only
openvino and numpy.

The runtime model tells which layers compute in integers: a Convolution or FullyConnected whose runtime precision is u8
or i8.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]
import numpy as np
import openvino

PROTOCOL = 1
_TOLD = ("layerType", "runtimePrecision")
_LAYERS = ("Convolution", "FullyConnected", "MatMul")
_INTEGERS = ("u8", "i8")


class Server:
    """One compiled model and its feeds."""

    model: Any = None
    feeds: list[dict[str, Any]]
    turn = 0

    def hello(self) -> dict[str, Any]:
        """Versions and devices of this interpreter."""
        return {"protocol": PROTOCOL, "openvino": openvino.__version__, "devices": openvino.Core().available_devices}

    def open(self, model: str, device: str = "CPU", config: dict[str, str] | None = None) -> dict[str, Any]:
        """Compile a model. The answer lists its layers as [name, type, precision]."""
        start = time.perf_counter_ns()
        self.model = openvino.Core().compile_model(model, device, config or {})
        took = time.perf_counter_ns() - start
        layers = []
        for op in self.model.get_runtime_model().get_ops():
            told = {key: str(value.astype(str)) for key, value in op.get_rt_info().items() if key in _TOLD}
            if told.get("layerType") in _LAYERS:
                layers.append([op.get_friendly_name(), told["layerType"], told.get("runtimePrecision", "")])
        integer = [name for name, _, p in layers if p in _INTEGERS]
        names = [o.get_any_name() for o in self.model.outputs]
        return {"create_ns": took, "outputs": names, "layers": layers, "integer": integer}

    def feed(self, path: str) -> dict[str, Any]:
        """Read feeds from an .npz with entries `index/input`."""
        found: dict[int, dict[str, Any]] = {}
        with np.load(path, allow_pickle=False) as archive:
            for entry in archive.files:
                index, name = entry.split("/", 1)
                found.setdefault(int(index), {})[name] = archive[entry]
        self.feeds = [found[i] for i in sorted(found)]
        return {"feeds": len(self.feeds)}

    def block(self, runs: int = 1) -> dict[str, Any]:
        """Time `runs` inferences back to back, in nanoseconds."""
        times, start = [], time.perf_counter_ns()
        for _ in range(runs):
            feed = self.feeds[self.turn % len(self.feeds)]
            self.turn += 1
            before = time.perf_counter_ns()
            self.model(feed)
            times.append(time.perf_counter_ns() - before)
        return {"times": times, "start": start, "end": time.perf_counter_ns()}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write the outputs for every feed to an .npz with entries `index/output`."""
        names = [o.get_any_name() for o in self.model.outputs]
        found: dict[str, Any] = {}
        for i, feed in enumerate(self.feeds):
            given = self.model(feed)
            found |= {f"{i}/{name}": given[o] for name, o in zip(names, self.model.outputs, strict=True)}
        np.savez(path, **found)
        return {"outputs": names}


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
