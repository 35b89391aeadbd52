"""What looking at samples takes is known before it begins."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgeopt import graph
from edgeopt.listener import Listener
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.looking import comparable, observe, room_of
from edgeopt.quantization.prepare import prepare
from edgeopt.quantization.steps import probed
from edgeopt.runtime.probe import Probe
from tests import tiny

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"


@pytest.mark.parametrize(("max_ram", "passes"), [(1 << 30, "one"), (800_000, r"\d+")])
def test_calibration_is_divided_into_passes_that_fit_into_the_memory(max_ram: int, passes: str) -> None:
    """Before a placement was chosen, too: values of several are looked at together."""
    notes: list[str] = []
    options = Quantize(max_ram=max_ram, measure=False, costs="table", listener=Listener(note=notes.append))
    task = prepare(graph.load(DIGITS / "digits.onnx"), DIGITS / "calib", options)
    found = observe(task.start, frozenset(probed(task.start)) - {"image"})
    (line,) = [n for n in notes if n.startswith("calibration:")]
    assert re.search(rf"{len(found)} tensors, \d+ samples, {passes} pass", line) and not task.start.probes


@pytest.mark.parametrize(
    ("megabytes", "max_ram", "samples"), [(1, None, 200), (20, None, 10), (500, None, 4), (1, 80_000_000, 10)]
)
def test_fewer_samples_are_compared_whose_outputs_are_large(megabytes: int, max_ram: int | None, samples: int) -> None:
    outputs = [np.broadcast_to(np.int8(0), (megabytes, 500_000)) for _ in range(2)]
    assert comparable({}, outputs, max_ram) == comparable({"x": outputs[0]}, outputs[1:], max_ram) == samples
    assert comparable({}, [np.zeros(0)], max_ram) > 1000


def test_what_is_held_back_are_the_weights_and_what_runs_take() -> None:
    model = tiny.model("g (float[1,25] x) => (float[1,25] y) { a = Mul(x, w)  y = Relu(a) }", w=np.ones(25, np.float32))
    probes = {name: Probe((1, 25), 0.0, 1.0) for name in "xay"}
    rooms = [room_of(model, probes, cap) for cap in (10_000, 20_000)]
    assert rooms[1] - rooms[0] == 10_000 and 0 < rooms[0] < 10_000 - 2 * 100
    assert room_of(model, probes, 160) == 10
