"""`export(factory)`: a torch module, or an exported program (.pt2), as a checked ONNX file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgeopt import graph
from edgeopt.data.source import named
from edgeopt.errors import ModelError, UsageError, ValidityError
from edgeopt.options import check_place
from edgeopt.runtime.session import open_session
from edgeopt.staging import staged

TOLERANCE = 1e-3  # of the largest output: float sums in another order
_TRIALS = 2
_FAILED = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)  # fmt: skip
_TORCH = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)


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

    inputs: shapes by the names that the file's inputs get; dynamic: axes by input that may change. trust: load files that can
    run code when they are read (.pt, .pth).

    Raises:
        UsageError: no such factory, or a file that needs `trust`. ModelError: torch cannot export it. ValidityError: an output
          differs; nothing was written.
    """
    path = Path(output)
    check_place(path, force)
    module = _module(source, trust).eval()
    free = {name: set(axes) for name, axes in (dynamic or {}).items()}
    for name, axes in free.items():
        if name not in inputs or any(not 0 <= a < len(inputs[name]) for a in axes):
            raise UsageError(f"--dynamic {name}={','.join(map(str, sorted(axes)))}: no such input or axis")
    example = [_values(shape, 0) for shape in inputs.values()]
    with staged(path) as stage:
        file = stage / path.name
        _write(module, example, list(inputs), free, file)
        error = _checked(module, inputs, free, file)
    return Exported(graph.load(path), path, error)


def _module(source: str, trust: bool) -> nn.Module:
    suffix = Path(source).suffix.lower()
    if suffix in (".pt2", ".pt", ".pth", ".pkl", ".ckpt"):
        if not Path(source).is_file():
            raise UsageError(f"{source}: no such file")
        if suffix != ".pt2" and not trust:
            raise UsageError(
                f"{source}: reading such a file can run any code in it; write a factory (package.module:function) or save a .pt2, or say --trust"
            )
        try:
            if suffix == ".pt2":
                program: nn.Module = torch.export.load(source).module()
                return program
            found = torch.load(source, map_location="cpu", weights_only=False)
        except (*_TORCH, OSError, EOFError, ImportError) as e:
            raise ModelError(f"{source}: torch cannot read it: {e}") from e
    else:
        factory = named(source, "export")
        try:
            found = factory() if not isinstance(factory, nn.Module) else factory
        except _FAILED as e:
            raise ModelError(f"{source}: the factory failed: {type(e).__name__}: {e}") from e
    if not isinstance(found, nn.Module):
        raise UsageError(f"{source}: gives a {type(found).__name__}, not an nn.Module")
    return found


def _values(shape: Sequence[int], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))


def _write(
    module: nn.Module, example: list[torch.Tensor], names: list[str], free: Mapping[str, set[int]], file: Path
) -> None:
    shapes = None
    if free:
        shapes = tuple(dict.fromkeys(free.get(name, ()), torch.export.Dim.DYNAMIC) or None for name in names)
    quiet = warnings.catch_warnings()
    with quiet, torch.no_grad(), Path(os.devnull).open("w", encoding="utf-8") as _:
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            torch.onnx.export(
                module, tuple(example), file, dynamo=True, input_names=names, dynamic_shapes=shapes, external_data=False, verbose=False
            )  # fmt: skip
        except (*_TORCH, torch.onnx.OnnxExporterError) as e:
            raise ModelError(f"torch cannot export it: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e


def _checked(module: nn.Module, inputs: Mapping[str, Sequence[int]], free: Mapping[str, set[int]], file: Path) -> float:
    """The largest relative error over random inputs, free axes at two sizes."""
    session = open_session(file)
    worst = 0.0
    for trial in range(_TRIALS):
        sizes = {
            name: [n + trial * (i in free.get(name, ())) for i, n in enumerate(shape)] for name, shape in inputs.items()
        }
        values = {name: _values(shape, trial + 1) for name, shape in sizes.items()}
        with torch.no_grad():
            expected = _flat(module(*values.values()))
        found = session.run({name: x.numpy() for name, x in values.items()})
        if len(found) != len(expected):
            raise ValidityError(f"{len(found)} outputs in the file, {len(expected)} in torch")
        for name, want, have in zip(session.outputs, expected, found, strict=True):
            x = want.numpy()
            if x.shape != have.shape:
                raise ValidityError(f"output {name!r} has shape {list(have.shape)}, torch gives {list(x.shape)}")
            if x.dtype.kind == "f":
                error = float(np.abs(x - have).max(initial=0.0) / max(float(np.abs(x).max(initial=0.0)), 1e-12))
                if not error <= TOLERANCE:
                    raise ValidityError(f"output {name!r} differs from torch by {error:.2g} of its largest value")
                worst = max(worst, error)
    return worst


def _flat(found: object) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Mapping):
        return [t for x in found.values() for t in _flat(x)]
    return [t for x in found for t in _flat(x)] if isinstance(found, list | tuple) else []
