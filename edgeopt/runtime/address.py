"""Addresses of devices, such as `ssh://user@board:22?python=/path` and `exec:docker exec -i box`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from urllib.parse import unquote

from edgeopt.errors import UsageError, suggestion
from edgeopt.runtime import serving

LOCAL = "local"
WEB = ("node:", "chromium:")
_PYTHON = "python3"
_SSH = (
    "ssh", "-T", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip
_URL = re.compile(r"ssh://(?:([^@:/]*)(?::([^@/]*))?@)?(?:\[([^\]/]+)\]|([^@:/\[\]]+))(?::(\d+))?/?")
_PLACES = re.compile(r"\{(?:local|remote)\}")
_MOST_PORT = 65535
_IS_PYTHON = re.compile(r"(.*/)?python[\d.]*")
_NAME = re.compile(r"[\w.%:-]+", re.ASCII)


@dataclass(frozen=True)
class Device:
    """An address that was understood."""

    name: str
    """As the user calls it."""
    reach: tuple[str, ...]
    """The command that runs a command there."""
    python: str = _PYTHON
    ssh: bool = False
    push: str = ""
    """A command with {local} and {remote} that copies a file there; empty: through standard input."""
    pull: str = ""


def parse(text: str, name: str = "", python: str | None = None, push: str = "", pull: str = "") -> Device | None:
    """The device at the address `text`; None for this machine.

    Raises:
        UsageError: no address of a device.
    """
    if text == LOCAL:
        return None
    for template in filter(None, (push, pull)):
        if not {"{local}", "{remote}"} <= {part for word in _words(template, name) for part in _PLACES.findall(word)}:
            raise UsageError(f"device {name}: {template!r}: a command with {{local}} and {{remote}}")
    if text.startswith("exec:"):
        words, own = _words(text.removeprefix("exec:"), text), _PYTHON
        if _IS_PYTHON.fullmatch(words[-1]):
            *words, own = words
        return Device(name or text, tuple(words), python or own, push=push, pull=pull)
    if text.startswith("ssh:"):
        return replace(_over_ssh(text, name or text.partition("?")[0], python), push=push, pull=pull)
    kinds = (LOCAL, "ssh://user@board", "exec:COMMAND", serving.NAME, *WEB)
    raise UsageError(f"device {text!r}: no address{suggestion(text, kinds)} Known: {', '.join(kinds)}")


def _words(command: str, text: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"device {text}: {e}") from e
    if not words:
        raise UsageError(f"device {text}: no command; e.g. exec:docker exec -i board")
    return words


def _over_ssh(text: str, name: str, python: str | None) -> Device:
    """With the host as it is written, since ssh's own names of hosts have capitals."""
    url, _, query = text.partition("?")
    found = _URL.fullmatch(url)
    user, password, bracketed, plain, port = found.groups() if found else (None, None, None, None, None)
    host = bracketed or plain or ""
    if password is not None:
        raise UsageError(f"device ssh://{user}:...@{host}: no passwords; use a key or an agent")
    for word in (host, *([unquote(user)] if user else [])):
        if found is None or not _NAME.fullmatch(word) or word.startswith("-"):
            raise UsageError(f"device {text}: {word!r} is no name of a host or user; e.g. ssh://pi@192.168.0.7")
    key, _, own = query.partition("=")
    if query and (key != "python" or not own):
        raise UsageError(f"device {text}: ssh://user@board[:port][?python=/path/to/python3]")
    if port is not None and int(port) > _MOST_PORT:
        raise UsageError(f"device {text}: no port {port}")
    reach = [*_SSH, *(["-l", unquote(user)] if user else []), *(["-p", port] if port else []), "--", host]
    return Device(name, tuple(reach), python or unquote(own) or _PYTHON, ssh=True)
