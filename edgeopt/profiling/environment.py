"""What machine this is and what it is busy with, read from the system's files; what cannot be read is left out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from edgeopt.hardware.host import cores
from edgeopt.profiling.results import Environment

_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_tile", "asimd", "asimddp", "asimdhp",
    "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def environment() -> Environment:
    """Of this machine, now."""
    info = _read(Path("/proc/cpuinfo"))
    flags = set(_field(info, "flags").split()) | set(_field(info, "Features").split())
    return Environment(
        cpu=_field(info, "model name") or platform.processor() or platform.machine(),
        features=tuple(f for f in _FEATURES if f in flags),
        cores=cores(),
        governor=_read(_CPU / "scaling_governor").strip() or None,
        mhz=_mhz(info),
        virtual=_virtual(flags),
        load=tuple(round(x, 2) for x in os.getloadavg()) if hasattr(os, "getloadavg") else (),
        pressure=_pressure(),
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        edgeopt=importlib.metadata.version("edgeopt"),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(info: str, name: str) -> str:
    found = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", info, re.MULTILINE)
    return found[1].strip() if found else ""


def _mhz(info: str) -> float | None:
    khz = _read(_CPU / "scaling_cur_freq").strip()
    text = _field(info, "cpu MHz")
    return int(khz) / 1e3 if khz.isdigit() else float(text) if text else None


def _virtual(flags: set[str]) -> str | None:
    found = []
    if Path("/.dockerenv").exists() or re.search("docker|kubepods|containerd|lxc", _read(Path("/proc/1/cgroup"))):
        found.append("container")
    if "hypervisor" in flags:
        found.append("virtual machine")
    return ", ".join(found) or None


def _pressure() -> float | None:
    found = re.search(r"some avg10=([\d.]+)", _read(Path("/proc/pressure/cpu")))
    return float(found[1]) / 100 if found else None


def _memory() -> int | None:
    found = re.search(r"MemTotal:\s*(\d+)", _read(Path("/proc/meminfo")))
    return int(found[1]) * 1024 if found else None
