"""The client side of a worker process: start it with any interpreter, here or on a device, send requests with a time
limit, and report how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeopt.errors import LostError, UsageError, WorkerError
from edgeopt.runtime.protocol import checked
from edgeopt.runtime.tensor_file import NPZ, Wire
from edgeopt.runtime.worker import keeper

WORKER = Path(__file__).parent / "worker"
_LAST_WORDS = 2000
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SIGNATURE = re.compile(r"/\S+\.(?:cc|cpp|h):\d+ [^()]*\([^()]*\)(?: const)?(?: \[with [^\]]*\])? ?")
TIMEOUT_S = 300.0
_GENTLY_S = 3.0


@dataclass(frozen=True)
class Start:
    """How a worker is started."""

    command: Sequence[str]
    of: str = ""
    """What its errors are told of, e.g. `--python PATH`."""
    first: str = ""
    """What it is sent before the first request."""
    hint: Callable[[str], str] = lambda words: ""
    """What to do about what it printed before it ended."""
    environment: Mapping[str, str] = field(default_factory=dict)
    device: bool = False
    """Whether all its errors name it, and it is let to end by itself before it is killed."""
    lost: Callable[[], bool] = lambda: False
    """Whether, now that it ended, its device cannot be reached."""


class Place(Protocol):
    """Where workers run, and how files get there."""

    @property
    def name(self) -> str:
        """As the user calls it."""
        ...

    @property
    def wire(self) -> Wire:
        """How arrays are handed over."""
        ...

    @property
    def web(self) -> bool:
        """Whether its runtime is onnxruntime-web, which has other providers, and no assignment, trace or memory."""
        ...

    def start(self) -> Start:
        """How a worker is started there."""
        ...

    def greeted(self, pid: int) -> None:
        """A worker with the process number `pid` runs."""
        ...

    def stopped(self, pid: int) -> None:
        """The worker `pid` is not needed any more."""
        ...

    def given(self, file: Path, beside: Callable[[], Sequence[Path]] = tuple) -> str:
        """The name of `file` over there, where it is sent to; beside: the files below its folder that it refers to."""
        ...

    def named(self, file: Path) -> str:
        """The name over there of a file that a worker is to write."""
        ...

    def back(self) -> bool:
        """Wait for a device that was lost; returns whether it can be reached again."""
        ...

    def machine(self) -> Mapping[str, Any]:
        """What the machine tells of itself; see `edgeopt/runtime/worker/keeper.py`."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Its temperature, clock and throttling now."""
        ...

    def taken(self, named: str, file: Path) -> None:
        """Bring what a worker wrote as `named` to `file`."""
        ...


@dataclass(frozen=True)
class Here:
    """This machine: a worker reads and writes the files where they are."""

    python: str | None = None
    """The interpreter that runs it; None: this one."""
    script: Path = WORKER
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = "local"
    wire: Wire = NPZ
    web: bool = False

    def start(self) -> Start:
        """See `Place`."""
        if self.python is not None and shutil.which(self.python) is None:
            raise UsageError(f"--python {self.python}: no such program")
        of = f"--python {self.python}" if self.python else ""
        return Start([self.python or sys.executable, str(self.script)], of, environment=self.environment)

    def greeted(self, pid: int) -> None:
        """See `Place`."""

    def stopped(self, pid: int) -> None:
        """See `Place`."""

    def given(self, file: Path, beside: Callable[[], Sequence[Path]] = tuple) -> str:
        """See `Place`."""
        return str(file)

    def named(self, file: Path) -> str:
        """See `Place`."""
        return str(file)

    def back(self) -> bool:
        """See `Place`."""
        return True

    def machine(self) -> Mapping[str, Any]:
        """See `Place`."""
        return keeper.machine()

    def state(self) -> Mapping[str, Any]:
        """See `Place`."""
        return keeper.state()

    def taken(self, named: str, file: Path) -> None:
        """See `Place`."""
        if Path(named) != file:
            shutil.move(named, file)


class Worker:
    """A worker process in which models are measured; see `edgeopt/runtime/worker`."""

    def __init__(self, place: Place, start: Start, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s, self.place, self._start = timeout_s, place, start
        self._pid: int | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `stop`)
        variables = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1", **start.environment}
        try:
            self._process = subprocess.Popen(
                start.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=variables,
                start_new_session=True,
            )
        except OSError as e:
            self._said.close()
            raise (LostError if start.device else UsageError)(f"{start.of}: cannot be started ({e})") from e
        self._answers: queue.Queue[str] = queue.Queue()
        self._requests: queue.Queue[str] = queue.Queue()
        for work in (self._listen, self._speak):
            threading.Thread(target=work, daemon=True).start()
        if start.first:
            self._requests.put(start.first)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except (OSError, ValueError):  # closed
            pass
        finally:
            self._answers.put("")

    def _speak(self) -> None:
        """Write requests, which a stalled connection may not take, until an empty one."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # a dead worker: reported with the answer
            while text := self._requests.get():
                self._process.stdin.write(text)
                self._process.stdin.flush()
            self._process.stdin.close()

    def ask(self, do: str, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            WorkerError: the worker returned an error, died, or took longer than `timeout_s` (then it is killed).
        """
        self._requests.put(json.dumps({"do": do, **arguments}) + "\n")
        try:
            answer = self._answer(do, timeout_s or self.timeout_s)
            if "error" in answer:
                told = str(answer["error"])
                raise WorkerError(_plain(told) + self._start.hint(told))
            return checked(do, answer["ok"])
        except WorkerError as e:
            raise type(e)(f"{self._start.of}: {e}") if self._start.device else e from e.__cause__

    def greet(self) -> dict[str, Any]:
        """The answer to the request `hello`.

        Raises:
            WorkerError: the interpreter is not a Python with onnxruntime; the message names `--python`.
        """
        try:
            hello = self.ask("hello")
        except WorkerError as e:
            raise type(e)(f"{self._start.of}: {e}") if self._start.of and not self._start.device else e from e
        if hello["protocol"] != keeper.PROTOCOL:
            told = f"speaks protocol {hello['protocol']}, this edgeopt {keeper.PROTOCOL}"
            raise WorkerError(f"{self._start.of or 'the worker'}: {told}")
        if isinstance(pid := hello.get("pid"), int):
            self._pid = pid
            self.place.greeted(pid)
        return hello

    def _answer(self, do: str, limit_s: float) -> dict[str, Any]:
        """The next line that is an answer; other output, from a library or a wrapper script, is ignored."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                told = f"no answer to {do!r} within {limit_s:.0f} s; the worker was killed"
                lost = self._start.lost()
                self._end_it(_GENTLY_S if self._start.device else 0.0)
                raise (LostError if lost else WorkerError)(told) from None
            if not line:
                self._answers.put("")  # later requests fail as well
                told = self._death(do)
                raise LostError(told) if self._start.lost() else WorkerError(told)
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.keys() & {"ok", "error"}:
                    return answer

    def _kill(self) -> None:
        """Kill the process and its children, since `--python` may be a script that starts an interpreter."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _death(self, do: str) -> str:
        """A description of how the worker ended during the request `do`."""
        code = self._process.wait()
        words = self.said()
        if code >= 0:
            told = f"the worker ended with exit code {code} at {do!r}" + (f": {words}" if words else "")
            return told + self._start.hint(words)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name} at {do!r}{hint}" + (f": {words}" if words else "")

    def said(self) -> str:
        """The last lines that the worker printed."""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _LAST_WORDS))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return " | ".join(lines[-3:])

    def end(self, limit_s: float) -> None:
        """Let the process end by itself, within `limit_s`, since nobody asks any more."""
        self._end_it(limit_s)
        self.stop()

    def _end_it(self, limit_s: float) -> None:
        """Close its input, and kill it if it does not end within `limit_s`."""
        self._requests.put("")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
        self._kill()

    def stop(self) -> None:
        """End the process immediately."""
        if self._pid is not None:
            self.place.stopped(self._pid)
        self._requests.put("")
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        self._said.close()


def _plain(message: str) -> str:
    """An error message of ONNX Runtime without error codes and C++ signatures."""
    return _CODE.split(_SIGNATURE.sub("", message))[-1].strip() or message


@contextlib.contextmanager
def worker(place: Place = Here(), timeout_s: float = TIMEOUT_S) -> Iterator[Worker]:
    """A worker that is stopped at the end of the block.

    Raises:
        UsageError: it cannot be started there. WorkerError: its device cannot be reached.
    """
    started = Worker(place, place.start(), timeout_s)
    try:
        yield started
    finally:
        started.stop()
