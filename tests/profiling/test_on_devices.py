"""Measurements on devices: as here, beside here, and with boards that drop out, on real SSH servers."""

from __future__ import annotations

import getpass
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt import compare, profile
from edgeopt.errors import UsageError
from edgeopt.listener import Listener
from edgeopt.options.devices import DeviceTable
from edgeopt.profiling.devices import look
from edgeopt.profiling.results import Results
from tests import sshd, tiny

HERE = f"exec:{shlex.quote(sys.executable)}"
DENSE = "g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"
needs_sshd = pytest.mark.skipif(sshd.PROGRAM is None, reason="no sshd")
SPACE, VETH = "edgeopt-board", "eo-board"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    onnx.save(tiny.proto(DENSE, w=w), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


def quick(*models: Path, devices: tuple[str, ...], **how: object) -> Results:
    function = compare if len(devices) > 1 else profile
    return function(*models, devices=devices, seconds=0.4, processes=2, **how)  # type: ignore[call-overload, no-any-return]


def test_a_device_gives_what_this_machine_gives(model: Path) -> None:
    found = quick(model, devices=("local", HERE))
    here, there = found.measured
    assert not found.failed and there.setting.device != "local" and here.setting.device == "local"
    assert here.placement == there.placement and here.size == there.size
    assert there.memory is not None and there.ops is not None and there.latency is not None
    (c,) = found.comparisons
    assert c.interleaved and c.outputs is not None and c.outputs[0].exact
    assert found.devices.keys() == {there.setting.device}
    assert found.devices[there.setting.device].cpu == found.environment.cpu


def test_what_a_project_says_of_a_device_comes_before_defaults_and_after_options(model: Path) -> None:
    known = {"pi": DeviceTable(at=HERE, threads=2)}
    assert quick(model, devices=("pi",), known=known).measured[0].setting.threads == 2
    assert quick(model, devices=("pi",), known=known, threads=(1,)).measured[0].setting.threads == 1


def test_a_name_is_looked_up_in_the_project_file_here(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such name"):
        quick(model, devices=("pi",))
    (tmp_path / "edgeopt.toml").write_text(f"[devices.pi]\nat = {json.dumps(HERE)}\n", encoding="utf-8")
    assert quick(model, devices=("pi",)).measured[0].setting.device == "pi"
    (tmp_path / "edgeopt.toml").write_text('[devices.pi]\nat = "local"\nthread = 2\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"edgeopt\.toml: devices\.pi\.thread"):
        quick(model, devices=("pi",))
    assert not quick(model, devices=("local",)).failed  # a file that nobody needs is not read


def test_a_device_that_is_not_there_is_one_row(model: Path) -> None:
    found = quick(model, devices=("local", "exec:false"))
    assert [m.error is None for m in found.measured] == [True, False] and not found.comparisons
    found = quick(model, devices=("exec:/nowhere/docker exec -i box",))
    assert "/nowhere/docker" in str(found.measured[0].error)


def test_a_model_is_compared_with_another_on_the_same_device(model: Path) -> None:
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    found = quick(model, other, devices=("local", HERE))
    labels = [m.setting.label for m in found.measured]
    pairs = [(c.reference, c.other) for c in found.comparisons]
    assert pairs == [(labels[0], labels[1]), (labels[0], labels[2]), (labels[1], labels[3])]


def test_a_device_is_looked_at(tmp_path: Path) -> None:
    found = look(HERE)
    assert found.ok and found.rules and {"machine", "versions", "a question"} <= dict(found.facts).keys()
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    found = look(f"exec:{bare}")
    assert not found.ok and "pip install onnxruntime numpy" in found.problem and "machine" in dict(found.facts)


def test_a_sustained_run_tells_what_the_machine_tells(model: Path) -> None:
    found = quick(model, devices=(HERE,), sustained_s=1.0).measured[0]
    assert found.latency is not None and len(found.latency.series) >= 8


class At(Listener):
    """Does something when a stage is reached, in another thread."""

    def __init__(self, stage: str, done: int, action: object) -> None:
        self.stage, self.done, self.action = stage, done, action
        self.thread: threading.Thread | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        if self.thread is None and (stage, done) == (self.stage, self.done):
            self.thread = threading.Thread(target=self.action)  # type: ignore[arg-type]
            self.thread.start()

    def note(self, line: str) -> None:
        pass


@needs_sshd
@pytest.mark.parametrize(("stage", "done"), [("measuring", 1), ("first run", 2)])
def test_a_board_that_drops_out_comes_back_and_the_run_goes_on(
    stage: str, done: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").mkdir()
    with sshd.running(tmp_path / "ssh", monkeypatch) as server:
        ears = At(stage, done, server.cut)
        found = compare(model, devices=("local", server.address()), seconds=2.0, processes=4, listener=ears)
    assert ears.thread is not None
    assert not found.failed and all(m.latency is not None for m in found.measured)
    assert any("was lost" in note for note in found.notes) and len(found.comparisons) == 1


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Server]:
    """A server in a network of its own, behind a link that can be cut."""
    if getpass.getuser() != "root" or subprocess.run(["ip", "netns", "add", SPACE], check=False).returncode:
        pytest.skip("no networks can be made here")
    try:
        for words in (
            f"link add {VETH} type veth peer name eth0 netns {SPACE}",
            f"addr add 10.213.7.1/24 dev {VETH}",
            f"link set {VETH} up",
            f"-n {SPACE} addr add 10.213.7.2/24 dev eth0",
            f"-n {SPACE} link set eth0 up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        (tmp_path / "ssh").mkdir()
        inside = ("ip", "netns", "exec", SPACE)
        with sshd.running(tmp_path / "ssh", monkeypatch, "10.213.7.2", inside) as server:
            yield server
    finally:
        subprocess.run(["ip", "link", "del", VETH], check=False)
        subprocess.run(["ip", "netns", "del", SPACE], check=False)


@needs_sshd
def test_a_link_that_is_cut_in_the_middle_is_found_out_and_waited_for(model: Path, far: sshd.Server) -> None:
    def cut() -> None:
        subprocess.run(["ip", "link", "set", VETH, "down"], check=True)
        time.sleep(20)  # ssh asks three times, every five seconds
        subprocess.run(["ip", "link", "set", VETH, "up"], check=True)

    ears = At("measuring", 1, cut)
    found = profile(model, devices=(far.address(),), seconds=2.0, processes=4, listener=ears)
    assert ears.thread is not None
    ears.thread.join()
    (m,) = found.measured
    assert m.error is None and m.latency is not None and any("was lost" in note for note in found.notes)
