"""Facts about this machine, and how numeric work runs best on it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from threadpoolctl import threadpool_limits

_UNKNOWN_BYTES = 4 << 30
_M_ARENA_MAX = -8  # of mallopt(3)


def proc(name: str) -> str:
    """The text of a file in /proc, empty where the system has none."""
    try:
        return Path("/proc", name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def proc_field(text: str, *names: str) -> str:
    """What stands behind the first of `names` in lines `name : value`; empty where none does."""
    for name in names:
        found = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def cpu_features() -> frozenset[str]:
    """Flags of this machine's CPU as Linux reports them; empty where it does not."""
    return frozenset(proc_field(proc("cpuinfo"), "flags", "Features").split())


def cpu_name() -> str:
    """The processor's name, or the machine's architecture where the system does not say."""
    return proc_field(proc("cpuinfo"), "model name", "Model", "Hardware") or platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes() -> int:
    """Memory that can be had without swapping; 4 GB where the system does not say."""
    return _memory("MemAvailable") or _UNKNOWN_BYTES


def memory_bytes() -> int | None:
    """All memory of the machine, None where the system does not say."""
    return _memory("MemTotal")


def _memory(name: str) -> int | None:
    kilobytes = proc_field(proc("meminfo"), name).partition(" ")[0]
    return int(kilobytes) * 1024 if kilobytes.isdigit() else None


@functools.cache
def _one_heap() -> None:
    """Let all threads share glibc's one heap: with a heap for each, memory grows with the samples by what each cannot reuse."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def numeric_work() -> Iterator[None]:
    """One heap, and one thread in each product of matrices: layers are worked on side by side, where more threads only spin."""
    _one_heap()
    with threadpool_limits(limits=1, user_api="blas"):
        yield
