"""Independent work on other processes or machines, by any `concurrent.futures.Executor`: a pool of processes, Dask's
client, MPI's, joblib's loky.

A value that many tasks need is shared: it is made once in a process, and sent once where the engine can do that (Dask,
by its content) or where a file reaches all (processes of this machine). Results come in the order of the items, so that
what is made of them does not depend on who worked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from edgeopt.errors import LostError, UsageError, extra
from edgeopt.files import temporary_folder
from edgeopt.hardware.host import pooled

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 16  # tasks that are under way beyond those that were asked for
_KNOWN = 4  # shared values that a process keeps
_CONNECT_S = 15.0
_known: OrderedDict[str, Any] = OrderedDict()  # of this process, by content


@dataclass(frozen=True)
class Shared:
    """A pickled value, or the file that holds it."""

    key: str
    data: bytes | None = None
    file: Path | None = None

    def value(self) -> Any:
        """The value, made once in a process."""
        if self.key not in _known:
            data = self.data if self.file is None else self.file.read_bytes()
            assert data is not None
            _known[self.key] = pickle.loads(data)
            while len(_known) > _KNOWN:
                _known.popitem(last=False)
        _known.move_to_end(self.key)
        return _known[self.key]


def _do(function: Callable[[S, T], R], shared: Shared, item: T) -> R:
    return function(shared.value(), item)


@dataclass(frozen=True)
class Spread:
    """An executor, and how values reach its workers."""

    executor: Executor
    folder: Path | None = None
    """A folder that all workers see."""
    client: Any = None
    """Dask's client, if it is one."""

    def shared(self, value: object) -> Any:
        """`value` for the tasks of `map`: sent once."""
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        key = hashlib.sha256(data).hexdigest()
        if self.client is not None:
            return self.client.scatter(Shared(key, data), broadcast=True)
        if self.folder is None:
            return Shared(key, data)
        file = self.folder / key
        if not file.exists():
            file.write_bytes(data)
        return Shared(key, file=file)

    def map(self, function: Callable[[S, T], R], shared: Any, items: Iterable[T]) -> Iterator[R]:
        """`function(value, item)` for every item, in order; items are taken as tasks end, and what is not wanted any
        more is cancelled.

        Raises:
            LostError: the workers ended. Whatever `function` raises.
        """
        waiting: deque[Future[R]] = deque()
        coming = iter(items)
        try:
            while True:
                while len(waiting) < _AHEAD and (item := next(coming, waiting)) is not waiting:
                    waiting.append(self.executor.submit(_do, function, shared, item))  # type: ignore[arg-type]
                if not waiting:
                    return
                yield waiting[0].result()
                waiting.popleft()
        except BrokenExecutor as e:
            raise LostError(f"a worker ended ({e or 'out of memory?'}); fewer jobs need less memory") from e
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def spread(
    executor: Executor | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Iterator[Spread | None]:
    """The executor to use: the given one, `jobs` processes of this machine, or a cluster (`dask://host:port`); None if
    none is asked for.

    Raises:
        UsageError: no such cluster, or one with another edgeopt.
    """
    if executor is not None:
        yield Spread(executor, client=getattr(executor, "_client", None))
    elif cluster is not None:
        with _dask(cluster, told) as client:
            yield Spread(client.get_executor(pure=False), client=client)
    elif jobs is not None and jobs > 1:
        with temporary_folder() as folder, _pool(jobs) as pool:
            yield Spread(pool, folder)
    else:
        yield None


def _pool(jobs: int) -> contextlib.AbstractContextManager[ProcessPoolExecutor]:
    """Processes with a core each, begun anew: a fork would copy locks of ONNX Runtime's threads."""
    return pooled(ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_core))


def _one_core() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@contextlib.contextmanager
def _dask(address: str, told: Callable[[str], None]) -> Iterator[Any]:
    url = urlsplit(address)
    if url.scheme != "dask" or not url.netloc:
        raise UsageError(f"--cluster {address}: dask://scheduler:8786")
    if importlib.util.find_spec("distributed") is None:
        raise UsageError(f"--cluster {address}: needs distributed: {extra('cluster')}")
    import distributed

    try:
        client = distributed.Client(f"tcp://{url.netloc}", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as e:
        raise UsageError(f"--cluster {address}: no scheduler answers there ({e})") from e
    with client:
        _check(client, address)
        told(f"cluster: {len(client.scheduler_info()['workers'])} workers; {client.dashboard_link}")
        yield client


def _check(client: Any, address: str) -> None:
    """Refuse a cluster without workers, and workers with another edgeopt."""
    try:
        found: dict[str, str] = client.run(_version)
    except ModuleNotFoundError as e:
        raise UsageError(f"--cluster {address}: its workers have no edgeopt ({e})") from e
    ours = _version()
    if not found:
        raise UsageError(f"--cluster {address}: it has no workers; dask worker {urlsplit(address).netloc}")
    if others := {w: v for w, v in found.items() if v != ours}:
        worker, version = next(iter(others.items()))
        raise UsageError(f"--cluster {address}: {worker} has edgeopt {version}, here is {ours}")


def _version() -> str:
    return importlib.metadata.version("edgeopt")
