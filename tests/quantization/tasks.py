"""Small tasks, and recipes made of what options say."""

from __future__ import annotations

from typing import Any

from edgeopt import graph
from edgeopt.listener import Listener
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.candidates import Draft, draft
from edgeopt.quantization.prepare import Task, prepare
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.steps import Place


def task_of(model: bytes, feeds: Any, listener: Listener | None = None, **choices: Any) -> Task:
    """A static task of the Gemms of `model` without a clock."""
    options = Quantize(**{"mode": "static", "include": ("Gemm",), "measure": False, **choices})
    return prepare(graph.load(model), feeds, options.model_copy(update={"listener": listener or Listener()}))


def like(task: Task, **choices: Any) -> Recipe:
    """The recipe of the task's options with these `choices`, of the same nodes."""
    found = Recipe.of(task.options.model_copy(update=choices))
    mine, own = (r.find(Place) for r in (found, task.recipe))
    assert mine is not None and own is not None
    return found.having(mine.model_copy(update={"exclude": own.exclude, "include": own.include}))


def made_of(task: Task, recipe: Recipe | None = None, mode: str = "static") -> Draft:
    """What `recipe`, or that of the options, makes of the task."""
    found = draft(task, recipe or task.recipe, mode)
    assert found is not None
    return found


def placed(recipe: Recipe, **changes: Any) -> Recipe:
    """`recipe` with other fields of its placement."""
    place = recipe.find(Place)
    assert place is not None
    return recipe.having(place.model_copy(update=changes))
