"""Checks of the names in a project file that need the model: nodes of steps, dimensions of the profile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import UsageError, suggestion
from edgeopt.errors.lines import line_of
from edgeopt.release.project.file import Project
from edgeopt.release.project.lines import rows_of

if TYPE_CHECKING:
    import onnx_ir as ir

_LISTS = ("exclude", "include", "keep")


def check_names(project: Project, model: Path, file: Path) -> None:
    """Refuse nodes and dimensions that the model does not have; the model is loaded only if some are named.

    Raises:
        UsageError: says the line and what was probably meant.
    """
    named = [
        (variant, i, key, pattern)
        for variant, v in project.variants.items()
        for i, step in enumerate(v.steps)
        for key in _LISTS
        for pattern in getattr(step, key, ())
    ]
    if not named and not project.profile.dims:
        return
    from edgeopt import graph
    from edgeopt.graph.select import select
    from edgeopt.passes.simplifying import simplify

    source = graph.canonical(graph.load(model))
    rows = rows_of(file)
    both = [source, simplify(source)] if named else []
    for variant, i, key, pattern in named:
        try:
            select(both, [pattern])
        except UsageError as e:
            line = line_of(rows, ["variants", variant, "steps", str(i), key])
            raise UsageError(f"{file}:{line}: variants.{variant}.{key}: {e}") from e
    known = list(free_dims(source))
    for name in project.profile.dims:
        if name not in known:
            line = line_of(rows, ["profile", "dims", name])
            raise UsageError(f"{file}:{line}: profile.dims: no input has {name!r}{suggestion(name, known)}")


def free_dims(model: ir.Model) -> Iterator[str]:
    """Names of the free dimensions of the inputs: `INPUT.AXIS`, and the symbolic name if there is one."""
    for value in model.graph.inputs:
        for i, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                yield f"{value.name}.{i}"
                if size.value:
                    yield str(size.value)
