"""Independent work elsewhere: in order, sent once, the same bytes with any number of workers; on processes, and on a
scheduler of Dask with two workers, of which one is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import CalibrationError, DataError, LostError, UsageError
from edgeopt.numbers.observers import Statistics
from edgeopt.ptq.moments import gather, layers
from edgeopt.runtime import calibrate
from edgeopt.runtime import spread as module
from edgeopt.runtime.probe import probe
from edgeopt.runtime.spread import Shared, Spread, spread
from tests import tiny

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
DENSE = "g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"
W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


class Inline(Executor):
    """Does each task at once; counts them."""

    def __init__(self) -> None:
        self.tasks = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks += 1
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (ValueError, edgeopt.EdgeoptError) as e:
            future.set_exception(e)
        return future


def plus(a: int, b: int) -> int:
    return a + b


def refuses(a: int, b: int) -> int:
    raise CalibrationError(f"not {b}")


def dies(a: int, b: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def broken() -> Any:
    raise DataError("not read")


def samples(count: int) -> list[tuple[str, Any]]:
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]
    return [(f"{i}", lambda f=f: f) for i, f in enumerate(feeds)]


def observed(by: Spread | None, count: int = 23) -> dict[str, Statistics]:
    model = tiny.model(DENSE, w=W)
    probes = probe(model, samples(1)[0][1]())
    return calibrate.observe(model, ["x", "a", "b", "y"], samples(count), probes=probes, room=1 << 30, by=by).statistics


def test_results_come_in_order_and_items_are_taken_as_they_are_needed() -> None:
    by, taken = Spread(Inline()), []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    found = by.map(plus, by.shared(1), items())
    assert next(found) == 1 and len(taken) < 40
    assert list(found) == list(range(2, 101))


def test_what_is_not_wanted_any_more_is_cancelled() -> None:
    with ThreadPoolExecutor(1) as pool:
        by = Spread(pool)
        found = by.map(plus, by.shared(1), iter(range(10**9)))
        assert next(found) == 1
        found.close()  # type: ignore[attr-defined]


def test_an_error_of_a_task_is_the_callers() -> None:
    by = Spread(Inline())
    with pytest.raises(CalibrationError, match="not 7"):
        list(by.map(refuses, by.shared(1), [7]))


def test_a_shared_value_is_made_once_in_a_process_and_few_are_kept() -> None:
    made = [Shared(str(i), b"\x80\x04K\x07.") for i in range(9)]  # 7, pickled
    assert [x.value() for x in made] == [7] * 9 and len(module._known) <= 4
    assert made[-1].value() is made[-1].value()


@pytest.mark.parametrize("together", [1, 4, 100])
def test_statistics_are_the_same_bit_by_bit_wherever_they_are_collected(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_TOGETHER", together)
    alone = observed(None)
    for executor in (Inline(), ThreadPoolExecutor(7)):
        found = observed(Spread(executor))
        assert found.keys() == alone.keys()
        assert all(repr(found[name]) == repr(alone[name]) for name in alone)


def test_moments_are_the_same_bit_by_bit_wherever_their_columns_are_taken() -> None:
    model, inline = tiny.model(DENSE, w=W), Inline()
    read: list[tuple[str, Any]] = samples(9)
    read[4] = ("broken", broken)
    wanted = layers(model, frozenset(str(n.name) for n in model.graph))
    alone, *others = (
        gather(model, wanted, read, by=by) for by in (None, Spread(inline), Spread(ThreadPoolExecutor(7)))
    )
    assert inline.tasks == 9 and alone["w"].counts == (8, 8)
    assert all(repr(alone) == repr(found) for found in others)


def test_a_value_that_is_not_finite_is_told_from_elsewhere_too() -> None:
    model = tiny.model("g (float[1,8] x) => (float[1,8] y) { a = Log(x)  y = Relu(a) }")
    ones = {"x": np.ones((1, 8), np.float32)}
    with pytest.raises(CalibrationError, match="'a' is not finite on sample bad"):
        calibrate.observe(
            model,
            ["a"],
            [("good", lambda: ones), ("bad", lambda: {"x": -ones["x"]})],
            probes=probe(model, ones),
            room=1 << 30,
            by=Spread(Inline()),
        )


def test_processes_of_this_machine_give_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for file, jobs in zip(files, (None, 2), strict=True):
        edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=file, measure=False, jobs=jobs)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_blame_is_the_same_from_elsewhere() -> None:
    alone, spread_ = (
        edgeopt.sensitivity(DIGITS / "digits.onnx", DIGITS / "calib", samples=2, executor=executor, target="cpu-arm64")
        for executor in (None, Inline())
    )
    assert alone.nodes == spread_.nodes and alone.sqnr_db == spread_.sqnr_db


def test_a_process_that_dies_is_told() -> None:
    with spread(jobs=2) as by, pytest.raises(LostError, match="a worker ended"):
        assert by is not None
        list(by.map(dies, by.shared(1), [1]))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://127.0.0.1:1", "dask://scheduler:8786"),
        ("dask:", "dask://scheduler:8786"),
        ("dask://127.0.0.1:1", "no scheduler answers there"),
    ],
)
def test_what_is_no_cluster_is_told(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT_S", 1.0)
    with pytest.raises(UsageError, match=says), spread(cluster=address):
        pass


@dataclass
class Cluster:
    """A scheduler and two workers, each a process with one thread."""

    address: str
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    distributed = pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    started = [subprocess.Popen([*dask, *options], env=environment, **quiet)]  # type: ignore[call-overload]
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    more = ["--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)]
    started += [subprocess.Popen([*command, *more], env=environment, **quiet) for _ in range(2)]  # type: ignore[call-overload]
    try:
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address.replace("tcp://", "dask://")
        yield Cluster(address, started[1:])
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_file_and_says_who_works(cluster: Cluster, tmp_path: Path) -> None:
    notes: list[str] = []
    how: dict[str, Any] = {"measure": False, "force": True}
    edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", output=tmp_path / "one.onnx", **how)
    listener = edgeopt.Listener(note=notes.append)
    file = tmp_path / "two.onnx"
    edgeopt.quantize(
        DIGITS / "digits.onnx", DIGITS / "calib", output=file, cluster=cluster.address, listener=listener, **how
    )
    assert (tmp_path / "one.onnx").read_bytes() == file.read_bytes()
    assert any(line.startswith("cluster: 2 workers; http://") for line in notes)


@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_a_cluster_that_is_killed_changes_nothing(cluster: Cluster) -> None:
    alone = observed(None, 400)
    with spread(cluster=cluster.address) as by:
        assert by is not None
        model = tiny.model(DENSE, w=W)
        probes, killed = probe(model, samples(1)[0][1]()), []

        def progress(done: int, total: int) -> None:
            if done > 40 and not killed:
                killed.append(cluster.workers[0])
                cluster.workers[0].kill()

        values = ["x", "a", "b", "y"]
        found = calibrate.observe(
            model, values, samples(400), probes=probes, room=1 << 30, by=by, progress=progress
        ).statistics
    assert killed and all(repr(found[name]) == repr(alone[name]) for name in alone)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_with_another_edgeopt_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._version
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "9.9.9")
    assert real() == "9.9.9"  # here; the workers have what is installed
    with pytest.raises(UsageError, match=r"has edgeopt .*, here is 9\.9\.9"), spread(cluster=cluster.address):
        pass
