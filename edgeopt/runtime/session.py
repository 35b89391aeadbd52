"""Sessions on ONNX Runtime's CPU provider, with explicit threads, edgeopt's own errors, and intermediate values as
outputs on request.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgeopt.errors import DataError, ModelError, UsageError
from edgeopt.files import is_text, temporary_folder
from edgeopt.graph.facts import size_bytes
from edgeopt.graph.serialization import proto_bytes, write
from edgeopt.hardware.host import at_most, threads, trim_heap
from edgeopt.numbers.ends import Ends, ends_of
from edgeopt.numbers.scores import Outputs

Feed = Mapping[str, NDArray[Any]]
ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    ValueError,
)
RUN_S = 60.0  # of a model that is not trusted yet
_LOOP_BYTES = 1_500_000_000  # beside the weights
AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""Options of a session that leaves Q/DQ as they are: else ONNX Runtime rounds float weights between them, by tensor."""
_TENSOR = re.compile(r"tensor\((\w+)\)")
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class Session:
    """A loaded model."""

    raw: ort.InferenceSession
    outputs: tuple[str, ...]
    """Output names in the order of the results of `run`."""
    halves: frozenset[str] = frozenset()
    """Float16 inputs, for which float32 arrays are accepted too."""
    ends: Ends = field(default_factory=Ends)
    """Integers for which floats are accepted, and that come back as floats."""

    def run(self, feed: Feed, limit_s: float | None = None) -> list[NDArray[Any]]:
        """The outputs for one feed; `limit_s`: seconds after which the run is terminated.

        Raises:
            DataError: ONNX Runtime rejected the feed or failed on it, or took longer.
        """
        options = ort.RunOptions()
        timer = threading.Timer(limit_s or 0, setattr, (options, "terminate", True))
        if limit_s is not None:
            timer.start()
        try:
            return self.ends.floats(self.outputs, self.raw.run(list(self.outputs), self._fitting(feed), options))
        except ERRORS as e:
            shapes = ", ".join(f"{k}: {v.dtype}{list(v.shape)}" for k, v in feed.items())
            raise DataError(f"the model failed on a sample ({shapes}): {e}") from e
        finally:
            timer.cancel()

    def _fitting(self, feed: Feed) -> dict[str, NDArray[Any]]:
        feed = self.ends.feed(feed)
        if not self.halves:
            return feed
        return {k: x.astype(np.float16) if k in self.halves and x.dtype == np.float32 else x for k, x in feed.items()}


@functools.cache
def _share_arena() -> None:
    """Use one memory arena for all sessions, which grows by the requested size and not by powers of two."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


@functools.cache
def _idle() -> ort.InferenceSession:
    """A session that does nothing."""
    x, y = (ir.val(name, ir.DataType.FLOAT, [1]) for name in "xy")
    node = ir.node("Identity", [x], outputs=[y])
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 17}), ir_version=8)
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(proto_bytes(model), settings, providers=["CPUExecutionProvider"])


def _trim_arena() -> None:
    """Give back what the arena has kept of earlier runs: another session divides its memory otherwise."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _idle().run(None, {"x": np.ones(1, np.float32)}, options)
    trim_heap()


def open_session(
    model: ir.Model | Path,
    *,
    threads: int = 1,
    level: str = "all",
    options: Mapping[str, str] | None = None,
    optimized: Path | None = None,
    profile: Path | None = None,
    patterns: bool = True,
) -> Session:
    """Load `model` (in memory or from a file) on the CPU.

    patterns: from the second run on, take the memory of a run as one block, beside what the first has left;
    optimized: file to which ONNX Runtime writes the optimized graph; profile: prefix of the file to which it writes the
    times of kernels.

    Raises:
        ModelError: ONNX Runtime rejects the model.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    settings.enable_mem_pattern = patterns
    settings.graph_optimization_level = LEVELS[level]
    _share_arena()
    _trim_arena()
    settings.add_session_config_entry("session.use_env_allocators", "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    try:
        raw = _load(model, settings)
    except OSError as e:
        raise UsageError(f"no room for a temporary file ({e}); set TMPDIR to a folder with space") from e
    except ERRORS as e:
        raise ModelError(f"ONNX Runtime refuses the model: {e}") from e
    taken = (*raw.get_inputs(), *raw.get_overridable_initializers())
    halves = frozenset(i.name for i in taken if i.type == "tensor(float16)")
    types = {v.name: v.type.removeprefix("tensor(").removesuffix(")") for v in (*taken, *raw.get_outputs())}
    ends = ends_of(raw.get_modelmeta().custom_metadata_map, types)
    return Session(raw, tuple(o.name for o in raw.get_outputs()), halves, ends)


def _load(model: ir.Model | Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    providers = ["CPUExecutionProvider"]
    if isinstance(model, Path):
        if not is_text(model):
            raise ModelError(f"{model}: its name is no UTF-8 text, which ONNX Runtime cannot open; rename it")
        return ort.InferenceSession(str(model), settings, providers=providers)
    # through a file, because serialized bytes would stay in memory in addition to the session's own copy
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        write(model, path)
        return ort.InferenceSession(str(path), settings, providers=providers)


def loops(model: ir.Model) -> bool:
    """Whether how often something runs is in values, which may be absurd."""
    return any(n.op_type in ("Loop", "Scan") for n in model.graph.all_nodes())


def bounded(model: ir.Model) -> contextlib.AbstractContextManager[None]:
    """Within it `model` may take a bounded memory if it has loops."""
    return at_most(_LOOP_BYTES + 4 * size_bytes(model)) if loops(model) else contextlib.nullcontext()


def try_loops(model: ir.Model, feed: Feed) -> None:
    """Run a model that has loops once, in a bounded time and memory.

    Raises:
        DataError: it takes more.
    """
    if not loops(model):
        return
    start = time.monotonic()
    try:
        with bounded(model):
            open_session(model).run(feed, RUN_S)
    except (MemoryError, DataError) as e:
        most = f"{RUN_S:.0f} s" if time.monotonic() - start >= RUN_S else f"{_LOOP_BYTES / 1e9:.1f} GB"
        if isinstance(e, DataError) and "allocate" not in str(e) and time.monotonic() - start < RUN_S:
            raise
        raise DataError(f"a loop of the model takes more than {most} on a sample, and is given up: {e}") from e


def with_outputs(model: ir.Model, values: Sequence[str], *, copy: bool = True) -> ir.Model:
    """A clone whose outputs are the values called `values`; without `copy` the model itself, changed in place."""
    shown = model.clone() if copy else model
    known = {v.name: v for node in shown.graph for v in node.outputs}
    shown.graph.outputs.clear()
    shown.graph.outputs.extend(known[name] for name in values)
    return shown


def as_given(given: ir.Model, model: ir.Model) -> Session:
    """A session of a model as it was given, with which results are compared: ONNX Runtime fuses its nodes otherwise
    than those of its canonical form `model`, which may be slower. Of that form where only it runs: a size of 0, which
    exporters write for a free one, fits no sample.
    """
    empty = any(d == 0 for v in given.graph.inputs if v.shape is not None for d in v.shape)
    try:
        return open_session(model if empty else given, threads=1)
    except ModelError:
        return open_session(model, threads=1)


def reading(model: ir.Model, values: Iterable[str]) -> Callable[[Feed], Feed]:
    """A function that gives, for a feed, it and the values called `values`."""
    inner = sorted(set(values) - {str(v.name) for v in model.graph.inputs})
    if not inner:
        return lambda feed: feed
    session = open_session(with_outputs(model, inner), patterns=False)
    return lambda feed: {**feed, **dict(zip(session.outputs, session.run(feed), strict=True))}


def types_of(model: ir.Model) -> dict[str, ir.DataType]:
    """The types of the values that nodes of the main graph give, as ONNX Runtime has them, by name: behind operators of
    other domains nothing else knows them.
    """
    values = [str(v.name) for n in model.graph for v in n.outputs if v.name and (v.uses() or v.is_graph_output())]
    session = open_session(with_outputs(model, values), level="none")
    found = {o.name: _TENSOR.fullmatch(o.type) for o in session.raw.get_outputs()}
    return {name: ir.DataType[m[1].upper()] for name, m in found.items() if m is not None}


def finite(arrays: Iterable[NDArray[Any]]) -> bool:
    """Whether every float in `arrays` is finite."""
    return all(np.isfinite(a).all() for a in arrays if np.issubdtype(a.dtype, np.floating))


def run_all(session: Session, feeds: Sequence[tuple[str, Feed]], *, workers: int = 1) -> list[Outputs]:
    """The outputs for every feed, in order."""
    _trim_arena()
    with threads(workers) as pool:
        return list(pool.map(lambda item: session.run(item[1]), feeds))
