"""Pages as devices: `edgeopt device serve` hands out addresses, and whoever opens one becomes a worker for other
commands on this machine, which find the server by a file in the user's cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.files import cache_folder
from edgeopt.hardware import target as targets
from edgeopt.runtime.environments import home_of
from edgeopt.runtime.worker.page import Bridge, Gone, server

NAME = "browser"
_FILE = "served.json"
_START_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


_NAMES = re.compile(rf"{NAME}(-\d+)?")


def is_name(text: str) -> bool:
    """Whether `text` is a name that a server gives to pages."""
    return _NAMES.fullmatch(text) is not None


def place_of_server() -> Path:
    """The file in which a server says where it is.

    Raises:
        UsageError: there is no folder for it.
    """
    cache = cache_folder()
    if cache is None:
        raise UsageError("no home, so no folder for the server's address; set XDG_CACHE_HOME")
    return cache / _FILE


@dataclass
class Served:
    """Devices by name in the order in which they came, and the address that is free."""

    told: Callable[[str, str], None]
    """Told (address, what came) with the free address whenever it changes."""
    address: Callable[[str], str] = str
    """The address of a token."""
    bridges: dict[str, Bridge] = field(default_factory=dict)
    named: dict[str, Bridge] = field(default_factory=dict)
    free: Bridge | None = None

    def offer(self, came: str = "") -> None:
        """Hand out the address of another device."""
        self.free = Bridge()
        self.bridges[self.free.token] = self.free
        self.told(self.address(self.free.token), came)
        threading.Thread(target=self._taken, args=(self.free,), daemon=True).start()

    def _taken(self, bridge: Bridge) -> None:
        bridge.started.wait()
        name = NAME if NAME not in self.named else f"{NAME}-{len(self.named) + 1}"
        self.named[name] = bridge
        self.offer(f"{name}: {bridge.about.get('browser', 'a browser')}")


class _Control(socketserver.StreamRequestHandler):
    """What commands on this machine ask."""

    served: Served
    token: str

    def handle(self) -> None:
        try:
            asked = json.loads(self.rfile.readline())
            right = secrets.compare_digest(str(asked["token"]).encode(), self.token.encode())
        except (ValueError, LookupError, TypeError):
            return
        if not right:
            return
        device = str(asked.get("device"))
        if asked.get("want") == "about":
            bridge = self.served.named.get(device)
            living = bridge is not None and bridge.started.is_set()
            self._say(dict(bridge.about) if bridge is not None and living else {"error": f"{device} is not there"})
            return
        bridge = self.served.named.get(device)
        if bridge is None or not bridge.started.wait(_START_S):
            known = ", ".join(self.served.named) or "none yet"
            why = f"no device {device!r} has opened its address; there are: {known}"
            self._say({"error": why if bridge is None else f"the page of {device} is not open"})
            return
        self._say({"ok": device})
        self._hand_over(bridge, bridge.number())

    def _hand_over(self, bridge: Bridge, worker: int) -> None:
        """Requests to a worker in the page, and answers back, until one of the two is gone; then the worker ends."""
        lines: list[str] = []
        came, over = threading.Semaphore(0), threading.Event()

        def listen() -> None:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    lines.append(line.decode(errors="replace"))
                    came.release()
            over.set()
            bridge.stop(worker)
            came.release()

        threading.Thread(target=listen, daemon=True).start()
        with contextlib.suppress(Gone, OSError, ValueError, KeyError, TypeError, AttributeError):
            while came.acquire() and lines:
                answer = bridge.ask(lines.pop(0), worker)
                self.wfile.write(f"{answer}\n".encode())
        bridge.stop(worker)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _say(self, found: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write((json.dumps(found) + "\n").encode())


@contextlib.contextmanager
def serving(
    told: Callable[[str, str], None],
    host: str = "127.0.0.1",
    port: int = 0,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[Served]:
    """Serve devices until the end of the block; told: see `Served`; certificate: of HTTPS, and its key.

    Raises:
        UsageError: onnxruntime-web is not installed, another server runs, or the address or certificate cannot be used.
    """
    home = home_of(targets.load("wasm"))
    if home is None:
        raise UsageError("onnxruntime-web is not installed: edgeopt env wasm")
    os.environ["EDGEOPT_MODULES"] = str(home / "node_modules")
    file, found = place_of_server(), Served(told)
    if _runs(file):
        raise UsageError("a server of devices runs already; end it, or use its address")
    try:
        context = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if context is not None and certificate is not None:
            context.load_cert_chain(*certificate)
        pages = server(found.bridges, host, port, context)
    except (OSError, ssl.SSLError) as e:
        raise UsageError(f"--listen {host}:{port}: {e}") from e
    token = secrets.token_urlsafe(16)
    control = socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), type("Bound", (_Control,), {"served": found, "token": token})
    )
    control.daemon_threads = pages.daemon_threads = True
    with pages, control:
        for each in (pages, control):
            threading.Thread(target=each.serve_forever, daemon=True).start()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
            json.dump({"port": control.server_address[1], "token": token}, f)
        scheme = "http" if certificate is None else "https"
        where = f"{scheme}://{_shown(host)}:{pages.server_address[1]}"
        found.address = lambda key: f"{where}/{key}/"
        try:
            found.offer()
            yield found
        finally:
            file.unlink(missing_ok=True)
            for each in (pages, control):
                each.shutdown()


def _shown(host: str) -> str:
    """The address by which others reach this machine, where it listens to all."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, contextlib.suppress(OSError):
        s.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses the interface
        return str(s.getsockname()[0])
    return socket.gethostname()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`."""
    return host in _LOOPBACK


def _runs(file: Path) -> bool:
    try:
        port = json.loads(file.read_text(encoding="utf-8"))["port"]
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return True


def about(device: str) -> Mapping[str, Any] | None:
    """What the page of a device tells of its browser; None if it is not there."""
    try:
        told = json.loads(place_of_server().read_text(encoding="utf-8"))
        with socket.create_connection(("127.0.0.1", told["port"]), timeout=10) as line, line.makefile("rw") as talk:
            talk.write(json.dumps({"token": told["token"], "device": device, "want": "about"}) + "\n")
            talk.flush()
            found = json.loads(talk.readline())
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return None if not isinstance(found, dict) or "error" in found else found


def wait_for(device: str, limit_s: float) -> bool:
    """Wait until the page of a device is there; returns whether it is."""
    end = time.monotonic() + limit_s
    while about(device) is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
