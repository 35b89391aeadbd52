"""The machine as the system's files tell it, on files of several machines, and on none."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeopt.profiling.environment import environment
from edgeopt.profiling.results import Environment

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
cpu MHz\t\t: 2445.432
flags\t\t: fpu sse4_2 avx avx2 fma f16c hypervisor avx512_vnnix
power management:

processor\t: 1
model name\t: another
cpu MHz\t\t: 1.0
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
"""


def on(files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The environment of a machine that has `files` and no others."""

    real = Path.read_text

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.parts[1:2] not in (("proc",), ("sys",)):
            return real(path, *args, **kwargs)
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)
    return environment()


def test_an_x86_machine_is_its_first_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on({"/proc/cpuinfo": X86}, monkeypatch)
    assert found.cpu == "AMD EPYC 7763 64-Core Processor" and found.mhz == 2445.432
    assert found.features == ("sse4_2", "avx", "avx2", "fma", "f16c")  # whole words only


def test_an_arm_machine_has_features_and_a_name_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on({"/proc/cpuinfo": ARM}, monkeypatch)
    assert found.features == ("asimd", "asimddp", "asimdhp", "i8mm", "bf16")
    assert found.cpu and found.mhz is None and found.virtual is None


def test_nothing_is_known_where_nothing_can_be_read_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on({}, monkeypatch)
    nothing = (found.features, found.governor, found.mhz, found.virtual, found.pressure, found.memory_bytes)
    assert nothing == ((), None, None, None, None, None)
    assert found.cpu and found.system and found.cores >= 1


def test_an_empty_field_is_not_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on({"/proc/cpuinfo": "model name\t: \nstepping\t: 1\nflags\t\t:\nbugs\t\t: avx2\n"}, monkeypatch)
    assert "stepping" not in found.cpu and found.features == ()


def test_the_clock_is_that_of_cpufreq_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "/sys/devices/system/cpu/cpu0/cpufreq"
    files = {
        "/proc/cpuinfo": X86,
        f"{folder}/scaling_cur_freq": "1800000\n",
        f"{folder}/scaling_governor": "powersave\n",
    }
    found = on(files, monkeypatch)
    assert found.mhz == 1800 and found.governor == "powersave"


@pytest.mark.parametrize(
    ("files", "virtual"),
    [
        ({"/proc/cpuinfo": X86}, "virtual machine"),
        ({"/proc/cpuinfo": X86, "/.dockerenv": ""}, "container, virtual machine"),
        ({"/proc/cpuinfo": ARM, "/proc/1/cgroup": "0::/kubepods/pod1\n"}, "container"),
        ({"/proc/cpuinfo": ARM, "/proc/1/cgroup": "0::/init.scope\n"}, None),
    ],
)
def test_containers_and_hypervisors_are_told(
    files: Mapping[str, str], virtual: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on(files, monkeypatch).virtual == virtual


def test_pressure_is_a_share_and_memory_is_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pressure = "some avg10=12.50 avg60=9.00 avg300=1.00 total=5\nfull avg10=99.00 avg60=0 avg300=0 total=0\n"
    found = on(
        {"/proc/pressure/cpu": pressure, "/proc/meminfo": "MemTotal:        2048 kB\nMemFree: 1 kB\n"}, monkeypatch
    )
    assert found.pressure == 0.125 and found.memory_bytes == 2048 * 1024


def test_this_machine_agrees_with_what_python_says_of_it() -> None:
    found = environment()
    assert found.edgeopt == importlib.metadata.version("edgeopt")
    assert found.cores == len(os.sched_getaffinity(0)) and len(found.load) == 3
    assert found.system.startswith(os.uname().sysname) and found.system.endswith(os.uname().machine)
    assert (
        found.memory_bytes is None
        or found.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 1023
    )
    assert found.pressure is None or 0 <= found.pressure <= 1
