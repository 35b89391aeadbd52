"""The measured process: its protocol, that it needs nothing of edgeopt, and that a block is as long as was asked
for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeopt.errors import WorkerError
from edgeopt.profiling.inputs import write_feeds
from edgeopt.runtime.process import Worker, worker
from edgeopt.runtime.worker import __main__ as measured
from tests import tiny

FOLDER = Path(measured.__file__).parent
CPU = [["CPUExecutionProvider", {}]]
DENSE = "g (float[N,4] x) => (float[N,2] y) { a = Relu(x)  y = MatMul(a, w) }"
W = np.arange(8, dtype=np.float32).reshape(4, 2)
MS = 1_000_000


def saved(folder: Path, text: str = DENSE, **weights: np.ndarray) -> str:
    path = folder / "model.onnx"
    onnx.save(tiny.proto(text, **weights or {"w": W}), path)
    return str(path)


def feeds(folder: Path, *found: Mapping[str, np.ndarray]) -> str:
    write_feeds(list(found), folder / "feeds.npz")
    return str(folder / "feeds.npz")


def spoken(*requests: Mapping[str, Any], code: str = "pass") -> list[dict[str, Any]]:
    """The answers to `requests`, by pipe; `code` runs in the process before the worker does."""
    start = (
        f"import runpy, sys; sys.argv = [{str(FOLDER)!r}]; {code}; runpy.run_path({str(FOLDER)!r}, run_name='__main__')"
    )
    text = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run(
        [sys.executable, "-I", "-c", start], input=text, capture_output=True, text=True, check=True, timeout=120
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line]


def modules(code: str) -> set[str]:
    """Top-level modules outside the standard library that an interpreter has after `code`."""
    tell = "print('MODULES', *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; {code}; {tell}"],
        input="",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("MODULES")]
    return set(line.split()[1:]) - sys.stdlib_module_names - {"__main__", "__mp_main__"}


def opened(w: Worker, folder: Path, *found: Mapping[str, np.ndarray], **how: Any) -> dict[str, Any]:
    """`DENSE` open in `w` with feeds, ones if there are none."""
    answer = w.ask("open", model=saved(folder), providers=CPU, **how)
    w.ask("feed", path=feeds(folder, *(found or [{"x": np.ones((1, 4), np.float32)}])))
    return answer


def test_hello_tells_the_interpreter_and_its_versions() -> None:
    (answer,) = spoken({"do": "hello"})
    hello = answer["ok"]
    assert hello["onnxruntime"] == ort.__version__ and hello["numpy"] == np.__version__
    assert hello["executable"] == sys.executable and hello["python"] == ".".join(map(str, sys.version_info[:3]))
    assert hello["providers"] == ort.get_available_providers()
    assert hello["import_ns"] > 0 and hello["pid"] > 0


def test_it_loads_nothing_that_onnxruntime_and_numpy_do_not() -> None:
    needed = modules("import numpy, onnxruntime")
    assert {"numpy", "onnxruntime"} <= needed  # so that this says something
    assert modules(f"import runpy; runpy.run_path({str(FOLDER)!r}, run_name='__main__')") == needed


def test_its_own_folder_is_not_where_it_imports_from() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER)],
        input='{"do": "hello"}\n',
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "ok" in json.loads(done.stdout)
    assert str(FOLDER) not in sys.path


def test_every_request_gets_one_line_in_order_and_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    model, data = saved(tmp_path), feeds(tmp_path, {"x": np.ones((2, 4), np.float32)})
    answers = spoken(
        {"do": "open", "model": model, "providers": CPU},
        {"do": "feed", "path": data},
        {"do": "block", "runs": 3},
        {"do": "close"},
        {"do": "block"},
        {"do": "hello"},
    )
    told, fed, block, closed, refused, hello = answers
    assert told["ok"]["inputs"] == [["x", "tensor(float)", ["N", 4]]] and told["ok"]["outputs"] == ["y"]
    assert told["ok"]["create_ns"] > 0 and told["ok"]["assignment"] is None
    assert fed == {"ok": {"feeds": 1}} and closed == {"ok": {}}
    assert len(block["ok"]["times"]) == 3 and refused["type"] == "AttributeError" and "ok" in hello


@pytest.mark.parametrize("noise", ["os.write(1, b'loading kernels...')", "os.system('echo loading kernels')"])
def test_what_a_provider_prints_does_not_get_between_the_answers(noise: str) -> None:
    # the provider's part is played by `platform.python_version`, which `hello` calls
    code = f"import os, platform; platform.python_version = lambda: ({noise}, print('and more'), 'loud')[-1]"
    first, second = spoken({"do": "hello"}, {"do": "hello"}, code=code)
    assert first["ok"]["python"] == second["ok"]["python"] == "loud"


@pytest.mark.parametrize(
    ("do", "arguments", "told"),
    [
        ("open", {"model": "nowhere.onnx", "providers": CPU}, "nowhere.onnx"),
        ("open", {"model": __file__, "providers": CPU}, "Protobuf parsing failed"),
        ("open", {"model": "m.onnx", "providers": [["CPUExecutionProvider", {}]], "level": "most"}, "most"),
        ("feed", {"path": "nowhere.npz"}, "nowhere.npz"),
        ("feed", {"path": __file__}, "pickle"),
        ("plugin", {"name": "x", "library": "/nowhere.so"}, "/nowhere.so"),
        ("plugin", {"name": "x", "module": "edgeopt_nowhere"}, "No module named 'edgeopt_nowhere'"),
        ("sing", {}, "sing"),
        ("block", {"laps": 3}, "laps"),
    ],
)
def test_a_request_that_fails_is_an_error_answer_and_the_worker_lives_on(
    do: str, arguments: dict[str, Any], told: str
) -> None:
    with worker() as w:
        pid = w.ask("hello")["pid"]
        with pytest.raises(WorkerError, match=told):
            w.ask(do, **arguments)
        assert w.ask("hello")["pid"] == pid


def test_an_empty_file_of_feeds_is_an_error_answer_too(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    with worker() as w, pytest.raises(WorkerError) as caught:
        w.ask("feed", path=str(tmp_path / "empty.npz"))
    assert "the worker ended" not in str(caught.value)


def test_a_feed_that_the_model_refuses_is_an_error_and_the_next_one_runs(tmp_path: Path) -> None:
    with worker() as w:
        opened(w, tmp_path, {"x": np.ones((1, 5), np.float32)})
        with pytest.raises(WorkerError, match="Got: 5 Expected: 4"):
            w.ask("block")
        w.ask("feed", path=feeds(tmp_path, {"x": np.ones((1, 4), np.float32)}))
        assert len(w.ask("block")["times"]) == 1


def test_outputs_are_those_of_every_feed_in_order(tmp_path: Path) -> None:
    xs = [np.random.default_rng(i).standard_normal((i + 1, 4)).astype(np.float32) for i in range(11)]
    out = tmp_path / "outputs.npz"
    with worker() as w:
        opened(w, tmp_path, *({"x": x} for x in xs))
        answer = w.ask("outputs", path=str(out))
    assert answer == {"outputs": ["y"]}
    with np.load(out) as archive:
        assert sorted(archive.files) == sorted(f"{i}/y" for i in range(11))
        for i, x in enumerate(xs):
            # sums of four float32 products in another order
            np.testing.assert_allclose(archive[f"{i}/y"], np.maximum(x, 0) @ W, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("g (float[4] x) => (float[4] y) { y = Log(x) }", True),
        ("g (float[4] x) => (float[4] y) { y = RandomNormalLike(x) }", False),
    ],
)
def test_a_model_is_deterministic_when_it_gives_the_same_twice_nan_included(
    text: str, same: bool, tmp_path: Path
) -> None:
    with worker() as w:
        w.ask("open", model=saved(tmp_path, text, unused=np.float32(0)), providers=CPU)
        w.ask("feed", path=feeds(tmp_path, {"x": np.float32([-1, 0, 1, 2])}))
        assert w.ask("repeats")["deterministic"] is same


def test_names_with_slashes_come_back_as_they_are(tmp_path: Path) -> None:
    made = tiny.proto("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    made.graph.node[0].input[0] = made.graph.input[0].name = "/in/x"
    made.graph.node[0].output[0] = made.graph.output[0].name = "/out/y"
    onnx.save(made, tmp_path / "model.onnx")
    with worker() as w:
        w.ask("open", model=str(tmp_path / "model.onnx"), providers=CPU)
        w.ask("feed", path=feeds(tmp_path, {"/in/x": np.ones(4, np.float32)}))
        assert w.ask("outputs", path=str(tmp_path / "out.npz"))["outputs"] == ["/out/y"]
    with np.load(tmp_path / "out.npz") as archive:
        np.testing.assert_array_equal(archive["0//out/y"], -np.ones(4, np.float32))


def test_memory_holds_what_the_session_loads_and_the_peak_is_never_below_the_present(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((2048, 4096)).astype(np.float32)  # 32 MiB
    model = saved(tmp_path, "g (float[1,2048] x) => (float[1,4096] y) { y = MatMul(x, w) }", w=weight)
    with worker() as w:
        before = w.ask("memory")
        w.ask("open", model=model, providers=CPU)
        after = w.ask("memory")
    assert "reset" not in before
    assert before["peak_rss"] >= before["rss"] > 0 and after["peak_rss"] >= after["rss"]
    assert after["rss"] - before["rss"] >= weight.nbytes
    assert after["pss"] <= after["rss"]


def test_the_peak_begins_anew_after_a_reset(tmp_path: Path) -> None:
    model = saved(tmp_path, "g (float[1,N] x) => (float[1,1] y) { a = Exp(x)  y = ReduceSum(a) }", unused=np.float32(0))
    with worker() as w:
        w.ask("open", model=model, providers=CPU, arena=False)
        w.ask("feed", path=feeds(tmp_path, {"x": np.zeros((1, 1 << 24), np.float32)}))
        w.ask("block")
        high = w.ask("memory", reset=True)
        if not high["reset"]:
            pytest.skip("this kernel does not let a process reset its peak")
        now = w.ask("memory")
    # the 64 MiB of `a` were given back before; a quarter of it is room for what the allocator keeps
    assert high["peak_rss"] - now["peak_rss"] >= 48 << 20


def test_the_trace_holds_as_many_runs_as_were_asked_for(tmp_path: Path) -> None:
    with worker() as w:
        answer = opened(w, tmp_path, assignment=True, profile=str(tmp_path / "trace"))
        w.ask("block", runs=2)
        w.ask("block", runs=3)
        path = Path(w.ask("trace")["path"])
    events = json.loads(path.read_text())
    assert path.parent == tmp_path
    assert sum(e["name"] == "model_run" for e in events) == 5
    assert sorted(op for _, nodes in answer["assignment"] for _, op in nodes) == ["MatMul", "Relu"]
    assert {name for name, _ in answer["assignment"]} == {"CPUExecutionProvider"}


def test_the_level_and_fixed_dimensions_reach_the_session(tmp_path: Path) -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Identity(x)  b = Relu(a)  y = Identity(b) }"
    model = saved(tmp_path, text, unused=np.float32(0))
    counts = {}
    with worker() as w:
        for level in ("none", "all"):
            found = w.ask("open", model=model, providers=CPU, level=level, assignment=True, fixed={"N": 7})
            counts[level] = sum(len(nodes) for _, nodes in found["assignment"])
        assert found["inputs"] == [["x", "tensor(float)", [7, 4]]]
    assert counts == {"none": 3, "all": 1}


# blocks on a clock that runs and sleeps move; no real time passes


class Machine:
    """A session whose runs take `run_ns`, and the clock that they and sleeping move."""

    def __init__(self, run_ns: int) -> None:
        self.now, self.run_ns, self.seen = 10**12, run_ns, list[object]()
        self.starts, self.slept = list[int](), 0

    def run(self, names: None, feed: object) -> None:
        self.seen.append(feed)
        self.starts.append(self.now)
        self.now += self.run_ns

    def sleep(self, seconds: float) -> None:
        self.slept += round(seconds * 1e9)
        self.now += round(seconds * 1e9)


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch, *found: object) -> measured.Server:
    monkeypatch.setattr(measured, "time", SimpleNamespace(perf_counter_ns=lambda: machine.now, sleep=machine.sleep))
    w = measured.Server()
    w.session, w.feeds = machine, list(found or [{}])  # type: ignore[arg-type]
    return w


@pytest.mark.parametrize(
    ("runs", "seconds", "expected"),
    [(1, 0.0, 1), (7, 0.0, 7), (1, 0.010, 10), (1, 0.0101, 11), (3, 0.0005, 3), (12, 0.010, 12)],
)
def test_a_block_has_at_least_its_runs_and_its_seconds_and_no_run_more(
    runs: int, seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = on(Machine(MS), monkeypatch).block(runs=runs, seconds=seconds)
    assert block["times"] == [MS] * expected
    assert block["end"] - block["start"] == expected * MS


@pytest.mark.parametrize(("rate", "gap_ns"), [(100.0, 10 * MS), (250.0, 4 * MS)])
def test_a_rate_spaces_the_starts_and_waiting_is_not_in_the_times(
    rate: float, gap_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(MS)
    block = on(machine, monkeypatch).block(runs=5, rate=rate)
    assert block["times"] == [MS] * 5
    assert np.diff(machine.starts).tolist() == [gap_ns] * 4


def test_a_rate_that_is_too_high_leaves_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(MS)
    on(machine, monkeypatch).block(runs=9, rate=2000.0)
    assert np.diff(machine.starts).tolist() == [MS] * 8
    assert machine.slept == MS // 2  # before the first


def test_feeds_take_turns_over_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(MS)
    w = on(machine, monkeypatch, "a", "b", "c")
    w.block(runs=2)
    w.block(runs=2)
    assert machine.seen == ["a", "b", "c", "a"]


def test_new_feeds_begin_at_the_first(tmp_path: Path) -> None:
    w = measured.Server()
    w.turn = 5
    assert w.feed(feeds(tmp_path, *({"x": np.float32([i])} for i in range(12)))) == {"feeds": 12}
    assert w.turn == 0 and [float(f["x"][0]) for f in w.feeds] == list(range(12))


def test_the_times_of_a_real_block_fit_into_it(tmp_path: Path) -> None:
    with worker() as w:
        opened(w, tmp_path)
        block = w.ask("block", runs=20, seconds=0.01)
    assert len(block["times"]) >= 20 and min(block["times"]) > 0
    assert max(10 * MS, sum(block["times"])) <= block["end"] - block["start"]
    assert block["switches"] >= 0 and (block["wait_ns"] is None or block["wait_ns"] >= 0)
