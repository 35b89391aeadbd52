"""Candidate models: a recipe and the state it produced, before any check."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeopt.data import readable
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.graph.plan import Form
from edgeopt.hardware.host import cores
from edgeopt.numbers.observers import Statistics
from edgeopt.numbers.scores import compare, lowest_sqnr_db
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import Clip, Grids, Place, Refit, Round, Write
from edgeopt.runtime.measure import interleaved
from edgeopt.runtime.session import open_session, run_all

_INTEGERS = (ir.DataType.INT8, ir.DataType.INT4)
_RULE_SAMPLES = 16
_RULE_GAIN_DB = 2.0
_ROUGH_S = 0.4
_ROUGH_GAIN = 1.01
_NOTHING = {
    "static": "no node pays in integers on this target",
    "dynamic": "no MatMul or Gemm has a constant matrix on its right",
    "weights": "no weight is large enough",
}


@dataclass(frozen=True)
class Draft:
    """A candidate model."""

    mode: str
    """Its name in reports."""
    state: State
    recipe: Recipe | None = None
    """The recipe that produced it, None if there was none."""

    @property
    def model(self) -> ir.Model:
        """The model as it would be written."""
        return self.state.model

    @property
    def static(self) -> bool:
        """Whether some nodes use static int8 quantization."""
        return self.state.plan is not None and bool(self.state.plan.integer)


def draft(task: Task, recipe: Recipe, mode: str) -> Draft | None:
    """Apply `recipe` to the task; None if no node changes its form."""
    with task.cache.timed("quantize"):
        state = recipe(task.start)
    plan = state.plan
    if plan is None or not plan.forms:
        return None
    if plan.having("int8 stored", "int4 stored") and not _in_integers(state.model):
        return None
    return Draft(mode, state, recipe)


def settled(task: Task) -> Recipe:
    """The options' recipe with the range rule (mse or minmax) whose outputs are closer to float on some calibration
    samples, with weights rounded to nearest.

    `mse` clips, `minmax` does not, and which of the two loses less depends on the model. A rule given by the user is
    kept, and so is `mse` if the gain of the other is small.
    """
    recipe, options = task.recipe, task.options
    grids = recipe.find(Grids)
    if grids is None or recipe.own or {"range_rule", "recipe"} & options.model_fields_set or options.effort == "fast":
        return recipe
    feeds, _ = readable(task.start.samples[:_RULE_SAMPLES], total=len(task.start.samples))
    if not feeds:
        return recipe
    reference = run_all(task.judging, feeds, workers=cores())
    other = recipe.having(grids.model_copy(update={"rule": "minmax"}))
    near: list[float] = []
    for tried in (recipe, other):
        made = draft(task, tried.without(Clip, Round, Refit), "static")
        if made is None or not made.static:
            return recipe
        try:
            session = open_session(task.shown(made.model))
            errors = compare(session.outputs, reference, run_all(session, feeds, workers=cores()))
        except EdgeoptError:  # lengths that depend on values cannot be compared
            return recipe
        near.append(lowest_sqnr_db(errors))
    if near[1] < near[0] + _RULE_GAIN_DB:
        return recipe
    task.note(
        f"ranges by minmax: {near[1]:.1f} dB on {len(feeds)} calibration samples, {near[0]:.1f} dB by {grids.rule}"
    )
    return other


def everywhere(task: Task, recipe: Recipe) -> Recipe | None:
    """`recipe` with integers wherever there is a kernel, if that is faster on this machine than its own placement.

    So the cost table's placement is not kept where integers everywhere are faster. Only the placement is timed, with
    grids from one sample.
    """
    place = recipe.find(Place)
    if place is None or not task.start.resources.timed or recipe.own or task.options.recipe is not None:
        return None
    names = frozenset(str(n.name) for n in task.start.source.graph)
    whole = place.model_copy(update={"include": names - place.exclude - place.floats - place.dynamics})
    models = [_rough(task, p) for p in (place, whole)]
    if models[0] is None or models[1] is None:
        return None
    try:
        sessions = {"placed": open_session(models[0]), "whole": open_session(models[1])}
        feeds = dict.fromkeys(sessions, task.held[0][1])
        speed = interleaved(sessions, "placed", feeds, seconds=_ROUGH_S, level=_ROUGH_GAIN)["whole"]
    except EdgeoptError as e:
        task.note(f"integers wherever there is a kernel: {e}")
        return None
    if speed.speedup_low < _ROUGH_GAIN:
        return None
    task.note(f"integers wherever there is a kernel: {speed.speedup:.2f}x as fast as placed by the target's table")
    return recipe.having(whole)


def _rough(task: Task, place: Place) -> ir.Model | None:
    """The model as `place` places it, on grids of one sample, unrounded; None if nothing is in integers."""
    state = place(task.start)
    sources = set() if state.plan is None else set(state.plan.grids.values())
    if state.plan is None or not state.plan.integer or not sources <= state.probes.keys():
        return None
    ends = {n: np.array([state.probes[n].lo, state.probes[n].hi], np.float32) for n in sources}
    state = replace(state, statistics={n: Statistics().update(x, x.size) for n, x in ends.items()})
    return Write()(Grids(rule="minmax")(state)).model


def _in_integers(model: ir.Model) -> bool:
    return any(v.dtype in _INTEGERS for v in model.graph.initializers.values())


def whole(task: Task, form: Form, *, lstm: bool = False) -> Draft | None:
    """The model with `form` applied to every node that supports it.

    lstm: LSTMs get the form "int8 dynamic" too, by which some models lose much accuracy; None if there are none.
    """
    place = task.recipe.find(Place)
    exclude, include = (place.exclude, place.include) if place is not None else (frozenset[str](), frozenset[str]())
    if lstm:
        found = frozenset(str(n.name) for n in dynamic_nodes(task.start.source, lstm=True) if n.op_type == "LSTM")
        if not found - exclude - include:
            return None
        include = include | found
    names = {
        "int8 dynamic": "dynamic, LSTM too" if lstm else "dynamic",
        "int8 stored": "weights",
        "int4 stored": "weights (4 bits)",
    }
    rounding = task.recipe.find(Round) if form == "int8 stored" else None
    middle = () if rounding is None else (rounding,)
    recipe = Recipe((Place(form=form, exclude=exclude, include=include), *middle, Write()))
    made = draft(task, recipe.with_own(s for s in task.recipe.own if s.after in ("place", "write")), names[form])
    if made is not None and form == "int4 stored" and not _in_int4(made.model):
        return None  # no matrix has rows in whole blocks: it would equal the 8-bit form
    return made


def _in_int4(model: ir.Model) -> bool:
    return any(v.dtype == ir.DataType.INT4 for v in model.graph.initializers.values())


def of_mode(task: Task) -> Draft:
    """The only candidate of a mode other than static and auto.

    Raises:
        UsageError: the mode applies to no node of this model.
    """
    mode = task.options.mode
    found = draft(task, task.recipe, mode)
    if found is None:
        raise UsageError(nothing_to_do(mode))
    if mode == "weights" and task.options.bits == 4:
        if not _in_int4(found.model):
            task.note("--bits 4: no matrix product has rows in whole blocks of 32; its weights have 8 bits")
            return found
        return Draft("weights (4 bits)", found.state, found.recipe)
    return found


def nothing_to_do(mode: str) -> str:
    """The error message for a `mode` that applies to no node of the model, with advice."""
    return f"--mode {mode}: {_NOTHING.get(mode, 'nothing to do')}; use --mode auto, or name nodes with --include"
