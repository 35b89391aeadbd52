"""The release that regressions are judged against: saved runs, one of them current.

    FOLDER/NAME/results.json, FOLDER/NAME/VARIANT.onnx (if asked for), FOLDER/current: the name

Stored times are compared only with those of the same machine and settings; where the models were saved, they are
measured again, interleaved with the new ones.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import ComparabilityError, DataError, EdgeoptError, UsageError, suggestion
from edgeopt.files import put, writing
from edgeopt.profiling.comparable import refuse_different
from edgeopt.profiling.results import Range
from edgeopt.release import document as documents
from edgeopt.release.document import RESULTS, Run
from edgeopt.release.project.file import FLOAT, Project
from edgeopt.release.project.metrics import on_device
from edgeopt.release.verdict.gates import Against, clocked

if TYPE_CHECKING:
    from edgeopt.listener import Listener

CURRENT = "current"


@dataclass(frozen=True)
class KeptBaseline:
    """The current baseline."""

    name: str | None = None
    run: Run | None = None
    """None if there is no baseline, or none that can be read."""
    problem: str | None = None
    """Why `run` is None, in words."""

    @property
    def known_as(self) -> str | None:
        """Name and creation time, by which ratios refer to it."""
        return None if self.run is None else f"{self.name} {self.run.created}"


def save(project: Project, home: Path, name: str | None = None, *, models: bool = False) -> str:
    """Save the last run as baseline `name` (default: its time), with its models if `models`; the first becomes current.

    Raises:
        UsageError: a bad or existing name, a run that was not released, or a run in progress.
        DataError: there is no run to save, or with `models` the files are not those of the run.
    """
    from edgeopt.files import locked

    folder, output = home / project.baseline.folder, home / project.output.folder
    if not (output / RESULTS).is_file():
        raise DataError(f"{output}: no {RESULTS} to keep; edgeopt run makes it")
    with locked(output):
        run = documents.load(output / RESULTS)
        if not run.released:
            raise UsageError(
                f"{output / RESULTS}: the last run was not released ({run.verdict}); a baseline is a release"
            )
        name = name or re.sub(r"[^0-9T]", "", run.created.split("+")[0])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == CURRENT:
            raise UsageError(f"{name!r} cannot be a baseline's name: letters, digits, ., - and _")
        place = folder / name
        if place.exists():
            raise UsageError(f"{place} exists; choose another name, or remove it")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(run, place, output if models else None)
    if kept(project, home).run is None:
        promote(project, home, name)
    return name


def _write(run: Run, place: Path, output: Path | None) -> None:
    """Write `run` and its models in `output` to a new folder `place`, atomically."""
    from edgeopt import graph

    stage = place.with_name(f".{place.name}")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
        (stage / RESULTS).write_text(run.to_json() + "\n", encoding="utf-8")
        for source in [] if output is None else _files(run, output):
            graph.write(graph.load(source), stage / source.name)
        stage.rename(place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _files(run: Run, output: Path) -> list[Path]:
    """The variants' files of `run` in `output`.

    Raises:
        DataError: one is missing, or is another run's.
    """
    from edgeopt.release.build.sources import fingerprint

    found = []
    for v in run.variants:
        if v.name != FLOAT and v.error is None:
            source = output / f"{v.name}.onnx"
            if not source.is_file() or fingerprint(source) != v.sha256:
                raise DataError(f"{source}: not the file that {output / RESULTS} tells of; edgeopt run makes both anew")
            found.append(source)
    return found


def promote(project: Project, home: Path, name: str) -> None:
    """Make `name` the current baseline.

    Raises:
        UsageError: there is no such baseline.
    """
    known = names(project, home)
    if name not in known:
        raise UsageError(f"no baseline {name!r}{suggestion(name, known)} Known: {', '.join(known) or 'none'}")
    put(home / project.baseline.folder / CURRENT, name + "\n")


def names(project: Project, home: Path) -> list[str]:
    """Names of the saved baselines."""
    return sorted(f.parent.name for f in (home / project.baseline.folder).glob(f"*/{RESULTS}"))


def kept(project: Project, home: Path) -> KeptBaseline:
    """The current baseline; problems are reported in the result, not raised."""
    folder = home / project.baseline.folder
    if not (folder / CURRENT).exists():
        return KeptBaseline(problem="edgeopt baseline save makes one")
    try:
        name = (folder / CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as e:
        return KeptBaseline(
            problem=f"{folder / CURRENT}: cannot be read ({e}); edgeopt baseline promote NAME writes it anew"
        )
    if name not in names(project, home):
        return KeptBaseline(name, problem=f"{folder / name} is gone; edgeopt baseline promote NAME chooses another")
    try:
        return KeptBaseline(name, documents.load(folder / name / RESULTS))
    except DataError as e:
        return KeptBaseline(name, problem=f"{e}; edgeopt baseline promote NAME chooses another")


def against(
    project: Project, home: Path, stand: KeptBaseline, run: Run, files: Mapping[str, Path], ears: Listener
) -> Against:
    """What regressions of `run` are judged against; models of the baseline are measured again, interleaved with `files`
    (by variant).
    """
    ratios: dict[str, Mapping[str, Range]] = {}
    pairs = dict.fromkeys((variant, on_device(metric)[0]) for variant, metric in _asked(project, run))
    for name, device in pairs if stand.run is not None else ():
        model = home / project.baseline.folder / str(stand.name) / f"{name}.onnx"
        if model.is_file() and name in files:
            found = dict(_again(project, model, files[name], run.preset, home, ears, device))
            if stand.run is not None and stand.run.model_sha256 != run.model_sha256:
                found.pop("speedup", None)  # the two runs have different float models
            found = {f"{device}.{metric}" if device else metric: x for metric, x in found.items()}
            ratios |= {name: {**ratios.get(name, {}), **found}} if found else {}
    return by(project, stand, run, ratios)


def by(project: Project, stand: KeptBaseline, run: Run, ratios: Mapping[str, Mapping[str, Range]]) -> Against:
    """What regressions of `run` are judged against, given the `ratios` measured again."""
    if stand.run is None:
        return Against(problem=stand.problem)
    asked = _asked(project, run)
    stored = {on_device(metric)[0] for variant, metric in asked if metric not in ratios.get(variant, {})}
    refused = {device: why for device in stored if (why := refusal(stand.run, run, device)) is not None}
    return Against(stand.run, ratios, refused)


def refusal(old: Run, new: Run, device: str = "") -> str | None:
    """Why stored times of the two runs, here or on a device, cannot be compared, or None."""
    before, after = ((r.devices.get(device) if device else r.profile) for r in (old, new))
    if before is None or after is None:
        return None if after is None else "the baseline was not measured" + (f" on {device}" if device else "")
    # of several settings of a model the first one is judged
    by_name = [{Path(m.setting.model).stem: m for m in found.measured[::-1]} for found in (before, after)]
    pairs = [(by_name[0][k], by_name[1][k]) for k in by_name[0] if k in by_name[1]]
    try:
        refuse_different(before, after, pairs)
    except ComparabilityError as e:
        return str(e).removesuffix("; measure both models in one run: edgeopt compare a.onnx b.onnx")
    return None


def _asked(project: Project, run: Run) -> list[tuple[str, str]]:
    """(variant, metric) of the regression gates on metrics that depend on the machine."""
    found = []
    for v in run.variants:
        gates = {**(project.gates.get("*", {}) if v.name != FLOAT else {}), **project.gates.get(v.name, {})}
        found += [(v.name, n) for n, g in gates.items() if clocked(n) and g.max_regression is not None]
    return found


def _again(
    project: Project, old: Path, new: Path, preset: str, home: Path, ears: Listener, device: str
) -> Mapping[str, Range]:
    from edgeopt.release.build.measuring import again, choices, there

    try:
        how = choices(project, home, preset)
        return again(old, new, how | (there(project, device) if device else {}), ears)
    except EdgeoptError as e:
        ears.note(f"baseline: {old.name} cannot be measured again: {e}")
        return {}
