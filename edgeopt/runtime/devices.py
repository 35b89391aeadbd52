"""Devices by the names that a user gives: this machine; a board behind OpenSSH's client, or whatever a command gives
that connects standard input and output (`docker exec -i`, `adb shell`, an emulator); pages and Node.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from edgeopt.errors import LostError, UsageError, suggestion
from edgeopt.files import temporary_folder, text_of, toml_of
from edgeopt.hardware import target as targets
from edgeopt.runtime import serving
from edgeopt.runtime.address import LOCAL, parse
from edgeopt.runtime.board import Board
from edgeopt.runtime.environments import home_of
from edgeopt.runtime.process import WORKER, Here, Place, Start
from edgeopt.runtime.tensor_file import TENSORS, Wire

BACK_S = 60.0
_WEB = {"node:": ("node", WORKER / "with_node.mjs"), "chromium:": (None, WORKER / "with_chromium.py")}


def written(names: Sequence[str]) -> tuple[str, object]:
    """(the project file in the current folder, its table of devices); read only if one of `names` is no address.

    Raises:
        UsageError: a file that cannot be read.
    """
    if all(":" in name or name == LOCAL or serving.is_name(name) for name in names):
        return "", {}
    for name, way in (("edgeopt.toml", ("devices",)), ("pyproject.toml", ("tool", "edgeopt", "devices"))):
        if Path(name).is_file():
            try:
                found: object = toml_of(text_of(Path(name)))
            except (OSError, ValueError) as e:
                raise UsageError(f"{name}: {e}") from e
            for key in way:
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None:
                return name, found
    return "", {}


class Table(Protocol):
    """A device as a project file describes it; see `edgeopt.options.devices`."""

    @property
    def at(self) -> str: ...
    @property
    def python(self) -> str | None: ...
    @property
    def push(self) -> str: ...
    @property
    def pull(self) -> str: ...


@contextlib.contextmanager
def visited(
    names: Sequence[str], known: Mapping[str, Table], python: str | None = None
) -> Iterator[Mapping[str, Place]]:
    """The devices by the names or addresses that a user gives; what was sent there is removed at the end of the block.

    Raises:
        UsageError: no such name, or no address.
    """
    with temporary_folder() as scratch:
        yield from _visited({name: _place(name, known, python, str(scratch)) for name in names})


def _visited(places: Mapping[str, Place]) -> Iterator[Mapping[str, Place]]:
    for name, place in places.items():  # two addresses of one host are told apart
        if isinstance(place, Board) and [p.name for p in places.values()].count(place.name) > 1:
            place.device = replace(place.device, name=name)
    try:
        yield places
    finally:
        for place in places.values():
            if isinstance(place, Board):
                place.close()


def _place(name: str, known: Mapping[str, Table], python: str | None, scratch: str) -> Place:
    table = known.get(name)
    if (page := _page(table.at if table is not None else name, name, scratch)) is not None:
        return page
    if table is None:
        if name != LOCAL and ":" not in name:
            names = (LOCAL, *known)
            raise UsageError(
                f"device {name}: no such name{suggestion(name, names)} Known here: {', '.join(names)}; or an address,"
                " ssh://user@board or exec:COMMAND"
            )
        found = parse(name, python=python)
    else:
        found = parse(table.at, name, python or table.python, table.push, table.pull)
        python = python or table.python
    return Here(python) if found is None else Board(found)


def check(at: str, name: str, python: str | None, push: str, pull: str) -> None:
    """Refuse what a project file says of a device if it cannot be understood.

    Raises:
        UsageError: no address, or no command that copies a file.
    """
    if at not in _WEB and not serving.is_name(at):
        parse(at, name, python, push, pull)


def _page(at: str, name: str, scratch: str) -> Place | None:
    """The device at `at` if onnxruntime-web is its runtime: in Node, in headless Chromium, or in a served page."""
    if serving.is_name(at):
        return Page(name=name, device=at)
    if at not in _WEB:
        return None
    home = home_of(targets.load("wasm"))
    if home is None:
        raise UsageError(f"device {name}: onnxruntime-web is not installed: edgeopt env wasm")
    program, script = _WEB[at]
    environment = {"EDGEOPT_MODULES": str(home / "node_modules"), "TMPDIR": scratch}
    return Here(program, script, environment, name, TENSORS, web=True)


@dataclass(frozen=True)
class Page(Here):
    """A page that `edgeopt device serve` has."""

    device: str = serving.NAME
    """As the server calls it."""
    wire: Wire = TENSORS
    web: bool = True

    def start(self) -> Start:
        """See `Place`."""
        command = [sys.executable, str(WORKER / "through.py"), str(serving.place_of_server()), self.device]
        return Start(command, f"device {self.name}", device=True, lost=lambda: True)

    def back(self) -> bool:
        """See `Place`."""
        return serving.wait_for(self.device, BACK_S)

    def machine(self) -> Mapping[str, Any]:
        """See `Place`."""
        found = serving.about(self.device)
        if found is None:
            raise LostError(f"device {self.name}: its page is not open; edgeopt device serve shows its address")
        known = {"cores": int(found.get("cores", 1)), "load": [], "container": False, "texts": {}}
        return known | {"system": str(found.get("platform", "")), "processor": str(found.get("browser", ""))}

    def state(self) -> Mapping[str, Any]:
        """See `Place`."""
        return {"celsius": None, "mhz": None, "throttled": None}
