"""A machine and its load, by what its system tells; what it does not tell is left out."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping

from edgeopt.hardware.host import cpu_name, proc_field
from edgeopt.profiling.results import Environment
from edgeopt.runtime.process import Here, Place

_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "amx_tile", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def environment(place: Place = Here()) -> Environment:  # noqa: B008  (frozen)
    """The environment of a machine at this moment.

    Raises:
        LostError: the device cannot be reached.
    """
    told = place.machine()
    texts: Mapping[str, str] = told["texts"]
    cpu, memory = texts.get("cpuinfo", ""), proc_field(texts.get("meminfo", ""), "MemTotal").partition(" ")[0]
    flags = frozenset(proc_field(cpu, "flags", "Features").split())
    return Environment(
        cpu=cpu_name(cpu, texts.get("board", told["processor"])),
        features=tuple(f for f in _FEATURES if f in flags),
        cores=told["cores"],
        governor=texts.get("governor", "").strip() or None,
        mhz=_mhz(texts),
        virtual=_virtual(texts, flags, told["container"]),
        load=tuple(round(x, 2) for x in told["load"]),
        pressure=_pressure(texts),
        memory_bytes=int(memory) * 1024 if memory.isdigit() else None,
        system=told["system"],
        edgeopt=importlib.metadata.version("edgeopt"),
    )


def _mhz(texts: Mapping[str, str]) -> float | None:
    khz, text = texts.get("khz", "").strip(), proc_field(texts.get("cpuinfo", ""), "cpu MHz")
    if khz.isdigit():
        return int(khz) / 1e3
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _virtual(texts: Mapping[str, str], flags: frozenset[str], container: bool) -> str | None:
    found = []
    if container or re.search("docker|kubepods|containerd|lxc", texts.get("cgroup", "")):
        found.append("container")
    if "hypervisor" in flags:
        found.append("virtual machine")
    return ", ".join(found) or None


def _pressure(texts: Mapping[str, str]) -> float | None:
    found = re.search(r"some avg10=([\d.]+)", texts.get("pressure", ""))
    return float(found[1]) / 100 if found else None
