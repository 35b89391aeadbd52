"""`export(factory)`: a torch module, or an exported program (.pt2), as a checked ONNX file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt import graph
from edgeopt.data.source import named
from edgeopt.errors import EdgeoptError, ModelError, UsageError, ValidityError
from edgeopt.options import check_place
from edgeopt.runtime.session import open_session
from edgeopt.staging import staged

TOLERANCE = 1e-3  # of the largest output: float sums in another order
_PICKLES = (".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Exported:
    """The file, and how far it is from torch: largest difference over the largest output."""

    model: ir.Model
    path: Path
    error: float


def export(
    source: str,
    inputs: Mapping[str, Sequence[int]],
    *,
    output: str | Path,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    trust: bool = False,
    force: bool = False,
) -> Exported:
    """Export what `package.module:factory` returns, or the program in a .pt2 file, and check it against torch.

    inputs: shapes by the names that the file's inputs get; dynamic: axes by input that may change. trust: read pickles
    (.pt, .pth), which can run code. A .pt2 is read without; but torch evaluates expressions in it, so
    take none from strangers.

    Raises:
        UsageError: no such factory, or a file that needs `trust`. ModelError: torch cannot export it. ValidityError: an
          output differs; nothing was written.
    """
    path = Path(output)
    check_place(path, force)
    if importlib.util.find_spec("onnxscript") is None:
        raise UsageError("export needs onnxscript: pip install 'edgeopt[train]'")
    free = {name: set(axes) for name, axes in (dynamic or {}).items()}
    for name, axes in free.items():
        if name not in inputs or any(not 0 <= a < len(inputs[name]) for a in axes):
            raise UsageError(f"--dynamic {name}={','.join(map(str, sorted(axes)))}: no such input or axis")
    example = _values(inputs, 0)
    module = _module(source, trust)
    with staged(path) as stage:
        file = stage / path.name
        _write(module, example, free, file)
        error = _checked(module, inputs, free, file)
    return Exported(graph.load(path), path, error)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever fails inside is a ModelError that begins with `what`; our own errors stay."""
    try:
        yield
    except EdgeoptError:
        raise
    except Exception as e:  # the user's code, which may raise anything
        cause = e.__cause__ if isinstance(e, torch.onnx.OnnxExporterError) and e.__cause__ else e
        raise ModelError(f"{what}: {type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}") from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own deprecations, log lines and dumps of graphs on stderr."""
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
            raise UsageError(f"{source}: gives a {type(found).__name__}, not an nn.Module")
        return found.eval()


def _program(source: str) -> nn.Module:
    """The program in a .pt2; torch.export.load unpickles whatever it finds there, unless a setting forbids it."""
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


def _values(inputs: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Normal values by input."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in inputs.items():
        try:
            found[name] = torch.from_numpy(rng.standard_normal(tuple(shape), np.float32))
        except (ValueError, MemoryError) as e:
            raise UsageError(f"--input {name}={','.join(map(str, shape))}: {e}") from e
    return found


def _write(module: nn.Module, example: Mapping[str, torch.Tensor], free: Mapping[str, set[int]], file: Path) -> None:
    shapes = tuple(dict.fromkeys(free.get(k, ()), torch.export.Dim.DYNAMIC) or None for k in example) if free else None
    with _told("torch cannot export it"), _quiet(), torch.no_grad():
        args, names = tuple(example.values()), list(example)
        program = torch.onnx.export(module, args, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False)
    program.save(file)


def _checked(module: nn.Module, inputs: Mapping[str, Sequence[int]], free: Mapping[str, set[int]], file: Path) -> float:
    """The largest error over random inputs, free axes at two sizes."""
    session, worst = open_session(file), 0.0
    for trial in range(2):
        sizes = {k: [n + trial * (i in free.get(k, ())) for i, n in enumerate(shape)] for k, shape in inputs.items()}
        values = _values(sizes, trial + 1)
        with _told(f"torch gives nothing to compare for inputs of shape {sizes}"), torch.no_grad():
            expected = [x.detach().numpy() for x in _flat(module(*values.values()))]
        found = session.run({name: x.numpy() for name, x in values.items()})
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
    """max |have - want| / max |want| of floats, infinite where just one is finite; of others the share that differs."""
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
