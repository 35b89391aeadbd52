"""`export(factory)`: a torch module, or an exported program (.pt2), as a verified ONNX file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt import graph
from edgeopt.data import Feed, InputSpec
from edgeopt.data.foreign import named
from edgeopt.data.made_up import random_samples
from edgeopt.errors import DataError, EdgeoptError, ModelError, UsageError, ValidityError, extra
from edgeopt.files import check_place, staged
from edgeopt.options import takes
from edgeopt.options.models import Export
from edgeopt.runtime.feeds import feeds_of
from edgeopt.runtime.session import Session, open_session

TOLERANCE = 1e-3  # relative to the largest output: float sums in another order
_PICKLES = (".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Exported:
    """The exported model and its error."""

    model: ir.Model
    path: Path
    error: float
    """Largest difference from torch, relative to the largest output."""
    given: int = 0
    """Number of samples among the inputs compared."""

    def __str__(self) -> str:
        asked = f"random inputs and {self.given} sample{'s' * (self.given > 1)}" if self.given else "random inputs"
        return f"largest difference from torch {self.error:.1e} of the largest output ({asked})"


@takes(Export)
def export(source: str, inputs: Mapping[str, Sequence[int]], options: Export) -> Exported:
    """Export what `package.module:factory` returns, or the program in a .pt2 file, and compare it with torch.

    inputs: shapes by the names that the file's inputs get, in the order of the module's arguments. Both are run on
    random inputs (normal floats; integers 0 and 1, valid for every vocabulary and mask) and on samples. A .pt2 is read
    without unpickling, but torch evaluates expressions in it: do not load untrusted files.

    Raises:
        UsageError: no such factory, or a file that needs `trust`. DataError: samples that do not fit. ModelError: torch
          cannot export it. ValidityError: an output differs; nothing was written.
    """
    path = options.output
    check_place(path, options.force)
    if importlib.util.find_spec("onnxscript") is None:
        raise UsageError(f"export needs onnxscript: {extra('train')}")
    free = {name: set(axes) for name, axes in options.dynamic.items()}
    for name, axes in free.items():
        if name not in inputs or any(not 0 <= a < len(inputs[name]) for a in axes):
            raise UsageError(f"--dynamic {name}={','.join(map(str, sorted(axes)))}: no such input or axis")
    wanted = _inputs(inputs, options.dtypes)
    # torch specializes sizes of 1
    example = _values([_sized(s, free.get(s.name, ()), lambda n: max(n, 2)) for s in wanted], 0)
    module = _module(source, options.trust)
    with staged(path) as stage:
        file = stage / path.name
        _write(module, _tensors(wanted, example), free, file)
        session = open_session(file)
        given = [] if options.data is None else feeds_of(graph.load(file), options.data, options, options.samples)[0]
        feeds = [
            _values(wanted, 1),
            _values([_sized(s, free.get(s.name, ()), lambda n: n + 1) for s in wanted], 2),
            *(feed for _, feed in given),
        ]
        error = max(_difference(module, session, wanted, feed) for feed in feeds)
    return Exported(graph.load(path), path, error, len(given))


def _inputs(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]) -> list[InputSpec]:
    for name, dtype in dtypes.items():
        if name not in shapes:
            raise UsageError(f"dtype {dtype} of {name}: no such input; there are {', '.join(shapes)}")
    for name, shape in shapes.items():
        if any(n < 1 for n in shape):
            raise UsageError(f"--input {name}={','.join(map(str, shape))}: sizes are at least 1")
    return [InputSpec(name, np.dtype(dtypes.get(name, "float32")), tuple(shape)) for name, shape in shapes.items()]


def _sized(spec: InputSpec, axes: Collection[int], change: Callable[[int], int]) -> InputSpec:
    """`spec` with the sizes of free axes changed."""
    return replace(spec, shape=tuple(change(n or 0) if i in axes else n for i, n in enumerate(spec.shape or ())))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn any failure inside into a ModelError that begins with `what`; edgeopt's own errors pass."""
    try:
        yield
    except EdgeoptError:
        raise
    except (Exception, SystemExit) as e:  # user code may raise anything
        cause = e.__cause__ if isinstance(e, torch.onnx.OnnxExporterError) and e.__cause__ else e
        raise ModelError(f"{what}: {type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}") from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's deprecation warnings, log lines and graph dumps on stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _module(source: str, trust: bool) -> nn.Module:
    suffix = Path(source).suffix.lower()
    if suffix in (".pt2", *_PICKLES) and not Path(source).is_file():
        raise UsageError(f"{source}: no such file")
    if suffix in _PICKLES and not trust:
        remedy = "write a factory (package.module:function) or save a .pt2, or say --trust"
        raise UsageError(f"{source}: reading such a file can run any code in it; {remedy}")
    if suffix == ".pt2":
        return _program(source)
    if source.startswith("."):
        raise UsageError(f"export {source}: not the name of a module; write package.module:function")
    with _told(source):
        if suffix in _PICKLES:
            found = torch.load(source, map_location="cpu", weights_only=False)
        elif not isinstance(found := named(source, "export"), nn.Module):
            found = found()
        if not isinstance(found, nn.Module):
            raise UsageError(f"{source}: gives {type(found).__name__}, not an nn.Module")
        return found.eval()


def _program(source: str) -> nn.Module:
    """The program in a .pt2 file, with unpickling forbidden: torch.export.load would unpickle anything it finds
    there.
    """
    with _told(f"{source}: torch cannot read it"), zipfile.ZipFile(source) as file:
        unsafe = [n for n in file.namelist() if re.search(r"aotinductor/|(opaque|custom)_obj", n)]
    if unsafe:
        raise ModelError(f"{source}: {unsafe[0]} in it can run code when it is read; write a factory instead")
    setting = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(setting)
    os.environ[setting] = "1"
    try:
        with _told(f"{source}: torch cannot read it"), _quiet():
            return torch.export.load(source).module()
    finally:
        del os.environ[setting]
        os.environ.update({} if before is None else {setting: before})


def _values(inputs: list[InputSpec], seed: int) -> Feed:
    """Random values: normal floats, integers 0 and 1."""
    try:
        return random_samples(inputs, seed + 1)[seed][1]()
    except (ValueError, MemoryError) as e:
        raise UsageError(f"--input {', '.join(f'{s.name}={list(s.shape or ())}' for s in inputs)}: {e}") from e


def _tensors(inputs: list[InputSpec], feed: Feed) -> dict[str, torch.Tensor]:
    return {s.name: torch.from_numpy(np.ascontiguousarray(feed[s.name])) for s in inputs}


def _write(module: nn.Module, example: Mapping[str, torch.Tensor], free: Mapping[str, set[int]], file: Path) -> None:
    shapes = tuple(dict.fromkeys(free.get(k, ()), torch.export.Dim.DYNAMIC) or None for k in example) if free else None
    with _told("torch cannot export it"), _quiet(), torch.no_grad():
        args, names = tuple(example.values()), list(example)
        program = torch.onnx.export(module, args, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False)
    program.save(file)


def _difference(module: nn.Module, session: Session, inputs: list[InputSpec], feed: Feed) -> float:
    """The largest error of the file's outputs for `feed`, compared with torch.

    Raises:
        ValidityError: an output differs by more than `TOLERANCE`, or in type or shape.
    """
    worst = 0.0
    shapes = {k: list(x.shape) for k, x in feed.items()}
    with _told(f"torch gives nothing to compare for inputs of shape {shapes}"), _quiet(), torch.no_grad():
        expected = [x.detach().numpy() for x in _flat(module(*_tensors(inputs, feed).values()))]
    try:
        found = session.run(feed)
    except DataError as e:
        raise ValidityError(f"the exported file fails where torch does not: {e}") from e
    if len(found) != len(expected):
        raise ValidityError(f"{len(found)} outputs in the file, {len(expected)} in torch")
    for name, want, have in zip(session.outputs, expected, found, strict=True):
        kinds = [f"{x.dtype}{list(x.shape)}" for x in (have, want)]
        if kinds[0] != kinds[1]:
            raise ValidityError(f"output {name!r} is {kinds[0]}, in torch {kinds[1]}")
        worst = max(worst, error := _error(want, have))
        if not error <= TOLERANCE:
            raise ValidityError(f"output {name!r} differs from torch: error {error:.2g}, allowed {TOLERANCE:g}")
    return worst


def _error(want: NDArray[Any], have: NDArray[Any]) -> float:
    """max |have - want| / max |want| for floats, infinity if non-finite elements differ; for other types the share of
    different elements.
    """
    if want.dtype.kind != "f":
        return float((want != have).sum()) / max(want.size, 1)
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True):
        return np.inf
    x, y = want[finite].astype(np.float64), have[finite].astype(np.float64)
    return float(np.abs(x - y).max(initial=0.0) / max(np.abs(x).max(initial=0.0), 1e-12))


def _flat(found: object) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, list | tuple) else ()
    return [t for x in parts for t in _flat(x)]
