"""Files elsewhere: a path may be an address of any file system that fsspec knows (`s3://`, `gs://`, `az://`, `https://`).
What a function reads is fetched before it runs, and what it writes is sent when it has ended well.

Credentials are found by those libraries; an address is shown without what may be one. Of a folder with very many files
a fixed random part is fetched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import onnx
from google.protobuf.message import DecodeError
from pydantic import BaseModel

from edgeopt.errors import DataError, EdgeoptError, UsageError, extra
from edgeopt.files import address, replacing, shown, temporary_folder

_WRITTEN = ("output", "report", "trace", "pareto", "sheet", "write", "log")
_HERE_ONLY = ("checkpoint", "cache", "tensorboard", "costs", "book")
_MOST_FILES, _FULL = 4096, 0.9  # of a folder; share of the free disk
_TRIES, _PAUSE_S = 3, 1.0
_ERRORS = {  # of the libraries behind fsspec, which are not OSErrors
    "botocore.exceptions": ("BotoCoreError", "ClientError"), "aiohttp": ("ClientError",), "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",), "azure.core.exceptions": ("AzureError",),
}  # fmt: skip
_BESIDE = "preprocess.toml"
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def anywhere(function: F) -> F:
    """Decorator for a function of paths and one model of options: each path may be an address."""

    @functools.wraps(function)
    def call(*things: Any) -> Any:
        options = things[-1]
        if not any(map(address, _paths(things))):
            return function(*things)
        with visit(options) as v:
            given = [v.every(x) for x in things[:-1]]
            try:
                result = function(*given, v.options(options))
            except EdgeoptError as e:
                raise type(e)(v.with_addresses(str(e))) from e
            v.send()
            return v.restored(result)

    return cast(F, call)


def _paths(things: Sequence[Any]) -> Iterator[object]:
    for x in things:
        if isinstance(x, BaseModel):
            yield from _paths([getattr(x, name) for name in type(x).model_fields])
        elif isinstance(x, str | Path):
            yield x
        elif isinstance(x, tuple | list):
            yield from _paths([item for item in x if isinstance(item, str | Path)])
        elif isinstance(x, Mapping):
            yield from _paths([item for item in x.values() if isinstance(item, str | Path)])


@dataclass
class Visit:
    """What was fetched for a function, and what is to be sent."""

    folder: Path
    told: Callable[[str], None]
    force: bool
    sent: dict[Path, str] = field(default_factory=dict)
    """Local path of an output -> its address."""
    fetched: dict[str, Path] = field(default_factory=dict)

    def every(self, x: Any) -> Any:
        """`x` with addresses, and those in a sequence or mapping, fetched."""
        if isinstance(x, tuple | list):
            return type(x)(self.every(item) for item in x)
        if isinstance(x, Mapping):
            return {key: self.every(item) for key, item in x.items()}
        url = address(x)
        return x if url is None else self.fetch(url)

    def options(self, given: BaseModel) -> BaseModel:
        """`given` with local paths: what is read is fetched, what is written has a place to be sent from.

        Raises:
            UsageError: a path that has to be local.
        """
        changed: dict[str, Any] = {}
        for name in type(given).model_fields:
            value = getattr(given, name)
            if not any(map(address, _paths([value]))):
                continue
            if name in _HERE_ONLY:
                raise UsageError(f"{name} {shown(value)}: has to be a path of this machine")
            changed[name] = self.place(str(address(value))) if name in _WRITTEN else self.every(value)
        listener = getattr(given, "listener", None)
        if is_dataclass(listener) and not isinstance(listener, type):
            note: Callable[[str], None] = getattr(listener, "note")  # noqa: B009  (of a listener, which is above)
            changed["listener"] = replace(listener, note=lambda line: note(self.with_addresses(line)))
        return given.model_copy(update=changed)

    def with_addresses(self, text: str) -> str:
        """`text` with addresses in place of where they are here."""
        here = {**{path: url for url, path in self.fetched.items()}, **self.sent}
        for path in sorted(here, key=lambda p: -len(str(p))):
            text = text.replace(str(path), shown(here[path]))
        return text

    def fetch(self, url: str) -> Path:
        """A file or folder, here.

        Raises:
            DataError: it is not there, or cannot be read.
        """
        if url not in self.fetched:
            self.fetched[url] = fetched(url, self.folder / str(len(self.fetched)), self.told)
        return self.fetched[url]

    def place(self, url: str) -> Path:
        """Where an output is written before it is sent.

        Raises:
            UsageError: it is there already.
        """
        if url.startswith(("http:", "https:")):
            raise UsageError(f"{shown(url)}: a web page is not written to; choose a place with -o")
        system, path = _opened(url)
        if not self.force and _patiently(url, lambda: system.exists(path)):
            raise UsageError(f"{shown(url)} exists; choose another name with -o, or overwrite it with --force")
        folder = self.folder / f"out{len(self.sent)}"
        folder.mkdir()
        local = folder / PurePosixPath(path).name
        self.sent[local] = url
        return local

    def send(self) -> None:
        """Send what was written, each output after what lies beside it."""
        for local, url in self.sent.items():
            files = sorted((f for f in local.parent.rglob("*") if f.is_file()), key=lambda f: f == local)
            system, path = _opened(url)
            for file in files:
                there = str(PurePosixPath(path).parent / file.relative_to(local.parent).as_posix())
                _patiently(url, functools.partial(system.put_file, str(file), there))
            if files:
                self.told(f"sent {shown(url)}")

    def restored(self, result: Any) -> Any:
        """`result` with the address where its path is that of an output that was sent."""
        path = getattr(result, "path", None)
        if is_dataclass(result) and not isinstance(result, type) and path in self.sent:
            return replace(result, path=Path(self.sent[path]))
        return result


def put(url: str, text: str) -> None:
    """Write a text to an address.

    Raises:
        UsageError, DataError: it cannot be written.
    """
    system, path = _opened(url)
    _patiently(url, lambda: system.pipe_file(path, text.encode()))


@contextlib.contextmanager
def visit(options: object) -> Iterator[Visit]:
    """A folder for what is fetched and written."""
    note = getattr(getattr(options, "listener", None), "note", lambda line: None)
    with temporary_folder() as folder:
        yield Visit(folder, note, getattr(options, "force", True))


def fetched(url: str, folder: Path, told: Callable[[str], None] = lambda line: None) -> Path:
    """The file or folder at `url`, in the new `folder`: a model with the data beside it, samples with their
    `preprocess.toml`.

    Raises:
        DataError: it is not there, or cannot be read. UsageError: no library for such addresses, or no room.
    """
    system, path = _opened(url)
    folder.mkdir(parents=True)
    if _patiently(url, lambda: system.isdir(path)):
        return _folder(system, path, url, folder, told)
    name = PurePosixPath(path).name or "file"
    _room(folder, [int(_patiently(url, lambda: system.size(path)) or 0)], url)
    _patiently(url, lambda: system.get_file(path, str(folder / name)))
    beside = [_BESIDE]
    if name.endswith(".onnx"):
        beside = _external(folder / name)
    for other in beside:
        there = str(PurePosixPath(path).parent / other)
        if _patiently(url, functools.partial(system.exists, there)):
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            _patiently(url, functools.partial(system.get_file, there, str(folder / other)))
    return folder / name


def kept(url: str, folder: Path, told: Callable[[str], None]) -> Path:
    """The file or folder at `url`, fetched below `folder` unless it is there as it is now.

    Raises:
        as `fetched`.
    """
    system, path = _opened(url)
    if _patiently(url, lambda: system.isdir(path)):
        found = _patiently(url, lambda: system.find(path, detail=True))
        state = repr(
            [(name, about.get("size"), str(about.get("ETag", about.get("mtime")))) for name, about in found.items()]
        )
    else:
        state = str(_patiently(url, lambda: system.ukey(path)))
    place = folder / hashlib.sha256(f"{url}\n{state}".encode()).hexdigest()[:16]
    if place.is_dir():
        return next(f for f in (place / PurePosixPath(path).name, place) if f.exists())
    with replacing(place) as part:
        found_at = fetched(url, part, told)
        name = found_at.relative_to(part)
    return place / name


def _folder(system: Any, path: str, url: str, folder: Path, told: Callable[[str], None]) -> Path:
    found = _patiently(url, lambda: system.find(path, detail=True))
    sizes = {name: int(about.get("size") or 0) for name, about in found.items() if about.get("type") == "file"}
    names = sorted(sizes)
    if len(names) > _MOST_FILES:
        told(f"{shown(url)}: {_MOST_FILES} of {len(names)} files are fetched, chosen at random")
        kept = random.Random(0).sample(names, _MOST_FILES)
        names = sorted({*kept, *(n for n in names if PurePosixPath(n).name == _BESIDE)})
    root = system._strip_protocol(path).rstrip("/") + "/"
    inside = {n: _inside(folder, n.removeprefix(root), url) for n in names}
    _room(folder, [sizes[n] for n in names], url)
    for local in inside.values():
        local.parent.mkdir(parents=True, exist_ok=True)
    if names:
        _patiently(url, lambda: system.get(list(inside), [str(f) for f in inside.values()]))
    told(f"{shown(url)}: {len(names)} files fetched")
    return folder


def _inside(folder: Path, name: str, url: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise DataError(f"{shown(url)}: has a file {name!r}, whose name leads outside")
    return folder.joinpath(*parts)


def _external(model: Path) -> list[str]:
    """The names of files beside `model` in which its tensors are; what is broken is told when the model is read."""
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return []
    places = {e.value for t in _tensors(proto.graph) for e in t.external_data if e.key == "location"}
    return sorted(p for p in places if not p.startswith("/") and ".." not in PurePosixPath(p).parts)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _room(folder: Path, sizes: Sequence[int], url: str) -> None:
    free = shutil.disk_usage(folder).free
    if sum(sizes) > _FULL * free:
        raise UsageError(
            f"{shown(url)}: {sum(sizes) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; set TMPDIR to a disk with room"
        )


def _opened(url: str) -> tuple[Any, str]:
    """(the file system of an address, the path in it).

    Raises:
        UsageError: no library for such addresses.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise UsageError(f"{shown(url)}: addresses need fsspec: {extra('cloud')}")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise UsageError(f"{shown(url)}: {e}: {extra('cloud')}") from e
    except ValueError as e:
        raise UsageError(f"{shown(url)}: {e}") from e
    return system, path


def _patiently(url: str, action: Callable[[], T]) -> T:
    """`action`, tried again where a connection fails.

    Raises:
        DataError: it is not there, is refused, or fails each time.
    """
    for left in reversed(range(_TRIES)):
        try:
            return action()
        except _errors() as e:
            if isinstance(e, FileNotFoundError):
                raise DataError(f"{shown(url)}: not there") from e
            if not left or isinstance(e, PermissionError):
                raise DataError(f"{shown(url)}: {_words(e, url)}") from e
            time.sleep(_PAUSE_S * (_TRIES - left))
    raise AssertionError


def _errors() -> tuple[type[Exception], ...]:
    """What a file system may raise, of the libraries that are loaded."""
    loaded = [(sys.modules[module], names) for module, names in _ERRORS.items() if module in sys.modules]
    return (OSError, ValueError, *(getattr(module, name) for module, names in loaded for name in names))


def _words(e: BaseException, url: str) -> str:
    """An error without the address as it was given."""
    text = str(e).splitlines()[0][:300] if str(e) else type(e).__name__
    query = urlsplit(url).query
    return text.replace(url, shown(url)).replace(query, "...") if query else text.replace(url, shown(url))
