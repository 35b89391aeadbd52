"""Facts about this machine, and settings for numeric work on it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from threadpoolctl import threadpool_limits

Pool = TypeVar("Pool", bound=Executor)
_UNKNOWN_BYTES = 4 << 30
_LIMITED = threading.Lock()  # the limit is that of the process
_M_ARENA_MAX = -8  # a parameter of mallopt(3)


def proc(name: str) -> str:
    """The text of a file in /proc, empty if it does not exist."""
    try:
        return Path("/proc", name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def proc_field(text: str, *names: str) -> str:
    """The value of the first of `names` found in lines `name : value`; empty if none is found."""
    for name in names:
        found = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def cpu_features() -> frozenset[str]:
    """Feature flags of this machine's CPU as reported by Linux; empty if unknown."""
    return frozenset(proc_field(proc("cpuinfo"), "flags", "Features").split())


def cpu_name(cpuinfo: str | None = None, unnamed: str = "") -> str:
    """The name of the processor by the text of /proc/cpuinfo, this machine's if none is given; else `unnamed`, else
    this machine's architecture.
    """
    found = proc_field(proc("cpuinfo") if cpuinfo is None else cpuinfo, "model name", "Model", "Hardware")
    return found or unnamed or platform.processor() or platform.machine()


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes() -> int:
    """Memory in bytes that is available without swapping; 4 GB if unknown."""
    kilobytes = proc_field(proc("meminfo"), "MemAvailable").partition(" ")[0]
    return int(kilobytes) * 1024 if kilobytes.isdigit() else _UNKNOWN_BYTES


@contextlib.contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads; see `pooled`."""
    with pooled(ThreadPoolExecutor(count)) as pool:
        yield pool


@contextlib.contextmanager
def pooled(pool: Pool) -> Iterator[Pool]:
    """`pool`, for a block. Whatever ends the block early, Ctrl-C too, does not wait for what is still to do."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Let this process take up to `more_bytes` of address space beyond what it has; more is a MemoryError, or an error
    of the library that asks for it.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        yield
        return
    with _LIMITED:
        yield from _limited(resource, more_bytes)


def _limited(resource: ModuleType, more_bytes: int) -> Iterator[None]:
    pages = proc("self/statm").partition(" ")[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(pages) * resource.getpagesize() + more_bytes if pages.isdigit() else soft
    inside = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (inside, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.cache
def _one_heap() -> None:
    """Let all threads share one glibc heap: with one heap for each thread, memory that threads cannot reuse grows with
    the number of samples.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Give memory that is free back to the system; glibc keeps it between blocks that are in use."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def numeric_work() -> Iterator[None]:
    """Use one heap, and one BLAS thread for each matrix product: layers are processed in parallel, so more BLAS threads
    would only compete for cores.
    """
    _one_heap()
    with threadpool_limits(limits=1, user_api="blas"):
        yield
