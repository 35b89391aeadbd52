"""What looking at samples takes is known before it begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeopt import graph
from edgeopt.listener import Listener
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.looking import observe
from edgeopt.quantization.prepare import prepare
from edgeopt.quantization.steps import probed

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
