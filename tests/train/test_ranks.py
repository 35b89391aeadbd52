"""Two processes train like one that accumulates over twice the batches, and one does not wait for a dead one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt import distill
from edgeopt.cli import main
from edgeopt.errors import UsageError
from edgeopt.train.ranks import Ranks, ranks
from tests import tiny
from tests.train import toys
from tests.train.test_distill import ROOT, TEACHER, student

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 60.0  # importing torch is most of what a process takes
# what each of two processes does: all cases one after the other, each with a port of its own
DRIVER = """
import json, os, shutil, sys
from pathlib import Path
from edgeopt import distill, graph
from edgeopt.listener import Listener
from tests.train import toys
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
state, early = folder / "state.pt", folder / "early.pt"
def copy(stage, done, total):
    if done == 3:  # the checkpoint of epoch 2 is there, that of epoch 3 not yet
        shutil.copy(state, early)
for name, port, count, choices in cases:
    os.environ["MASTER_PORT"] = str(port)
    places = {"whole": {"checkpoint": state, "listener": Listener(progress=copy)},
              "resumed": {"checkpoint": early, "resume": True}}.get(name, {})
    student = toys.branched() if name == "auxiliary" else toys.perceptron()
    found = distill(student, toys.samples(count), teacher=toys.perceptron(7), **places, **choices)
    (folder / f"{name}.{os.environ['RANK']}").write_bytes(graph.proto_bytes(found.model))
    threads = [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
    assert not [t for t in threads if "gloo" in t], threads  # one that outlives the interpreter aborts the process
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of the order that a process with one thread takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def started(rank: int, port: int, *argv: str) -> subprocess.Popen[str]:
    """Rank `rank` of two."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    return subprocess.Popen(
        [sys.executable, *argv],
        env=environment(RANK=str(rank), WORLD_SIZE="2", **place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; none outlives the test."""
    try:
        told = [p.communicate(timeout=LIMIT_S) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, told, strict=True)]


@pytest.mark.slow
def test_torchrun_with_two_processes_writes_the_file_of_one_that_accumulates_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("student.onnx").write_bytes(student().SerializeToString())
    # 120 pictures in batches of 24 are five: in the last step the second process has none
    given = ["distill", "--student", "student.onnx", "--teacher", str(TEACHER), "--data", str(ROOT / "calib")]
    given += ["--no-labels", "--epochs", "3", "--lr", "3e-3", "--batch-size", "24", "--augment", "crop"]
    with pytest.raises(SystemExit) as alone:
        main([*given, "--accumulate", "2", "-o", "one.onnx"])
    capsys.readouterr()
    assert alone.value.code == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(free_port())]
    argv = [sys.executable, *torchrun, "-m", "edgeopt", *given, "-o", "two.onnx"]
    run = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert run.returncode == 0, run.stderr
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()
    assert run.stdout.count("wrote two.onnx") == run.stdout.count("held-out") == 1
    assert run.stderr.count("before training") == run.stderr.count("epoch 3/3") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "student.onnx", "two.onnx"]


@pytest.mark.slow
def test_two_ranks_hold_the_weights_of_one_process_also_after_a_resume(tmp_path: Path, one_thread: None) -> None:
    quick = {"epochs": 4, "learning_rate": 3e-2}
    cases = {
        "even": (80, {**quick, "batch_size": 8}),  # 64 to train with: 8 batches
        "odd": (80, {**quick, "batch_size": 10}),  # 7 batches, the last one smaller
        "one batch": (20, {**quick, "batch_size": 16}),  # the second process never has one
        "whole": (80, {**quick, "batch_size": 10, "ema": 0.5}),
        "resumed": (80, {**quick, "batch_size": 10, "ema": 0.5}),
        "auxiliary": (80, {**quick, "batch_size": 8}),  # weights of an output that nothing is compared with
    }
    plan = json.dumps([(name, free_port(), *case) for name, case in cases.items()])
    for code, out, err in ended([started(r, 0, "-c", DRIVER, str(tmp_path), plan) for r in (0, 1)]):
        assert (code, out) == (0, ""), err
    for name, (count, choices) in cases.items():
        student = toys.branched() if name == "auxiliary" else toys.perceptron()
        alone = distill(student, toys.samples(count), teacher=toys.perceptron(7), **{**choices, "accumulate": 2})
        assert alone.improved
        if name == "auxiliary":  # no gradient, and so no decay
            assert np.array_equal(tiny.weights_of(alone.model)["c"], toys.normal(2, 8, 2))
        for rank in (0, 1):
            assert (tmp_path / f"{name}.{rank}").read_bytes() == toys.graph.proto_bytes(alone.model), (name, rank)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_other_is_killed_ends_in_words(killed: int, tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(toys.perceptron().SerializeToString())
    (tmp_path / "teacher.onnx").write_bytes(toys.perceptron(7).SerializeToString())
    toys.write(tmp_path / "data", toys.samples(40))
    argv = ["--student", "student.onnx", "--teacher", "teacher.onnx", "--data", "data", "--epochs", "1000000"]
    argv = [str(tmp_path / a) if a in ("student.onnx", "teacher.onnx", "data") else a for a in argv]
    log, port = tmp_path / "log.csv", free_port()
    both = [started(r, port, "-m", "edgeopt", "distill", *argv, "--log", str(log)) for r in (0, 1)]
    until = time.monotonic() + LIMIT_S
    while not log.exists() and time.monotonic() < until and both[0].poll() is None:
        time.sleep(0.05)
    os.kill(both[killed].pid, signal.SIGKILL)
    found = ended(both)
    code, out, err = found[1 - killed]
    assert log.exists() and found[killed][0] == -signal.SIGKILL
    assert (code, out) == (3, "")
    assert re.search(rf"rank {1 - killed} of 2: another process of this run ended.*--resume", err)
    assert "Traceback" not in err
    assert not (tmp_path / "student.distilled.onnx").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT: start the processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "WORLD_SIZE=2 without MASTER_PORT"),
        (
            {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "WORLD_SIZE=two without a number",
        ),
    ],
)
def test_variables_that_are_incomplete_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), ranks("cpu"):
        pass


def test_a_process_alone_is_told_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    p = torch.ones(2, requires_grad=True)
    with ranks("cpu") as here:
        assert here == Ranks() and here.first
        assert here.told([1.5, -0.1]) == here.total([1.5, -0.1]) == [1.5, -0.1]
        assert (here.sent(b"abc"), here.sent(None), here.sent(b"")) == (b"abc", None, b"")
        here.sum_gradients([p])
    assert p.grad is None
