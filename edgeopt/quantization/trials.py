"""The candidates of the modes static and auto, tried one after the other, each checked in a folder of its own."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from edgeopt.errors import DataError, EdgeoptError, UsageError, ValidityError
from edgeopt.graph.plan import Form, Plan
from edgeopt.numbers.scores import OutputReport, lowest_sqnr_db
from edgeopt.quantization.candidates import Draft, Placement, Sketches, draft, nothing_to_do, placements, settled, whole
from edgeopt.quantization.check import Tried, verify
from edgeopt.quantization.judge import close, good, line, may_gain, pays, plenty, promising, too_far
from edgeopt.quantization.looking import observe, sources
from edgeopt.quantization.moves import FASTER, NEARER, WIDER
from edgeopt.quantization.on_target import checked_result
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.report import Candidate
from edgeopt.quantization.search import start as start_search

_MOST_ALONE = 32  # layers that are stored one by one to see which of them loses most
_SPARED = (1, 2, 4)
_NEAR_DB, _ENOUGH_DB = 20.0, 17.0  # from which on no wider grids are looked for, and where looking for them ends


@dataclass
class Trials:
    """Checked candidates, each in its own folder beside `path`, since a model refers to its data file by name."""

    task: Task
    path: Path
    tried: list[Tried] = field(default_factory=list)
    refused: list[Candidate] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def add(self, made: Draft) -> Tried | None:
        """Check `made` and add it; None if a check failed, which is reported in a note."""
        self.folders.append(Path(tempfile.mkdtemp(prefix=".", dir=self.path.parent)))
        try:
            found = verify(self.task, made, self.folders[-1] / self.path.name)
        except (ValidityError, DataError) as e:
            self.refused.append(Candidate(made.mode, None, None, str(e)))
            self.task.note(f"{made.mode}: {e}")
            return None
        if good(self.task, found) and self.task.target.check.kind not in ("cpu", "rules"):
            found = replace(found, there=checked_result(found.path, self.task))
        self.tried.append(found)
        if self.task.options.mode == "auto" or len(self.tried) > 1:
            self.task.note(line(self.task, found))
        return found

    def pass_over(self, mode: str, why: str, *, sqnr_db: float | None = None, speedup: float | None = None) -> None:
        """Report a candidate that is not made."""
        self.refused.append(Candidate(mode, sqnr_db, speedup, f"{why}, so not made"))
        self.task.note(f"{mode}: not made: {why}")

    @property
    def enough(self) -> bool:
        """Whether no other candidate needs to be tried."""
        return self.task.options.prefer == "balanced" and any(plenty(self.task, t) for t in self.tried)

    def keep(self, kept: Tried) -> Tried:
        """Move the files of `kept` to the path and delete the other candidates."""
        if kept.path != self.path:
            for file in kept.path.parent.iterdir():
                file.replace(self.path.parent / file.name)
        for folder in self.folders:
            shutil.rmtree(folder)
        return replace(kept, path=self.path)


def try_static(task: Task, trials: Trials) -> None:
    """Try the static model, and repaired versions while it is too far from float."""
    if not task.target.demands.grids:
        raise UsageError(f"--mode static: {task.target.name} computes no QuantizeLinear; --mode auto, weights or fp16")
    first = draft(task, settled(task)[0], "static")
    if first is None or not first.static:
        raise UsageError(nothing_to_do("static"))
    found = _widened(task, trials, trials.add(first))
    if found is not None and not close(task, found):
        _repair(task, trials, found)


def try_auto(task: Task, trials: Trials) -> None:
    """Try candidates until one is both smaller and faster: static (the fastest placement first), dynamic, weight-only,
    repaired static.
    """
    found = placements(task)
    paying = [p for p in found if pays(task, p)]
    static = _widened(task, trials, _try_placements(task, trials, paying))
    if trials.enough:
        return
    _try_whole(task, trials, "int8 dynamic")
    _try_whole(task, trials, "int8 dynamic", lstm=True)
    if not trials.enough:
        stored = _try_whole(task, trials, "int8 stored")
        if stored is not None and not close(task, stored) and not any(good(task, t) for t in trials.tried):
            _spare(task, trials, stored)
    if task.options.prefer == "size":
        _try_whole(task, trials, "int4 stored")
    rest = [p for p in found if p not in paying]
    if rest and not any(good(task, t) for t in trials.tried):
        static = _try_placements(task, trials, rest) or static
    else:
        for place in rest:
            trials.pass_over(place.name, "no faster than float", speedup=place.speedup)
    if static is None and paying and not any(good(task, t) for t in trials.tried):
        static = _try_placements(task, trials, paying[-1:], hopeless=True)
    if static is not None and not good(task, static) and promising(task, static, trials.tried):
        _repair(task, trials, static)


def _try_placements(task: Task, trials: Trials, found: Sequence[Placement], *, hopeless: bool = False) -> Tried | None:
    """Try placements until one is close, since those that follow are slower; returns the last one tried, or None.

    To see what each layer reads takes as long as all else, so those that cannot be close are not made: where an error
    is larger than the signal before that (unless `hopeless`, to be repaired), and where all nodes are in integers of a
    placement that is too far.
    """
    if not found:
        return None
    if len(found) > 1:
        observe(task.start, sources(p.place(task.start).plan for p in found))
    sketches, tried = Sketches(task), None
    recipe, errors = settled(task, sketches)
    settled_db = _lost_db(task, errors)
    for place in found:
        if tried is not None and (trials.enough or (close(task, tried) and task.options.prefer == "balanced")):
            break
        placed, plan = recipe.having(place.place), place.place(task.start).plan
        if tried is not None and plan is not None and _within(tried, plan) and not close(task, tried):
            why = f"all nodes that {tried.mode} has in integers are so, and that is too far from float"
            trials.pass_over(place.name, why, speedup=place.speedup)
            continue
        db = settled_db if settled_db is None or placed == recipe else _lost_db(task, sketches.errors(placed))
        if db is not None and not hopeless:
            why = f"on {len(sketches.feeds)} calibration samples its error is larger than the signal ({db:.1f} dB)"
            trials.pass_over(place.name, why, sqnr_db=db, speedup=place.speedup)
            continue
        trials.refused = [c for c in trials.refused if c.mode != place.name]  # if it was passed over before
        made = draft(task, placed, place.name)
        tried = (trials.add(made) if made is not None and made.static else None) or tried
    return tried


def _lost_db(task: Task, errors: Sequence[OutputReport] | None) -> float | None:
    """The lowest SQNR of the outputs that are too far by their kind, if their error is larger than their signal; None
    if there is none, or if a metric or a threshold of the user's decides. Random outputs do not count.
    """
    if task.options.judged_by_user:
        return None
    judged = [o for o in errors or () if o.kind != "exact" and o.output not in task.chance_db]
    lowest = min((o.sqnr_db for o in judged if too_far(o)), default=0.0)
    return lowest if lowest < 0 else None


def _within(tried: Tried, plan: Plan) -> bool:
    """Whether all integer nodes of `tried` are integer in `plan`."""
    known = tried.draft.state.plan
    return known is not None and known.integer <= plan.integer


def _try_whole(task: Task, trials: Trials, form: Form, *, lstm: bool = False) -> Tried | None:
    made = whole(task, form, lstm=lstm)
    if made is not None and may_gain(task, made):
        return trials.add(made)
    if made is not None:
        trials.pass_over(made.mode, "neither a fifth smaller nor enough of the work to be a tenth faster")
    return None


def _spare(task: Task, trials: Trials, far: Tried) -> None:
    """Try stored weights without the layers that lose most when only their weights are stored, until one is good: often
    a single one loses all.
    """
    nodes = far.draft.state.plan.forms.keys() if far.draft.state.plan is not None else frozenset[str]()
    if not 1 < len(nodes) <= _MOST_ALONE:
        return
    sketches, near = Sketches(task), dict[frozenset[str], float]()
    for together in _by_constants(task.start.source, nodes):
        alone = whole(task, "int8 stored", spared=frozenset(nodes - together))
        errors = None if alone is None else sketches.of(alone)
        near[together] = math.inf if errors is None else lowest_sqnr_db(errors)
    worst = sorted(near, key=lambda part: (near[part], sorted(part)))
    for count in _SPARED:
        spared = frozenset[str]().union(*worst[:count])
        made = whole(task, "int8 stored", spared=spared) if spared < nodes else None
        found = trials.add(made) if made is not None and may_gain(task, made) else None
        if found is not None and good(task, found):
            return


def _by_constants(model: ir.Model, nodes: AbstractSet[str]) -> set[frozenset[str]]:
    """The nodes, those together that read the same large constants."""
    found: dict[tuple[str, ...], set[str]] = {}
    for node in model.graph.all_nodes():
        if node.name in nodes:
            large = (
                v for v in node.inputs if v is not None and v.const_value is not None and len(v.const_value.shape) > 1
            )
            found.setdefault(tuple(sorted(str(v.name) for v in large)), set()).add(str(node.name))
    return {frozenset(part) for part in found.values()}


def _widened(task: Task, trials: Trials, first: Tried | None) -> Tried | None:
    """The static result after what loses most was put on the target's wider grid, where it has one, until the result is
    near to float; `first` if that does not help.
    """
    near = first is None or first.worst_sqnr_db >= _NEAR_DB or (task.options.judged_by_user and close(task, first))
    near = near and (first is None or first.there is None or first.there.usable)
    if first is None or near or task.target.wide_type is None or task.options.effort == "fast":
        return first
    search, best = start_search(task, first.draft), first
    if search is None:
        return first
    for made in search.kept(WIDER):
        best = trials.add(replace(made, mode=f"static, {search.best.what}")) or best
        if good(task, best) and best.worst_sqnr_db >= _ENOUGH_DB:  # wider grids take longer, so no more of them
            break
    return best


def _repair(task: Task, trials: Trials, first: Tried) -> None:
    """Try improved versions of a static result that is too far from float, or slower, until one is good.

    An improvement may cost speed, as long as the result still beats float; a result that is only slower is placed again
    by measured times.
    """
    task.note(f"{line(task, first)}: looking for what helps")
    moves = (*(FASTER if first.slower else ()), *(() if close(task, first) else NEARER))
    try:
        search = start_search(task, first.draft, enough=None if first.latency is None else 1 / first.latency.speedup)
    except EdgeoptError as e:
        task.note(f"no repair: {e}")
        return
    if search is None:
        return
    for made in search.kept(moves):
        found = trials.add(replace(made, mode=f"static, {search.best.what}"))
        if found is not None and good(task, found):
            return
