"""A file without what its reader finds again: notes of exporters on nodes, and types and shapes of values between nodes
that the inference of the ONNX operators gives from the rest. What it cannot give (sizes computed in the graph,
operators of other domains) stays, since runtimes that place by fixed shapes read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

_CONTENTS_BYTES = 1024  # inference reads the contents of sizes, axes and scales, never those of a larger tensor


def lighten(model: onnx.ModelProto) -> None:
    """Remove from `model`, in place, what its reader finds again."""
    for function in model.functions:
        _forget(function.node)
    for graph in _graphs(model.graph):
        _forget(graph.node)
    found = _inferred(model)
    for graph, inferred in zip(_graphs(model.graph), _graphs(found.graph), strict=True):
        types, foreign = {info.name: info.type for info in inferred.value_info}, _foreign(graph)
        weights = {tensor.name for tensor in graph.initializer}  # which say their type and shape themselves
        between = [i for i in graph.value_info if i.name not in weights]
        kept = [i for i in between if i.name in foreign or not _says(types.get(i.name), i.type)]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all types and shapes that inference gives, without the contents of large tensors; the model itself
    if it cannot be inferred.
    """
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    _skeleton(model.graph, small.graph)
    try:
        return onnx.shape_inference.infer_shapes(small)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return small


def _skeleton(graph: onnx.GraphProto, into: onnx.GraphProto) -> None:
    into.node.extend(graph.node)
    for body in _graphs(into):
        if body is not into:
            del body.value_info[:]
    foreign = _foreign(graph)
    into.value_info.extend(info for info in graph.value_info if info.name in foreign)
    into.input.extend(graph.input)
    into.output.extend(graph.output)
    for tensor in graph.initializer:
        copy = into.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if tensor.ByteSize() <= _CONTENTS_BYTES:
            copy.CopyFrom(tensor)


def _foreign(graph: onnx.GraphProto) -> set[str]:
    """What nodes of other domains give."""
    return {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}


def _says(inferred: onnx.TypeProto | None, given: onnx.TypeProto) -> bool:
    """Whether `inferred` has the type, the rank and every fixed size of `given`; names of free sizes do not count."""
    if inferred is None or not given.HasField("tensor_type"):
        return inferred == given
    here, there = given.tensor_type, inferred.tensor_type
    if here.elem_type != there.elem_type or (here.HasField("shape") and not there.HasField("shape")):
        return False
    if len(here.shape.dim) != len(there.shape.dim):
        return not here.HasField("shape")
    return all(a == b or not a.HasField("dim_value") for a, b in zip(here.shape.dim, there.shape.dim, strict=True))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and the bodies of its If, Loop and Scan nodes, in the order of the file."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _forget(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
