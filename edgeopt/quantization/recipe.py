"""A recipe: the sequence of steps that produce a quantized model.

It is immutable: a search changes it step by step, a journal uses it as a key, and a user can write it in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgeopt.errors import UsageError, suggestion
from edgeopt.files import text_of, toml_of
from edgeopt.graph.plan import Form
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import (
    ORDER,
    STEPS,
    Clip,
    Equalize,
    Grids,
    Observe,
    Own,
    Place,
    Refit,
    Round,
    Smooth,
    Step,
    Write,
    called,
)

_MOMENT_SAMPLES = {"fast": 32, "normal": 32, "high": 96}
_WHOLE: dict[str, Form] = {"dynamic": "int8 dynamic", "fp16": "fp16", "weights": "int8 stored"}
S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Recipe:
    """Steps in the order in which they run; `recipe(state)` runs them."""

    steps: tuple[Step, ...] = ()

    def __call__(self, state: State) -> State:
        """The state after the last step.

        Raises:
            UsageError: a step comes before another step that it needs. EdgeoptError: raised by a step.
        """
        for step in self.steps:
            for field in step.needs:
                if not (getattr(state, field) or (field in _OF_GRIDS and _without_grids(state))):
                    raise UsageError(
                        f"step {step.step}: there is nothing in `{field}` yet; {_WHAT[field]} comes before it"
                    )
            state = step(state)
        return state

    def find(self, kind: type[S]) -> S | None:
        """The first step of that kind, None if there is none."""
        return next((s for s in self.steps if isinstance(s, kind)), None)

    def having(self, step: Step) -> Recipe:
        """A recipe with `step` in place of the step of its kind, or inserted where its kind belongs."""
        at = next((i for i, s in enumerate(self.steps) if type(s) is type(step)), None)
        if at is not None:
            return Recipe((*self.steps[:at], step, *self.steps[at + 1 :]))
        rank = _rank(type(step))
        at = next((i for i, s in enumerate(self.steps) if _rank(type(s)) > rank), len(self.steps))
        return Recipe((*self.steps[:at], step, *self.steps[at:]))

    def without(self, *kinds: type[Step]) -> Recipe:
        """A recipe without the steps of these kinds."""
        return Recipe(tuple(s for s in self.steps if not isinstance(s, kinds)))

    def with_own(self, steps: Iterable[Own]) -> Recipe:
        """A recipe with each of the user's own steps inserted after the step that it names."""
        found = list(self.steps)
        for own in steps:
            at = [i for i, s in enumerate(found) if s.step == own.after]
            if not at:
                known = [s.step for s in found]
                raise UsageError(
                    f"--step {own.call}@{own.after}: the recipe has no such step{suggestion(own.after, known)} "
                    f"Known: {', '.join(known)}"
                )
            found.insert(at[-1] + 1, own)
        return Recipe(tuple(found))

    @property
    def own(self) -> tuple[Own, ...]:
        """The user's own steps."""
        return tuple(s for s in self.steps if isinstance(s, Own))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, one mapping for each step; defaults are left out."""
        return [
            {"step": s.step} | s.model_dump(mode="json", exclude_defaults=True, exclude={"step"}, fallback=called)
            for s in self.steps
        ]

    @property
    def digest(self) -> str:
        """A string that is equal for equal recipes."""
        return json.dumps(self.to_json(), sort_keys=True)

    @staticmethod
    def of(options: Quantize, exclude: frozenset[str] = frozenset(), include: frozenset[str] = frozenset()) -> Recipe:
        """The recipe that `options` ask for; exclude, include: names of nodes selected by the options."""
        if options.mode in _WHOLE:
            form: Form = "int4 stored" if options.mode == "weights" and options.bits == 4 else _WHOLE[options.mode]
            place, write = Place(form=form, exclude=exclude, include=include), Write(io_types=options.io_types)
            found = Recipe((place, *(_rounding(options) if form in ("int8 stored", "int4 stored") else ()), write))
        else:
            found = _static(options, exclude, include)
        return found.with_own(own_step(text) for text in options.steps)


def _rounding(options: Quantize) -> tuple[Step, ...]:
    how = options.rounding or ("nearest" if options.effort == "fast" else "gptq")
    return () if how == "nearest" else (Round(how=how, samples=_MOMENT_SAMPLES[options.effort]),)


def _static(options: Quantize, exclude: frozenset[str], include: frozenset[str]) -> Recipe:
    samples = _MOMENT_SAMPLES[options.effort]
    steps: list[Step] = [Equalize()] if options.equalize else []
    steps += [Smooth(alpha=options.smooth)] if options.smooth is not None else []
    steps += [Place(exclude=exclude, include=include, measured=options.costs_file is not None), Observe()]
    steps += [Grids(rule=options.range_rule)]
    steps += [Clip(samples=samples)] if options.clip_weights else []
    if options.refit:
        steps.append(Refit(how=options.rounding or ("nearest" if options.effort == "fast" else "gptq")))
    else:
        steps += _rounding(options)
    return Recipe((*steps, Write()))


def own_step(given: object) -> Own:
    """The step for `package.module:function@step`, or for a function.

    Raises:
        UsageError: `given` is neither of them.
    """
    if isinstance(given, Own):
        return given
    if callable(given):
        return Own(call=given)
    call, _, after = str(given).partition("@")
    if ":" not in call:
        raise UsageError(f"--step {given}: write package.module:function, or package.module:function@place")
    return Own(call=call, after=after) if after else Own(call=call)


def from_json(found: Any) -> Recipe:
    """The recipe for plain values as `Recipe.to_json` returns them.

    Raises:
        UsageError: an unknown step, or an unknown field of a step.
    """
    if not isinstance(found, list | tuple) or not all(isinstance(s, Mapping) for s in found):
        raise UsageError("a recipe is a list of steps, each a table with its name in `step`")
    return Recipe(tuple(_step(i, s) for i, s in enumerate(found, 1)))


def load(path: Path) -> Recipe:
    """The recipe in a TOML file of [[steps]].

    Raises:
        UsageError: the file is not TOML, or not a recipe.
    """
    try:
        found = toml_of(text_of(path))
        return from_json(found.get("steps"))
    except (OSError, ValueError, UsageError) as e:
        raise UsageError(f"{path}: {e}") from e


def _step(number: int, given: Mapping[str, Any]) -> Step:
    name = str(given.get("step", ""))
    if name not in STEPS:
        raise UsageError(f"step {number}: no step {name!r}{suggestion(name, STEPS)} Known: {', '.join(STEPS)}")
    try:
        return STEPS[name].of(given, "project file")
    except UsageError as e:
        raise UsageError(f"step {number} ({name}): {e}") from e


def _rank(kind: type[Step]) -> int:
    return ORDER.index(kind) if kind in ORDER else -1


_WHAT = {"plan": "place", "params": "grids", "statistics": "observe"}
_OF_GRIDS = ("params", "statistics")


def _without_grids(state: State) -> bool:
    return state.plan is not None and not state.plan.integer
