"""Candidate models: a recipe and the state it produced, before any check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeopt.data import Feed, readable
from edgeopt.errors import EdgeoptError, LostError, UsageError
from edgeopt.graph import raise_opset
from edgeopt.graph.ops import bias_of, weight_of
from edgeopt.graph.plan import Form
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import arithmetic
from edgeopt.numbers.observers import Statistics
from edgeopt.numbers.scores import OutputReport, Outputs, lowest_sqnr_db, short_db
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.passes.qdq import insert_qdq
from edgeopt.quantization.looking import affordable, comparable
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import Clip, Grids, Place, Refit, Round, Write, probed
from edgeopt.runtime.meter import Timed
from edgeopt.runtime.session import AS_WRITTEN, open_session, run_all

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


@dataclass
class Sketches:
    """Static models with weights rounded to nearest, which are made quickly, compared on some calibration samples."""

    task: Task

    @cached_property
    def feeds(self) -> Sequence[tuple[str, Feed]]:
        """The calibration samples that are compared; none if none can be read."""
        samples = self.task.start.samples
        count = affordable(self.task.start.source, probed(self.task.start), _RULE_SAMPLES)
        count = min(count, comparable(self.task.held[0][1], self.task.reference[0], self.task.options.max_ram))
        return readable(samples[:count], total=len(samples))[0]

    @cached_property
    def _reference(self) -> Sequence[Outputs]:
        return run_all(self.task.judging, self.feeds, workers=cores())

    def errors(self, recipe: Recipe) -> list[OutputReport] | None:
        """The errors of the outputs by `recipe`; None if there is nothing to compare."""
        made = draft(self.task, recipe.without(Clip, Round, Refit), "static") if self.feeds else None
        return None if made is None or not made.static else self.of(made)

    def of(self, made: Draft) -> list[OutputReport] | None:
        """The errors of the outputs of a candidate; None if there is nothing to compare."""
        return self._compared(made.model)

    def by_activations(self, recipe: Recipe) -> list[OutputReport] | None:
        """The errors of the outputs by `recipe` with weights in float; None if there is nothing to compare."""
        state = recipe.without(Clip, Round, Refit, Write)(self.task.start)
        if state.plan is None or not state.plan.integer:
            return None
        nodes = [n for n in state.model.graph if n.name in state.plan.integer]
        weights = {str(v.name) for n in nodes for v in (weight_of(n), bias_of(n)) if v is not None}
        model = raise_opset(state.model, state.target.demands.lowest_opset)
        grids = {k: p for k, p in state.params.items() if k not in weights}
        return self._compared(insert_qdq(model, state.plan, grids), AS_WRITTEN)

    def _compared(self, model: ir.Model, options: Mapping[str, str] | None = None) -> list[OutputReport] | None:
        if not self.feeds:
            return None
        reference = self._reference
        try:
            session = open_session(self.task.shown(model), options=options or arithmetic(self.task.target))
            outputs = run_all(session, self.feeds, workers=cores())
            return self.task.compared(session.outputs, [f for _, f in self.feeds], reference, outputs)
        except EdgeoptError:  # lengths that depend on values cannot be compared
            return None


def settled(task: Task, sketches: Sketches | None = None) -> tuple[Recipe, list[OutputReport] | None]:
    """(the options' recipe with the range rule, mse or minmax, whose outputs are closer to float on some calibration
    samples with weights rounded to nearest; their errors, None if that was not looked at).

    `mse` clips, `minmax` does not, and which of the two loses less depends on the model. A rule given by the user is
    kept, and so is `mse` if the gain of the other is small. The error of weights, which are rounded better later, may
    hide that of ranges: where it does, ranges are compared with weights in float.
    """
    recipe, options = task.recipe, task.options
    grids = recipe.find(Grids)
    if grids is None or recipe.own or {"range_rule", "recipe"} & options.model_fields_set or options.effort == "fast":
        return recipe, None
    sketches = sketches or Sketches(task)
    other = recipe.having(grids.model_copy(update={"rule": "minmax"}))
    first, second = (sketches.errors(r) for r in (recipe, other))
    if first is None or second is None:
        return recipe, None
    near = [lowest_sqnr_db(errors) for errors in (first, second)]
    short = [0.0 if options.judged_by_user else short_db(errors) for errors in (first, second)]
    reaches = short[1] == 0 < short[0]
    nearer = short[1] <= short[0] and near[1] >= near[0] + _RULE_GAIN_DB
    found, what = (near, "dB") if nearer else (short, "dB short of the bar")
    if not (reaches or nearer or short[1] <= short[0] - _RULE_GAIN_DB):
        alone = (
            [sketches.by_activations(r) for r in (recipe, other)] if short[1] <= short[0] and near[1] >= near[0] else ()
        )
        found, what = [lowest_sqnr_db(errors) for errors in alone if errors is not None], "dB with weights in float"
        if len(found) < 2 or found[1] < found[0] + _RULE_GAIN_DB:
            return recipe, first
    on = f"{what} on {len(sketches.feeds)} calibration samples"
    task.note(f"ranges by minmax: {found[1]:.1f} {on}, {found[0]:.1f} by {grids.rule}")
    return other, second


@dataclass(frozen=True)
class Placement:
    """Where integers go, and how fast that is here."""

    name: str
    """Its name in reports."""
    place: Place
    speedup: float | None = None
    """Over float; None where it was not timed."""
    speedup_high: float = math.inf
    """The most that it may be, by the intervals."""


def placements(task: Task) -> list[Placement]:
    """The placements to try: that of the task's recipe last, and before it those that are faster here by the clock,
    the fastest first. They are by measured times, and integers wherever there is a kernel, so that no table and no sum
    of times is kept where another placement is faster. Only the placement is timed, with grids from one sample.
    """
    place = task.recipe.find(Place) or Place()
    if not task.start.resources.timed or task.recipe.own or task.options.recipe is not None:
        return [Placement("static", place)]
    names = frozenset(str(n.name) for n in task.start.source.graph)
    choices = {"static": place}
    if task.options.by_clock and _measured(task, place):
        choices["static, placed by measured times"] = place.model_copy(update={"measured": True})
    everywhere = {"include": names - place.exclude - place.floats - place.dynamics}
    choices["static, integers everywhere"] = place.model_copy(update=everywhere)
    plans = {name: choice(task.start).plan for name, choice in choices.items()}
    integer = {name: plan.integer for name, plan in plans.items() if plan is not None and plan.integer}
    once = {nodes: name for name, nodes in reversed(integer.items())}  # of equal ones the first
    found = [Placement(name, choices[name]) for name in integer if name in once.values()]
    try:
        return _by_speed(task, found)
    except EdgeoptError as e:
        task.note(f"placements are not compared: {e}")
        return found[:1]


def _measured(task: Task, place: Place) -> bool:
    """Whether the costs of nodes are known, after they were measured where they were not."""
    try:
        place.model_copy(update={"measured": True})(task.start)
    except LostError:
        raise
    except EdgeoptError as e:
        task.note(f"costs: cannot be measured ({e})")
        return False
    return True


def _by_speed(task: Task, found: Sequence[Placement]) -> list[Placement]:
    """The first placement last, before it those that are faster than it, the fastest first."""
    rough, feed, meter = {p.name: _rough(task, p.place) for p in found}, task.held[0][1], task.start.resources.meter
    models = {name: Timed(model, feed) for name, model in rough.items() if model is not None}
    if meter is None or not found or found[0].name not in models:
        return list(found)
    first = found[0].name
    models["float"] = Timed(task.given, feed, task.float_session)
    times = meter.interleaved(models, first, seconds=_ROUGH_S, levels=[_ROUGH_GAIN])
    of_float = times.pop("float")
    faster = sorted((n for n in times if times[n].speedup_low >= _ROUGH_GAIN), key=lambda n: -times[n].speedup)
    by_name = {p.name: p for p in found}
    return [
        replace(
            by_name[name],
            speedup=times[name].speedup / of_float.speedup,
            speedup_high=times[name].speedup_high / of_float.speedup_low,
        )
        for name in [*faster, first]
    ]


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


def whole(task: Task, form: Form, *, lstm: bool = False, spared: frozenset[str] = frozenset()) -> Draft | None:
    """The model with `form` applied to every node that supports it, but for those `spared`.

    lstm: LSTMs get the form "int8 dynamic" too, by which some models lose much accuracy; None if there are none.
    """
    demands = task.target.demands
    if not (demands.dynamic if form == "int8 dynamic" else demands.stored):
        return None
    if form == "int4 stored" and not demands.grids:
        return None
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
    exclude |= spared
    rounding = task.recipe.find(Round) if form in ("int8 stored", "int4 stored") else None
    middle = () if rounding is None else (rounding,)
    recipe = Recipe((Place(form=form, exclude=exclude, include=include), *middle, Write()))
    name = names[form] + (f", {len(spared)} node{'s' * (len(spared) > 1)} in float" if spared else "")
    made = draft(task, recipe.with_own(s for s in task.recipe.own if s.after in ("place", "write")), name)
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
    if mode == "dynamic" and not task.target.demands.dynamic:
        raise UsageError(f"--mode dynamic: {task.target.name} runs no products whose scales are found at run time")
    if mode == "weights" and task.options.bits == 4 and not task.target.demands.grids:
        raise UsageError(f"--bits 4: {task.target.name} computes no DequantizeLinear of blocks; --bits 8")
    if mode == "weights" and not task.target.demands.stored:
        raise UsageError(f"--mode weights: {task.target.name} does not read weights that are only stored as integers")
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
