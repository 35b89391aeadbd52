"""The worker process in which models are measured. It needs only Python 3.8, onnxruntime and numpy, not edgeopt, so
that any interpreter can run it. It communicates by JSON lines: a request on stdin, an answer on stdout; see
docs/protocol.md.

    {"do": "open", "model": "m.onnx", "providers": [["CPUExecutionProvider", {}]], ...}
    ->  {"ok": {...}}  or  {"error": "...", "type": "..."}

It only reads clocks and counters; statistics are computed by the caller. Times are in nanoseconds, sizes in bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

if "__file__" in globals() and sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
_BORN_NS = time.perf_counter_ns()
import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
from onnxruntime.capi import onnxruntime_pybind11_state as state  # noqa: E402

PROTOCOL = 1
try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]
_IMPORT_NS = time.perf_counter_ns() - _BORN_NS
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)),
    AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_PLUGIN_LIBRARY = "get_library_path"
_PR_SET_PDEATHSIG = 1  # see prctl(2)


def _die_with_parent() -> None:
    """Let Linux kill this process when the measuring process dies, whatever state it is in."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One session and its feeds."""

    session: Any = None
    feeds: list[dict[str, Any]]
    turn = 0

    def hello(self) -> dict[str, Any]:
        """Versions, providers and devices of this interpreter."""
        return {
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "executable": sys.executable,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "pid": os.getpid(),
            "import_ns": _IMPORT_NS,
            "providers": ort.get_available_providers(),
            "devices": _devices(),
        }

    def plugin(self, name: str, library: str | None = None, module: str | None = None) -> dict[str, Any]:
        """Register a plugin provider library, from a path or a Python package; the answer lists the devices it adds."""
        before = len(_devices())
        if module is not None:
            library = getattr(importlib.import_module(module), _PLUGIN_LIBRARY)()
        ort.register_execution_provider_library(name, str(library))
        return {"library": str(library), "devices": _devices()[before:]}

    def open(
        self,
        model: str,
        providers: list[list[Any]],
        plugin: str | None = None,
        threads: int = 1,
        level: str = "all",
        config: dict[str, str] | None = None,
        arena: bool = True,
        profile: str | None = None,
        assignment: bool = False,
        fixed: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        """Create the session. plugin: a plugin provider; its first device is used instead of `providers`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = _LEVELS[level]
        options.enable_cpu_mem_arena = arena
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        for name, size in (fixed or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        if assignment:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        arguments: dict[str, Any] = {"enable_fallback": 0}
        if plugin is not None:
            devices = [d for d in ort.get_ep_devices() if d.ep_name == plugin]
            options.add_provider_for_devices(devices[:1], providers[0][1])
        else:
            arguments["providers"] = [(name, settings) for name, settings in providers]
        start = time.perf_counter_ns()
        self.session = ort.InferenceSession(model, options, **arguments)
        took = time.perf_counter_ns() - start
        return {
            "create_ns": took,
            "providers": self.session.get_providers(),
            "inputs": [[i.name, i.type, i.shape] for i in self.session.get_inputs()],
            "outputs": [o.name for o in self.session.get_outputs()],
            "assignment": self._assignment() if assignment else None,
        }

    def _assignment(self) -> list[list[Any]] | None:
        """[provider, [[node, op type], ...]] of every subgraph; None if this ONNX Runtime does not report it."""
        if not hasattr(self.session, "get_provider_graph_assignment_info"):
            return None
        found = self.session.get_provider_graph_assignment_info()
        return [[part.ep_name, [[n.name, n.op_type] for n in part.get_nodes()]] for part in found]

    def feed(self, path: str) -> dict[str, Any]:
        """Read feeds from an .npz with entries `index/input`; they are used in turn."""
        found: dict[int, dict[str, Any]] = {}
        with np.load(path, allow_pickle=False) as archive:
            for entry in archive.files:
                index, name = entry.split("/", 1)
                found.setdefault(int(index), {})[name] = archive[entry]
        self.feeds = [found[i] for i in sorted(found)] or [{}]  # a model without inputs
        self.turn = 0
        return {"feeds": len(self.feeds)}

    def block(self, runs: int = 1, seconds: float = 0.0, rate: float = 0.0) -> dict[str, Any]:
        """Time at least `runs` inferences for at least `seconds`, back to back or at `rate` per second, and count
        interruptions of this process by the system.
        """
        session, feeds, clock = self.session, self.feeds, time.perf_counter_ns
        times: list[int] = []
        wait, switches, started = _run_queue_wait_ns(), _involuntary(), clock()
        due = started
        limit = started + int(seconds * 1e9)
        while len(times) < runs or clock() < limit:
            feed = feeds[self.turn % len(feeds)]
            self.turn += 1
            if rate:
                due += int(1e9 / rate)
                time.sleep(max(0.0, (due - clock()) / 1e9))
            before = clock()
            session.run(None, feed)
            times.append(clock() - before)
        return {
            "times": times,
            "start": started,
            "end": clock(),
            "wait_ns": None if wait is None else (_run_queue_wait_ns() or 0) - wait,
            "switches": _involuntary() - switches,
        }

    def repeats(self) -> dict[str, Any]:
        """Whether the first feed gives the same outputs twice."""
        first, again = (self.session.run(None, self.feeds[0]) for _ in range(2))
        return {"deterministic": all(map(_same, first, again))}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write the outputs for every feed to an .npz with entries `index/output`."""
        names = [o.name for o in self.session.get_outputs()]
        found: dict[str, Any] = {}
        for i, feed in enumerate(self.feeds):
            for name, y in zip(names, self.session.run(None, feed)):  # noqa: B905  (strict: from Python 3.10 on)
                if isinstance(y, np.ndarray) and y.dtype != object:
                    found[f"{i}/{name}"] = y
        np.savez(path, **found)
        return {"outputs": names}

    def memory(self, reset: bool = False) -> dict[str, Any]:
        """Current and peak memory of this process in bytes; `reset`: restart the peak afterwards, if the kernel can."""
        found = _status()
        if reset:
            found["reset"] = _reset_peak()
        return found

    def trace(self) -> dict[str, Any]:
        """End the session's profiling; the answer contains the file's path."""
        return {"path": self.session.end_profiling()}

    def close(self) -> dict[str, Any]:
        """Drop the session."""
        self.session = None
        return {}


def _same(a: Any, b: Any) -> bool:
    """Whether two values of an output are equal (NaN equals NaN); values that are not numeric arrays are ignored."""
    numeric = isinstance(a, np.ndarray) and a.dtype != object
    return not numeric or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _devices() -> list[list[str]]:
    """[provider, kind of device, vendor] of every device that a provider offers."""
    if not hasattr(ort, "get_ep_devices"):
        return []
    return [[d.ep_name, d.device.type.name, d.device.vendor or d.ep_vendor] for d in ort.get_ep_devices()]


def _run_queue_wait_ns() -> int | None:
    """Time in nanoseconds that threads of this process were ready but did not run; None if the kernel does not report
    it.
    """
    total = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for task in Path("/proc/self/task").iterdir():
            total = (total or 0) + int((task / "schedstat").read_bytes().split()[1])
    return total


def _involuntary() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _status() -> dict[str, Any]:
    found: dict[str, Any] = {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if resource else 0}
    keys = {
        "VmRSS": "rss",
        "VmHWM": "peak_rss",
        "Pss": "pss",
        "Private_Dirty": "private_dirty",
        "Private_Clean": "private_clean",
    }
    for path in ("/proc/self/status", "/proc/self/smaps_rollup"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text("ascii", "replace").splitlines():
                name, _, rest = line.partition(":")
                if name in keys:
                    found[keys[name]] = int(rest.split()[0]) * 1024
    return found


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_bytes(b"5")
    except OSError:
        return False
    return True


def serve() -> None:
    """Answer requests until stdin ends. Output of providers goes to stderr, so that stdout contains only answers."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Server()
    answers.write("\n")  # after what a shell may have said
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            answer = {"ok": getattr(worker, do)(**request)}
        except _ERRORS as e:
            answer = {"error": str(e) or repr(e), "type": type(e).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
