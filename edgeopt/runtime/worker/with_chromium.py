"""The worker process for onnxruntime-web in headless Chromium: it hands requests from stdin to a page, and the page's
answers to stdout. It needs the standard library only, and the folder of the npm packages in EDGEOPT_MODULES.

The page is served on a loopback port behind a random token, which the browser reads in a file of its own folder, since
command lines are public. It gets the package's files, the worker `web.mjs`, and the files that a request names, and
nothing else; it writes only the file that a request for outputs names. A connection that it keeps open tells when it
dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = Path(os.environ.get("EDGEOPT_MODULES", "node_modules")) / "onnxruntime-web" / "dist"
FLAGS = (
    "--headless=new", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync",
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
)  # fmt: skip
_POLL_S = 20.0
_START_S = 60.0
_MOST_ANSWER, _MOST_FILE = 64_000_000, 4_000_000_000  # bytes
_ALIVE_S = 1.0
_ASSET = re.compile(r"[\w.-]+\.(mjs|wasm)")
PAGE = """<!doctype html><meta charset="utf-8"><title>edgeopt worker</title><script type="module">
import * as ort from "./ort/ort.all.min.mjs";
import { Server } from "./web.mjs";
ort.env.wasm.wasmPaths = new URL("./ort/", location).href;
const named = (file) => `file?path=${encodeURIComponent(file)}`;
const sent = async (to, body) => {
  if (!(await fetch(to, { method: "POST", body })).ok) throw Error(`not taken: ${to}`);
};
const files = {
  async read(file) {
    const found = await fetch(named(file));
    if (!found.ok) throw Error(`not served: ${file}`);
    return new Uint8Array(await found.arrayBuffer());
  },
  write: (file, bytes) => sent(named(file), bytes),
};
const f16 = (await navigator.gpu?.requestAdapter())?.features.has("shader-f16") ?? false;
const about = { browser: navigator.userAgent, isolated: crossOriginIsolated, webgpu: "gpu" in navigator, f16 };
fetch("alive");
const server = new Server(ort, files, about);
await sent("answer", "");
for (;;) {
  const next = await fetch("next");
  if (next.status === 200) await sent("answer", await server.answer(await next.text()));
}
</script>"""


class Bridge:
    """What waits for the page, and what came from it."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self.requests: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[str] = queue.Queue()
        self.readable: frozenset[str] = frozenset()
        self.writable = ""

    def ask(self, line: str) -> str:
        """Hand one request to the page and wait for its answer."""
        request = json.loads(line)
        named = [request.get("model"), request.get("path"), *request.get("external", {}).values()]
        self.readable = frozenset(str(file) for file in named if file)
        self.writable = str(request["path"]) if request["do"] == "outputs" else ""
        self.requests.put(line)
        return self.answers.get()


class Handler(BaseHTTPRequestHandler):
    """What answers the page."""

    bridge: Bridge
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # seconds that a connection may say nothing

    def do_GET(self) -> None:
        name, file = self._asked()
        if name == "":
            self._give(200, PAGE.encode(), "text/html")
        elif name == "next":
            with contextlib.suppress(queue.Empty):
                self._give(200, self.bridge.requests.get(timeout=_POLL_S).encode(), "application/json")
                return
            self._give(204)
        elif name == "alive":
            self._wait_for_its_death()
        elif name == "web.mjs":
            self._file(Path(__file__).with_name(name))
        elif name is not None and name.startswith("ort/") and _ASSET.fullmatch(name[4:]):
            self._file(PACKAGE / name[4:])
        elif name == "file" and file in self.bridge.readable:
            self._file(Path(file))
        else:
            self._give(404)

    def do_POST(self) -> None:
        name, file = self._asked()
        said = self.headers.get("Content-Length") or "0"
        length = int(said) if said.isdecimal() else _MOST_FILE + 1
        if name == "answer" and length <= _MOST_ANSWER:
            self.bridge.answers.put(self.rfile.read(length).decode())
            self._give(204)
        elif name == "file" and file and file == self.bridge.writable and length <= _MOST_FILE:
            with Path(file).open("wb") as out:
                shutil.copyfileobj(_Part(self.rfile, length), out)
            self._give(204)
        else:
            self.close_connection = True
            self._give(404)

    def _wait_for_its_death(self) -> None:
        """Answer without an end; once nobody reads, the page is gone, and so is what it was asked."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b".")
                self.wfile.flush()
                time.sleep(_ALIVE_S)
        self.bridge.answers.put(json.dumps({"error": "the page died (out of memory?)", "type": "WorkerError"}))

    def _asked(self) -> tuple[str | None, str]:
        """(what is asked for, None with a wrong token; the file that it names)."""
        url = urlsplit(self.path)
        token, _, name = url.path.removeprefix("/").partition("/")
        right = secrets.compare_digest(token.encode(), self.bridge.token.encode())
        return (name if right else None), parse_qs(url.query).get("path", [""])[0]

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._give(404)
            return
        kinds = {".mjs": "text/javascript", ".wasm": "application/wasm"}
        self._head(200, path.stat().st_size, kinds.get(path.suffix, "application/octet-stream"))
        with path.open("rb") as f:
            shutil.copyfileobj(f, self.wfile)

    def _give(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self._head(status, len(body), kind)
        self.wfile.write(body)

    def _head(self, status: int, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        for policy in ("Opener", "Embedder"):  # threads need a page that is isolated
            value = "same-origin" if policy == "Opener" else "require-corp"
            self.send_header(f"Cross-Origin-{policy}-Policy", value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Part:
    """The next `length` bytes of a stream."""

    def __init__(self, stream: object, length: int) -> None:
        self.stream, self.left = stream, length

    def read(self, size: int = -1) -> bytes:
        found: bytes = self.stream.read(self.left if size < 0 else min(size, self.left))  # type: ignore[attr-defined]
        self.left -= len(found)
        return found


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser: one of {', '.join(BROWSERS)} is needed")
    bridge = Bridge()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"bridge": bridge}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tempfile.mkdtemp(prefix="chromium-")
    alone = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    url = f"http://127.0.0.1:{server.server_address[1]}/{bridge.token}/"
    start = Path(home) / "start.html"  # in a folder that only this user reads
    start.write_text(f'<meta http-equiv="refresh" content="0; url={url}">', encoding="utf-8")
    chromium = subprocess.Popen([browser, *FLAGS, *alone, f"--user-data-dir={home}", start.as_uri()], stdout=2)
    threading.Thread(target=_until_it_ends, args=(chromium,), daemon=True).start()
    try:
        bridge.answers.get(timeout=_START_S)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_listen, args=(lines, chromium), daemon=True).start()
        while True:
            answers.write(f"{bridge.ask(lines.get())}\n")
            answers.flush()
    except queue.Empty:
        print(f"{browser}: the page did not start within {_START_S:.0f} s", file=sys.stderr)
    finally:
        _end(chromium)


def _listen(lines: queue.Queue[str], chromium: subprocess.Popen[bytes]) -> None:
    """Take requests; when nobody is left who asks, all ends, whatever is going on."""
    for line in sys.stdin:
        lines.put(line)
    _end(chromium)


def _end(chromium: subprocess.Popen[bytes]) -> None:
    """End this process and those of the browser, which are in its group where it leads one."""
    chromium.kill()
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _until_it_ends(chromium: subprocess.Popen[bytes]) -> None:
    code = chromium.wait()
    print(f"the browser ended with {code}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    serve()
