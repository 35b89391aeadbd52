"""A device before it is measured: is it reached, what does it lack, does its worker keep to the protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from edgeopt.errors import WorkerError
from edgeopt.files import temporary_folder
from edgeopt.profiling.arms import described
from edgeopt.profiling.environment import environment
from edgeopt.runtime.conformance import Found, conforms
from edgeopt.runtime.devices import visited
from edgeopt.runtime.process import Place, worker
from edgeopt.runtime.providers import CPU, WEB_PROVIDERS

_LIMIT_S = 120.0
_TURNS = 5


@dataclass(frozen=True)
class Looked:
    """What was found of a device."""

    facts: tuple[tuple[str, str], ...]
    """(what, value) in the order in which they were found."""
    rules: tuple[Found, ...] = ()
    problem: str = ""
    """Why nothing more was found."""

    @property
    def ok(self) -> bool:
        """Whether it can be measured there."""
        return not self.problem and all(not r.problem for r in self.rules)


def look(name: str, python: str | None = None) -> Looked:
    """Reach the device `name` (or at the address `name`), start its worker and put it to the protocol.

    Raises:
        UsageError: no such name, or no address.
    """
    facts: list[tuple[str, str]] = []
    with visited([name], described([name]), python) as places:
        place = places[name]
        try:
            rules = _put_to_it(place, facts)
        except WorkerError as e:
            return Looked(tuple(facts), problem=str(e))
        return Looked(tuple(facts), rules)


def _put_to_it(place: Place, facts: list[tuple[str, str]]) -> tuple[Found, ...]:
    start = time.perf_counter()
    machine = environment(place)
    facts.append(("reached", f"in {time.perf_counter() - start:.1f} s"))
    facts.append(("machine", f"{machine.cpu}, {machine.cores} cores, {machine.system}"))
    facts.append(("features", ", ".join(machine.features) or "none that kernels choose by"))
    told = place.state()
    if told["celsius"] is not None:
        facts.append(("temperature", f"{told['celsius']:.0f} °C"))
    if told["throttled"]:
        facts.append(("throttled", "yes: its power or cooling is too weak"))
    start = time.perf_counter()
    with worker(place, _LIMIT_S) as w, temporary_folder() as folder:
        hello = w.greet()
        facts.append(("worker", f"in {time.perf_counter() - start:.1f} s: {hello.get('executable', '')}"))
        facts.append(
            ("versions", ", ".join(f"{k} {hello[k]}" for k in ("onnxruntime", "numpy", "python") if k in hello))
        )
        facts.append(("providers", ", ".join(hello.get("providers", WEB_PROVIDERS))))
        turns = []
        for _ in range(_TURNS):
            start = time.perf_counter()
            w.ask("hello")
            turns.append(time.perf_counter() - start)
        facts.append(("a question", f"{1e3 * median(turns):.1f} ms"))
        how: dict[str, Any] = {"provider": WEB_PROVIDERS[0]} if place.web else {"providers": [(CPU, {})]}
        return tuple(conforms(w, folder, place.wire, **how))
