"""Convert models to ONNX Runtime's own file format (.ort) for minimal builds, with the list of required operators; the
result is checked against the ONNX file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt import graph
from edgeopt.errors import ValidityError
from edgeopt.files import staged, temporary_folder
from edgeopt.runtime.session import ERRORS, Feed, open_session

_FAILURES: tuple[type[BaseException], ...] = (*ERRORS, OSError, SystemExit)


def to_ort(path: Path, folder: Path, feed: Feed) -> list[Path]:
    """Write `folder`/NAME.ort and NAME.required_operators.config for the model at `path`, and check that the outputs
    for `feed` are the same in both formats.

    Raises:
        ValidityError: the conversion fails, or the outputs of the converted file differ; nothing was written.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # otherwise it logs every file
    target, config = folder / f"{path.stem}.ort", folder / f"{path.stem}.required_operators.config"
    with temporary_folder() as work, staged(target) as stage:
        _copy(path, work)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):  # the tool prints its progress
                convert_onnx_models_to_ort(work, work / "made", optimization_styles=[OptimizationStyle.Fixed])
        except _FAILURES as e:
            raise ValidityError(f"{path.name}: not convertible to .ort ({e})") from e
        made = work / "made" / "model.ort"
        if not made.is_file():
            raise ValidityError(f"{path.name}: not convertible to .ort: {said.getvalue()[-200:]}")
        _check(path, made, feed)
        lines = (work / "made" / "required_operators.config").read_text(encoding="utf-8").splitlines()
        kept = "".join(f"{line}\n" for line in lines if not line.startswith("#"))  # comments contain temporary paths
        (stage / config.name).write_text(f"# of {path.name}\n{kept}", encoding="utf-8")
        shutil.move(made, stage / target.name)
    return [target, config]


def _copy(path: Path, work: Path) -> None:
    """Copy the model to `work`/model.onnx, with its external data files at the same relative paths."""
    shutil.copyfile(path, work / "model.onnx")
    for file in graph.external_files(graph.load(path)):
        place = work / file.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _check(path: Path, converted: Path, feed: Feed) -> None:
    before, after = open_session(path), open_session(converted)
    for name, x, y in zip(before.outputs, before.run(feed), after.run(feed), strict=True):
        if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
            raise ValidityError(f"{path.name}: output {name!r} is no tensor, which cannot be compared as .ort")
        if x.shape != y.shape or not _alike(x, y):
            raise ValidityError(f"{path.name}: as .ort, output {name!r} differs from the ONNX file's")


def _alike(x: NDArray[Any], y: NDArray[Any]) -> bool:
    if x.dtype.kind not in "fiub":  # strings
        return bool((x == y).all())
    return np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)
