"""What a search has tried, a line each in a file beside the output, so that a search that was killed goes on where it was.

The first line names the job by a digest of the float model, the samples and the options; a journal of another job, or one
that cannot be read, counts for nothing and is written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.prepare import Job
from edgeopt.statics import Tuning

_SUFFIX = ".search.jsonl"
_FORGET = (
    "budget_s",
    "pareto",
    "metric",
    "measure",
    "min_sqnr",
    "min_agreement",
    "min_speedup",
)  # these change no model


@dataclass(frozen=True)
class Entry:
    """A `tuning` that was tried against the best at the time, `against`."""

    tuning: Tuning
    against: Tuning | None
    what: str
    verdict: str

    @property
    def kept(self) -> bool:
        """Whether it was better."""
        return self.verdict == "kept"


@dataclass
class Journal:
    """The entries of one job; path None: in memory only."""

    path: Path | None = None
    entries: dict[tuple[Tuning, Tuning | None], Entry] = field(default_factory=dict)

    def find(self, tuning: Tuning, against: Tuning | None) -> Entry | None:
        """What came of `tuning` against `against`."""
        return self.entries.get((tuning, against))

    def add(self, entry: Entry) -> None:
        """Note `entry`, in the file too."""
        self.entries[entry.tuning, entry.against] = entry
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(asdict(entry))) + "\n")

    def remove(self) -> None:
        """Delete the file: the search has ended and its result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def journal(job: Job, output: Path | None) -> Journal:
    """The journal of a search whose result goes to `output`: what is there already, if it is of the same job."""
    if output is None:
        return Journal()
    path, key = output.with_name(output.name + _SUFFIX), _digest(job)
    found = Journal(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if lines and _read(lines[0]).get("job") == key:
        for line in lines[1:]:
            entry = _entry(_read(line))
            if entry is not None:
                found.entries[entry.tuning, entry.against] = entry
    else:
        path.write_text(json.dumps({"job": key}) + "\n", encoding="utf-8")
    return found


def _digest(job: Job) -> str:
    digest = hashlib.sha256()
    for value in job.model.graph.initializers.values():
        if value.const_value is not None:
            digest.update(value.const_value.numpy().tobytes())
    for node in job.model.graph.all_nodes():
        digest.update(f"{node.name} {node.op_type}".encode())
    for name, feed in job.held:
        digest.update(name.encode())
        for x in feed.values():
            digest.update(x.tobytes())
    digest.update(repr([name for name, _ in job.calibration]).encode())
    options = {k: v for k, v in vars(job.options).items() if k not in _FORGET}
    digest.update(repr((job.target.name, sorted(options.items(), key=lambda item: item[0]))).encode())
    return digest.hexdigest()


def _read(line: str) -> Mapping[str, Any]:
    """The object in `line`; nothing for a line that was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _entry(found: Mapping[str, Any]) -> Entry | None:
    try:
        against = found["against"]
        return Entry(
            _tuning(found["tuning"]), None if against is None else _tuning(against), found["what"], found["verdict"]
        )
    except (KeyError, TypeError, ValueError):
        return None


def _tuning(found: Mapping[str, Any]) -> Tuning:
    costs = tuple((str(name), float(factor)) for name, factor in found["costs"])
    return Tuning(**{**found, "floats": frozenset(found["floats"]), "costs": costs})


def _plain(x: Any) -> Any:
    if isinstance(x, frozenset):
        return sorted(x)
    return {k: _plain(v) for k, v in x.items()} if isinstance(x, dict) else x
