"""The journal of a search: one line for each attempt, in a file beside the output, so that a killed search can resume.

The first line identifies the job by a digest of the float model, the samples and the options. A journal of another job,
or one that cannot be read, is ignored and written anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.data import readable
from edgeopt.errors import UsageError
from edgeopt.files import json_of
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.recipe import Recipe, from_json
from edgeopt.runtime.costs import Costs, document, parsed

_LOOKED_AT = 4  # calibration samples hashed by content; the others only by name
_SUFFIX = ".search.jsonl"
_FORGET = (
    "budget_s",
    "pareto",
    "metric",
    "listener",
    "output",
    "force",
    "steps",
    "recipe",
)  # options that change no verdict; a metric is identified by its name and its value for the float model, steps by the
# recipe and their code


@dataclass(frozen=True)
class Verdict:
    """The verdict on a `recipe` that was compared with `against`, the best recipe at the time."""

    recipe: Recipe
    against: Recipe
    what: str
    verdict: str

    @property
    def kept(self) -> bool:
        """Whether `recipe` was better and was kept."""
        return self.verdict == "kept"


@dataclass
class Journal:
    """The entries of one job and the costs it measured."""

    path: Path | None = None
    """None: kept in memory only."""
    entries: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    costs: Costs | None = None

    def find(self, recipe: Recipe, against: Recipe) -> Verdict | None:
        """The verdict on `recipe` compared with `against`, None if it was not tried."""
        return self.entries.get((recipe.digest, against.digest))

    def add(self, entry: Verdict) -> None:
        """Add `entry`, also to the file."""
        self.entries[entry.recipe.digest, entry.against.digest] = entry
        recipes = {"recipe": entry.recipe.to_json(), "against": entry.against.to_json()}
        self._write({**recipes, "what": entry.what, "verdict": entry.verdict})

    def keep(self, costs: Costs | None) -> None:
        """Store `costs`, so that a resumed search places nodes in the same way."""
        if costs is not None and costs is not self.costs:
            self.costs = costs
            self._write({"costs": document(costs)})

    def _write(self, line: Any) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        """Delete the file: the search has ended and its result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def journal_of(output: Path) -> Path:
    """The path of the journal of a search for `output`."""
    return output.with_name(output.name + _SUFFIX)


def is_of(task: Task, output: Path) -> bool:
    """Whether the journal beside `output` belongs to `task`."""
    try:
        with journal_of(output).open(encoding="utf-8", errors="replace") as file:
            return bool(_read(file.readline()).get("job") == _digest(task))
    except OSError:
        return False


def journal(task: Task, output: Path | None) -> Journal:
    """The journal of a search whose result goes to `output`, with the existing entries if they belong to the same task.

    It is kept in memory only if the file cannot be written (file name too long, disk full).
    """
    if output is None:
        return Journal()
    path, key = journal_of(output), _digest(task)
    try:
        if path.is_file() and not is_of(task, output):
            task.note(f"{path}: the journal of another job, or of another version of edgeopt: begun anew")
        return _opened(path, key)
    except OSError:
        return Journal()


def _opened(path: Path, key: str) -> Journal:
    found = Journal(path)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    if lines and _read(lines[0]).get("job") == key:
        for line in lines[1:]:
            content = _read(line)
            entry = _entry(content)
            if entry is not None:
                found.entries[entry.recipe.digest, entry.against.digest] = entry
            found.costs = _costs(content) or found.costs
        if not text.endswith("\n"):  # the last line was cut off
            path.write_text(text + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps({"job": key}) + "\n", encoding="utf-8")
    return found


def _digest(task: Task) -> str:
    digest = hashlib.sha256()
    for value in task.start.model.graph.initializers.values():
        if value.const_value is not None:
            digest.update(value.const_value.numpy().tobytes())
    for node in task.start.model.graph.all_nodes():
        edges = [v.name if v is not None else "" for v in (*node.inputs, *node.outputs)]
        digest.update(f"{node.name} {node.op_type} {edges} {sorted(map(str, node.attributes.values()))}".encode())
    seen, _ = readable(task.start.samples[:_LOOKED_AT], total=len(task.start.samples))
    for name, feed in (*task.held, *seen):
        digest.update(name.encode())
        for x in feed.values():
            digest.update(x.tobytes())
    digest.update(repr([name for name, _ in task.start.samples]).encode())
    digest.update(repr((task.recipe.digest, [own.code for own in task.recipe.own])).encode())
    options = {k: v for k, v in vars(task.options).items() if k not in _FORGET}
    metric = None if task.metric is None else (task.metric.name, task.metric.on_float)
    versions = [importlib.metadata.version(p) for p in ("edgeopt", "onnxruntime")]
    digest.update(
        repr((task.target.name, sorted(options.items(), key=lambda item: item[0]), metric, versions)).encode()
    )
    return digest.hexdigest()


def _read(line: str) -> Mapping[str, Any]:
    """The JSON object in `line`; empty if the line was cut off."""
    try:
        found = json_of(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _entry(found: Mapping[str, Any]) -> Verdict | None:
    try:
        return Verdict(from_json(found["recipe"]), from_json(found["against"]), found["what"], found["verdict"])
    except (KeyError, TypeError, ValueError, UsageError):
        return None


def _costs(found: Mapping[str, Any]) -> Costs | None:
    try:
        return parsed(found["costs"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
