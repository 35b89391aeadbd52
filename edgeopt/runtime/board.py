"""A board while it is visited: its keeper, what was sent there, and how its workers are started.

Nothing is needed there but Python 3.8 with onnxruntime and numpy: both programs, the keeper of files and the measured
worker, are sent through their own standard input. Files are named by their content and sent once; the keeper removes
them when the connection ends.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgeopt.errors import LostError, WorkerError
from edgeopt.files import sha256
from edgeopt.runtime.address import Device
from edgeopt.runtime.process import WORKER, Here, Start, Worker
from edgeopt.runtime.tensor_file import NPZ

_KEEPER = WORKER / "keeper.py"
_MEASURED = WORKER / "__main__.py"
_BOOT = (
    "import sys;sys.version_info<(3,8)and sys.exit('Python 3.8 or newer is needed, this is '+sys.version[:6]);"
    "exec(eval(sys.stdin.readline()))"
)
_CONNECT_S, _SEND_S, _PROBE_S, _LEAVE_S = 60.0, 120.0, 30.0, 10.0
_BACK_S, _PAUSE_S, _ALIVE_S, _GENTLY_S = 60.0, 2.0, 15.0, 2.0
_CHUNK = 3 << 20  # bytes of a file in one request
_MOST_SOCKET = 80  # bytes of a socket's path: ssh adds some, and systems take 104
_HINTS = (  # what a program says -> what to do
    ("No module named 'onnxruntime'", "install it there: {python} -m pip install onnxruntime numpy"),
    ("No module named 'numpy'", "install it there: {python} -m pip install onnxruntime numpy"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its key is not the one known: if that is right, ssh-keygen -R HOST"),
    ("Host key verification failed", "connect once by hand to take the board's key into known_hosts: ssh HOST"),
    ("Permission denied", "its key is refused: ssh-copy-id, or an agent; passwords are never asked for"),
    ("Could not resolve hostname", "no such host"),
    ("Connection refused", "nothing listens there: is sshd running, and the port right?"),
    ("wrong ELF class", "a package for another architecture: install it there with that board's own pip"),
    ("invalid ELF header", "a package for another architecture: install it there with that board's own pip"),
    ("No space left on device", "its disk is full"),
    ("not found", "no such program there; say where its Python is: --python, ?python=/path, or python in [devices]"),
    ("No such file", "no such program there; say where its Python is: --python, ?python=/path, or python in [devices]"),
)  # fmt: skip


class Board:
    """A device while it is visited: its keeper, and what was sent. A keeper that was lost is started again when it is
    next needed.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._keeper: Worker | None = None
        self._hello: Mapping[str, Any] = {}
        self._sent: set[str] = set()
        self.wire, self.web = NPZ, False
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    @property
    def name(self) -> str:
        """As the user calls it."""
        return self.device.name

    def start(self) -> Start:
        """How the measured worker is started there, in the folder of the keeper."""
        folder = self.hello()["folder"]
        return self._start(_MEASURED, f"import os; os.chdir({folder!r})\n", master=False)

    def hello(self) -> Mapping[str, Any]:
        """What the keeper tells of its interpreter; it is started if it is not there.

        Raises:
            LostError: the device cannot be reached. WorkerError: it lacks what is needed.
        """
        if self._keeper is None:
            self._sent.clear()
            keeper = Worker(Here(), self._start(_KEEPER, "", master=True), _CONNECT_S)
            try:
                found = keeper.greet()
                if not isinstance(found.get("folder"), str):
                    raise WorkerError(f"device {self.name}: its keeper tells no folder")
            except BaseException:
                keeper.end(_GENTLY_S)
                raise
            self._keeper, self._hello = keeper, found
        return self._hello

    def _start(self, script: Path, before: str, *, master: bool) -> Start:
        words, reach = [self.device.python, "-c", _BOOT], self.device.reach
        try:
            if self.device.ssh or _through_a_shell(reach):
                words = [shlex.join(words)]
        except (OSError, subprocess.TimeoutExpired) as e:
            raise LostError(f"device {self.name}: {e}") from e
        if self.device.ssh:
            reach = (reach[0], *self._shared(master), *reach[1:])
        program = ascii(script.read_text(encoding="utf-8"))
        source = ascii(f"{before}exec(compile({program}, {script.name!r}, 'exec'))")
        lost = (lambda: True) if master else (lambda: not self._there())
        return Start((*reach, *words), f"device {self.name}", f"{source}\n", self._hint, device=True, lost=lost)

    def _shared(self, master: bool) -> tuple[str, ...]:
        """Options by which all connections to a board are one."""
        if os.name == "nt":
            return ()
        if master:
            self._leave_sockets()
            self._sockets = tempfile.TemporaryDirectory(prefix="edgeopt-ssh-", ignore_cleanup_errors=True)
        assert self._sockets is not None
        path = f"{self._sockets.name}/m"
        if len(os.fsencode(path)) > _MOST_SOCKET:
            return ("-o", "ControlPath=none")
        quoted = path.replace("%", "%%").replace('"', '\\"')
        how = f"ControlMaster={'yes' if master else 'no'}", f'ControlPath="{quoted}"', "ControlPersist=no"
        return tuple(word for option in how for word in ("-o", option))

    def _leave_sockets(self) -> None:
        if self._sockets is not None:
            self._sockets.cleanup()
            self._sockets = None

    def _hint(self, words: str) -> str:
        """What to do about what a program said before it ended."""
        hint = next((hint for said, hint in _HINTS if said in words), "")
        return f"; {hint.format(python=self.device.python)}" if hint else ""

    def _there(self) -> bool:
        """Whether the keeper still answers."""
        try:
            self.ask("state", limit_s=_ALIVE_S)
        except WorkerError:
            return False
        return True

    def ask(self, do: str, *, limit_s: float = _SEND_S, **arguments: Any) -> dict[str, Any]:
        """Ask the keeper; one that is lost is forgotten, so that the next request starts another.

        Raises:
            LostError: the device cannot be reached. WorkerError: the keeper refuses.
        """
        self.hello()
        assert self._keeper is not None
        try:
            return self._keeper.ask(do, limit_s, **arguments)
        except LostError:
            self._keeper.stop()
            self._keeper = None
            raise

    def greeted(self, pid: int) -> None:
        """See `Place`."""
        self.ask("watch", pid=pid)

    def stopped(self, pid: int) -> None:
        """See `Place`."""
        if self._keeper is not None:
            with contextlib.suppress(WorkerError):  # it is gone with its device
                self.ask("end", pid=pid)

    def given(self, file: Path, beside: Callable[[], Sequence[Path]] = tuple) -> str:
        """See `Place`."""
        files = (file, *beside())
        hashes = [_hash(f, f.stat().st_mtime_ns, f.stat().st_size) for f in files]
        folder = hashlib.sha256("".join(hashes).encode()).hexdigest()
        for each, digest in zip(files, hashes, strict=True):
            self._send(each, digest, f"{folder}/{each.relative_to(file.parent).as_posix()}")
        return f"{folder}/{file.name}"

    def _send(self, file: Path, digest: str, path: str) -> None:
        if self._keeper is not None and path in self._sent:
            return
        self.ask("put", path=path, at=0, data="")
        if self.device.push:
            self._copy(self.device.push, file, path)
        else:
            with file.open("rb") as f:
                while block := f.read(_CHUNK):
                    at = f.tell() - len(block)
                    self.ask("put", path=path, at=at, data=base64.b64encode(block).decode())
        if not self.ask("have", path=path, sha256=digest)["have"]:
            raise WorkerError(f"device {self.name}: {file} did not arrive whole")
        self._sent.add(path)

    def _copy(self, template: str, local: Path, remote: str) -> None:
        there = str(PurePosixPath(str(self.hello()["folder"])) / remote)
        command = [word.replace("{local}", str(local)).replace("{remote}", there) for word in shlex.split(template)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SEND_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise WorkerError(f"device {self.name}: {command[0]}: {e}") from e
        if done.returncode:
            last = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
            raise WorkerError(f"device {self.name}: {command[0]} ended with {done.returncode}: {last}")

    def named(self, file: Path) -> str:
        """See `Place`."""
        return file.name

    def taken(self, named: str, file: Path) -> None:
        """See `Place`."""
        if self.device.pull:
            self._copy(self.device.pull, file, named)
        else:
            with file.open("wb") as f:
                while block := base64.b64decode(self.ask("get", path=named, at=f.tell(), size=_CHUNK)["data"]):
                    f.write(block)
        self.ask("drop", path=named)

    def back(self) -> bool:
        """See `Place`. One that was never reached is not waited for."""
        deadline = time.monotonic() + (_BACK_S if self._hello else 0.0)
        while time.monotonic() < deadline:
            if self._there():
                return True
            time.sleep(_PAUSE_S)
        return False

    def machine(self) -> Mapping[str, Any]:
        """See `Place`."""
        return self.ask("machine")

    def state(self) -> Mapping[str, Any]:
        """See `Place`."""
        return self.ask("state")

    def close(self) -> None:
        """End the visit: the keeper removes what was sent."""
        if self._keeper is not None:
            self._keeper.end(_LEAVE_S)
            self._keeper = None
        self._leave_sockets()


@functools.lru_cache(maxsize=256)
def _hash(file: Path, modified_ns: int, size: int) -> str:
    return sha256(file)


@functools.cache
def _through_a_shell(reach: tuple[str, ...]) -> bool:
    """Whether a shell reads a command's words put together, as with `adb shell` and not with `docker exec`."""
    done = subprocess.run(
        [*reach, "echo", "$((1+1))"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False
    )
    return done.stdout.strip() == b"2"
