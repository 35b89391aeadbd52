"""Improve a first result by a search or by quantization-aware training.

Either replaces the first result only if it is better on the held-out samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeopt.errors import DataError, EdgeoptError, ValidityError
from edgeopt.files import empty, packed_bytes, staged, temporary_folder
from edgeopt.numbers.ends import Ends
from edgeopt.passes.integer_ends import integer_ends
from edgeopt.quantization.candidates import Draft, draft
from edgeopt.quantization.check import Tried, verify
from edgeopt.quantization.front import write_front
from edgeopt.quantization.judge import Figures, by_chance, near_enough, nearer
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.report import Candidate
from edgeopt.quantization.search import FASTER, Search
from edgeopt.quantization.search import start as start_search
from edgeopt.quantization.steps import Refit, Round


@dataclass(frozen=True)
class Outcome:
    """The candidate that is kept, and why."""

    kept: Tried
    """The candidate in the staging folder."""
    reason: str
    """Why it was kept."""
    candidates: tuple[Candidate, ...]
    sizes: tuple[int, int]
    """Size of its files in bytes, uncompressed and deflated."""
    ended: tuple[str, ...] = ()
    """Messages about work that was cut short."""
    interrupted: bool = False
    search: Search | None = None
    """A search whose front and journal are still to be handled."""


def outcome(kept: Tried, reason: str, candidates: Sequence[Candidate]) -> Outcome:
    """The outcome for a candidate whose folder contains only its own files."""
    return Outcome(kept, reason, tuple(candidates), _sizes(kept.path.parent))


def _sizes(folder: Path) -> tuple[int, int]:
    files = sorted(f for f in folder.iterdir() if f.is_file())
    return sum(f.stat().st_size for f in files), packed_bytes(files)


def searched(task: Task, before: Outcome, path: Path, output: Path | None) -> Outcome:
    """The outcome after a search that starts from the static result."""
    if not before.kept.draft.static:
        task.note(f"search: none, since it begins with a static result, and {before.kept.mode} was kept")
        return before
    try:
        search = start_search(task, before.kept.draft, output)
    except DataError as e:
        task.note(f"search: not possible: {e}")
        return replace(before, ended=(f"no search: {e}",))
    if search is None:
        return before
    interrupted, ended = False, list[str]()
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted, ended = True, ["the search was interrupted; the same command goes on with it"]
        task.note("search: interrupted; the best so far is kept")
    found = before
    if search.best.draft is not before.kept.draft:
        faster = search.best.speed >= FASTER
        found = _replaced(task, before, search.best.draft, "search", path, faster=faster)
    if task.metric is not None and not interrupted:
        ended += _unsteady(task)
    return replace(found, ended=tuple(ended), interrupted=interrupted, search=search)


def put_away(task: Task, found: Outcome) -> None:
    """Write the Pareto front of the search for `options.pareto`, and delete its journal unless it was interrupted."""
    if found.search is None:
        return
    if task.options.pareto is not None:
        write_front(task, found.search.all_attempts(), task.options.pareto, found.kept.draft)
    if not found.interrupted:
        found.search.journal.remove()


def _unsteady(task: Task) -> list[str]:
    """A message if the metric no longer gives its first value for the float model."""
    assert task.metric is not None
    try:
        varies = task.metric.varies(task.float_session)
    except DataError as e:
        return [str(e)]
    return [] if varies is None else [f"--eval {varies}"]


def trained(task: Task, before: Outcome, path: Path) -> Outcome:
    """The outcome after quantization-aware training of the static result, kept if it is closer to float; the report
    also compares it with plain rounding to nearest.
    """
    from edgeopt.quantization import qat

    kept = before.kept.draft
    found = _replaced(task, before, qat.trained(task, kept), "QAT", path)
    plain = task.recipe.without(Round, Refit)
    if kept.recipe in (None, plain):
        return found
    return replace(found, candidates=(*found.candidates, _untimed(task, plain, path.name)))


def with_integer_ends(task: Task, before: Outcome, place: Path) -> Outcome:
    """The outcome with integers as inputs and outputs, where they are on a grid; checked like any result."""
    model, inputs, outputs = integer_ends(before.kept.draft.model)
    ends = Ends(inputs, outputs)
    if not ends.metadata():
        task.note(f"--io quantized: no input or output of {before.kept.mode} is on a grid; all are as they were")
        return before
    model.metadata_props.update(ends.metadata())
    for what, grids in (("input", inputs), ("output", outputs)):
        for name, p in grids.items():
            task.note(f"{what} {name}: {p.qtype.dtype}, {float(p.scale):.6g} (q - {int(p.zero_point)})")
    made = replace(before.kept.draft, state=replace(before.kept.draft.state, model=model))
    with staged(place) as stage:
        return replace(before, kept=verify(task, made, stage / place.name), sizes=_sizes(stage))


def _untimed(task: Task, recipe: Recipe, name: str) -> Candidate:
    """A line of the report for a model that serves only as a comparison; its latency is not measured."""
    mode = "static, weights to the nearest"
    try:
        made = draft(task, recipe, mode)
        if made is None:
            return Candidate(mode, None, None, "no node in integers")
        with temporary_folder() as folder:
            quick = replace(task, options=task.options.model_copy(update={"measure": False}))
            return verify(quick, made, folder / name).candidate("to compare with")
    except EdgeoptError as e:
        return Candidate(mode, None, None, str(e))


def _replaced(task: Task, before: Outcome, made: Draft, how: str, path: Path, *, faster: bool = False) -> Outcome:
    """Replace the kept candidate by `made` if `made` is better on the held-out samples; otherwise `path` stays empty.

    Better means closer to float, or close enough if `faster`; and it must not be slower than float unless the kept one
    is.
    """
    kept = before.kept
    try:
        found = verify(task, replace(made, mode=f"{kept.mode}, then {how}"), path)
    except (ValidityError, DataError) as e:
        task.note(f"{how}: {e}")
        empty(path.parent)
        return replace(before, candidates=(*before.candidates, Candidate(how, None, None, str(e))))
    figures = f"{found.worst_sqnr_db:.1f} dB, {kept.worst_sqnr_db:.1f} dB before"
    task.note(f"{how}: {figures}")
    ours, theirs = Figures.of(found), Figures.of(kept)
    chance = nearer(task, ours, theirs) and by_chance(task, found, kept)
    better = (nearer(task, ours, theirs) and not chance) or (faster and near_enough(task, ours, theirs))
    if (found.slower and not kept.slower) or not better:
        empty(path.parent)
        no_nearer = f"no nearer to float than before {how}" + (", but by chance" if chance else "")
        verdict = "slower than float" if found.slower else no_nearer
        why = "; the difference may be chance" if chance and not found.slower else ""
        reason = f"{kept.mode}: {figures} {how}; the file from before is kept{why}"
        return replace(before, reason=reason, candidates=(*before.candidates, found.candidate(verdict)))
    lines = [
        replace(c, verdict=f"before {how}") if c.verdict in ("kept", "asked for") else c for c in before.candidates
    ]
    candidates = (*lines, found.candidate("kept"))
    return replace(
        before, kept=found, reason=f"{kept.mode}: {figures}", candidates=candidates, sizes=_sizes(path.parent)
    )
