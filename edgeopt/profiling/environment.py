"""The machine and its load, read from /proc and /sys; what cannot be read is left out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from edgeopt.hardware.host import cores, cpu_features, cpu_name, memory_bytes, proc, proc_field
from edgeopt.profiling.results import Environment

_CPU = "/sys/devices/system/cpu/cpu0/cpufreq"
_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "amx_tile", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def environment() -> Environment:
    """The environment of this machine at this moment."""
    flags = cpu_features()
    return Environment(
        cpu=cpu_name(),
        features=tuple(f for f in _FEATURES if f in flags),
        cores=cores(),
        governor=proc(f"{_CPU}/scaling_governor").strip() or None,
        mhz=_mhz(),
        virtual=_virtual(flags),
        load=tuple(round(x, 2) for x in os.getloadavg()) if hasattr(os, "getloadavg") else (),
        pressure=_pressure(),
        memory_bytes=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        edgeopt=importlib.metadata.version("edgeopt"),
    )


def _mhz() -> float | None:
    khz = proc(f"{_CPU}/scaling_cur_freq").strip()
    text = proc_field(proc("cpuinfo"), "cpu MHz")
    return int(khz) / 1e3 if khz.isdigit() else float(text) if text else None


def _virtual(flags: frozenset[str]) -> str | None:
    found = []
    if Path("/.dockerenv").exists() or re.search("docker|kubepods|containerd|lxc", proc("1/cgroup")):
        found.append("container")
    if "hypervisor" in flags:
        found.append("virtual machine")
    return ", ".join(found) or None


def _pressure() -> float | None:
    found = re.search(r"some avg10=([\d.]+)", proc("pressure/cpu"))
    return float(found[1]) / 100 if found else None
