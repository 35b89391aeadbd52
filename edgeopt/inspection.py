"""Inspect a model and what it is given: inputs, operators, parameters, activations, MACs, sizes, the nodes that each
target would compute in integers, and figures of samples.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Data, Feed, InputSpec, Samples, read, specs
from edgeopt.data.images import image_input
from edgeopt.data.made_up import feed_for
from edgeopt.data.preview import Preview, sheet, write
from edgeopt.data.preview import preview as previewed
from edgeopt.data.spec import check_feed, needed, without_label
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.files import check_place, packed_bytes, replacing, staged
from edgeopt.files.cloud import anywhere
from edgeopt.graph.facts import tensors
from edgeopt.graph.ops import macs_of
from edgeopt.hardware import target
from edgeopt.options import takes
from edgeopt.options.models import Inspect, PreviewOptions
from edgeopt.passes.simplifying import simplify
from edgeopt.ptq.place import place, refusals
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.probe import Probe, probe_and_shapes
from edgeopt.runtime.session import RUN_S, bounded, open_session


@dataclass(frozen=True)
class Inspection:
    """Facts about a model. activation_bytes and macs are None if it does not run on generated inputs of `shapes`; why:
    the reason for this.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opsets: Mapping[str, int]
    operators: Mapping[str, int]
    parameters: int
    file_bytes: int
    download_bytes: int
    bytes_by_dtype: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    activation_bytes: int | None
    macs: int | None
    integer_nodes: Mapping[str, Mapping[str, int]]
    why: str


@takes(Inspect)
@anywhere
def inspect(model: graph.Source, options: Inspect) -> Inspection:
    """Facts about `model`; dynamic dimensions without a given size are 1 for batches, 224 for images and 64 for
    sequences.

    Raises:
        ModelError: the model cannot be read. UsageError: a size is given for a dimension that no input has.
    """
    loaded = graph.load(model)
    form = graph.canonical(loaded)
    feed = feed_for(form, options.dims)
    files = [Path(model), *graph.external_files(loaded)] if isinstance(model, str | Path) else []
    bytes_ = b"" if files or graph.above_protobuf(form) else graph.proto_bytes(form)
    integer: dict[str, dict[str, int]] = {}
    work = activation_bytes = None
    why = ""
    try:
        simple = simplify(form)
        with bounded(form):
            probes, ran = probe_and_shapes(simple, feed, RUN_S)
        work = sum(macs_of(n, ran) for n in simple.graph)
        activation_bytes = sum(
            4 * probes[str(v.name)].size for n in simple.graph for v in n.outputs if str(v.name) in probes
        )
        integer = _integer(simple, probes)
    except (EdgeoptError, MemoryError) as e:
        why = f"does not run on made-up inputs, so no shapes: {e}"
    return Inspection(
        inputs={s.name: _describe(v) for s, v in zip(specs(form), form.graph.inputs, strict=True)},
        outputs={str(v.name): _describe(v) for v in form.graph.outputs},
        opsets=dict(loaded.opset_imports),
        operators=dict(Counter(n.op_type for n in form.graph.all_nodes()).most_common()),
        parameters=sum(t.size for t in tensors(form)),
        file_bytes=sum(f.stat().st_size for f in files) if files else len(bytes_),
        download_bytes=packed_bytes(files) if files else len(zlib.compress(bytes_)),
        bytes_by_dtype=graph.bytes_by_dtype(form),
        shapes={name: x.shape for name, x in feed.items()},
        activation_bytes=activation_bytes,
        macs=work,
        integer_nodes=integer,
        why=why,
    )


@takes(PreviewOptions)
@anywhere
def preview(model: graph.Source, data: Data, options: PreviewOptions) -> Preview:
    """What `data` gives `model`: kinds, counts, and figures of each input over the first `samples` samples.

    Raises:
        UsageError, DataError: the samples cannot be read, or a file cannot be written. ModelError: nor the model.
    """
    if options.sheet is not None:
        check_place(options.sheet, options.force, (model, data))
    if options.write is not None and options.write.exists():
        raise UsageError(f"--write {options.write}: exists; name a new folder")
    form = graph.canonical(graph.load(model))
    inputs = specs(form)
    found = read(data, inputs, options, open_session(form).run, norm_distance(form))
    feeds: dict[str, Feed] = {}
    skipped: dict[str, str] = {}
    for name, reader in found.samples[: options.samples]:
        try:
            feed = without_label(reader(), form)
            check_feed(feed, form, name)
            feeds[name] = feed
        except DataError as e:
            skipped[name] = str(e)
    if options.write is not None:
        with staged(options.write) as stage:
            (stage / options.write.name).mkdir()
            write(feeds, stage / options.write.name)
    if options.sheet is not None:
        _draw(options.sheet, list(feeds.values()), inputs, found)
    return previewed(found, feeds, skipped, options.tokenizer)


def _draw(path: Path, feeds: list[Feed], inputs: list[InputSpec], found: Samples) -> None:
    spec = image_input(needed(inputs))
    if spec is None or found.resolved is None:
        raise UsageError("--sheet: the samples are no images")
    with replacing(path) as part:
        sheet(feeds, spec, found.resolved).save(part, format="PNG")


def _integer(model: ir.Model, probes: Mapping[str, Probe]) -> dict[str, dict[str, int]]:
    """How many nodes of each type each target would compute in integers."""
    found, refused = dict[str, dict[str, int]](), refusals(model, probes)
    placed: dict[str, dict[str, int]] = {}
    for name in target.names():
        if name != "host":
            at = target.load(name)
            alike = repr((at.place, at.cost, at.quantize_ps, at.dequantize_ps, at.layout_ps))
            if alike not in placed:
                integer = place(model, at, probes, refused=refused).integer
                placed[alike] = dict(Counter(n.op_type for n in model.graph if n.name in integer).most_common())
            found[name] = placed[alike]
    return found


def _describe(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ", ".join(_dim(d) for d in value.shape)
    return f"{value.dtype.name.lower() if value.dtype is not None else '?'} [{dims}]"


def _dim(d: int | ir.SymbolicDim) -> str:
    return str(d) if isinstance(d, int) else d.value or "?"
