"""What a variant's target makes of its file: the figures that gates `target.*` look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.hardware import target as targets
from edgeopt.hardware.target import Target
from edgeopt.release.document import Evaluation
from edgeopt.release.project.file import FLOAT, Project

if TYPE_CHECKING:
    from edgeopt.quantization.on_target import Checked
    from edgeopt.release.build.evaluate import Jury

PREFIX = "target."
_EXACT_DB = 200.0  # reported for zero error


def target_of(project: Project, variant: str, root: Path) -> Target | None:
    """The target of the last `quantize` step of `variant`, or of what it is made from, if a gate asks what it makes of
    the file; None if there is none.
    """
    gates = {**project.gates.get("*", {}), **project.gates.get(variant, {})}
    if variant == FLOAT or not any(name.startswith(PREFIX) for name in gates):
        return None
    while variant != FLOAT:
        row = project.variants[variant]
        for step in reversed(row.steps):
            named = getattr(step, "target", None)
            if named is not None:
                return targets.load(root / named if targets.is_file(named) else named)
        variant = row.parent
    return None


def about(target: Target | None) -> Sequence[object]:
    """All besides the file that the figures depend on."""
    if target is None:
        return ()
    from edgeopt.runtime.environments import home_of, lacking

    return target.model_dump(mode="json"), str(home_of(target)), lacking(target)


def with_target(found: Evaluation, path: Path, j: Jury, target: Target) -> Evaluation:
    """`found` with what `target` makes of the file at `path`, on the samples of `j`."""
    from edgeopt import graph
    from edgeopt.quantization.on_target import checked_result

    checked = checked_result(path, j.task, target, j.feeds, j.feeds_of(graph.canonical(graph.load(path))))
    metrics = {**found.metrics, **{f"{PREFIX}{name}": x for name, x in _figures(checked).items()}}
    return found.model_copy(update={"metrics": metrics, "on_target": (*checked.problems, *checked.lines)})


def _figures(checked: Checked) -> Mapping[str, float]:
    figures, ran = {"problems": float(len(checked.problems))}, checked.ran
    if ran is None:
        return figures
    if sum(ran.nodes.values()):
        figures["coverage"] = 1 - len(ran.elsewhere) / sum(ran.nodes.values())
    elif ran.layers is not None and ran.layers[1]:
        figures["coverage"] = ran.layers[0] / ran.layers[1]
    if ran.partitions is not None:
        figures["partitions"] = float(ran.partitions)
    sqnr = min((o.sqnr_db for o in checked.outputs), default=math.nan)
    return figures | {"sqnr": max(-_EXACT_DB, min(_EXACT_DB, sqnr))}
