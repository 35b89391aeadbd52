"""File size, weights, activation memory and MACs of a model.

Shapes come from one traced run without optimization instead of shape inference. Only values that an executor has to
store count: not the output of an operator that can work in place (an activation function, a reshape), nor a value that
is quantized immediately, nor one that is only dequantized for its consumer.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt import graph
from edgeopt.errors import EdgeoptError
from edgeopt.files import packed_bytes, temporary_folder
from edgeopt.graph.living import only_quantized, peak_bytes, reused
from edgeopt.graph.ops import macs
from edgeopt.passes.simplifying import simplify
from edgeopt.profiling.arms import Arm
from edgeopt.profiling.live import live
from edgeopt.profiling.results import Size
from edgeopt.runtime.trace import ELEMENT_BYTES, kernel_runs, read_events

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
Shapes = Sequence[tuple[str, Sequence[int]]]  # (element type, shape) of a node's inputs or outputs
Ran = tuple[Shapes, Shapes]  # inputs and outputs of one run of a node


def size(path: Path, model: ir.Model, feeds: Path | None, *, xz: bool) -> Size:
    """The size of the file at `path`, whose canonical form is `model`, with shapes on the first of `feeds` (None: the
    model does not run). xz is slow: 0.7 s a megabyte.
    """
    files = [path, *graph.external_files(model)]
    facts: dict[str, Any] = {
        "file_bytes": sum(f.stat().st_size for f in files),
        "deflate_bytes": packed_bytes(files),
        "xz_bytes": packed_bytes(files, lzma.LZMACompressor) if xz else None,
        "weights_by_dtype": graph.bytes_by_dtype(model),
        "weights_by_op": _by_op(model),
        "parameters": sum(t.size for t in _tensors(model)),
    }
    if feeds is None:
        return Size(**facts, why="no shapes: it does not run")
    try:
        return Size(**{**facts, **_work(model, feeds)})
    except EdgeoptError as e:
        return Size(**facts, why=f"no shapes: {e}")


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]


def _by_op(model: ir.Model) -> dict[str, int]:
    """Bytes of initializers by the operator type of their first consumer; behind a DequantizeLinear, of the next."""
    found: Counter[str] = Counter()
    for g in model.graphs():
        for value in g.initializers.values():
            node = next(iter(value.uses()), (None, 0))[0]
            if node is not None and node.op_type == "DequantizeLinear":
                node = next(iter(node.outputs[0].uses()), (node, 0))[0]
            if value.const_value is not None:
                found[node.op_type if node is not None else "unused"] += value.const_value.nbytes
    return dict(found.most_common())


def _work(model: ir.Model, feeds: Path) -> dict[str, int]:
    """Elements, bytes and peak bytes of activations, and MACs, from a traced run."""
    plain = not any(n.op_type in _QDQ for n in model.graph.all_nodes())
    numbered = (simplify(model) if plain else model).clone()
    nodes = list(numbered.graph.all_nodes())
    for i, node in enumerate(nodes):
        node.name = f"n{i}"
    traced = _traced(numbered, feeds)
    stored = _stored(numbered, nodes, traced)
    return {
        "activations": sum(elements for elements, _ in stored.values()),
        "activation_bytes": sum(size for _, size in stored.values()),
        "peak_activation_bytes": peak_bytes(numbered, {v: size for v, (_, size) in stored.items()}),
        "macs": sum(_macs(node, ran) for i, node in enumerate(nodes) for ran in traced.get(i, ())),
    }


def _traced(model: ir.Model, feeds: Path) -> dict[int, list[Ran]]:
    """Input and output shapes of every run of every node, by the node's number."""
    if graph.above_protobuf(model):
        raise EdgeoptError("the model is above 2 GB")
    with temporary_folder() as folder:
        graph.write(model, folder / "model.onnx")
        # prepacked weights are missing in the trace
        arm = Arm(folder / "model.onnx", level="none", session={"session.disable_prepacking": "1"})
        with live(arm, profile=str(folder / "trace")) as started:
            started.worker.ask("feed", path=str(feeds))
            started.worker.ask("block", runs=1)
            runs = kernel_runs(read_events(Path(started.worker.ask("trace")["path"])))
    found: dict[int, list[Ran]] = {}
    for r in runs:
        if r.name[:1] == "n" and r.name[1:].isdecimal():
            found.setdefault(int(r.name[1:]), []).append((r.shapes("input_type_shape"), r.shapes("output_type_shape")))
    return found


def _stored(
    model: ir.Model, nodes: Sequence[ir.Node], traced: Mapping[int, Sequence[Ran]]
) -> dict[ir.Value, tuple[int, int]]:
    """(elements, bytes) of every node output that needs memory of its own."""
    seen: dict[ir.Value, tuple[str, Sequence[int]]] = {}
    for i, node in enumerate(nodes):
        for shapes, values in zip(traced[i][0] if i in traced else (), (node.inputs, node.outputs), strict=False):
            there = [v for v in values if v is not None and v.name]
            if len(there) == len(
                shapes
            ):  # an operator split into several kernels: its output's shape comes from the readers
                seen |= {v: s for v, s in zip(there, shapes, strict=True) if v not in seen}
    found: dict[ir.Value, tuple[int, int]] = {}
    for node in nodes:
        for value in node.outputs if reused(node) is None else ():
            if value in seen and not only_quantized(value):
                kind, shape = seen[value]
                found[value] = math.prod(shape), math.prod(shape) * ELEMENT_BYTES.get(kind, 1)
    return found


def _macs(node: ir.Node, ran: Ran) -> int:
    inputs, outputs = ([shape for _, shape in shapes] for shapes in ran)
    return macs(node, inputs, outputs[0]) if outputs else 0
