"""Whether a worker keeps to the protocol: put to any, on a model of two nodes whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.errors import DataError, LostError, WorkerError
from edgeopt.runtime.process import Worker
from edgeopt.runtime.tensor_file import NPZ, Wire

_TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y, float[1,4] z)
{ y = Add(x, x)  z = Relu(x) }"""
_MODEL = "two.onnx"
_X = np.array([[-2.0, -0.5, 0.0, 3.0]], np.float32)
FEEDS = ({"x": _X}, {"x": 3 * _X})
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Found:
    """What came of one rule."""

    rule: str
    problem: str
    """Empty if it is kept."""


@dataclass(frozen=True)
class _Put:
    """A worker that is put to the protocol."""

    w: Worker
    folder: Path
    wire: Wire
    how: Mapping[str, Any]

    def given(self, name: str) -> str:
        """A file of the folder as the worker names it."""
        return self.w.place.given(self.folder / name)


def conforms(w: Worker, folder: Path, wire: Wire = NPZ, **how: Any) -> list[Found]:
    """The rules in order, each with what is wrong; wire: how arrays are handed over; how: further arguments of `open`,
    which differ by runtime.

    Raises:
        LostError: the device was lost meanwhile.
    """
    onnx.save(onnx.parser.parse_model(_TEXT), folder / _MODEL)
    wire.save(folder / f"feeds{wire.suffix}", {f"{i}/{name}": x for i, f in enumerate(FEEDS) for name, x in f.items()})
    put = _Put(w, folder, wire, how)
    return [Found(rule, _tried(check, put)) for rule, check in _RULES.items()]


def _opened(put: _Put) -> str:
    told = put.w.ask("open", model=put.given(_MODEL), **put.how).get("outputs")
    return "" if told is None or list(told) == ["y", "z"] else f"its outputs are {told}, not y and z"


def _fed(put: _Put) -> str:
    count = put.w.ask("feed", path=put.given(f"feeds{put.wire.suffix}"))["feeds"]
    return "" if count == len(FEEDS) else f"{count} feeds of {len(FEEDS)}"


def _timed(put: _Put) -> str:
    times = put.w.ask("block", runs=3)["times"]
    return "" if len(times) >= 3 and min(times) >= 0 else f"times {times} of 3 inferences"


def _right(put: _Put) -> str:
    file, place = put.folder / f"outputs{put.wire.suffix}", put.w.place
    put.w.ask("outputs", path=place.named(file))
    place.taken(place.named(file), file)
    try:
        return _wrong(put.wire.read(file))
    except (OSError, ValueError, DataError) as e:
        return f"no file of outputs ({e})"


def _refused(put: _Put, do: str, **arguments: Any) -> str:
    try:
        put.w.ask(do, **arguments)
    except LostError:
        raise
    except WorkerError:
        return ""
    return "it is answered"


def _there(put: _Put) -> str:
    put.w.ask("hello")
    return ""


_RULES: Mapping[str, Callable[[_Put], str]] = {
    "hello tells the version of the protocol": _there,
    "open creates the session of a model": _opened,
    "feed reads the feeds": _fed,
    "block times every inference": _timed,
    "outputs are right, for every feed": _right,
    "a file that is not there is an error": lambda put: _refused(put, "open", model="none.onnx", **put.how),
    "an unknown request is an error": lambda put: _refused(put, "nothing of the kind"),
    "an error ends nothing": _there,
}


def _tried(check: Callable[[_Put], str], put: _Put) -> str:
    try:
        return check(put)
    except LostError:
        raise
    except WorkerError as e:
        return str(e)


def _wrong(outputs: Arrays) -> str:
    for i, feed in enumerate(FEEDS):
        for name, expected in (("y", 2 * feed["x"]), ("z", np.maximum(feed["x"], 0))):
            if f"{i}/{name}" not in outputs:
                return f"no output {name} for feed {i}"
            if not np.array_equal(outputs[f"{i}/{name}"], expected):
                return f"output {name} of feed {i} is {outputs[f'{i}/{name}'].tolist()}, not {expected.tolist()}"
    return ""
