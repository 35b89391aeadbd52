"""Run a file in the runtime of its target, in another interpreter: which nodes run where, and what they give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import UsageError, WorkerError
from edgeopt.files import temporary_folder
from edgeopt.hardware.target import Target
from edgeopt.numbers.scores import Outputs
from edgeopt.runtime.process import WORKER, Worker, worker
from edgeopt.runtime.providers import CPU, make_present, parse
from edgeopt.runtime.session import Feed, open_session, run_all

RUN_S = 600.0
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


def run_elsewhere(model: Path, feeds: Sequence[Feed], target: Target, python: str | None) -> Ran:
    """Run `model` on `feeds` in the runtime of `target`, with the interpreter `python`.

    Raises:
        UsageError: the interpreter has no such runtime. WorkerError: the runtime refuses the model, dies or takes too
          long.
    """
    run = _openvino if target.check.kind == "openvino" else _provider
    script = WORKER / "with_openvino.py" if target.check.kind == "openvino" else WORKER
    with temporary_folder() as folder, worker(python, RUN_S, script) as w:
        arrays = {f"{i}/{name}": x for i, feed in enumerate(feeds) for name, x in feed.items()}
        np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
        return run(w, model, folder, target, len(feeds))


def run_here(model: Path, feeds: Sequence[Feed]) -> Ran:
    """Run `model` on ONNX Runtime's CPU provider in this process.

    Raises:
        ModelError: it is refused. DataError: it fails on a feed.
    """
    outputs = run_all(open_session(model), [(str(i), feed) for i, feed in enumerate(feeds)])
    return Ran("ONNX Runtime's CPU provider, here", outputs, {}, {}, None, None)


def _provider(w: Worker, model: Path, folder: Path, target: Target, count: int) -> Ran:
    wanted = parse(target.check.provider)
    try:
        hello = w.greet()
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
        _outputs(w, folder, count),
        dict(nodes),
        {str(n): str(op) for name, members in assignment if name == CPU for n, op in members},
        partitions(wanted.name, assignment) if assignment else None,
        None,
    )


def _openvino(w: Worker, model: Path, folder: Path, target: Target, count: int) -> Ran:
    try:
        version = w.greet()["openvino"]
    except WorkerError as e:
        raise UsageError(f"the runtime of {target.name} is not there: {e}") from e
    opened = w.ask("open", model=str(model), config=_OPENVINO)
    layers = len(opened["integer"]), len(opened["layers"])
    return Ran(f"OpenVINO {version}", _outputs(w, folder, count), {}, {}, None, layers)


def _outputs(w: Worker, folder: Path, count: int) -> list[Outputs]:
    w.ask("feed", path=str(folder / "feeds.npz"))
    names = w.ask("outputs", path=str(folder / "outputs.npz"))["outputs"]
    with np.load(folder / "outputs.npz", allow_pickle=False) as found:
        return [[found[f"{i}/{name}"] for name in names] for i in range(count)]


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
