"""Free functions over `onnx_ir.Model`: load, canonical form, opset, sizes, and a save that cannot leave half a file.

The canonical form is what every other module works on: no functions, no Constant nodes, weights as initializers and not
among the inputs, sorted, every node named, no unused opset imports, no dimension below 1 on a graph input. `canonical`
returns a copy; the argument keeps its form.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.passes import PassBase, Sequential
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from edgeopt.errors import ModelError

PROTOBUF_LIMIT = 2_000_000_000
_MALFORMED = (
    AssertionError,
    DecodeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
    OverflowError,
    ir.serde.SerdeError,
)


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model) -> ir.Model:
    """The model in a file, in bytes, or in memory; external data stay mapped and must lie inside the model's folder.

    Raises:
        ModelError: not a readable ONNX model, an empty graph, or external data that are missing, too short or outside
          the model's folder.
    """
    if isinstance(source, ir.Model):
        return source
    name = "the model in memory"
    try:
        if isinstance(source, onnx.ModelProto):
            model = ir.from_proto(source)
        elif isinstance(source, bytes):
            model = ir.from_proto(onnx.load_model_from_string(source))
        else:
            name = str(source)
            model = _load_file(Path(source))
        _check_tensors(
            model, None if isinstance(source, onnx.ModelProto | bytes) else Path(source).resolve().parent, name
        )
    except _MALFORMED as e:
        text = str(e).splitlines()[0][:200] if str(e) else ""
        raise ModelError(
            f"{name}: not a readable ONNX model ({type(e).__name__}: {text}); is it a complete .onnx file?"
        ) from e
    _check(model, name)
    return model


def _load_file(path: Path) -> ir.Model:
    try:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        return ir.load(path, format="protobuf")
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror or e})") from e


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor in the file: initializers and attributes, in sub-graphs and functions too."""
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.const_value
    nodes = [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                yield from attribute.as_tensors()


def _check_tensors(model: ir.Model, folder: Path | None, name: str) -> None:
    """Every tensor can be had, and is as large as it says."""
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if folder is None:
                raise ModelError(
                    f"{name}: the data of {tensor.name!r} are in another file ({tensor.location}); give the model's path"
                )
            _check_external(tensor, folder, name)
        elif not isinstance(tensor, ir.StringTensor) and tensor.numpy().shape != tensor.shape.numpy():
            raise ModelError(f"{name}: the data of {tensor.name!r} do not fill its shape {tensor.shape}")


def _check_external(tensor: ir.ExternalTensor, folder: Path, name: str) -> None:
    try:
        where = (folder / tensor.location).resolve()
        inside, there = where.is_relative_to(folder), where.is_file()
        size = where.stat().st_size if inside and there else 0
    except (OSError, ValueError) as e:
        raise ModelError(f"{name}: the data of {tensor.name!r} cannot be read ({e})") from e
    if not inside:
        raise ModelError(
            f"{name}: the data of {tensor.name!r} lie outside the model's folder ({tensor.location}); refused"
        )
    if not there:
        raise ModelError(
            f"{name}: the data of {tensor.name!r} are missing: {where} (keep the .data file beside the model)"
        )
    offset = tensor.offset or 0
    need = offset + (tensor.length if tensor.length is not None else tensor.nbytes)
    if offset < 0 or size < need or tensor.nbytes > need - offset:
        raise ModelError(f"{name}: the data of {tensor.name!r} are cut short: {where} ends before byte {need}")


def _check(model: ir.Model, name: str) -> None:
    if len(model.graph) == 0:
        raise ModelError(f"{name}: the graph has no nodes; is it an ONNX model?")
    if not model.graph.outputs:
        raise ModelError(f"{name}: the graph has no outputs")
    if not {"", "ai.onnx"} & model.opset_imports.keys():
        raise ModelError(f"{name}: the model imports no version of the ONNX operators")


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def canonical(model: ir.Model) -> ir.Model:
    """A copy in canonical form (see the module); the tensors are shared.

    Raises:
        ModelError: a pass refused the model, or an input is not a tensor.
    """
    steps: list[PassBase] = [
        InlinePass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        LiftSubgraphInitializersToMainGraphPass(),
        RemoveInitializersFromInputsPass(),
        TopologicalSortPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        NameFixPass(),
    ]
    try:
        copy = Sequential(*steps)(_copy(model)).model
    except (*_MALFORMED, ir.passes.PassError) as e:
        raise ModelError(f"the graph cannot be brought into canonical form: {_root(e)}") from e
    if len(copy.graph) == 0:
        raise ModelError("nothing is computed: the outputs are constants or inputs")
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{value.name!r} is a {value.type}: only models of tensors can be quantized or measured")
    for value in copy.graph.inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise ModelError(
                f"input {value.name!r} is a {value.type}: only inputs that are tensors of numbers can be quantized or measured"
            )
        if value.shape is not None:
            dims = [None if isinstance(d, int) and d < 1 else d for d in value.shape]
            value.shape = ir.Shape(dims)
    _name_nodes(copy)
    return copy


def _copy(model: ir.Model) -> ir.Model:
    """A clone in topological order, with the operators under their short domain name."""
    try:
        copy = model.clone()
    except (ValueError, RuntimeError):  # nodes out of order cannot be cloned; a cycle or an undefined value not sorted
        copy = ir.from_proto(ir.to_proto(model))
        copy.graph.sort()
        copy = copy.clone()
    for node in copy.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
    if "ai.onnx" in copy.opset_imports:
        copy.opset_imports.setdefault("", copy.opset_imports["ai.onnx"])
        del copy.opset_imports["ai.onnx"]
    return copy


def _root(error: BaseException) -> BaseException:
    """What `error` came from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _name_nodes(model: ir.Model) -> None:
    """Give every node, bodies included, a name of its own."""
    taken = {n.name for n in model.graph.all_nodes() if n.name}
    seen: set[str] = set()
    for i, node in enumerate(model.graph.all_nodes()):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.name or node.op_type}_{i}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
        seen.add(name)


def raise_opset(model: ir.Model, version: int) -> ir.Model:
    """The model at ONNX opset `version` or later; an older one goes through ONNX's version converter.

    Raises:
        ModelError: the converter does not know an operator of the model.
    """
    if model.opset_imports[""] >= version:
        return model
    if size_bytes(model) > PROTOBUF_LIMIT:
        raise ModelError(
            f"a model above 2 GB cannot be raised from opset {model.opset_imports['']} to {version}; export it again at opset {version}"
        )
    try:
        with embedded(model) as whole:
            converted = onnx.version_converter.convert_version(ir.to_proto(whole), version)
        # the C++ error type of the converter derives from RuntimeError
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"opset {model.opset_imports['']} cannot be raised to {version}: {e}; export the model again at opset {version}"
        ) from e
    return canonical(ir.from_proto(converted))


def typed(model: ir.Model) -> ir.Model:
    """The model with an element type on every value, by ONNX's strict inference.

    Raises:
        ModelError: the inference fails; says where.
    """
    if size_bytes(model) > PROTOBUF_LIMIT:
        raise ModelError("a model above 2 GB cannot go through ONNX's type inference, which this mode needs")
    try:
        with embedded(model) as whole:
            inferred = onnx.shape_inference.infer_shapes(ir.to_proto(whole), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        raise ModelError(f"type inference failed: {e}") from e
    return canonical(ir.from_proto(inferred))


def proto_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf message, external data pulled in.

    Raises:
        ModelError: it is larger than protobuf's 2 GB.
    """
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in _initializers(model))
    with embedded(model) if external else contextlib.nullcontext(model) as whole:
        try:
            return bytes(ir.to_proto(whole).SerializeToString(deterministic=True))
        except (EncodeError, *_MALFORMED) as e:
            raise ModelError(f"the model cannot be written as one protobuf message: {_root(e)}") from e


@contextlib.contextmanager
def embedded(model: ir.Model) -> Iterator[ir.Model]:
    """A clone whose external tensors are in memory, so that it can be written without its data file."""
    copy = model.clone()
    for value in _initializers(copy):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    yield copy


def size_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in _initializers(model) if v.const_value is not None)


def external_files(model: ir.Model) -> list[Path]:
    """The files beside the model's own that hold its weights."""
    tensors = (v.const_value for v in _initializers(model))
    return sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})


def bytes_by_dtype(model: ir.Model) -> dict[str, int]:
    """Bytes of initializers by element type, largest first."""
    sizes: Counter[str] = Counter()
    for value in _initializers(model):
        if value.const_value is not None:
            sizes[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return dict(sizes.most_common())


def write(model: ir.Model, path: Path) -> list[Path]:
    """Write `model` at `path`, weights in `path`.data beside it when it is above 2 GB; the files written, the model
    last.

    For a file of its own only: never over a file that the model still maps.
    """
    if size_bytes(model) > PROTOBUF_LIMIT:
        data = path.name + ".data"
        ir.save(model, path, format="protobuf", external_data=data, size_threshold_bytes=1024)
        return [path.with_name(data), path]
    path.write_bytes(proto_bytes(model))
    return [path]
