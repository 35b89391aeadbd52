"""Read and write files safely: bounded text, output checks, staging folders, atomic replacement, locks, hashes and
compressed sizes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from edgeopt.errors import UsageError

_fcntl: Any = None
with contextlib.suppress(ImportError):  # not on Windows
    import fcntl

    _fcntl = fcntl


_TEMPORARY = "edgeopt.tmp-"  # and eight characters of tempfile's
_YOUNG_S = 60.0


_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", re.DOTALL)
_OURS = ("file", "local", "ssh", "exec", "dask", "node", "chromium")


def address(path: object) -> str | None:
    """The address that `path` is, whose slashes `Path` may have joined; None for a path of this machine."""
    found = _ADDRESS.fullmatch(str(path)) if isinstance(path, str | Path) else None
    return None if found is None or found[1] in _OURS else f"{found[1]}://{found[2]}"


def shown(path: object) -> str:
    """`path` for the eyes: an address without user, password and query."""
    url = address(path)
    if url is None:
        return str(path)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def beside(path: Path, name: str) -> Path:
    """Where a result called `name` goes by itself: beside what it is made of, or here if that is a web page's."""
    url = address(path)
    return Path(name) if url is not None and url.startswith(("http:", "https:")) else path.parent / name


def cache_folder() -> Path | None:
    """The folder for what edgeopt may keep between runs and make again, as the system has it; None for a user without a
    home.
    """
    system = {"Darwin": Path("~/Library/Caches"), "Windows": Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")}
    given = os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else system.get(platform.system(), Path("~/.cache"))
    try:
        return base.expanduser() / "edgeopt"
    except RuntimeError:
        return None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end of the block.

    Raises:
        UsageError: the disk for temporary files is full.
    """
    try:
        _sweep_temporary()
        folder = tempfile.mkdtemp(prefix=_TEMPORARY)
    except OSError as e:
        raise UsageError(f"no room for a temporary folder ({e}); set TMPDIR to one with space") from e
    try:
        with _held(Path(folder)):
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a lock on `folder`, which ends with the process; whether nobody else holds it."""
    if _fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            ours = True
        except OSError:  # held by another process, or a file system without locks
            ours = False
        yield ours
    finally:
        os.close(descriptor)


@functools.cache
def _sweep_temporary() -> None:
    _sweep(Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}{'?' * 8}"), _YOUNG_S)


def _sweep(found: Iterable[Path], young_s: float) -> None:
    """Remove folders of killed processes: those that nobody holds. A young one may not be held yet."""
    for folder in found:
        with contextlib.suppress(OSError):
            young = time.time() - folder.stat().st_mtime < young_s
            with contextlib.nullcontext(False) if young else _held(folder) as ours:
                if ours:
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A staging folder beside `path`, in which files are written and checked; at the end of the block its files are
    moved to the folder of `path`, or removed after an error.

    Raises:
        UsageError: the folder of `path` cannot be written.
    """
    try:
        owner = platform.node().encode() + b"/" + os.fsencode(path.name)
        prefix = f".{path.name[:40]}.{hashlib.sha256(owner).hexdigest()[:12]}-"
        _sweep([f for f in path.parent.iterdir() if f.name.startswith(prefix)], _YOUNG_S)
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {path.parent} cannot be written ({e}); choose another place with -o") from e
    try:
        with _held(stage):
            yield stage
            _move(stage, path)
    except OSError as e:
        raise UsageError(f"{path}: cannot be written ({e.strerror or e}); what was there is as it was") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def empty(stage: Path) -> None:
    """Remove all files from a staging folder, so that none of them is moved."""
    for file in stage.iterdir():
        file.unlink()


def _move(stage: Path, path: Path) -> None:
    """Move the files of `stage` to the folder of `path`, `path` itself last; after an error new files are removed
    again.
    """
    made: list[Path] = []
    try:
        for file in sorted(stage.iterdir(), key=lambda f: f.name == path.name):
            _sync(file)
            target = path.parent / file.name
            if not target.exists():
                made.append(target)
            file.replace(target)
    except BaseException:
        for target in made:
            target.unlink(missing_ok=True)
        raise


def _sync(file: Path) -> None:
    for each in file.rglob("*") if file.is_dir() else [file]:
        with each.open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, so that only one run uses it at a time; the system releases the lock whenever the process ends."""
    if _fcntl is None:
        yield
        return
    with (folder / ".lock").open("a+", encoding="ascii") as lock:
        try:
            _fcntl.flock(lock, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError as e:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UsageError(
                f"{folder}: another run is at work there (process {owner}); "
                "wait for it, or choose another output.folder"
            ) from e
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def check_folder(path: Path) -> None:
    """Check that the folder `path` exists and can be written to, or can be created.

    Raises:
        UsageError: it cannot be used.
    """
    try:
        there = next(p for p in (path, *path.parents) if _exists(p))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot be a folder ({e})") from e
    if not there.is_dir():
        raise UsageError(f"{path}: cannot be a folder ({there} is a file)")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{path}: cannot be written to")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


_NO_SAMPLES = frozenset({".onnx", ".toml", ".json", ".svg", ".html"})


def is_text(path: Path) -> bool:
    """Whether the absolute path is UTF-8 text, which a name of a file need not be."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_place(path: Path, force: bool, reads: Iterable[object] = ()) -> None:
    """Check that an output file can be written to `path`.

    reads: what the command reads; paths among it, and samples in folders among it, are never overwritten.

    Raises:
        UsageError: it exists already (and not `force`), is read, its folder does not exist, or it cannot be a file.
    """
    if address(path) is not None:  # whether it is there is seen where it is sent
        return
    if not is_text(path):
        raise UsageError(
            f"{path}: its name is no UTF-8 text, which ONNX Runtime cannot open; choose another name with -o"
        )
    try:
        for read in (Path(r) for r in reads if isinstance(r, str | Path) and path.exists()):
            sample = path.suffix.lower() not in _NO_SAMPLES
            inside = read.is_dir() and sample and path.resolve().is_relative_to(read.resolve())
            if read.exists() and (path.resolve() == read.resolve() or inside):
                raise UsageError(f"{path}: is what the command reads; choose another name")
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path}: {'is a folder' if path.is_dir() else f'no folder {path.parent}'}")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is a device, a pipe or a socket, which is not replaced; choose a file")
        if path.exists() and not force:
            raise UsageError(f"{path} exists; choose another name with -o, or overwrite it with --force")
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot be a file ({e})") from e


_BLOCK = 1 << 20
_MOST_TEXT = 256 << 20


def text_of(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark.

    Raises:
        OSError: it cannot be read, or is a device or a pipe. ValueError: it is not UTF-8, or larger than 256 MB.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a file")
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(_MOST_TEXT + 1)
    if len(text) > _MOST_TEXT:
        raise ValueError(f"more than {_MOST_TEXT >> 20} MB of text")
    return text


def json_of(text: str) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def toml_of(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        ValueError: it is not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def sha256(*paths: Path) -> str:
    """SHA-256 of the concatenated contents of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for block in _blocks(paths):
        digest.update(block)
    return digest.hexdigest()


def _blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


class Packer(Protocol):
    """The interface of the standard library's compressors."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def packed_bytes(paths: Iterable[Path], packer: Callable[[], Packer] = zlib.compressobj) -> int:
    """Compressed size of the files in bytes, as in a download or an app package; each file is deflated (or compressed
    by another `packer`).
    """
    total = 0
    for path in paths:
        one = packer()
        total += sum(len(one.compress(block)) for block in _blocks([path])) + len(one.flush())
    return total


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert an OSError in the block to a UsageError about `folder`."""
    try:
        yield
    except OSError as e:
        raise UsageError(f"{folder}: cannot be written ({e.strerror or e}); what was there is as it was") from e


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file (or folder) to write, which replaces `path` at the end of the block, completely or not at all.

    Raises:
        UsageError: it cannot be written; what is at `path` is unchanged.
    """
    with staged(path) as stage:
        yield stage / path.name


def put(file: Path, text: str) -> None:
    """Write `text` to `file`, completely or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    if (url := address(file)) is not None:
        from edgeopt.files import cloud

        cloud.put(url, text)
        return
    with replacing(file.resolve()) as part:
        part.write_text(text, encoding="utf-8")
