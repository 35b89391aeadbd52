"""The aarch64 builds of Python, NumPy and ONNX Runtime, run by qemu's emulation of user programs: packages of Debian
and of PyPI, unpacked into a folder of their own. Nothing of the system is changed.
"""

from __future__ import annotations

import shlex
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeopt.errors import WorkerError

EMULATOR = "qemu-aarch64-static"
SITE = "site"
_APT = """APT::Architecture "arm64";
APT::Architectures "arm64";
Dir::State "{work}/state";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
"""
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# ONNX Runtime asks the system for cores and caches, and an x86 system's answer is none that it expects: one core
_CPUINFO = """processor	: 0
Features	: fp asimd aes crc32
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3
"""


def make(folder: Path, packages: Sequence[str], work: Path, run: Callable[[list[str]], str]) -> None:
    """Make `folder` with a program `bin/python`; `work`: a folder for what is downloaded.

    Raises:
        WorkerError: a step fails.
    """
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "apt.conf").write_text(_APT.format(work=work), encoding="utf-8")
    apt = ["env", f"APT_CONFIG={work / 'apt.conf'}", "apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    run([*apt, "update"])
    run([*apt, "install", "-y", "--no-install-recommends", "--download-only", "python3", "libstdc++6"])
    folder.mkdir(parents=True)
    for deb in sorted((work / "cache" / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(deb), str(folder)])
    python = next(iter(sorted((folder / "usr" / "bin").glob("python3.[0-9]*"))), None)
    if python is None:
        raise WorkerError("no Python among Debian's packages for arm64")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    only = ["--only-binary=:all:", "--no-deps", "--python-version", python.name.removeprefix("python")]
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    run([*pip, "--dest", str(work), *only, *platforms, *packages])
    for wheel in sorted(work.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / SITE)
    _system(folder)
    (folder / "bin").mkdir(exist_ok=True)
    words = shlex.join([EMULATOR, "-L", str(folder), str(python)])
    program = folder / "bin" / "python"
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder / SITE))} exec {words} "$@"\n', encoding="utf-8")
    program.chmod(0o755)


def _system(folder: Path) -> None:
    cpu = folder / "sys" / "devices" / "system" / "cpu"
    cpu.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpu / name).write_text("0\n", encoding="utf-8")
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc" / "cpuinfo").write_text(_CPUINFO, encoding="utf-8")
