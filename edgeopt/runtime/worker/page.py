"""Pages that are workers: an HTTP server behind random tokens, which gives each page its requests and takes its
answers. It needs the standard library only.

A page gets onnxruntime-web's files, the worker `web.mjs`, and the files that a request names, and nothing else; it
writes only the file that a request for outputs names. It shows itself by a number that it keeps over a reload: the
first page of a token is the device, and another is turned away until that one is gone. A connection that it keeps open
tells when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

_POLL_S = 20.0
_MOST_ANSWER, _MOST_FILE = 64_000_000, 4_000_000_000  # bytes
_ALIVE_S, _HANDSHAKE_S, _GONE_MS = 1.0, 10.0, 15_000
_ASSET = re.compile(r"[\w.-]+\.(mjs|wasm)")
_PAGE = re.compile(r"[0-9a-f]{32}")


class Gone(Exception):
    """The page is not there, or was reloaded meanwhile."""


class Bridge:
    """One page, in which several workers may be: what waits for it, and what came from it."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self.about: Mapping[str, Any] = {}
        """What the page tells of its browser; empty until one has started."""
        self.requests: queue.Queue[str] = queue.Queue()
        self.readable: frozenset[str] = frozenset()
        self.writable = ""
        self.started = threading.Event()
        self._answers: dict[int, tuple[int, queue.Queue[str | None]]] = {}
        """By the number of a request: the worker that was asked, and who waits."""
        self._page, self._load, self._lives, self._count = "", "", 0, 0
        self._lock, self._turn = threading.Lock(), threading.Lock()

    @property
    def living(self) -> bool:
        """Whether a page is there."""
        return self._lives > 0

    def number(self) -> int:
        """A number that no worker has had, nor a request."""
        with self._lock:
            self._count += 1
            return self._count

    def ask(self, line: str, worker: int = 0) -> str:
        """Hand one request to a worker in the page, when it is its turn, and wait for the answer.

        Raises:
            Gone: there is no page, or none any more.
        """
        with self._turn:
            return self._asked(json.loads(line), worker)

    def _asked(self, request: dict[str, Any], worker: int) -> str:
        named = [request.get("model"), request.get("path"), *request.get("external", {}).values()]
        n, answer = self.number(), queue.Queue[str | None]()
        with self._lock:
            if not self.started.is_set():
                raise Gone
            self.readable = frozenset(str(file) for file in named if file)
            self.writable = str(request["path"]) if request["do"] == "outputs" else ""
            self._answers[n] = worker, answer
            self.requests.put(json.dumps({**request, "worker": worker, "n": n}))
        found = answer.get()
        if found is None:
            raise Gone
        return found

    def stop(self, worker: int) -> None:
        """End a worker in the page, whatever it does."""
        with self._lock:
            self._lost(worker)
            self.requests.put(json.dumps({"do": "stop", "worker": worker, "n": 0}))

    def is_of(self, page: str, *, loads: bool = False) -> bool:
        """Whether `page`, a number of the tab and one of this load of it, is the device of this token. It becomes so
        with its first request (`loads`), if there is no other tab; a later load of the same tab takes over, and what is
        left of an earlier one, or a copy of the tab, is turned away.
        """
        tab, _, load = page.partition("-")
        with self._lock:
            if loads and _PAGE.fullmatch(tab) and _PAGE.fullmatch(load) and (not self.living or tab == self._page):
                self._page, self._load = tab, load
            return bool(load) and (tab, load) == (self._page, self._load)

    def start(self, about: Mapping[str, Any]) -> None:
        """A page has started, perhaps again: what it was asked before is lost, and nobody that waits gets more."""
        with self._lock:
            self._lost()
            self.requests = queue.Queue()
            self.about = about
            self.started.set()

    def answered(self, n: int, line: str) -> None:
        """The answer to request `n` has come."""
        with self._lock:
            if (found := self._answers.pop(n, None)) is not None:
                found[1].put(line)

    def live(self, alive: Callable[[], None]) -> None:
        """Count a page while `alive` does not fail."""
        with self._lock:
            self._lives += 1
        try:
            with contextlib.suppress(OSError):
                while True:
                    alive()
                    time.sleep(_ALIVE_S)
        finally:
            with self._lock:
                self._lives -= 1
                if not self._lives:
                    self._lost()
                    self.started.clear()

    def _lost(self, worker: int | None = None) -> None:
        """Nobody gets an answer any more: of one worker, or of all."""
        for n, (asked, waits) in tuple(self._answers.items()):
            if worker in (None, asked):
                waits.put(None)
                del self._answers[n]


class Handler(BaseHTTPRequestHandler):
    """What answers pages."""

    bridges: Mapping[str, Bridge]
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # seconds that a connection may say nothing
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        bridge, name, file = self._asked()
        if bridge is None:
            self._give(404)
        elif name == "":
            self._file(Path(__file__).with_name("page.html"))
        elif name in ("web.mjs", "in_page.mjs"):
            self._file(Path(__file__).with_name(name))
        elif name.startswith("ort/") and _ASSET.fullmatch(name[4:]):
            self._file(modules() / "onnxruntime-web" / "dist" / name[4:])
        elif not bridge.is_of(self.headers.get("X-Page", ""), loads=name == "alive"):
            self._give(409)
        elif name == "next":
            with contextlib.suppress(queue.Empty):
                self._give(200, bridge.requests.get(timeout=_POLL_S).encode(), "application/json")
                return
            self._give(204)
        elif name == "alive":
            self.close_connection = True
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError, AttributeError):  # a phone that is gone says nothing: Linux tells so
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
            bridge.live(self._beat)
        elif name == "file" and file in bridge.readable:
            self._file(Path(file))
        else:
            self._give(404)

    def do_POST(self) -> None:
        bridge, name, file = self._asked()
        said = self.headers.get("Content-Length") or "0"
        length = int(said) if said.isdecimal() else _MOST_FILE + 1
        if bridge is None or not bridge.is_of(self.headers.get("X-Page", "")):
            self._refuse(404 if bridge is None else 409)
        elif name in ("answer", "started") and length <= _MOST_ANSWER:
            text = self.rfile.read(length).decode(errors="replace")
            if name == "answer" and file.isdecimal():
                bridge.answered(int(file), text)
            elif name == "started" and isinstance(about := _object(text), dict):
                bridge.start(about)
            self._give(204)
        elif name == "file" and file and file == bridge.writable and length <= _MOST_FILE:
            with Path(file).open("wb") as out:
                shutil.copyfileobj(_Part(self.rfile, length), out)
            self._give(204)
        else:
            self._refuse(404)

    def _refuse(self, status: int) -> None:
        self.close_connection = True  # the body is not read
        self._give(status)

    def _beat(self) -> None:
        self.wfile.write(b".")
        self.wfile.flush()

    def _asked(self) -> tuple[Bridge | None, str, str]:
        """(the bridge of the token, None with a wrong one; what is asked for; the file or number that it names)."""
        url = urlsplit(self.path)
        token, _, name = url.path.removeprefix("/").partition("/")
        found = None
        for known, bridge in tuple(self.bridges.items()):
            found = bridge if secrets.compare_digest(token.encode(), known.encode()) else found
        query = parse_qs(url.query)
        return found, name, query.get("path", query.get("n", [""]))[0]

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._give(404)
            return
        told = path.stat()
        tag = f'"{told.st_mtime_ns:x}-{told.st_size:x}"'
        if self.headers.get("If-None-Match") == tag:  # sent once: the browser has it
            self._head(304, 0, "text/plain", tag)
            return
        kinds = {".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html; charset=utf-8"}
        self._head(200, told.st_size, kinds.get(path.suffix, "application/octet-stream"), tag)
        with path.open("rb") as f:
            shutil.copyfileobj(f, self.wfile)

    def _give(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self._head(status, len(body), kind)
        self.wfile.write(body)

    def _head(self, status: int, length: int, kind: str, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "private, no-cache" if tag else "no-store")
        if tag:
            self.send_header("ETag", tag)
        for policy in ("Opener", "Embedder"):  # threads need a page that is isolated
            value = "same-origin" if policy == "Opener" else "require-corp"
            self.send_header(f"Cross-Origin-{policy}-Policy", value)
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Part:
    """The next `length` bytes of a stream."""

    def __init__(self, stream: _Stream, length: int) -> None:
        self.stream, self.left = stream, length

    def read(self, size: int = -1) -> bytes:
        found = self.stream.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(found)
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[Handler], context: ssl.SSLContext | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.context = context
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake of HTTPS is in the connection's own thread: one that says nothing stops no other."""
        if self.context is not None:
            request.settimeout(_HANDSHAKE_S)
            with self.context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)
            return
        super().finish_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A page that goes away is none."""


def server(
    bridges: Mapping[str, Bridge], host: str, port: int, context: ssl.SSLContext | None = None
) -> ThreadingHTTPServer:
    """A server for pages, which may become more, by their tokens; it does not run yet. context: of HTTPS."""
    return _Server((host, port), type("Bound", (Handler,), {"bridges": bridges}), context)


def modules() -> Path:
    """The folder of npm packages."""
    return Path(os.environ.get("EDGEOPT_MODULES", "node_modules"))


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
