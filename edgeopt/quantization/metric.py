"""What a result is judged by besides SQNR: a user's own figure of merit, a function that runs the model as it likes and
returns a number, or how alike outputs are to the float model's, which needs no labels. Higher is better.

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

from edgeopt.data.source import named
from edgeopt.errors import DataError, UsageError, suggestion
from edgeopt.numbers.scores import Outputs, are_probabilities, as_probabilities, class_scores, compare, lowest_agreement
from edgeopt.runtime.session import Session

Run = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]
Function = Callable[[Run], float]
Likeness = Callable[[Sequence[Outputs], Sequence[Outputs]], float]
_VARIES = 1e-9
_TINY = 1e-12


def agreement(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The lowest share of equal top-1 of the outputs that look like class scores."""
    found = lowest_agreement(compare(_names(reference), reference, outputs))
    if found is None:
        raise DataError("--eval agreement: no output looks like class scores; try cosine, or a function of your own")
    return found


def cosine(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The lowest cosine of an output and the float model's."""
    return min((e.cosine for e in compare(_names(reference), reference, outputs)), default=1.0)


def kl(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """Minus the mean of KL(float || result) in nats, over the outputs that look like class scores."""
    columns = range(len(reference[0]))
    scores = [i for i in columns if class_scores([r[i] for r in reference])]
    if not scores:
        raise DataError("--eval kl: no output looks like class scores; try cosine, or a function of your own")
    found = [_divergence(r[i], y[i]) for r, y in zip(reference, outputs, strict=True) for i in scores]
    return 0.0 - float(np.mean(found))


def _divergence(r: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean KL over the last axis of probabilities, or of scores by way of their softmax, as `r` looks."""
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
    """function: the user's, or None; likeness: of outputs, or None; name: what reports call it; on_float: its value for the
    float model.
    """

    function: Function | None
    likeness: Likeness | None
    name: str
    on_float: float

    def __call__(self, session: Session, reference: Sequence[Outputs] = (), outputs: Sequence[Outputs] = ()) -> float:
        """Its value for a session, whose outputs on some samples are `outputs` where the float model gives `reference`.

        Raises:
            DataError: it raises, or gives no finite number.
        """
        if self.likeness is not None:
            return self.likeness(reference, outputs)
        assert self.function is not None
        return _value(self.function, self.name, session)

    def varies(self, session: Session) -> str | None:
        """What it says of the float model's `session` now, if that is not what it said at first."""
        if self.function is None:
            return None
        again = _value(self.function, self.name, session)
        if abs(again - self.on_float) <= _VARIES * max(1.0, abs(self.on_float)):
            return None
        return f"{self.name}: {self.on_float:.6g} and then {again:.6g} for the same model; seed what is random in it"


def metric(source: str | Function, session: Session, reference: Sequence[Outputs]) -> Metric:
    """The likeness called `source`, the function `source`, or the one that `package.module:function` names, and its value for
    the float model.

    Raises:
        UsageError: there is no such function. DataError: it raises, gives no finite number, or varies between two calls.
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
    try:
        value = float(np.asarray(function(session.run), np.float64))
    except Exception as e:  # the user's code, which may raise anything
        raise DataError(f"--eval {name}: {type(e).__name__}: {e}") from e
    if not math.isfinite(value):
        raise DataError(f"--eval {name}: it gives {value}, which is no figure to compare")
    return value
