"""Whether a worker keeps to the protocol: put to any, on a model of two nodes whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_X = np.array([[-2.0, -0.5, 0.0, 3.0]], np.float32)
FEEDS = ({"x": _X}, {"x": 3 * _X})
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Found:
    """What came of one rule."""

    rule: str
    problem: str
    """Empty if it is kept."""


def conforms(w: Worker, folder: Path, wire: Wire = NPZ, **how: Any) -> list[Found]:
    """The rules in order, each with what is wrong; wire: how arrays are handed over; how: further arguments of `open`,
    which differ by runtime.

    Raises:
        LostError: the device was lost meanwhile.
    """
    model, feeds = folder / "two.onnx", folder / f"feeds{wire.suffix}"
    onnx.save(onnx.parser.parse_model(_TEXT), model)
    wire.save(feeds, {f"{i}/{name}": x for i, feed in enumerate(FEEDS) for name, x in feed.items()})

    def opened() -> str:
        told = w.ask("open", model=w.place.given(model), **how).get("outputs")
        return "" if told is None or list(told) == ["y", "z"] else f"its outputs are {told}, not y and z"

    def fed() -> str:
        count = w.ask("feed", path=w.place.given(feeds))["feeds"]
        return "" if count == len(FEEDS) else f"{count} feeds of {len(FEEDS)}"

    def timed() -> str:
        times = w.ask("block", runs=3)["times"]
        return "" if len(times) >= 3 and min(times) >= 0 else f"times {times} of 3 inferences"

    def right() -> str:
        file = folder / f"outputs{wire.suffix}"
        w.ask("outputs", path=w.place.named(file))
        w.place.taken(w.place.named(file), file)
        try:
            return _wrong(wire.read(file))
        except (OSError, ValueError, DataError) as e:
            return f"no file of outputs ({e})"

    def refuses() -> str:
        try:
            w.ask("open", model=f"{w.place.given(model)}.none", **how)
        except LostError:
            raise
        except WorkerError:
            return ""
        return "it opens a file that is not there"

    def unknown() -> str:
        try:
            w.ask("nothing of the kind")
        except LostError:
            raise
        except WorkerError:
            return ""
        return "it answers what nobody can ask"

    def still() -> str:
        w.ask("hello")
        return ""

    rules: Sequence[tuple[str, Callable[[], str]]] = (
        ("hello tells the version of the protocol", still),
        ("open creates the session of a model", opened),
        ("feed reads the feeds", fed),
        ("block times every inference", timed),
        ("outputs are right, for every feed", right),
        ("a file that is not there is an error", refuses),
        ("an unknown request is an error", unknown),
        ("an error ends nothing", still),
    )
    return [Found(rule, _tried(check)) for rule, check in rules]


def _tried(check: Callable[[], str]) -> str:
    try:
        return check()
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
