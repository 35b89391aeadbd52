"""A user's own figure of merit: a function that runs the model as it likes and returns a number, higher is better.

def top1(run):                      # run(feed) -> outputs, a list of arrays
    return float(np.mean([run({"image": x})[0].argmax() == y for x, y in samples]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.data.source import named
from edgeopt.errors import DataError, UsageError
from edgeopt.runtime.session import Session

Run = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]
Function = Callable[[Run], float]
_VARIES = 1e-9
_RAISED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, NameError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """function: the user's; name: what reports call it; on_float: its value for the float model."""

    function: Function
    name: str
    on_float: float

    def __call__(self, session: Session) -> float:
        """Its value for a session.

        Raises:
            DataError: it raises, or gives no finite number.
        """
        return _value(self.function, self.name, session)


def metric(source: str | Function, session: Session) -> Metric:
    """The function `source`, or the one that `package.module:function` names, and its value for the float model.

    Raises:
        UsageError: there is no such function. DataError: it raises, gives no finite number, or varies between two calls.
    """
    function, name = _found(source)
    values = [_value(function, name, session) for _ in range(2)]
    if abs(values[0] - values[1]) > _VARIES * max(1.0, abs(values[0])):
        raise DataError(
            f"--eval {name}: {values[0]:.6g} and then {values[1]:.6g} for the same model; seed what is random in it"
        )
    return Metric(function, name, values[0])


def _found(source: str | Function) -> tuple[Function, str]:
    if not isinstance(source, str):
        return source, getattr(source, "__name__", "metric")
    function = named(source, "--eval")
    if not callable(function):
        raise UsageError(f"--eval {source}: not a function")
    return function, source


def _value(function: Function, name: str, session: Session) -> float:
    try:
        value = float(np.asarray(function(session.run), np.float64))
    except _RAISED as e:
        raise DataError(f"--eval {name}: {type(e).__name__}: {e}") from e
    if not math.isfinite(value):
        raise DataError(f"--eval {name}: it gives {value}, which is no figure to compare")
    return value
