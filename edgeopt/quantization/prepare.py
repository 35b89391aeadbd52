"""Prepare a `Task` from a model and data: the simplified model, calibration samples, held-out samples and the float
model's outputs on the held-out samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Data, Feed, Look, Sample, look, oddities, read, readable, specs, split
from edgeopt.data.spec import check_feed, without_label
from edgeopt.errors import CalibrationError, DataError, ModelError, UsageError
from edgeopt.graph.select import deciding_lengths, named, select
from edgeopt.graph.selection import Selection, selection, selects
from edgeopt.hardware import target as targets
from edgeopt.hardware.host import cores
from edgeopt.hardware.target import Target
from edgeopt.listener import Listener
from edgeopt.numbers.kinds import Kind
from edgeopt.numbers.scores import OutputReport, Outputs, compare
from edgeopt.options.quantize import Quantize
from edgeopt.passes.activations import fast_activations
from edgeopt.passes.gated import fuse_gelu, fuse_gelu_here
from edgeopt.passes.layer_norm import fuse_layer_norm
from edgeopt.passes.simplifying import simplify
from edgeopt.passes.widen import unfolded, widened
from edgeopt.quantization import notices
from edgeopt.quantization.accepted import check, runs
from edgeopt.quantization.costing import Timing, timing
from edgeopt.quantization.fixing import with_inputs
from edgeopt.quantization.looking import comparable
from edgeopt.quantization.metric import Metric, metric
from edgeopt.quantization.outputs import changed, fed_back, fed_on, kinds, levels, with_changes
from edgeopt.quantization.recipe import Recipe, load, own_step
from edgeopt.quantization.state import Resources, SharedResults, State
from edgeopt.quantization.steps import Place
from edgeopt.runtime.meter import Meter
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import Session, as_given, finite, open_session, run_all, try_loops, types_of
from edgeopt.runtime.spread import Spread

_LATER = 8  # samples on which recurrent states are fed back
_REPEATED_DB = 60.0  # two runs with at least this SQNR count as equal


@dataclass
class Notes:
    """Notes sent to a listener and kept for the report."""

    listener: Listener
    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Send the line to the listener and keep it."""
        self.lines.append(line)
        self.listener.note(line)


@dataclass(frozen=True)
class Task:
    """A quantization job: the model, its samples and the data used to judge results."""

    options: Quantize
    given: ir.Model
    """The user's model as it is in its file."""
    source: ir.Model
    """The user's model in canonical form, not simplified."""
    start: State
    """The simplified model and the calibration samples."""
    recipe: Recipe
    """The recipe that the options ask for."""
    rest: tuple[Sample, ...]
    """Samples used neither for calibration nor as held-out samples."""
    held: tuple[tuple[str, Feed], ...]
    """Held-out samples: (name, feed)."""
    reference: tuple[Outputs, ...]
    """What of the float model is compared, on the held-out samples: its outputs, or what enters a selection."""
    float_session: Session
    judging: Session
    """The float session whose outputs are compared: `float_session` if there is no selection."""
    selection: Selection | None
    """The end of the model that selections decide, None if there is none."""
    kinds: Mapping[str, Kind]
    """What each output is."""
    fed: Mapping[int, str]
    """Position of each output that is a recurrent state -> the input that takes it in the next step."""
    reference_later: tuple[Outputs, ...]
    """The float model's outputs on some held-out samples after states were fed back; empty if there are no states."""
    levels: tuple[tuple[int, ...], ...]
    """Positions of the held-out samples by the level of noise that the model removes; empty if it removes none."""
    chance_db: Mapping[str, float]
    """Outputs that differ between two runs of the float model on one sample -> SQNR between the two runs."""
    changed: Mapping[str, tuple[str, float]]
    """Outputs that are an input but for little -> (that input, its gain)."""
    preprocess: str
    """How images were turned into inputs, in words."""
    notes: Notes
    metric: Metric | None = None

    @property
    def target(self) -> Target:
        """The hardware on which the result will run."""
        return self.start.target

    @property
    def cache(self) -> SharedResults:
        """Costly results shared between attempts."""
        return self.start.resources.cache

    @property
    def listener(self) -> Listener:
        """Receives notes and progress; notes are also kept for the report."""
        return self.start.resources.listener

    def shown(self, model: ir.Model) -> ir.Model:
        """A form of the model with the outputs that are compared.

        Raises:
            ValidityError: it lacks what enters the selections.
        """
        return model if self.selection is None else self.selection.shown(model)

    def compared(
        self, names: Sequence[str], feeds: Sequence[Feed], reference: Sequence[Outputs], outputs: Sequence[Outputs]
    ) -> list[OutputReport]:
        """The errors of the outputs called `names`, in what counts of their kinds."""
        found = compare(names, reference, outputs, self.kinds)
        return with_changes(found, names, feeds, reference, outputs, self.changed)

    def note(self, line: str) -> None:
        """Send a line to the user and add it to the report."""
        self.notes.note(line)


def prepare(
    source: ir.Model, data: Data, options: Quantize, meter: Meter | None = None, spread: Spread | None = None
) -> Task:
    """Do all work that precedes the first candidate. meter: of a device; spread: who does independent work.

    Raises:
        ModelError: it is quantized, has NaN weights, or ONNX Runtime rejects it. DataError, UsageError: of its data.
    """
    cache, notes = SharedResults(), Notes(options.listener)
    with cache.timed("prepare"):
        target = targets.load(options.target)
        if options.mode == "auto" and target.demands.mode != "auto":
            options = options.model_copy(update={"mode": target.demands.mode})
        if target.demands.highest_opset is not None:
            source = graph.lower_opset(source, target.demands.highest_opset)
        source, data = with_inputs(source, data, options, notes.note)
        return _prepared(source, data, options, timing(options, target, meter, spread), cache, notes)


def _prepared(source: ir.Model, data: Data, options: Quantize, by: Timing, cache: SharedResults, notes: Notes) -> Task:
    model, target = graph.canonical(source), targets.load(options.target)
    check(model)
    single = unfolded(widened(model))
    simplified = _simplified(single, model, options, target)
    chosen = selection(simplified, types_of(simplified)) if selects(simplified) else None
    recipe, include, lengths = _choices(options, model, simplified, chosen)
    session = as_given(source, model) if runs(model) else open_session(single, threads=1)
    given = read(data, specs(model), options, session.run, norm_distance(model))
    calibration, held, rest = _parts(given.samples, model, cache, options)
    feeds, problems = readable(held, total=len(calibration) + len(held))
    feeds, reference = _outputs(single, session, feeds, problems, options, notes)
    simplified = _ranked(simplified, reference[0])
    chosen = _stateless(chosen, model, feeds[0][1], reference[0])
    judging, seen, feeds, reference = _judging(chosen, model, simplified, session, feeds, reference, options)
    found = kinds(seen, feeds[0][1], reference, _kinds_of(options, model, seen))
    fed, later = fed_on(judging, seen, feeds[:_LATER], reference[0], found)
    chance_db = _chance(judging, feeds, reference)
    resources = _resources(options, [feed for _, feed in feeds], session, cache, notes, by)
    looks = {name: cache.looks[name] for name, _ in feeds if name in cache.looks}
    for line in (
        *given.notes,
        *notices.of_samples(calibration, feeds, problems),
        *oddities(looks, set(looks)),
        *notices.of_inputs(model),
        *notices.of_choices(simplified, include, lengths),
        *notices.of_few(options, len(feeds), len(held) - len(problems)),
        *notices.of_selection(model, seen),
        *notices.of_states(found, fed),
        *notices.of_outputs(seen, found, chance_db, () if len({x.digest for x in looks.values()}) == 1 else reference),
    ):
        notes.note(line)
    return Task(
        options=options,
        given=source,
        source=model,
        start=State(simplified, target, tuple(calibration), resources, simplified),
        recipe=recipe,
        rest=rest,
        held=tuple(feeds),
        reference=tuple(reference),
        float_session=session,
        judging=judging,
        selection=chosen,
        preprocess=given.recipe,
        notes=notes,
        metric=None if options.metric is None else metric(options.metric, session, reference),
        kinds=found,
        fed=fed,
        reference_later=later,
        levels=levels([feed for _, feed in feeds], reference, [found[name] for name in judging.outputs]),
        chance_db=chance_db,
        changed=changed(judging.outputs, [feed for _, feed in feeds], reference, found),
    )


def _parts(
    samples: Sequence[Sample], model: ir.Model, cache: SharedResults, options: Quantize
) -> tuple[list[Sample], list[Sample], tuple[Sample, ...]]:
    """(samples to calibrate with, those held out, the rest), checked when they are read."""
    checked = [(name, partial(_checked, reader, model, name, cache.looks)) for name, reader in samples]
    calibration, held = split(checked, options.samples)
    return calibration, held, tuple(checked[len(held) + len(calibration) :]) if len(checked) > 1 else ()


def _simplified(single: ir.Model, model: ir.Model, options: Quantize, target: Target) -> ir.Model:
    """The float model to begin with; activations that the user names stay as they are, and all for other processors,
    as fp16 is.
    """
    faster = target.demands.rewritten and options.mode != "fp16"

    def fused(x: ir.Model) -> ir.Model:
        if not faster:
            return fuse_gelu(x) if target.demands.gelu else x
        left = named([model, x], (*options.exclude, *options.include))
        with contextlib.suppress(ModelError):  # then ONNX Runtime has to find them
            x = fuse_layer_norm(x, left)
        return x if options.mode == "weights" else fuse_gelu_here(x, left)  # which other runtimes take, too

    found = fused(simplify(fused(single)))  # before too: a factor may be folded into what comes next
    return fast_activations(found, select([model, found], (*options.exclude, *options.include))) if faster else found


def _outputs(
    single: ir.Model,
    session: Session,
    feeds: list[tuple[str, Feed]],
    problems: Mapping[str, str],
    options: Quantize,
    notes: Notes,
) -> tuple[list[tuple[str, Feed]], list[Outputs]]:
    """(the held-out samples that are compared, what float gives for them)."""
    if not feeds:
        raise DataError(f"no held-out sample can be read: {next(iter(problems.values()), '')}")
    try_loops(single, feeds[0][1])
    first = session.run(feeds[0][1])
    feeds = _few(feeds, first, options)
    reference = [first, *run_all(session, feeds[1:], workers=cores())]
    _check_finite(session, feeds, reference, notes)
    return feeds, reference


def _stateless(chosen: Selection | None, model: ir.Model, feed: Feed, outputs: Outputs) -> Selection | None:
    """`chosen`, None if it decides a recurrent state, which has to be fed back."""
    fed = fed_back(model, feed, outputs).keys()
    return None if chosen is None or fed & chosen.outputs else chosen


def _judging(
    chosen: Selection | None,
    model: ir.Model,
    simplified: ir.Model,
    session: Session,
    feeds: list[tuple[str, Feed]],
    outputs: list[Outputs],
    options: Quantize,
) -> tuple[Session, ir.Model, list[tuple[str, Feed]], list[Outputs]]:
    """(the float session whose outputs are compared, its model, the samples on which they are, what it gives for them);
    `outputs`: what `session`, that of `model`, gives.
    """
    if chosen is None:
        return session, model, feeds, outputs
    seen = chosen.shown(simplified)
    judging = open_session(seen)
    first = judging.run(feeds[0][1])
    feeds = _few(feeds, first, options)
    return judging, seen, feeds, [first, *run_all(judging, feeds[1:], workers=cores())]


def _few(feeds: list[tuple[str, Feed]], first: Outputs, options: Quantize) -> list[tuple[str, Feed]]:
    """The samples that are compared where those of the first are its outputs; all, if a user's metric wants them."""
    return feeds[: comparable(feeds[0][1], first, options.max_ram)] if options.metric is None else feeds


def _choices(
    options: Quantize, model: ir.Model, simplified: ir.Model, chosen: Selection | None
) -> tuple[Recipe, frozenset[str], frozenset[str]]:
    """(the recipe that the options ask for, the nodes that they include, the nodes that decide lengths).

    Names are also looked up in the original model, so that naming a node that was folded away is not an error.
    """
    both = [model, simplified]
    exclude, include, keep = (select(both, names) for names in (options.exclude, options.include, options.keep))
    lengths = deciding_lengths(simplified) - include if options.mode != "fp16" else frozenset[str]()
    behind = frozenset[str]() if chosen is None else chosen.nodes - include
    left = exclude | lengths | behind | (keep if options.mode == "fp16" else frozenset())
    return _recipe(options, both, left, include), include, lengths


def _resources(
    options: Quantize, feeds: Sequence[Feed], session: Session, cache: SharedResults, notes: Notes, by: Timing
) -> Resources:
    return Resources(
        feeds=tuple(feeds),
        run=session.run,
        listener=replace(options.listener, note=notes.note),
        cache=cache,
        max_ram=options.max_ram,
        costs_path=options.costs_file,
        by_table=options.by_table,
        **by,
    )


def _chance(session: Session, feeds: Sequence[tuple[str, Feed]], reference: Sequence[Outputs]) -> dict[str, float]:
    """Outputs that differ between two runs on the first sample -> SQNR between two runs on all of them."""
    again = compare(session.outputs, reference[:1], [session.run(feeds[0][1])])
    differ = {o.output for o in again if o.sqnr_db < _REPEATED_DB}
    if not differ:
        return {}
    again = compare(session.outputs, reference, run_all(session, feeds, workers=cores()))
    return {o.output: o.sqnr_db for o in again if o.output in differ}


def _recipe(options: Quantize, models: Sequence[ir.Model], exclude: frozenset[str], include: frozenset[str]) -> Recipe:
    given = options.recipe
    if given is None:
        return Recipe.of(options, exclude, include)
    found = load(given) if isinstance(given, str | Path) else given
    if not isinstance(found, Recipe):
        raise UsageError(f"recipe: a Recipe or a file of [[steps]], not {type(found).__name__}")
    place = found.find(Place)
    if place is not None:
        named = {field: select(models, getattr(place, field)) for field in ("exclude", "include", "floats", "dynamics")}
        found = found.having(place.model_copy(update=named))
    return found.with_own(own_step(step) for step in options.steps)


def _kinds_of(options: Quantize, model: ir.Model, seen: ir.Model) -> dict[str, Kind]:
    """The kinds that the user gives, without those of outputs that are not compared."""
    left = {v.name for v in model.graph.outputs} - {v.name for v in seen.graph.outputs}
    return {name: kind for name, kind in options.kinds.items() if name not in left}


def _ranked(model: ir.Model, outputs: Outputs) -> ir.Model:
    """A clone in which every output declares a shape, as a valid file must: at least the rank it has on a sample."""
    copy = model.clone()
    for value, y in zip(copy.graph.outputs, outputs, strict=True):
        if value.shape is None:
            value.shape = ir.Shape([None] * y.ndim)
    return copy


def _check_finite(session: Session, feeds: list[tuple[str, Feed]], reference: list[Outputs], notes: Notes) -> None:
    """Refuse samples and outputs that are not numbers; of an output that has some, tell that they are not compared."""
    told = set[str]()
    for (name, feed), outputs in zip(feeds, reference, strict=True):
        if not finite(feed.values()):
            raise CalibrationError(f"sample {name} is not finite; mend or remove it")
        for output, y in zip(session.outputs, outputs, strict=True):
            missing = np.isnan(y) if np.issubdtype(y.dtype, np.floating) else np.False_
            figures = (
                f"output {output!r} of the float model has {missing.sum()} NaN of {y.size} values on sample {name}"
            )
            if missing.any() and missing.all():
                raise CalibrationError(f"{figures}; is the preprocessing right?")
            if missing.any() and output not in told:
                told.add(output)
                notes.note(f"{figures}: where float gives none, nothing is compared")


def _checked(read: Callable[[], Feed], model: ir.Model, name: str, looks: dict[str, Look]) -> Feed:
    feed = without_label(read(), model)
    check_feed(feed, model, name)
    if name not in looks:
        looks[name] = look(feed)
    return feed
