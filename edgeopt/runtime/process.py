"""The client side of a worker process: start it with any interpreter, send requests with a time limit, and report how
it ended.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError, WorkerError

WORKER = Path(__file__).parent / "worker"
_LAST_WORDS = 2000
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SIGNATURE = re.compile(r"/\S+\.(?:cc|cpp|h):\d+ [^()]*\([^()]*\)(?: const)?(?: \[with [^\]]*\])? ?")
TIMEOUT_S = 300.0


class Worker:
    """A worker process in which models are measured; see `edgeopt/runtime/worker`."""

    def __init__(
        self,
        python: str | None = None,
        timeout_s: float = TIMEOUT_S,
        script: Path = WORKER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._python = python
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `stop`)
        command = [python or sys.executable, str(script)]
        variables = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1", **(environment or {})}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                env=variables,
                start_new_session=True,
            )
        except OSError as e:
            self._said.close()
            raise UsageError(f"--python {python}: cannot be started ({e})") from e
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            WorkerError: the worker returned an error, died, or took longer than `timeout_s` (then it is killed).
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead worker: reported below
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._answer(do, timeout_s or self.timeout_s)
        if "error" in answer:
            raise WorkerError(_plain(answer["error"]))
        found: dict[str, Any] = answer["ok"]
        return found

    def greet(self) -> dict[str, Any]:
        """The answer to the request `hello`.

        Raises:
            WorkerError: the interpreter is not a Python with onnxruntime; the message names `--python`.
        """
        try:
            return self.ask("hello")
        except WorkerError as e:
            raise e if self._python is None else WorkerError(f"--python {self._python}: {e}") from e

    def _answer(self, do: str, limit_s: float) -> dict[str, Any]:
        """The next line that is an answer; other output, from a library or a wrapper script, is ignored."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._kill()
                raise WorkerError(f"no answer to {do!r} within {limit_s:.0f} s; the worker was killed") from None
            if not line:
                self._answers.put("")  # later requests fail as well
                raise WorkerError(self._death(do))
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
            return f"the worker ended with exit code {code} at {do!r}" + (f": {words}" if words else "")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name} at {do!r}{hint}" + (f": {words}" if words else "")

    def said(self) -> str:
        """The last lines that the worker printed."""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _LAST_WORDS))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return " | ".join(lines[-3:])

    def stop(self) -> None:
        """End the process immediately."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._said.close()


def _plain(message: str) -> str:
    """An error message of ONNX Runtime without error codes and C++ signatures."""
    return _CODE.split(_SIGNATURE.sub("", message))[-1].strip() or message


@contextlib.contextmanager
def worker(
    python: str | None = None,
    timeout_s: float = TIMEOUT_S,
    script: Path = WORKER,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Worker]:
    """A worker that is stopped at the end of the block."""
    if python is not None and shutil.which(python) is None:
        raise UsageError(f"--python {python}: no such program")
    started = Worker(python, timeout_s, script, environment)
    try:
        yield started
    finally:
        started.stop()
