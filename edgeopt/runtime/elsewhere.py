"""Run a file in the runtime of its target, in a process of its own: which nodes run where, what they give, how long it
takes.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data.ends import ends
from edgeopt.errors import DataError, UsageError, WorkerError
from edgeopt.files import temporary_folder
from edgeopt.graph.serialization import external_files
from edgeopt.graph.serialization import load as load_model
from edgeopt.hardware.target import Target
from edgeopt.numbers.ends import Ends
from edgeopt.numbers.scores import Outputs
from edgeopt.runtime.measure import PairedLatency, paired, settled
from edgeopt.runtime.process import WORKER, Here, Worker, worker
from edgeopt.runtime.providers import CPU, make_present, parse
from edgeopt.runtime.session import Feed, open_session, run_all
from edgeopt.runtime.tensor_file import NPZ, TENSORS, Wire

RUN_S = 600.0
_PYTHON = "bin/python"
_OPENVINO = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Ran:
    """How a file ran in its target's runtime."""

    runtime: str
    """Name and version."""
    outputs: Sequence[Outputs]
    """For each feed."""
    nodes: Mapping[str, int]
    """Nodes by device."""
    elsewhere: Mapping[str, str]
    """Nodes that the device leaves to the CPU -> their operator."""
    partitions: int | None
    """Parts of the graph that the device takes whole; None if the runtime does not tell."""
    layers: tuple[int, int] | None
    """(layers in integers, all layers) as the runtime tells; None if it does not."""


def run_elsewhere(model: Path, feeds: Sequence[Feed], target: Target, home: Path) -> Ran:
    """Run `model` on `feeds` in the runtime of `target`, whose environment is `home`.

    Raises:
        UsageError: there is no such runtime. WorkerError: the runtime refuses the model, dies or takes too long.
        DataError: feeds that cannot be handed over.
    """
    with opened(model, feeds, target, home) as there:
        return replace(there.ran, outputs=there.outputs(len(feeds)))


def timed_elsewhere(
    reference: Path, model: Path, feed: Feed, target: Target, home: Path, *, seconds: float, levels: Sequence[float]
) -> PairedLatency:
    """Latency of `model` beside that of `reference` in the runtime of `target`, each in its own process.

    Raises:
        as `run_elsewhere`.
    """
    with opened(reference, [feed], target, home) as before, opened(model, [feed], target, home) as after:
        return paired({"before": before.warm(), "after": after.warm()}, "before", seconds, levels)["after"]


@dataclass(frozen=True)
class There:
    """A model that is open in the runtime of a target."""

    ran: Ran
    """How it runs, without outputs."""
    worker: Worker
    folder: Path
    kind: _Runtime
    ends: Ends

    def block(self, runs: int) -> float:
        """The median time of `runs` inferences in seconds."""
        return float(median(self.worker.ask("block", runs=runs)["times"])) / 1e9

    def warm(self) -> Callable[[int], float]:
        """`block`, once its times have settled."""
        settled(self.block)
        return self.block

    def outputs(self, count: int) -> list[Outputs]:
        """The outputs for each of its `count` feeds."""
        file = self.folder / f"outputs{self.kind.wire.suffix}"
        names = self.worker.ask("outputs", path=str(file))["outputs"]
        found = self.kind.wire.read(file)
        try:
            given = [[found[f"{i}/{name}"] for name in names] for i in range(count)]
        except KeyError as e:
            raise DataError(f"output {e}: its values cannot be taken over from {self.ran.runtime}") from e
        return [self.ends.floats(names, outputs) for outputs in given]


@contextlib.contextmanager
def opened(model: Path, feeds: Sequence[Feed], target: Target, home: Path) -> Iterator[There]:
    """The model, opened by a worker that has the feeds; the worker ends with the block."""
    kind = _RUNTIMES[target.check.kind]
    program = kind.program or sys.executable
    if kind.program == _PYTHON:
        program = str(home if home.is_file() else home / kind.program)
    with temporary_folder() as folder:
        environment = {"EDGEOPT_MODULES": str(home / "node_modules"), "TMPDIR": str(folder)}
        with worker(Here(program, kind.script, environment), RUN_S) as w:
            file = folder / f"feeds{kind.wire.suffix}"
            foreign = model.suffix == ".xml"  # OpenVINO's own files
            own_ends, own = (Ends(), list(feeds)) if foreign else _handed(load_model(model), feeds)
            kind.wire.save(file, {f"{i}/{name}": x for i, feed in enumerate(own) for name, x in feed.items()})
            ran = kind.open(w, model, target)
            w.ask("feed", path=str(file))
            yield There(ran, w, folder, kind, own_ends)


def _handed(model: ir.Model, feeds: Sequence[Feed]) -> tuple[Ends, list[Feed]]:
    """(the grids at the ends of a file, the feeds as the file takes them: integers or half precision where floats are
    given, without what is the default anyway, which not every runtime can be told).
    """
    own, given = ends(model), {str(v.name): v for v in model.graph.inputs}

    def handed(name: str, x: NDArray[Any]) -> NDArray[Any]:
        half = name in given and given[name].dtype == ir.DataType.FLOAT16 and x.dtype == np.float32
        return x.astype(np.float16) if half else x

    known = {name: v.const_value.numpy() for name, v in given.items() if v.const_value is not None}
    left = [{k: x for k, x in f.items() if k not in known or not np.array_equal(x, known[k])} for f in feeds]
    return own, [{k: handed(k, x) for k, x in own.feed(feed).items()} for feed in left]


def run_here(model: Path, feeds: Sequence[Feed]) -> Ran:
    """Run `model` on ONNX Runtime's CPU provider in this process.

    Raises:
        ModelError: it is refused. DataError: it fails on a feed.
    """
    outputs = run_all(open_session(model), [(str(i), feed) for i, feed in enumerate(feeds)])
    return Ran("ONNX Runtime's CPU provider, here", outputs, {}, {}, None, None)


def _provider(w: Worker, model: Path, target: Target) -> Ran:
    wanted = parse(target.check.provider)
    hello = _greeted(w, target)
    try:
        plugin = make_present(w, wanted, hello["providers"])
    except WorkerError as e:
        raise UsageError(f"the runtime of {target.name} is not there: {e}") from e
    opened = w.ask(
        "open", model=str(model), providers=[[wanted.name, dict(wanted.options)]], plugin=plugin, assignment=True
    )
    if wanted.name not in opened["providers"]:
        raise WorkerError(f"{wanted.name} takes no node of the model; it runs on {', '.join(opened['providers'])}")
    assignment: list[list[Any]] = opened["assignment"] or []
    nodes = Counter({str(name): 0 for name, _ in assignment})
    for name, members in assignment:
        nodes[str(name)] += len(members)
    return Ran(
        f"onnxruntime {hello['onnxruntime']}, {wanted.label}",
        [],
        dict(nodes),
        {str(n): str(op) for name, members in assignment if name == CPU != wanted.name for n, op in members},
        partitions(wanted.name, assignment) if assignment else None,
        None,
    )


def _openvino(w: Worker, model: Path, target: Target) -> Ran:
    version = _greeted(w, target)["openvino"]
    opened = w.ask("open", model=str(model), config=_OPENVINO)
    return Ran(f"OpenVINO {version}", [], {}, {}, None, (len(opened["integer"]), len(opened["layers"])))


def _rknn(w: Worker, model: Path, target: Target) -> Ran:
    version, graph = _greeted(w, target)["rknn"], load_model(model).graph
    inputs = [str(v.name) for v in graph.inputs if v.const_value is None]
    w.ask("open", model=str(model), inputs=inputs, outputs=[str(v.name) for v in graph.outputs])
    return Ran(f"rknn-toolkit2 {version}, simulated", [], {}, {}, None, None)


def _web(w: Worker, model: Path, target: Target) -> Ran:
    hello, check = _greeted(w, target), target.check
    external = {f.relative_to(model.parent).as_posix(): str(f) for f in external_files(load_model(model))}
    threads = f", {check.threads} threads" if check.threads > 1 else ""
    if check.provider == "webgpu" and not hello["f16"] and _halves(load_model(model)):
        raise UsageError("this machine's adapter has no shader-f16, without which half precision cannot be checked")
    where = hello.get("node") or hello["browser"].rpartition("Headless")[2].partition(" ")[0]
    name = "Node" if "node" in hello else "headless"
    w.ask("open", model=str(model), provider=check.provider, threads=check.threads, external=external)
    return Ran(
        f"onnxruntime-web {hello['onnxruntime']}, {check.provider}{threads}, {name} {where}", [], {}, {}, None, None
    )


def _halves(model: ir.Model) -> bool:
    values = (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
    return any(v.dtype == ir.DataType.FLOAT16 for v in values)


def _greeted(w: Worker, target: Target) -> dict[str, Any]:
    try:
        return w.greet()
    except WorkerError as e:
        raise UsageError(f"the runtime of {target.name} is not there: {e}") from e


@dataclass(frozen=True)
class _Runtime:
    """How the worker of a kind of check is started and spoken to."""

    program: str
    """Its interpreter: in the target's environment, on the PATH, or this one if it is empty."""
    script: Path
    open: Callable[[Worker, Path, Target], Ran]
    wire: Wire = NPZ


_RUNTIMES = {
    "provider": _Runtime(_PYTHON, WORKER, _provider),
    "emulated": _Runtime(_PYTHON, WORKER, _provider),
    "openvino": _Runtime(_PYTHON, WORKER / "with_openvino.py", _openvino),
    "rknn": _Runtime(_PYTHON, WORKER / "with_rknn.py", _rknn),
    "node": _Runtime("node", WORKER / "with_node.mjs", _web, TENSORS),
    "chromium": _Runtime("", WORKER / "with_chromium.py", _web, TENSORS),
}


def partitions(requested: str, assignment: Sequence[Sequence[Any]]) -> int:
    """Number of subgraphs on the provider: each compiled subgraph, and each run of consecutive single nodes."""
    if requested == CPU:
        return int(any(name == CPU for name, _ in assignment))
    count, stretch = 0, False
    for name, members in assignment:
        single = name == requested and len(members) == 1
        count += name == requested and not (single and stretch)
        stretch = single
    return count
