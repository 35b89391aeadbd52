"""An SSH server on loopback, with keys of its own, and a client that knows it: OpenSSH's own programs."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
_LIMIT_S = 20.0
_SERVER = """ListenAddress {host}
Port {port}
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
PidFile {home}/pid
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
"""
_CLIENT = """Host *
  IdentityFile {home}/key
  IdentitiesOnly yes
  UserKnownHostsFile {home}/known
  GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True)
class Server:
    """A server that runs; its client is found first on the PATH."""

    home: Path
    host: str
    port: int
    process: subprocess.Popen[bytes]

    def address(self, **query: str) -> str:
        """The device at which it is, with this interpreter."""
        python = query.get("python", sys.executable)
        return f"ssh://{getpass.getuser()}@{self.host}:{self.port}?python={python}"

    def cut(self) -> None:
        """End all connections; the server goes on."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        for pid in children.stdout.split():
            subprocess.run(["pkill", "-KILL", "-P", pid], check=False)
            subprocess.run(["kill", "-KILL", pid], check=False)


def keys(home: Path, name: str) -> None:
    (home / name).unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)


def knows(home: Path, host: str, port: int, key: str = "host") -> None:
    """Let the client know the server by a key."""
    public = (home / f"{key}.pub").read_text(encoding="utf-8").split()
    (home / "known").write_text(f"[{host}]:{port} {public[0]} {public[1]}\n", encoding="utf-8")


@contextlib.contextmanager
def running(
    home: Path, patch: pytest.MonkeyPatch, host: str = "127.0.0.1", inside: tuple[str, ...] = ()
) -> Iterator[Server]:
    """A server with its files in `home`; inside: the command that starts it elsewhere, in a network of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host", "key"):
        keys(home, name)
    shutil.copy(home / "key.pub", home / "authorized")
    (home / "authorized").chmod(0o600)
    (home / "server").write_text(_SERVER.format(home=home, port=port, host=host), encoding="utf-8")
    (home / "client").write_text(_CLIENT.format(home=home), encoding="utf-8")
    knows(home, host, port)
    (home / "bin").mkdir()
    wrapper = home / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/client "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    patch.setenv("PATH", f"{home / 'bin'}:/usr/sbin:/usr/bin:/bin", prepend=None)
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges
    command = [*inside, str(PROGRAM), "-D", "-f", str(home / "server"), "-E", str(home / "log")]
    with subprocess.Popen(command) as process:
        try:
            wait_for(home)
            yield Server(home, host, port, process)
        finally:
            process.terminate()


def wait_for(home: Path) -> None:
    end = time.monotonic() + _LIMIT_S
    while not (home / "pid").exists():
        assert time.monotonic() < end, (home / "log").read_text(encoding="utf-8")
        time.sleep(0.05)
