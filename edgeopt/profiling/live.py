"""A worker process with the session of an arm open in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edgeopt.errors import WorkerError
from edgeopt.graph.serialization import external_files, load
from edgeopt.numbers.intervals import steady
from edgeopt.profiling.arms import Arm
from edgeopt.runtime.measure import settled
from edgeopt.runtime.process import Worker, worker
from edgeopt.runtime.providers import CPU, make_present

WINDOW_S = 0.05
_NO_FALLBACK = "session.disable_cpu_ep_fallback"


@dataclass
class Live:
    """A worker with an open session; idle between requests."""

    worker: Worker
    hello: dict[str, Any]
    """Its answer to `hello`."""
    opened: dict[str, Any]
    """Its answer to `open`."""
    cold_ns: tuple[int, int, int] = (0, 0, 0)
    """Session creation, first and second inference."""
    windows: list[float] = field(default_factory=list)
    """Median times of the warm-up windows, in seconds."""

    def first_runs(self, feeds: Path) -> None:
        """Send the feeds and run two inferences."""
        self.worker.ask("feed", path=self.worker.place.given(feeds))
        first, second = (self.worker.ask("block", runs=1)["times"][0] for _ in range(2))
        self.cold_ns = (self.opened["create_ns"], first, second)

    def warm_up(self, limit_s: float) -> bool:
        """Run windows until their times are steady or `limit_s` is over; returns whether they are steady."""
        if self.worker.place.web:
            settled(lambda runs: median(self.worker.ask("block", runs=runs)["times"]) / 1e9)
        spent = 0
        while spent < limit_s * 1e9 and not steady(self.windows):
            window = self.worker.ask("block", runs=1, seconds=WINDOW_S)
            spent += window["end"] - window["start"]
            self.windows.append(median(window["times"]) / 1e9)
        return steady(self.windows)


@contextlib.contextmanager
def live(arm: Arm, *, allow_fallback: bool = True, **how: Any) -> Iterator[Live]:
    """A fresh process with the session of `arm`; `how` are further arguments of the worker's `open`.

    Raises:
        WorkerError: the provider is missing, or the session cannot be created.
    """
    with worker(arm.place, arm.timeout_s) as w:
        yield open_in(w, w.greet(), arm, allow_fallback=allow_fallback, **how)


def open_in(w: Worker, hello: dict[str, Any], arm: Arm, *, allow_fallback: bool, **how: Any) -> Live:
    """Open the session of `arm` in a running worker."""
    if arm.place.web:
        return Live(w, hello, _open_web(w, arm))
    wanted = arm.provider
    plugin = make_present(w, wanted, (hello.get("providers") or ()))
    strict = {_NO_FALLBACK: "1"} if wanted.name != CPU and not allow_fallback else {}
    opened = w.ask(
        "open",
        model=w.place.given(arm.model, lambda: external_files(load(arm.model))),
        providers=[[wanted.name, dict(wanted.options)]],
        plugin=plugin,
        threads=arm.threads,
        level=arm.level,
        config={**strict, **arm.session},
        fixed=dict(arm.fixed),
        **how,
    )
    if wanted.name != CPU and wanted.name not in (opened.get("providers") or ()):
        raise WorkerError(f"{wanted.name} was asked for, and the session runs on {', '.join(opened['providers'])}")
    return Live(w, hello, opened)


def _open_web(w: Worker, arm: Arm) -> dict[str, Any]:
    beside = {f.relative_to(arm.model.parent).as_posix(): str(f) for f in external_files(load(arm.model))}
    return w.ask(
        "open", model=w.place.given(arm.model), provider=arm.provider.name, threads=arm.threads, external=beside
    )
