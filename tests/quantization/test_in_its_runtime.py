"""Files in their targets' own runtimes: OpenVINO, Qualcomm's simulator, Node, Chromium, and an emulated ARM. Skipped
where `edgeopt env NAME` was not run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.hardware import target
from edgeopt.numbers.figure import Figure
from edgeopt.quantization import on_target
from edgeopt.runtime.environments import home_of
from tests import tiny

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"


NAMES = ("openvino", "qnn-htp", "qnn-htp:a16", "wasm", "wasm:threads", "wasm:chromium", "webgpu", "cpu-arm64", "rknn")
CACHE = os.environ.get("XDG_CACHE_HOME")  # of the user
THERE = {name: home_of(target.load(name)) is not None for name in NAMES}


@pytest.fixture(autouse=True)
def users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    if CACHE is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", CACHE)


def needs(name: str) -> pytest.MarkDecorator:
    browser = name in ("wasm:chromium", "webgpu") and not any(map(shutil.which, ("chromium", "google-chrome")))
    return pytest.mark.skipif(not THERE[name] or browser, reason=f"needs edgeopt env {name}, and a browser for some")


def made(name: str, folder: Path, by: str = "") -> edgeopt.Checked:
    """The digits model for target `by`, checked for target `name` against float."""
    file = folder / "q.onnx"
    choices = {"include": ["*"], "mode": "static"} if by else {}
    edgeopt.quantize(
        DIGITS / "digits.onnx", DIGITS / "calib", target=by or name, output=file, measure=False, dims={"batch": 1},
        force=True,
        **choices,
    )  # fmt: skip
    model = DIGITS / "digits.onnx"
    return edgeopt.check(file, target=name, data=DIGITS / "calib", float_model=model)


@needs("openvino")
def test_openvino_computes_every_quantized_layer_in_integers_and_answers_as_the_cpu_provider(tmp_path: Path) -> None:
    found = made("openvino", tmp_path)
    assert found.problems == () and found.ran is not None and found.ran.layers is not None
    assert found.ran.runtime.startswith("OpenVINO 2026") and found.ran.layers[0] >= 7
    assert found.outputs[0].sqnr_db > 20 and abs(found.outputs[0].sqnr_db - found.on_cpu[0].sqnr_db) < 1


@needs("qnn-htp")
@pytest.mark.parametrize("name", ["qnn-htp", "qnn-htp:a16"])
def test_the_simulated_npu_takes_the_network_in_one_piece(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    assert found.problems == () and found.ran is not None
    assert found.ran.partitions == 1 and set(found.ran.elsewhere.values()) <= {"QuantizeLinear", "DequantizeLinear"}
    assert found.outputs[0].sqnr_db > (30 if name.endswith("a16") else 20)


@needs("qnn-htp")
def test_what_the_npu_leaves_to_the_cpu_is_told(tmp_path: Path) -> None:
    found = made("qnn-htp", tmp_path, by="cpu-x86-vnni")  # gives floats behind the last product
    assert found.ran is not None and not found.ok
    assert any(problem.startswith("Gemm gives floats, and needs a grid") for problem in found.problems)
    assert any("on the CPU" in problem for problem in found.problems)


@needs("openvino")
def test_a_file_that_the_runtime_refuses_is_wrong_and_the_reason_is_told(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[1,4] x) => (float[1,4] y) { y = own.Nothing(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(edgeopt.EdgeoptError, match="Nothing"):  # the CPU provider does not run it either
        edgeopt.check(tmp_path / "m.onnx", target="openvino")


WEB = [pytest.param(n, marks=needs(n)) for n in ("wasm", "wasm:threads", "wasm:chromium")]


@pytest.mark.parametrize("name", WEB)
def test_the_browser_answers_as_the_cpu_provider(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path, by="cpu-x86-vnni")  # all of it in integers
    assert found.problems == () and found.ran is not None and found.ran.runtime.startswith("onnxruntime-web 1.")
    assert ("headless Chrome" in found.ran.runtime) == (name == "wasm:chromium")
    assert ("2 threads" in found.ran.runtime) == (name == "wasm:threads")
    (there,), (here,) = found.outputs, found.on_cpu
    assert there.sqnr_db > 20 and abs(there.sqnr_db - here.sqnr_db) < 1


@needs("webgpu")
def test_the_browsers_gpu_unfolds_stored_weights_and_computes_no_grids_rightly(tmp_path: Path) -> None:
    found = made("webgpu", tmp_path)
    assert found.ok and found.ran is not None and "webgpu, headless Chrome" in found.ran.runtime
    assert (tmp_path / "q.onnx").stat().st_size < 0.4 * (DIGITS / "digits.onnx").stat().st_size
    wrong = made("webgpu", tmp_path, by="cpu-x86-vnni")
    assert any("which it does not compute" in problem for problem in wrong.problems)


@needs("wasm")
def test_speed_for_the_browser_is_measured_there_and_what_is_slower_is_not_kept(tmp_path: Path) -> None:
    calib, file = DIGITS / "calib", tmp_path / "q.onnx"
    found = edgeopt.quantize(DIGITS / "digits.onnx", calib, target="wasm", output=file).report
    assert found.latency is not None and found.latency.speedup_high >= 0.97
    assert not any("speed not measured" in note for note in found.notes)


@needs("wasm")
def test_a_file_with_data_beside_it_runs_in_the_browser(tmp_path: Path) -> None:
    onnx.save(onnx.load(DIGITS / "digits.onnx"), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=64)
    found = edgeopt.check(tmp_path / "m.onnx", target="wasm")
    assert found.ok and found.outputs[0].sqnr_db > 80


@needs("wasm")
def test_a_file_that_the_browser_refuses_is_wrong_and_nothing_else_happens(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (string[1,2] x) => (string[1,2] y) { y = Identity(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(edgeopt.EdgeoptError, match="input 'x' is a STRING"):
        edgeopt.check(tmp_path / "m.onnx", target="wasm")


def test_a_python_of_the_users_runs_no_file_for_the_browser() -> None:
    with pytest.raises(edgeopt.UsageError, match="--python python3: files for wasm"):
        edgeopt.check(DIGITS / "digits.onnx", target="wasm", python="python3")


@pytest.mark.slow
@needs("rknn")
def test_rockchips_simulator_takes_the_file_as_it_is(tmp_path: Path) -> None:
    found = made("rknn", tmp_path, by="rknn")  # all of it in integers
    assert found.problems == () and found.ran is not None and found.ran.runtime.startswith("rknn-toolkit2 2.5")
    assert found.outputs[0].sqnr_db > 20


@pytest.mark.slow
@needs("cpu-arm64")
def test_an_emulated_arm_answers_as_the_cpu_provider(tmp_path: Path) -> None:
    found = made("cpu-arm64", tmp_path)
    assert found.problems == () and found.ran is not None and set(found.ran.nodes) == {"CPUExecutionProvider"}
    assert found.outputs[0].sqnr_db > 20 and abs(found.outputs[0].sqnr_db - found.on_cpu[0].sqnr_db) < 1


@needs("wasm:chromium")
def test_a_page_that_dies_is_told_and_nothing_is_left_when_the_asker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "big.onnx").write_bytes(heavy())
    with asked(tmp_path / "big.onnx") as (process, mine):
        process.kill()
        process.wait()
        end = time.monotonic() + 15
        while (left := [pid for pid in mine if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left
    with asked(tmp_path / "big.onnx") as (process, mine):
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 1 and "the page died" in said


@contextlib.contextmanager
def asked(model: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A check in a browser whose page has begun; the processes of its pages."""
    command = [sys.executable, "-m", "edgeopt", "check", str(model), "--target", "wasm:chromium"]
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not pages(process.pid):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # the page that waits, behind the one that leads to it
        yield process, pages(process.pid)


def pages(asker: int) -> set[int]:
    """The processes of browsers' pages that descend from `asker`."""
    parents, found = dict[int, int](), set[int]()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(place.name)
            parents[pid] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if b"type=renderer" in (place / "cmdline").read_bytes():
                found.add(pid)

    def descends(pid: int) -> bool:
        return pid == asker or (pid in parents and descends(parents[pid]))

    return {pid for pid in found if descends(pid)}


def heavy() -> bytes:
    """A model that takes a browser seconds."""
    nodes = "".join(f"v{i + 1} = MatMul(v{i}, w) " for i in range(60))
    text = f"g (float[1024,1024] v0) => (float[1024,1024] v60) {{ {nodes} }}"
    return tiny.proto(text, w=np.eye(1024, dtype=np.float32)).SerializeToString()


@needs("wasm")
def test_what_is_too_far_from_float_in_the_targets_runtime_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_target._run

    def wrong(path: Path, source: ir.Model, *args: Any, **more: Any) -> edgeopt.Checked:
        found = run(path, source, *args, **more)
        static = any(n.op_type == "QuantizeLinear" for n in source.graph)
        far = [replace(o, figures=(Figure("top-1", 0.1, 0.98),)) for o in found.outputs]
        return replace(found, outputs=tuple(far), problems=("output logits: top-1 0.1",)) if static else found

    monkeypatch.setattr(on_target, "_run", wrong)
    found = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", target="wasm", output=tmp_path / "q.onnx")
    assert not found.report.mode.startswith("static")
    assert any("wrong on wasm (output logits: top-1" in c.verdict for c in found.report.candidates), found.report
