"""Files by what they were made from: a step is not run again while the model, its settings, the data and the versions
that make it are the same.

An entry is a folder `<key>` with the model, `entry.json` (its hash, what was said while it was made, a hash of both)
and nothing else; what does not have the noted hash is made again. Digests of data are kept with the size and time of
each file, so that a large folder is not read at every run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.data.listing import files_of
from edgeopt.errors import UsageError
from edgeopt.files import json_of, put, sha256, text_of, writing

MODEL = "model.onnx"
_ENTRY = "entry.json"
_STAT = "digests.json"
_MONTH_S = 30 * 86400.0


def key(*parts: object) -> str:
    """A digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished step. facts: what is known about it; cached: it was there."""

    path: Path
    sha256: str
    facts: Mapping[str, Any]
    cached: bool


@dataclass
class Cache:
    """The entries in `folder`."""

    folder: Path
    _stats: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        known = _read(self.folder / _STAT)
        self._stats = {file: stat for file, stat in known.items() if isinstance(stat, list) and len(stat) == 3}

    def entry(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """The entry called `name`; where it is missing or broken, `make` writes the model into a folder and tells
        facts.

        Raises:
            EdgeoptError: as `make` does, or there is no room; no entry is left.
        """
        place = self.folder / name
        facts = _read(place / _ENTRY)
        model = place / MODEL
        if model.is_file() and _digest(place) == facts.get("sha256") and facts.get("check") == _check(facts):
            os.utime(place / _ENTRY)
            return Entry(model, facts["sha256"], facts["facts"], True)
        _remove(place)
        with writing(self.folder):
            folder = Path(tempfile.mkdtemp(prefix=f".{name[:16]}.", dir=self.folder))
        try:
            facts = {"facts": json.loads(json.dumps(make(folder / MODEL))), "sha256": _digest(folder)}
            text = json.dumps({**facts, "check": _check(facts)}, indent=1, sort_keys=True)
            (folder / _ENTRY).write_text(text + "\n", encoding="utf-8")
            folder.rename(place)
        except OSError as e:
            raise UsageError(f"{self.folder}: cannot be written ({e.strerror or e}); nothing was left there") from e
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Entry(model, facts["sha256"], facts["facts"], False)

    def remembered(self, name: str, make: Callable[[], Any]) -> tuple[Any, bool]:
        """The JSON value called `name`, and whether it was there; else what `make` gives."""
        file = self.folder / f"{name}.json"
        found = _read(file)
        if "value" in found and found.get("check") == key(name, found["value"]):
            os.utime(file)
            return found["value"], True
        value = make()
        put(file, json.dumps({"value": value, "check": key(name, value)}) + "\n")
        return json.loads(json.dumps(value)), False

    def digest(self, path: Path) -> str:
        """Of a file, or of a folder's files by their names; a file is read again when its size or time changes."""
        files, _ = files_of(path, "data.path")
        found = []
        for file in files:
            stat = file.stat()
            known = self._stats.get(str(file.resolve()))
            if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
                known = [stat.st_size, stat.st_mtime_ns, sha256(file)]
                self._stats[str(file.resolve())] = known
            found.append([str(file.relative_to(path)) if path.is_dir() else "", known[2]])
        return key(found)

    def keep(self) -> None:
        """Write the digests, and drop entries unused for 30 days: entries, values, and what a killed
        run left.
        """
        for item in self.folder.iterdir():
            asked = item / _ENTRY if (item / _ENTRY).is_file() else item
            if time.time() - asked.stat().st_mtime > _MONTH_S:
                _remove(item)
        put(self.folder / _STAT, json.dumps(self._stats) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check(entry: Mapping[str, Any]) -> str:
    return key(entry.get("sha256"), entry.get("facts"))


def _digest(folder: Path) -> str:
    """Of the model in `folder` and the data files beside it."""
    return key([[f.name, sha256(f)] for f in sorted(folder.iterdir()) if f.is_file() and f.name != _ENTRY])


def _read(path: Path) -> dict[str, Any]:
    """The object in the file; empty where there is none or it is broken."""
    try:
        found = json_of(text_of(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
