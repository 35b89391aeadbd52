"""Gates on what a variant's target makes of its file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import edgeopt
from edgeopt.hardware import target
from edgeopt.release.document import Run
from edgeopt.runtime.environments import home_of

DIGITS = Path(__file__).parents[3] / "calibration_data" / "digits"
CACHE = os.environ.get("XDG_CACHE_HOME")  # of the user
THERE = home_of(target.load("wasm")) is not None
TOML = """\
model = "digits.onnx"
[data]
path = "calib"
[profile]
measure = false
[variants.first]
steps = [{{ step = "quantize", target = "{target}", include = ["*"] }}]
[variants.again]
from = "first"
steps = [{{ step = "simplify" }}]
[gates.again]
{gates}
"""


def run(folder: Path, name: str, gates: str) -> Run:
    for file in ("digits.onnx", "calib"):
        (folder / file).symlink_to(DIGITS / file)
    (folder / "edgeopt.toml").write_text(TOML.format(target=name, gates=gates))
    return edgeopt.run(folder / "edgeopt.toml")


def test_what_is_wrong_for_the_target_is_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "strict.toml").write_text('like = "xnnpack"\n[grid]\nweights = ["int4"]\n')
    found = run(tmp_path, "strict.toml", "target.problems = { max = 0 }")
    (gate,) = found.gates
    assert found.verdict == "fail" and gate.value == 1 and "weights in int8" in gate.message


def test_what_its_runtime_tells_is_not_measured_without_it(tmp_path: Path) -> None:
    found = run(tmp_path, "xnnpack", "target.sqnr = { min = 10 }\ntarget.problems = { max = 0 }")
    told = {g.metric: (g.outcome, g.message) for g in found.gates}
    assert told["target.problems"][0] == "pass" and found.verdict == "fail"
    outcome, message = told["target.sqnr"]
    assert outcome == "not measured" and "by rules only: nothing here runs it" in message


def test_a_variant_for_no_target_in_particular_is_told(tmp_path: Path) -> None:
    found = run(tmp_path, "host", "target.problems = { max = 0 }\n")
    assert [g.outcome for g in found.gates] == ["pass"]  # the CPU provider runs here
    (tmp_path / "edgeopt.toml").write_text((tmp_path / "edgeopt.toml").read_text().replace('target = "host", ', ""))
    (gate,) = edgeopt.run(tmp_path / "edgeopt.toml").gates
    assert gate.outcome == "pass"  # quantize is for this machine if nothing else is said


@pytest.mark.skipif(not THERE, reason="needs edgeopt env wasm")
def test_a_gate_looks_at_what_the_targets_runtime_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if CACHE is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    found = run(tmp_path, "wasm", "target.sqnr = { min = 190 }")
    variant = found.variant("again")
    assert variant is not None and variant.metrics["target.sqnr"] > 20
    assert any("onnxruntime-web" in line for line in variant.on_target)
    assert [g.outcome for g in found.gates] == ["fail"] and "onnxruntime-web" in found.gates[0].message
    first = found.variant("first")
    assert first is not None and "target.sqnr" not in first.metrics  # no gate asks


def test_a_variant_that_takes_pixels_is_judged_on_the_same_pictures(tmp_path: Path) -> None:
    found = run(tmp_path, 'host", input_image = "uint8", io = "quantized', "accuracy.agreement = { min = 0.5 }")
    for name in ("first", "again"):
        variant = found.variant(name)
        assert variant is not None and variant.error is None and variant.metrics["quant.sqnr"] > 25
    assert [g.outcome for g in found.gates] == ["pass"]


def test_a_variant_that_failed_says_why_and_not_that_it_has_no_target(tmp_path: Path) -> None:
    found = run(tmp_path, 'webgpu", mode = "static', "target.problems = { max = 0 }")
    assert "computes no QuantizeLinear" in (found.variant("first") or found.variants[0]).error  # type: ignore[operator]
    assert "first failed" in found.gates[0].message
