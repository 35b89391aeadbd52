"""The worker process for onnxruntime-web in headless Chromium: it hands requests from stdin to a page, and the page's
answers to stdout. It needs the standard library only, and the folder of the npm packages in EDGEOPT_MODULES.

The page is served on a loopback port behind a random token, which the browser reads in a file of its own folder, since
command lines are public; see `page.py`.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

if __name__ == "__main__":  # as a program it stands alone, beside its neighbour
    sys.path.insert(0, str(Path(__file__).parents[3]))
from edgeopt.runtime.worker.page import Bridge, Gone, server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync",
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
)  # fmt: skip
_START_S = 60.0


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser: one of {', '.join(BROWSERS)} is needed")
    bridge = Bridge()
    pages = server({bridge.token: bridge}, "127.0.0.1", 0)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    home = tempfile.mkdtemp(prefix="chromium-")
    alone = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    url = f"http://127.0.0.1:{pages.server_address[1]}/{bridge.token}/"
    start = Path(home) / "start.html"  # in a folder that only this user reads
    start.write_text(f'<meta http-equiv="refresh" content="0; url={url}">', encoding="utf-8")
    chromium = subprocess.Popen([browser, *FLAGS, *alone, f"--user-data-dir={home}", start.as_uri()], stdout=2)
    threading.Thread(target=_until_it_ends, args=(chromium,), daemon=True).start()
    try:
        if not bridge.started.wait(_START_S):
            print(f"{browser}: the page did not start within {_START_S:.0f} s", file=sys.stderr)
            return
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_listen, args=(lines, chromium, home), daemon=True).start()
        while True:
            answers.write(f"{_asked(bridge, lines.get())}\n")
            answers.flush()
    finally:
        _end(chromium, home)


def _asked(bridge: Bridge, line: str) -> str:
    try:
        return bridge.ask(line)
    except Gone:
        return json.dumps({"error": "the page died (out of memory?)", "type": "WorkerError"})


def _listen(lines: queue.Queue[str], chromium: subprocess.Popen[bytes], home: str) -> None:
    """Take requests; when nobody is left who asks, all ends, whatever is going on."""
    for line in sys.stdin:
        lines.put(line)
    _end(chromium, home)


def _end(chromium: subprocess.Popen[bytes], home: str) -> None:
    """End this process and those of the browser, which are in its group where it leads one."""
    chromium.kill()
    shutil.rmtree(home, ignore_errors=True)
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _until_it_ends(chromium: subprocess.Popen[bytes]) -> None:
    code = chromium.wait()
    print(f"the browser ended with {code}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    serve()
