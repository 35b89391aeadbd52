"""Files that a measurement writes: the results document, the times of single inferences beside it, a trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import UsageError
from edgeopt.files import check_place, staged
from edgeopt.profiling.results import Results


@dataclass(frozen=True)
class Files:
    """Where to write; checked before anything is measured.

    Raises:
        UsageError: a missing folder, a folder in place of a file, or a file that is an input.
    """

    report: str | Path | None = None
    """The results document; None: not written."""
    trace: str | Path | None = None
    """The trace; None: not written."""
    kept: tuple[Path, ...] = ()
    """Input files, which must not be overwritten."""

    def __post_init__(self) -> None:
        named = [Path(p) for p in (self.report, self.trace) if p is not None]
        for path in named:
            check_place(path, force=True)
        places = [*named, *([Path(self.report).with_suffix(".npz")] if self.report is not None else [])]
        for path in places:
            check_place(path, force=True)
            if any(path.resolve() == k.resolve() or k.resolve() in path.resolve().parents for k in self.kept):
                raise UsageError(f"{path}: would overwrite or lie among the files that are read; choose another place")
        if len({p.resolve() for p in places}) < len(places):
            raise UsageError(f"{', '.join(map(str, places))}: --report, its .npz and --trace cannot be one file")

    def written(self, document: Results, raw: Mapping[str, NDArray[np.int64]]) -> Results:
        """Write `document`, and `raw` to an .npz beside it; returns the document as written."""
        if self.report is None:
            return document
        path = Path(self.report)
        with staged(path) as stage:
            if raw:
                beside = path.with_suffix(".npz").name
                document = document.model_copy(update={"raw": beside})
                np.savez_compressed(stage / beside, **raw)  # type: ignore[arg-type]
            (stage / path.name).write_text(document.to_json() + "\n", encoding="utf-8")
        return document


def write_trace(events: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Write the traces of all settings in Chrome's format (for ui.perfetto.dev), one process for each label."""
    merged: list[Mapping[str, Any]] = []
    for pid, (label, found) in enumerate(events.items(), 1):
        merged.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": label}})
        merged += [{**e, "pid": pid} for e in found]
    with staged(Path(path)) as stage:
        (stage / Path(path).name).write_text(json.dumps({"traceEvents": merged}), encoding="utf-8")
