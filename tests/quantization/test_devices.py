"""Quantized, checked and looked into by times and answers of a device."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.errors import LostError, UsageError
from edgeopt.hardware import target as targets
from edgeopt.options.devices import DeviceTable
from edgeopt.quantization.devices import device
from edgeopt.runtime import board as boards
from edgeopt.runtime.environments import home_of
from tests import tiny

HERE = f"exec:{shlex.quote(sys.executable)}"
DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
CACHE = os.environ.get("XDG_CACHE_HOME")  # of the user
WEB = home_of(targets.load("wasm")) is not None
CUT = """#!/bin/sh
# a board that is lost at its {count}th connection, and back {after} connections later
n=$(($(cat "{folder}/n" 2> /dev/null || echo 0) + 1)); echo $n > "{folder}/n"
[ $n -eq 1 ] && echo $$ > "{folder}/keeper"
[ $n -lt {count} ] || [ $n -ge $(({count} + {after})) ] && exec "{python}" "$@"
[ -e "{folder}/keeper" ] && kill -KILL $(cat "{folder}/keeper"); rm -f "{folder}/keeper"
exit 1
"""


def board(folder: Path, count: int, after: int) -> str:
    python = folder / "python3"
    python.write_text(CUT.format(folder=folder, count=count, after=after, python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    return f"exec:{python}"


def test_a_model_is_placed_timed_and_answers_on_the_device(tmp_path: Path) -> None:
    notes: list[str] = []
    found = edgeopt.quantize(
        DIGITS / "digits.onnx",
        DIGITS / "calib",
        output=tmp_path / "q.onnx",
        device=HERE,
        listener=edgeopt.Listener(note=notes.append),
    )
    assert (
        found.report.target == targets.host() and found.report.latency is not None and found.report.latency.speedup > 0
    )
    assert any(f"answers on {HERE} as here: exact" in line for line in notes) and not found.report.missed
    assert any("nodes timed" in line for line in notes)


def test_a_device_is_the_target_that_the_project_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = f'[devices.pi]\nat = {json.dumps(HERE)}\ntarget = "cpu-portable"\n'
    (tmp_path / "edgeopt.toml").write_text(table, encoding="utf-8")
    with device("pi", "host") as (meter, chosen):
        assert meter is not None and chosen == "cpu-portable"
    with device("pi", "cpu-arm64") as (_, chosen):
        assert chosen == "cpu-arm64"  # what the user asks for
    with device("local", "host") as (meter, chosen):
        assert meter is None and chosen == "host"
    with pytest.raises(UsageError, match="no such name"), device("pie", "host"):
        pass
    assert DeviceTable(at="local").target is None


def test_a_file_is_checked_on_a_device(tmp_path: Path) -> None:
    w = np.eye(4, dtype=np.float32)
    onnx.save(tiny.proto("g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }", w=w), tmp_path / "m.onnx")
    found = edgeopt.check(tmp_path / "m.onnx", device=HERE)
    assert found.ok and found.ran is not None and found.ran.runtime.endswith(f"on {HERE}")
    assert found.ran.nodes == {"CPUExecutionProvider": 1}


def test_sensitivity_times_on_the_device(tmp_path: Path) -> None:
    found = edgeopt.sensitivity(DIGITS / "digits.onnx", DIGITS / "calib", device=HERE, samples=2, budget_s=20.0)
    assert found.nodes and found.complete


@pytest.mark.skipif(not WEB, reason="needs edgeopt env wasm")
def test_a_browsers_runtime_is_a_device_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME") if CACHE is None else monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", device="node:", book=tmp_path / "book.json")
    assert found.report.target == "wasm" and found.report.latency is not None and not found.report.missed


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_a_device_that_is_lost_is_told_and_nothing_is_written(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "_BACK_S", 3.0)
    there = board(tmp_path, count, 1000)
    with pytest.raises(LostError, match=r"exit code|SIGKILL"):
        edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "q.onnx", device=there)
    assert not (tmp_path / "q.onnx").exists()


def test_a_device_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_PAUSE_S", 0.1)
    there = board(tmp_path, 5, 3)
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "q.onnx", device=there)
    assert found.report.latency is not None and (tmp_path / "q.onnx").exists()
