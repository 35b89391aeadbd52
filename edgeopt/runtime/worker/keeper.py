"""The process that keeps files on a device for the workers there. It needs Python 3.8 and nothing else, is sent through
its own standard input, and speaks the protocol of `__main__`.

It has a folder of its own, in which every file has the hash of its content in its path, and it removes the folder, and
ends the workers that it was told of, when nobody is left who asks.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROTOCOL = 1
_PREFIX = "edgeopt-device-"
_STALE_S = 24 * 3600.0
_MOST_TEXT = 100_000  # characters of a file of the system
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq"
_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"  # of a Raspberry Pi
_TEXTS = {
    "cpuinfo": "/proc/cpuinfo", "meminfo": "/proc/meminfo", "pressure": "/proc/pressure/cpu",
    "cgroup": "/proc/1/cgroup", "governor": f"{_CPU}/scaling_governor", "khz": f"{_CPU}/scaling_cur_freq",
    "board": "/proc/device-tree/model",
}  # fmt: skip


class Keeper:
    """The folder of one visit, and what is known of the machine."""

    def __init__(self) -> None:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.workers = set()  # type: set[int]

    def hello(self) -> dict[str, Any]:
        """Versions of this interpreter, and where its files are."""
        return {
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "executable": sys.executable,
            "machine": platform.machine(),
            "folder": str(self.folder),
            "packages": {name: _version(name) for name in ("onnxruntime", "numpy")},
        }

    def have(self, path: str, sha256: str) -> dict[str, Any]:
        """Whether the file is there whole."""
        file = self._inside(path)
        return {"have": file.is_file() and _sha256(file) == sha256}

    def put(self, path: str, at: int, data: str) -> dict[str, Any]:
        """Write base64 `data` at the offset `at` of a file."""
        file = self._inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if at else "wb") as f:
            f.seek(at)
            f.write(base64.b64decode(data))
        return {}

    def get(self, path: str, at: int, size: int) -> dict[str, Any]:
        """Read up to `size` bytes at the offset `at` of a file, in base64; fewer at its end."""
        with self._inside(path).open("rb") as f:
            f.seek(at)
            return {"data": base64.b64encode(f.read(size)).decode()}

    def drop(self, path: str) -> dict[str, Any]:
        """Remove a file."""
        self._inside(path).unlink()
        return {}

    def watch(self, pid: int) -> dict[str, Any]:
        """Take a worker into care: it ends with this process."""
        self.workers.add(pid)
        return {}

    def end(self, pid: int) -> dict[str, Any]:
        """End a worker that was taken into care."""
        if pid in self.workers:
            self.workers.discard(pid)
            _kill(pid)
        return {}

    def machine(self) -> dict[str, Any]:
        """See `machine`."""
        return machine()

    def state(self) -> dict[str, Any]:
        """See `state`."""
        return state()

    def close(self) -> None:
        """End the workers and remove the folder."""
        for pid in self.workers:
            _kill(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _inside(self, path: str) -> Path:
        file = self.folder / path
        if file.is_absolute() and self.folder in file.parents and ".." not in file.parts:
            return file
        raise ValueError(f"{path}: not below the folder of the run")


def machine() -> dict[str, Any]:
    """What a machine tells of itself: texts of its system by name, and what has no text."""
    texts = {name: _text(path) for name, path in _TEXTS.items()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "texts": {name: text for name, text in texts.items() if text},
        "cores": cores,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else [],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": platform.processor() or platform.machine(),
        "container": Path("/.dockerenv").exists(),
    }


def state() -> dict[str, Any]:
    """The highest temperature in degrees Celsius, the clock of the first core in MHz, and whether the board throttles;
    None where the system does not tell.
    """
    zones = [_text(str(zone)).strip() for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    degrees = [int(text) / 1e3 for text in zones if text.lstrip("-").isdigit()]
    khz, throttled = _text(f"{_CPU}/scaling_cur_freq").strip(), _text(_THROTTLED).strip()
    return {
        "celsius": max(degrees) if degrees else None,
        "mhz": int(khz) / 1e3 if khz.isdigit() else None,
        "throttled": bool(int(throttled, 16) & 0xF) if throttled else None,
    }


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")[:_MOST_TEXT].rstrip("\0")
    except OSError:
        return ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    """The version of a package without loading it; None if it is not there."""
    found = importlib.util.find_spec(package)
    if found is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # by another name: onnxruntime-qnn
        return "?"


def _sweep() -> None:
    """Remove folders of runs whose keeper could not do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def serve() -> None:
    """Answer requests until stdin ends."""
    keeper = Keeper()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))  # the connection ends
    try:
        sys.stdout.write("\n")  # after what a shell may have said
        for line in sys.stdin:
            request = json.loads(line)
            do = request.pop("do")
            try:
                answer = {"ok": getattr(keeper, do)(**request)}
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as e:
                answer = {"error": str(e) or repr(e), "type": type(e).__name__}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        keeper.close()


if __name__ == "__main__":
    serve()
