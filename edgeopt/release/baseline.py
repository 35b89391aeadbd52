"""The release that regressions are judged against: runs that were kept, one of them current.

    FOLDER/NAME/results.json, FOLDER/NAME/VARIANT.onnx (if asked for), FOLDER/current: the name

Times are only compared with those of the same machine and settings; where the models were kept, they are measured again
beside the new ones, which needs no such trust.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import ComparabilityError, EdgeoptError, UsageError, suggestion
from edgeopt.release import document as documents
from edgeopt.release.document import Run
from edgeopt.release.gates import Against
from edgeopt.release.measuring import choices
from edgeopt.release.project import FLOAT, Project
from edgeopt.results import Range
from edgeopt.staging import staged

if TYPE_CHECKING:
    from edgeopt.options import Listener

CURRENT = "current"
RESULTS = "results.json"


def save(project: Project, home: Path, name: str | None = None, *, models: bool = False) -> str:
    """Keep the last run as `name` (its time by default), with its files if `models`; the first one becomes current.

    Raises:
        UsageError: a bad name, or one that is taken. DataError: there is no run to keep.
    """
    folder, output = home / project.baseline.folder, home / project.output.folder
    run = documents.load(output / RESULTS)
    name = name or re.sub(r"[^0-9T]", "", run.created.split("+")[0])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == CURRENT:
        raise UsageError(f"{name!r} cannot be a baseline's name: letters, digits, ., - and _")
    place = folder / name
    if place.exists():
        raise UsageError(f"{place} exists; choose another name, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / f".{name}"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
        (stage / RESULTS).write_text(run.to_json() + "\n", encoding="utf-8")
        from edgeopt import graph

        for v in run.variants if models else ():
            source = output / f"{v.name}.onnx"
            if v.name != FLOAT and source.is_file():
                graph.write(graph.load(source), stage / source.name)
        stage.rename(place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    if current(project, home) is None:
        promote(project, home, name)
    return name


def promote(project: Project, home: Path, name: str) -> None:
    """Let regressions be judged against `name`.

    Raises:
        UsageError: there is no such baseline.
    """
    known = names(project, home)
    if name not in known:
        raise UsageError(f"no baseline {name!r}{suggestion(name, known)} Known: {', '.join(known) or 'none'}")
    file = home / project.baseline.folder / CURRENT
    with staged(file) as stage:
        (stage / file.name).write_text(name + "\n", encoding="utf-8")


def names(project: Project, home: Path) -> list[str]:
    """Baselines that were kept."""
    return sorted(f.parent.name for f in (home / project.baseline.folder).glob(f"*/{RESULTS}"))


def current(project: Project, home: Path) -> str | None:
    """The name of the current one."""
    file = home / project.baseline.folder / CURRENT
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def stored(project: Project, home: Path) -> Run | None:
    """The current baseline.

    Raises:
        DataError: it cannot be read.
    """
    name = current(project, home)
    return None if name is None else documents.load(home / project.baseline.folder / name / RESULTS)


def against(
    project: Project, home: Path, run: Run, files: Mapping[str, Path], ears: Listener, *, measure: bool
) -> Against:
    """What the regressions of `run` are judged by; models of the baseline are measured again if `measure`."""
    old = stored(project, home)
    if old is None:
        return Against()
    ratios: dict[str, Range] = {}
    for name in _asked(project, run) if measure else ():
        model = home / project.baseline.folder / str(current(project, home)) / f"{name}.onnx"
        if model.is_file() and name in files:
            found = _again(project, model, files[name], run.preset, home, ears)
            if found is not None:
                ratios[name] = found
    return Against(old, ratios, refusal(old, run))


def refusal(old: Run, new: Run) -> str | None:
    """Why times of the two cannot be compared, or None."""
    from edgeopt.profiling.stored import refuse_different

    if old.profile is None or new.profile is None:
        return None if new.profile is None else "the baseline was not measured"
    by_name = [{Path(m.setting.model).stem: m for m in r.profile.measured} for r in (old, new) if r.profile]
    pairs = [(by_name[0][k], by_name[1][k]) for k in by_name[0] if k in by_name[1]]
    try:
        refuse_different(old.profile, new.profile, pairs)
    except ComparabilityError as e:
        return str(e).removesuffix("; measure both models in one run: edgeopt compare a.onnx b.onnx") + (
            "; keep the models (edgeopt baseline save --models) to have them measured again"
        )
    return None


def _asked(project: Project, run: Run) -> list[str]:
    """Variants with a gate on the regression of their latency."""
    found = []
    for v in run.variants:
        gates = {**(project.gates.get("*", {}) if v.name != FLOAT else {}), **project.gates.get(v.name, {})}
        if any(name == "latency.p50" and g.max_regression is not None for name, g in gates.items()):
            found.append(v.name)
    return found


def _again(project: Project, old: Path, new: Path, preset: str, home: Path, ears: Listener) -> Range | None:
    from edgeopt.profiling.profile import compare

    how = choices(project, home, preset)
    how |= {"providers": how["providers"][:1], "threads": how["threads"][:1]}
    try:
        found = compare(old, new, listener=ears, **how)
    except EdgeoptError as e:
        ears.note(f"baseline: {old.name} cannot be measured again: {e}")
        return None
    return found.comparisons[0].ratio if found.comparisons else None
