"""ONNX Runtime's own file format (.ort) for minimal builds, with the list of operators that such a build needs, checked against
the ONNX file.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np

from edgeopt import graph
from edgeopt.errors import ValidityError
from edgeopt.runtime.session import Feed, open_session
from edgeopt.staging import staged, temporary_folder


def to_ort(path: Path, folder: Path, feed: Feed) -> list[Path]:
    """`folder`/NAME.ort and NAME.required_operators.config of the model at `path`; both formats answer `feed` alike.

    Raises:
        ValidityError: the conversion fails, or the converted file answers otherwise; nothing was written.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    target = folder / f"{path.stem}.ort"
    with temporary_folder() as work, staged(target) as stage:
        for file in (path, *graph.external_files(graph.load(path))):
            shutil.copyfile(file, work / file.name)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):  # the tool prints its progress
                convert_onnx_models_to_ort(work, stage, optimization_styles=[OptimizationStyle.Fixed])
        except (RuntimeError, ValueError, OSError, SystemExit) as e:
            raise ValidityError(f"{path.name}: not convertible to .ort ({e})") from e
        made, configs = list(stage.rglob("*.ort")), list(stage.rglob("*.config"))
        if len(made) != 1:
            raise ValidityError(f"{path.name}: not convertible to .ort: {said.getvalue()[-200:]}")
        _check(path, made[0], feed)
        for file in configs:
            file.replace(stage / f"{path.stem}.required_operators.config")
        if made[0] != stage / target.name:
            made[0].replace(stage / target.name)
        for file in stage.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
    return [target, folder / f"{path.stem}.required_operators.config"]


def _check(path: Path, converted: Path, feed: Feed) -> None:
    before, after = open_session(path), open_session(converted)
    for name, x, y in zip(before.outputs, before.run(feed), after.run(feed), strict=True):
        if x.shape != y.shape or not np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValidityError(f"{path.name}: as .ort, output {name!r} differs from the ONNX file's")
