"""Run a file in the runtime of its target, in a process of its own: which nodes run where, what they give, how long it
takes.
"""

from __future__ import annotations

import contextlib
import re
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
from edgeopt.runtime.process import WORKER, Here, Place, Worker, worker
from edgeopt.runtime.providers import CPU, Requested, make_present, parse
from edgeopt.runtime.session import Feed, open_session, run_all
from edgeopt.runtime.tensor_file import NPZ, TENSORS, Wire

Opens = Callable[[Worker, Path, str | None], "Ran"]
"""Opens a file in a worker; the text is where it writes a trace, if that is wanted."""
RUN_S = 600.0
_BROWSER = re.compile(r"(Headless)?(Chrome|Firefox|Version)/\S+")
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
    with temporary_folder() as scratch, opened(model, feeds, *of_target(target, home, scratch)) as there:
        return replace(there.ran, outputs=there.outputs(len(feeds)))


def timed_elsewhere(
    reference: Path, model: Path, feed: Feed, target: Target, home: Path, *, seconds: float, levels: Sequence[float]
) -> PairedLatency:
    """Latency of `model` beside that of `reference` in the runtime of `target`, each in its own process.

    Raises:
        as `run_elsewhere`.
    """
    with temporary_folder() as scratch, contextlib.ExitStack() as stack:
        of = of_target(target, home, scratch)
        before, after = (stack.enter_context(opened(file, [feed], *of)) for file in (reference, model))
        return paired({"before": before.warm(), "after": after.warm()}, "before", seconds, levels)["after"]


@dataclass(frozen=True)
class There:
    """A model that is open in the runtime of a target."""

    ran: Ran
    """How it runs, without outputs."""
    worker: Worker
    folder: Path
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
        place = self.worker.place
        file = self.folder / f"outputs{place.wire.suffix}"
        names = self.worker.ask("outputs", path=place.named(file))["outputs"]
        place.taken(place.named(file), file)
        found = place.wire.read(file)
        try:
            given = [[found[f"{i}/{name}"] for name in names] for i in range(count)]
        except KeyError as e:
            raise DataError(f"output {e}: its values cannot be taken over from {self.ran.runtime}") from e
        return [self.ends.floats(names, outputs) for outputs in given]


@contextlib.contextmanager
def opened(
    model: Path, feeds: Sequence[Feed], place: Place, opens: Opens, *, profile: str | None = None
) -> Iterator[There]:
    """The model, opened by a worker of `place` that has the feeds; the worker ends with the block. profile: where the
    worker writes a trace.
    """
    with temporary_folder() as folder, worker(place, RUN_S) as w:
        file = folder / f"feeds{place.wire.suffix}"
        foreign = model.suffix == ".xml"  # OpenVINO's own files
        own_ends, own = (Ends(), list(feeds)) if foreign else _handed(load_model(model), feeds)
        place.wire.save(file, {f"{i}/{name}": x for i, feed in enumerate(own) for name, x in feed.items()})
        ran = opens(w, model, profile)
        w.ask("feed", path=place.given(file))
        yield There(ran, w, folder, own_ends)


def of_target(target: Target, home: Path, scratch: Path) -> tuple[Place, Opens]:
    """(where the workers of a target's runtime run, how they open a file); scratch: for what the runtime leaves."""
    kind = _RUNTIMES[target.check.kind]
    program = kind.program or sys.executable
    if kind.program == _PYTHON:
        program = str(home if home.is_file() else home / kind.program)
    environment = {"EDGEOPT_MODULES": str(home / "node_modules"), "TMPDIR": str(scratch)}
    place = Here(program, kind.script, environment, target.name, kind.wire, web=kind.open is _web)
    return place, lambda w, model, profile: kind.open(w, model, target)


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
    return _by_provider(w, _greeted(w, target), parse(target.check.provider), model, None)


def with_provider(wanted: Requested) -> Opens:
    """Opens files with a provider of ONNX Runtime."""
    return lambda w, model, profile: _by_provider(w, w.greet(), wanted, model, profile)


def _by_provider(w: Worker, hello: Mapping[str, Any], wanted: Requested, model: Path, profile: str | None) -> Ran:
    try:
        plugin = make_present(w, wanted, (hello.get("providers") or ()))
    except WorkerError as e:
        raise UsageError(f"the runtime of {w.place.name} is not there: {e}") from e
    opened = w.ask(
        "open",
        model=w.place.given(model, lambda: external_files(load_model(model))),
        providers=[[wanted.name, dict(wanted.options)]],
        plugin=plugin,
        assignment=True,
        profile=profile,
    )
    if wanted.name not in (opened.get("providers") or ()):
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
    return _on_web(w, _greeted(w, target), target.check.provider, target.check.threads, model)


def with_web(provider: str) -> Opens:
    """Opens files with a provider of onnxruntime-web."""
    return lambda w, model, profile: _on_web(w, w.greet(), provider, 1, model)


def _on_web(w: Worker, hello: Mapping[str, Any], provider: str, threads: int, model: Path) -> Ran:
    external = {f.relative_to(model.parent).as_posix(): str(f) for f in external_files(load_model(model))}
    if provider == "webgpu" and not hello["f16"] and _halves(load_model(model)):
        raise UsageError("this machine's adapter has no shader-f16, without which half precision cannot be checked")
    found = _BROWSER.search(str(hello.get("browser", "")))
    browser = "a browser" if found is None else found[0].replace("Headless", "headless ")
    where = f"Node {hello['node']}" if "node" in hello else browser
    w.ask("open", model=str(model), provider=provider, threads=threads, external=external)
    several = f", {threads} threads" if threads > 1 else ""
    return Ran(f"onnxruntime-web {hello['onnxruntime']}, {provider}{several}, {where}", [], {}, {}, None, None)


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
