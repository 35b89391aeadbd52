"""Accuracy metrics besides SQNR; higher is better.

Either a user's function that runs the model on data of its own and returns a number, or a similarity of the outputs to
those of the float model, which needs no labels. For instance:

def top1(run):                      # run(feed) -> outputs, a list of arrays
    return float(np.mean([run({"image": x})[0].argmax() == y for x, y in samples]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.data.foreign import foreign, named
from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.numbers.figure import are_probabilities, as_probabilities
from edgeopt.numbers.scores import Outputs, class_scores, compare, lowest_agreement
from edgeopt.runtime.session import Session

Run = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]
Function = Callable[[Run], float]
Likeness = Callable[[Sequence[Outputs], Sequence[Outputs]], float]
_VARIES = 1e-9
_TINY = 1e-12


def agreement(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The lowest top-1 agreement over the outputs that look like class scores."""
    found = lowest_agreement(compare(_names(reference), reference, outputs))
    if found is None:
        raise DataError("--eval agreement: no output looks like class scores; try cosine, or a function of your own")
    return found


def cosine(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The lowest cosine similarity of an output to that of the float model."""
    return min((e.cosine for e in compare(_names(reference), reference, outputs)), default=1.0)


def kl(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The negative mean of KL(float || result) in nats over the outputs that look like class scores."""
    columns = range(len(reference[0]))
    scores = [i for i in columns if class_scores([r[i] for r in reference])]
    if not scores:
        raise DataError("--eval kl: no output looks like class scores; try cosine, or a function of your own")
    found = [_divergence(r[i], y[i]) for r, y in zip(reference, outputs, strict=True) for i in scores]
    return 0.0 - float(np.mean(found))


def _divergence(r: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean KL divergence over the last axis; softmax is applied first if `r` does not look like probabilities."""
    p, q = (np.maximum(x.astype(np.float64), np.finfo(np.float32).min) for x in (r, y))  # masked classes are -inf
    if not are_probabilities(p):
        p, q = as_probabilities(p), as_probabilities(q)
    p, q = (np.maximum(x, _TINY) for x in (p, q))
    return float(np.mean((p * (np.log(p) - np.log(q))).sum(-1)))


def _names(reference: Sequence[Outputs]) -> list[str]:
    return [str(i) for i in range(len(reference[0]))]


LIKENESSES: Mapping[str, Likeness] = {"agreement": agreement, "cosine": cosine, "kl": kl}


@dataclass(frozen=True)
class Metric:
    """A metric and its value for the float model."""

    function: Function | None
    """The user's function, or None."""
    likeness: Likeness | None
    """A similarity of outputs, or None."""
    name: str
    """Its name in reports."""
    on_float: float
    """Its value for the float model."""

    def __call__(self, session: Session, reference: Sequence[Outputs] = (), outputs: Sequence[Outputs] = ()) -> float:
        """The value for a session; on some samples its outputs are `outputs` and those of the float model `reference`.

        Raises:
            DataError: the function raises, or does not return a finite number.
        """
        if self.likeness is not None:
            return self.likeness(reference, outputs)
        assert self.function is not None
        return _value(self.function, self.name, session)

    def varies(self, session: Session) -> str | None:
        """A message if the value for the float model's `session` differs from the first one, else None."""
        if self.function is None:
            return None
        again = _value(self.function, self.name, session)
        if abs(again - self.on_float) <= _VARIES * max(1.0, abs(self.on_float)):
            return None
        return f"{self.name}: {self.on_float:.6g} and then {again:.6g} for the same model; seed what is random in it"


def metric(source: str | Function, session: Session, reference: Sequence[Outputs]) -> Metric:
    """The metric for `source`: the name of a similarity, a function, or `package.module:function`; it is evaluated on
    the float model.

    Raises:
        UsageError: there is no such function. DataError: it raises, does not return a finite number, or two calls give
          different values.
    """
    if isinstance(source, str) and source in LIKENESSES:
        return Metric(None, LIKENESSES[source], source, LIKENESSES[source](reference, reference))
    function, name = _found(source)
    found = Metric(function, None, name, _value(function, name, session))
    varies = found.varies(session)
    if varies is not None:
        raise DataError(f"--eval {varies}")
    return found


def _found(source: str | Function) -> tuple[Function, str]:
    if not isinstance(source, str):
        return source, getattr(source, "__name__", "metric")
    if ":" not in source:
        known = ", ".join(LIKENESSES)
        raise UsageError(
            f"--eval {source}{suggestion(source, LIKENESSES)} Known: {known}; or package.module:function of your own"
        )
    function = named(source, "--eval")
    if not callable(function):
        raise UsageError(f"--eval {source}: not a function")
    return function, source


def _value(function: Function, name: str, session: Session) -> float:
    with foreign(f"--eval {name}", DataError):
        value = float(np.asarray(function(session.run), np.float64))
    if not math.isfinite(value):
        raise DataError(f"--eval {name}: it gives {value}, which is no figure to compare")
    return value
