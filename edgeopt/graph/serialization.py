"""Load and save models; loading reads nothing outside the model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from edgeopt.errors import ModelError, ValidityError, suggestion
from edgeopt.graph import defaults
from edgeopt.graph.facts import above_protobuf, initializers, tensors
from edgeopt.graph.lean import lighten

MALFORMED = (
    AssertionError, DecodeError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError,
)  # fmt: skip

Source = str | Path | bytes | onnx.ModelProto | ir.Model


def load(source: Source) -> ir.Model:
    """Load a model from a file, from bytes or from memory; external data are memory-mapped and must lie inside the
    model's folder.

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
    except MALFORMED as e:
        text = str(e).splitlines()[0][:200] if str(e) else ""
        raise ModelError(
            f"{name}: not a readable ONNX model ({type(e).__name__}: {text}); is it a complete .onnx file?"
        ) from e
    _check(model, name)
    return model


def _load_file(path: Path) -> ir.Model:
    try:
        if not path.is_file():
            raise ModelError(_not_there(path))
        other = _other_kind(path)
        if other is not None:
            raise ModelError(f"{path}: {other}")
        return ir.load(path, format="protobuf")
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror or e})") from e


def _not_there(path: Path) -> str:
    """What to say of a path that is no file."""
    if path.is_dir():
        models = sorted(f.name for f in path.glob("*.onnx"))[:3]
        return f"{path}: a folder; name a model in it{': ' + ', '.join(models) if models else ''}"
    if path.exists():
        return f"{path}: a device, a pipe or a socket, and no model"
    near = suggestion(path.name, [f.name for f in path.parent.iterdir()]) if path.parent.is_dir() else "."
    return f"{path}: no such file{near}"


_KINDS = (  # (offset, how such a file begins, what it is)
    (0, b"version https://git-lfs", "a Git LFS pointer and not the model itself: run git lfs pull"),
    (0, b"\x89PNG", "a picture and no ONNX model"),
    (0, b"\xff\xd8\xff", "a picture and no ONNX model"),
    (0, b"PK\x03\x04", "a zip archive (.pt, .npz, .keras ...): edgeopt export makes ONNX of a torch module"),
    (0, b"\x80", "a pickle (.pt, .pkl ...), which is not opened: edgeopt export makes ONNX of a torch module"),
    (0, b"\x89HDF", "an HDF5 file (Keras): convert it to ONNX, with tf2onnx"),
    (0, b"\x93NUMPY", "a NumPy array and no ONNX model"),
    (4, b"TFL3", "a TensorFlow Lite model: convert the model that it was made of to ONNX"),
    (4, b"ORTM", "an .ort file, which is made of the ONNX model: give that one"),
)
_TEXT = frozenset({".py", ".txt", ".toml", ".json", ".md", ".yml", ".yaml", ".csv", ".ipynb", ".sh"})


def _other_kind(path: Path) -> str | None:
    """What a file is that is certainly no ONNX model, None if it may be one."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if path.suffix.lower() in _TEXT:
        return f"a {path.suffix} file and no ONNX model"
    return next((what for at, begin, what in _KINDS if head[at:].startswith(begin)), None)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All tensors in the file: initializers and attributes, also in sub-graphs and functions."""
    for value in initializers(model):
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
    """Check that the data of every tensor are available and match its shape."""
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if folder is None:
                raise ModelError(
                    f"{name}: the data of {tensor.name!r} are in another file ({tensor.location}); "
                    "give the model's path"
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
    for node in model.graph.all_nodes():
        texts = (
            node.op_type,
            node.domain,
            node.name,
            *(v.name for v in (*node.inputs, *node.outputs) if v is not None),
        )
        if any(isinstance(text, bytes) for text in texts):
            raise ModelError(f"{name}: a node has a name that is no UTF-8 text: {texts[0]!r}")
    if not {"", "ai.onnx"} & model.opset_imports.keys():
        raise ModelError(f"{name}: the model imports no version of the ONNX operators")


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes of `error`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def proto_bytes(model: ir.Model, lean: bool = False) -> bytes:
    """The model as one protobuf message that includes external data; `lean`: see `write`.

    Raises:
        ModelError: it is larger than protobuf's limit of 2 GB.
    """
    whole = embedded(model)
    try:
        proto = ir.to_proto(defaults.restored(whole))
        if lean:
            lighten(proto)
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, *MALFORMED) as e:
        raise ModelError(f"the model cannot be written as one protobuf message: {root_cause(e)}") from e


def embedded(model: ir.Model) -> ir.Model:
    """A clone with its external tensors loaded into memory, so that it can be written without its data file; the model
    itself if it has none.
    """
    if not external_files(model):
        return model
    copy = model.clone()
    for value in initializers(copy):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    return copy


def external_files(model: ir.Model) -> list[Path]:
    """The external data files that contain the model's weights."""
    return sorted({Path(t.path) for t in tensors(model) if isinstance(t, ir.ExternalTensor)})


def write(model: ir.Model, path: Path, lean: bool = False) -> list[Path]:
    """Write `model` to `path`, with the weights in `path`.data beside it if it is above 2 GB; return the files written,
    the model last. `lean`: without what its reader finds again (`graph.lean`), which is up to a fifth of a small file.

    Never overwrite a file that the model still maps into memory.
    """
    if above_protobuf(model):
        data = path.name + ".data"
        ir.save(defaults.restored(model), path, format="protobuf", external_data=data, size_threshold_bytes=1024)
        return [path.with_name(data), path]
    path.write_bytes(proto_bytes(model, lean))
    return [path]


def write_valid(model: ir.Model, path: Path, who: str) -> None:
    """Write `model` to `path` and check it with the ONNX checker, including shapes.

    Raises:
        ValidityError: the file is not valid; the message names its producer `who`.
    """
    write(model, path)
    check_valid(path, who, full=True)


def check_valid(path: Path, who: str, *, full: bool = False) -> None:
    """Check the file with the ONNX checker; `full`: including shapes.

    Raises:
        ValidityError: the file is not valid; the message names its producer `who`.
    """
    try:
        onnx.checker.check_model(str(path), full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
        raise ValidityError(f"{who} is not valid ONNX: {e}") from e
