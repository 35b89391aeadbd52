"""A content-addressed cache of build steps: a step runs again only if its model, settings, data or versions changed.

An entry is a folder `<key>` with only the model, its data files and `entry.json` (the digest, the facts about the step,
a checksum of both); an entry that fails its digest is rebuilt. Digests of data files are stored with size and
modification time, so that a large folder is not read in every run.
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
    """SHA-256 over `parts` as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """The result of a finished step."""

    path: Path
    sha256: str
    facts: Mapping[str, Any]
    """What `make` returned, as JSON values."""
    cached: bool
    """True: read from the cache; False: made now."""


@dataclass
class Cache:
    """The cache entries in `folder`, of which one process at a time makes use."""

    folder: Path
    _stats: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*"):  # by a killed run: entries that were not finished
            _remove(left)
        known = _read(self.folder / _STAT)
        self._stats = {file: stat for file, stat in known.items() if isinstance(stat, list) and len(stat) == 3}

    def entry(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """The entry called `name`; where it is missing or corrupt, `make` writes the model to the path it is given and
        returns facts.

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
        """The JSON value stored as `name`, and whether it was there; otherwise the value of `make`, stored."""
        file = self.folder / f"{name}.json"
        found = _read(file)
        if "value" in found and found.get("check") == key(name, found["value"]):
            os.utime(file)
            return found["value"], True
        value = make()
        put(file, json.dumps({"value": value, "check": key(name, value)}) + "\n")
        return json.loads(json.dumps(value)), False

    def digest(self, path: Path) -> str:
        """Digest of a file, or of a folder's files by relative path; a file is hashed again when its size or mtime
        changes.
        """
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
        """Write the file digests, and drop entries and values unused for 30 days."""
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
    """Digest of the model in `folder` and its data files."""
    return key([[f.name, sha256(f)] for f in sorted(folder.iterdir()) if f.is_file() and f.name != _ENTRY])


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in the file; empty if there is none or it is corrupt."""
    try:
        found = json_of(text_of(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
