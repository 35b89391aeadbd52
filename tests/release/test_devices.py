"""Devices of a project: gates, columns and charts of each, baselines by device, and one that is not there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.profiling.arms import PRESETS
from edgeopt.release import document as documents
from edgeopt.release.project.file import load
from edgeopt.release.verdict import baseline
from edgeopt.release.verdict.judging import judged_again
from tests.release.projects import project

TOML = f"""\
model = "model.onnx"
[data]
path = "x.npy"
[variants.lean]
steps = [{{ step = "simplify" }}]
[devices.board]
at = {json.dumps("exec:" + shlex.quote(sys.executable))}
threads = 2
[devices.gone]
at = "exec:false"
[gates.lean]
size.file = {{ max = "1 MB" }}
[gates.lean.board]
latency.p50 = {{ max = "1 s" }}
memory.peak_rss = {{ max = "1 GB" }}
[policy]
not_measured = "warn"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    short = replace(PRESETS["quick"], seconds=0.2, warm_up_s=0.1)
    monkeypatch.setitem(PRESETS, "quick", short)  # type: ignore[arg-type]
    return project(tmp_path / "p", TOML)


def test_a_run_measures_on_every_device_and_judges_by_each(file: Path) -> None:
    found = edgeopt.run(file)
    lean = found.variant("lean")
    assert found.exit_code == 0 and lean is not None and lean.error is None
    assert {"latency.p50", "board.latency.p50", "board.speedup", "board.memory.peak_rss"} <= lean.metrics.keys()
    assert {(g.metric, g.outcome) for g in found.gates} == {
        ("gone.latency.p50", "not measured"),  # without a gate it is told all the same
        ("size.file", "pass"),
        ("board.latency.p50", "pass"),
        ("board.memory.peak_rss", "pass"),
    }
    assert found.devices["board"].measured[0].setting.threads == 2
    assert "exit code 1" in lean.on_devices["gone"] and not any(name.startswith("gone.") for name in lean.metrics)
    out = file.parent / "build" / "edgeopt"
    assert "latency, median on board" in (out / "report.html").read_text(encoding="utf-8")
    assert 'variant="lean",device="board"}' in (out / "metrics.txt").read_text(encoding="utf-8")
    assert judged_again(load(file), file, documents.load(out)).gates == found.gates


def test_a_device_that_cannot_be_reached_is_not_measured_by_the_policy(file: Path) -> None:
    text = file.read_text().replace(
        "[gates.lean.board]", '[gates.lean.gone]\nlatency.p50 = { max = "1 s" }\n[gates.lean.board]'
    )
    file.write_text(text)
    found = edgeopt.run(file)
    (gate,) = [g for g in found.gates if g.metric == "gone.latency.p50"]
    assert (gate.outcome, gate.severity, found.exit_code) == (
        "not measured",
        "warn",
        0,
    ) and "exit code 1" in gate.message
    file.write_text(text.replace('not_measured = "warn"', 'not_measured = "fail"'))
    assert edgeopt.run(file).exit_code == 1


def test_a_baseline_is_one_of_each_device(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edgeopt.run(file)
    baseline.save(load(file), file.parent, "v1")
    file.write_text(
        file.read_text().replace('latency.p50 = { max = "1 s" }', 'latency.p50 = { max_regression = "900 %" }')
    )
    found = edgeopt.run(file)
    (gate,) = [g for g in found.gates if g.metric == "board.latency.p50"]
    assert gate.outcome == "pass" and "(stored)" in gate.message
    file.write_text(file.read_text().replace("threads = 2", "threads = 1"))
    (gate,) = [g for g in edgeopt.run(file).gates if g.metric == "board.latency.p50"]
    assert gate.outcome == "not comparable" and "threads 2 and 1" in gate.message
    baseline.save(load(file), file.parent, "v2", models=True)
    baseline.promote(load(file), file.parent, "v2")
    (gate,) = [g for g in edgeopt.run(file).gates if g.metric == "board.latency.p50"]
    assert gate.outcome == "pass" and "side by side" in gate.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[gates.lean.board]", "[gates.lean.bored]", r"edgeopt\.toml:1[34]: .*no device 'bored'; did you mean 'board'"),
        ("memory.peak_rss", "quant.sqnr", r"no metric of a device"),
        ('"1 GB"', '"1 ms"', r"edgeopt\.toml:15"),
        ('at = "exec:false"', 'at = "ssh://a:b@c"', r"edgeopt\.toml:10: devices\.gone\.at: .*no passwords"),
        ('at = "exec:false"', 'on = "exec:false"', r"edgeopt\.toml:(9|10): .*(at|on)"),
        ("threads = 2", "threads = 0", r"edgeopt\.toml:8"),
        ("threads = 2", 'provider = "cuba"', r"edgeopt\.toml:8: devices\.board\.provider: cuba: unknown; did you mean"),
        ("[devices.gone]", "[devices.latency]", r"cannot be a device's name"),
        ("[devices.gone]", '[devices."a.b"]', r"cannot be a device's name"),
        ("[devices.gone]", "[devices.local]", r"cannot be a device's name"),
        ("[devices.gone]", "[devices.browser]", r"cannot be a device's name"),
    ],
)
def test_what_is_wrong_with_a_device_is_told_with_its_line(old: str, new: str, says: str, file: Path) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UsageError) as caught:
        edgeopt.run(file)
    assert re.search(says, str(caught.value)), caught.value


def test_a_device_whose_program_is_missing_is_not_measured_and_a_page_is_a_device(file: Path) -> None:
    text = file.read_text().replace('at = "exec:false"', 'at = "exec:/nowhere/adb shell"')
    file.write_text(text + '[devices.phone]\nat = "browser"\n')
    found = edgeopt.run(file)
    lean = found.variant("lean")
    assert lean is not None and "/nowhere/adb" in lean.on_devices["gone"] and "phone" in lean.on_devices
    assert found.exit_code == 0 and {g.metric for g in found.gates if g.outcome == "not measured"} == {
        "gone.latency.p50",
        "phone.latency.p50",
    }


def test_without_measuring_gates_of_devices_only_warn(file: Path) -> None:
    file.write_text(file.read_text().replace('not_measured = "warn"', 'not_measured = "fail"'))
    assert edgeopt.run(file, measure=False).exit_code == 0


def test_a_device_that_is_a_command_is_code(file: Path) -> None:
    with pytest.raises(UsageError, match=r"devices\.board\.at: .*is code, and --no-code runs none"):
        edgeopt.run(file, code=False)
