"""The worker process for a page that `edgeopt device serve` has: it hands requests from stdin to the server on this
machine, and answers to stdout. It needs the standard library only.

Arguments: the file in which the server says where it is, and the name of the device.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from pathlib import Path

_CONNECT_S = 90.0


def serve() -> None:
    """Answer requests until stdin or the page ends."""
    file, device = sys.argv[1:3]
    try:
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        line = socket.create_connection(("127.0.0.1", told["port"]), timeout=_CONNECT_S)
    except (OSError, ValueError, LookupError):
        sys.exit("no device is served here; run: edgeopt device serve")
    with line, line.makefile("rw", encoding="utf-8") as talk:
        talk.write(json.dumps({"token": told["token"], "device": device, "want": "worker"}) + "\n")
        talk.flush()
        greeting = json.loads(talk.readline() or '{"error": "the server ended"}')
        if "error" in greeting:
            sys.exit(greeting["error"])
        line.settimeout(None)
        threading.Thread(target=_hand_over, args=(line,), daemon=True).start()
        shutil.copyfileobj(talk, sys.stdout, 1)
    sys.exit("the page is gone or was reloaded")


def _hand_over(line: socket.socket) -> None:
    for request in sys.stdin:
        line.sendall(request.encode())
    line.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    serve()
