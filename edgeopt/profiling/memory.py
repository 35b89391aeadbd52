"""Memory of fresh processes by phase, never measured while latency is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.profiling.arms import Arm
from edgeopt.profiling.live import open_in
from edgeopt.profiling.results import Memory, Phase
from edgeopt.runtime.process import Worker, worker

_RUNS = 10


def memory(arm: Arm, feeds: Path, *, allow_fallback: bool) -> Memory:
    """Memory of `arm` with ONNX Runtime's arena (the default) and without it, which shows what is really needed.

    Raises:
        WorkerError: the worker died or returned an error.
    """
    (ship, reset), (bare, _) = (_phases(arm, feeds, arena, allow_fallback) for arena in (True, False))
    return Memory(arena=ship, no_arena=bare, peak_per_phase=reset)


def _phases(arm: Arm, feeds: Path, arena: bool, allow_fallback: bool) -> tuple[tuple[Phase, ...], bool]:
    found: list[Phase] = []
    with worker(arm.place, arm.timeout_s) as w:
        hello = w.greet()
        reset = _note(w, "onnxruntime loaded", found)
        open_in(w, hello, arm, allow_fallback=allow_fallback, arena=arena)
        _note(w, "session created", found)
        w.ask("feed", path=arm.place.given(feeds))
        w.ask("block", runs=1)
        _note(w, "first inference", found)
        w.ask("block", runs=_RUNS)
        _note(w, f"{_RUNS} more", found)
    return tuple(found), reset


def _note(w: Worker, name: str, found: list[Phase]) -> bool:
    seen: dict[str, Any] = w.ask("memory", reset=True)
    found.append(
        Phase(
            name=name,
            rss_bytes=seen.get("rss", seen["peak_rss"]),
            peak_bytes=seen["peak_rss"],
            pss_bytes=seen.get("pss"),
            private_dirty_bytes=seen.get("private_dirty"),
            private_clean_bytes=seen.get("private_clean"),
        )
    )
    return bool(seen.get("reset", False))
