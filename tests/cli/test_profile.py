"""`edgeopt profile`: formats, files, sweeps, what a failure leaves, wrong calls, and Ctrl-C."""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeopt.profiling.profile import profile
from edgeopt.profiling.results import Results, load
from tests import models
from tests.cli.test_cli import Ended
from tests.profiling import stubs
from tests.profiling.stubs import SHORT, called

FORMATS = ("table", "json", "csv", "markdown")


@dataclass(frozen=True)
class Run:
    """A call, with the folder that it had for its files and the document that it wrote there as results.json."""

    ended: Ended
    folder: Path

    @property
    def results(self) -> Results:
        return load(self.folder / "results.json")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two numbers of threads by two batches, with every file and table that can be had."""
    folder = tmp_path_factory.mktemp("swept")
    model = stubs.saved(folder / "model.onnx", "g (float[B,S] x) => (float[B,S] y) { t = Tanh(x)  y = Softmax(t) }")
    sweep = ("--threads", "1,2", "--batch", "1,4", "--dim", "S=64")
    files = ("--report", folder / "results.json", "--trace", folder / "trace.json")
    return Run(called("profile", model, *SHORT, *sweep, "--ops", *files), folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with model.onnx (one Gemm) and one.npy (a sample for it)."""
    stubs.dense(tmp_path / "model.onnx")
    np.save(tmp_path / "one.npy", models.normal(1, 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured: a worker that is started fails the test."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("edgeopt.runtime.process.Worker.__init__", started)


def shown(results: Results, form: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    """What `edgeopt profile --format FORM` prints when `results` is what it measured."""
    monkeypatch.setattr("edgeopt.profiling.profile.profile", lambda *_, **__: results)
    ended = called("profile", "model.onnx", "--format", form, *more)
    assert ended.code == (3 if results.failed else 0), ended.err
    return ended.out


# what is shown


LABELS = ["threads=1 batch=1", "threads=1 batch=4", "threads=2 batch=1", "threads=2 batch=4"]


def test_a_sweep_measures_every_combination(swept: Run) -> None:
    assert swept.ended.code == 0, swept.ended.err
    settings = [m.setting for m in swept.results.measured]
    assert [s.label for s in settings] == LABELS
    assert [s.shapes["x"] for s in settings] == [(1, 64), (4, 64)] * 2
    assert [s.threads for s in settings] == [1, 1, 2, 2]


def test_the_table_has_a_column_for_every_setting_and_fits_the_width(swept: Run) -> None:
    lines = swept.ended.out.splitlines()
    assert [x.strip() for x in re.split(r"\s{2,}", lines[0].strip())] == LABELS
    assert max(map(len, lines)) <= 120
    facts = ("p50", "throughput", "cold: create session", "memory: peak RSS", "file", "parameters", "MACs", "nodes")
    assert all(any(line.startswith(fact) for line in lines) for fact in facts)


def test_what_the_inputs_are_is_told_on_stderr(swept: Run) -> None:
    assert "x: random, normal" in swept.ended.err
    assert "x: random, normal" not in swept.ended.out


def test_json_on_stdout_is_all_of_stdout_and_loads(swept: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(shown(swept.results, "json", monkeypatch), encoding="utf-8")
    assert load(tmp_path / "out.json") == swept.results


def test_csv_has_a_line_for_every_setting(swept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(swept.results, "csv", monkeypatch)
    rows = list(csv.DictReader(text.splitlines()))
    assert [r["label"] for r in rows] == LABELS
    for row, m in zip(rows, swept.results.measured, strict=True):
        assert m.latency is not None
        assert float(row["p50_ms"]) == m.latency.p50_ms.value
        assert int(row["runs"]) == m.latency.runs
        assert None not in row  # no line is longer than the head


def test_markdown_is_tables_and_nothing_else(swept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(swept.results, "markdown", monkeypatch, "--ops")
    for table in text.strip().split("\n\n"):
        lines = table.splitlines()
        assert set(lines[1]) <= set("| -")
        assert len({line.count("|") for line in lines}) == 1
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_ops_has_the_time_outside_of_the_nodes_and_makes_100_percent(swept: Run) -> None:
    for part in swept.ended.out.split(": operator")[1:]:
        lines = part.split(": node")[0].splitlines()
        shares = [float(re.findall(r"(-?[\d.]+)%", line)[0]) for line in lines if "%" in line]
        assert any(line.startswith("not in any node") for line in lines)
        assert len(shares) == 3  # Tanh, Softmax, and outside of both
        assert sum(shares) == pytest.approx(100, abs=0.2)  # each is rounded to 0.1


def test_ops_are_shown_only_when_asked_for(swept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in any node" not in shown(swept.results, "table", monkeypatch)


# files


def test_the_report_and_the_times_lie_side_by_side(swept: Run) -> None:
    assert {f.name for f in swept.folder.iterdir()} == {"model.onnx", "results.json", "results.npz", "trace.json"}
    with np.load(swept.folder / "results.npz", allow_pickle=False) as arrays:
        for m in swept.results.measured:
            assert m.latency is not None
            assert len(arrays[f"{m.setting.label}/times_ns"]) == m.latency.runs
            assert arrays[f"{m.setting.label}/block"].max() + 1 == len(m.latency.blocks)


def test_the_trace_has_a_process_for_every_setting(swept: Run) -> None:
    events = json.loads((swept.folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert list(named.values()) == LABELS
    assert {e["pid"] for e in events} == named.keys()
    nodes = [e for e in events if e.get("cat") == "Node"]
    assert nodes
    assert all(e["ph"] == "X" and e["dur"] >= 0 and e["ts"] >= 0 for e in nodes)


# other ways to look


@pytest.mark.usefixtures("idle")
def test_a_folder_in_place_of_the_raw_times_is_refused_before_anything_is_measured(here: Path) -> None:
    (here / "r.npz").mkdir()
    ended = called("profile", "model.onnx", *SHORT, "--report", "r.json")
    assert ended.code == 2 and "r.npz: is a folder" in ended.err


def test_a_sustained_run_gives_a_series(here: Path) -> None:
    ended = called("profile", "model.onnx", "--sustained", "1s", "--report", "results.json")
    assert ended.code == 0, ended.err
    x = load(here / "results.json").measured[0].latency
    assert x is not None
    assert len(x.series) >= 3
    assert [p.at_s for p in x.series] == sorted({p.at_s for p in x.series})
    assert sum(p.runs for p in x.series) == x.runs
    assert x.last_to_first == x.series[-1].p50_ms / x.series[0].p50_ms
    assert "last / first" in ended.out


def test_the_self_check_tells_false_alarms_and_the_smallest_visible_change(here: Path) -> None:
    ended = called("profile", "model.onnx", *SHORT, "--self-check", "--trials", "2", "--report", "results.json")
    assert ended.code == 0, ended.err
    check = load(here / "results.json").self_check
    assert check is not None
    assert (check.trials, len(check.ratios)) == (2, 2)
    assert check.smallest_visible > 0 or check.false_alarms == 2
    assert check.smallest_visible >= 0
    assert "false alarms" in ended.out
    assert "smallest visible change" in ended.out


@pytest.mark.parametrize("more", [("--trace", "trace.json"), ("--sustained", "1s"), ("--threads", "1,2")])
@pytest.mark.usefixtures("idle")
def test_the_self_check_does_not_ignore_another_choice(more: tuple[str, str], here: Path) -> None:
    ended = called("profile", "model.onnx", *SHORT, "--self-check", *more)
    assert ended.code == 2
    assert more[0] in ended.err


def test_two_models_cannot_be_self_checked(here: Path) -> None:
    assert called("profile", "model.onnx", "model.onnx", "--self-check").code == 2


# edgeopt.toml


@pytest.mark.parametrize("named", ['"model.onnx"', '["model.onnx"]'])
def test_without_a_model_edgeopt_toml_names_it(named: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, ...]] = []

    def stub(models: tuple[Path, ...], options: object) -> Results:
        asked.append(models)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeopt.profiling.profile.profile", stub)
    (here / "edgeopt.toml").write_text(f"model = {named}\n", encoding="utf-8")
    assert called("profile").code == 130
    assert asked == [(Path("model.onnx"),)]


@pytest.mark.parametrize("text", [None, "", "model = 3", "model = []", "model = [3]", "model =", "\0", "[model]\n"])
@pytest.mark.usefixtures("idle")
def test_without_a_model_and_without_one_in_edgeopt_toml_an_example_is_shown(text: str | None, here: Path) -> None:
    if text is not None:
        (here / "edgeopt.toml").write_text(text, encoding="utf-8")
    ended = called("profile")
    assert ended.code == 2
    assert "edgeopt.toml" in ended.err
    if text != "model =" and text != "\0":  # there the place of the fault says more
        assert "edgeopt profile model.onnx" in ended.err


# wrong calls


GOOD = ("profile", "model.onnx")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((*GOOD, "--dim", "M=2"), "Known: N"),
        ((*GOOD, "--dim", "N=0"), "--dim N"),
        ((*GOOD, "--dim", "N=many"), "--dim"),
        ((*GOOD, "--dim", "N"), "--dim"),
        ((*GOOD, "--provider", "cpuu"), "did you mean 'cpu'"),
        ((*GOOD, "--provider", "cpu:fast"), "cpu:key=value"),
        ((*GOOD, "--python", "nowhere"), "nowhere"),
        ((*GOOD, "--seconds", "0"), "--seconds 0"),
        ((*GOOD, "--seconds", "-1"), "--seconds"),
        ((*GOOD, "--seconds", "long"), "--seconds"),
        ((*GOOD, "--timeout", "0"), "--timeout 0"),
        ((*GOOD, "--processes", "0"), "--processes 0"),
        ((*GOOD, "--threads", "0"), "--threads 0"),
        ((*GOOD, "--threads", "1,,2"), "--threads"),
        ((*GOOD, "--batch", "0"), "--batch 0"),
        ((*GOOD, "--batch", "1.5"), "--batch"),
        ((*GOOD, "--trials", "0"), "--trials 0"),
        ((*GOOD, "--sustained", "0s"), "--sustained 0"),
        *(((*GOOD, "--rate", x), "--rate") for x in ("0", "-1/s", "fast", "nan", "inf")),
        *(((*GOOD, "--margin", x), "--margin") for x in ("", "lots", "3%%", "0", "-1%", "100%", "nan", "inf")),
        ((*GOOD, "--preset", "prr"), "did you mean 'pr'"),
        ((*GOOD, "--level", "most"), "extended"),
        ((*GOOD, "--session", "spin"), "KEY=VALUE|NAME=VALUE"),
        ((*GOOD, "--input", "x"), "--input"),
        ((*GOOD, "--input", "z=one.npy"), "Known: x"),
        ((*GOOD, "--data", "one.npy", "--input", "x=one.npy"), "--input"),
        ((*GOOD, "--data", "random"), "--data random"),
        ((*GOOD, "--data", "nowhere"), "--data nowhere"),
        ((*GOOD, "--report", "nowhere/r.json"), "nowhere"),
        ((*GOOD, "--report", "folder"), "folder"),
        ((*GOOD, "--report", "."), r"\."),
        ((*GOOD, "--report", "model.onnx"), "overwrite"),
        ((*GOOD, "--report", "one.npy", "--input", "x=one.npy"), "overwrite"),
        ((*GOOD, "--report", "one.npy", "--data", "one.npy"), "overwrite"),
        ((*GOOD, "--report", "many.json", "--data", "many.npz"), "overwrite"),
        ((*GOOD, "--report", "r.npz"), r"r\.npz"),
        ((*GOOD, "--trace", "nowhere/t.json"), "nowhere"),
        ((*GOOD, "--trace", "folder"), "folder"),
        ((*GOOD, "--trace", "model.onnx"), "overwrite"),
        ((*GOOD, "--trace", "many.npz", "--data", "many.npz"), "overwrite"),
        ((*GOOD, "--trace", "r.json", "--report", "r.json"), "one file"),
        ((*GOOD, "--trace", "r.npz", "--report", "r.json"), r"r\.npz"),
        ((*GOOD, "--format", "xml"), "xml"),
    ],
    ids=lambda x: " ".join(x[2:]) if isinstance(x, tuple) else "",
)
@pytest.mark.usefixtures("idle")
def test_a_wrong_call_is_2_and_nothing_is_measured(argv: tuple[str, ...], named: str, here: Path) -> None:
    (here / "folder").mkdir()
    np.savez(here / "many.npz", x=models.normal(8, 4))
    before = {f.name: f.read_bytes() for f in here.iterdir() if f.is_file()}
    ended = called(*argv)
    assert ended.code == 2, ended.err
    assert re.search(named, ended.err)
    assert not ended.out
    assert {f.name: f.read_bytes() for f in here.iterdir() if f.is_file()} == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("nowhere.onnx",), "nowhere.onnx"),
        (("one.npy",), "one.npy"),
        (("folder",), "folder"),
        (("n" * 300 + ".onnx",), "nnn"),
        (("model.onnx", "nowhere.onnx"), "nowhere.onnx"),
        (("model.onnx", "--input", "x=nowhere.npy"), "nowhere.npy"),
        (("model.onnx", "--input", "x=model.onnx"), "model.onnx"),
        (("model.onnx", "--input", "x=pickled.npy"), "pickled.npy"),
        (("model.onnx", "--input", "x=wide.npy"), "'x'"),
        (("model.onnx", "--input", "x=double.npy"), "float64"),
        (("model.onnx", "--data", "pickled.npy"), "pickled.npy"),
        (("model.onnx", "--data", "empty"), "empty"),
        (("words.onnx",), "'words'"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, tuple) else "",
)
@pytest.mark.usefixtures("idle")
def test_a_bad_model_or_bad_data_is_3_and_nothing_is_measured(argv: tuple[str, ...], named: str, here: Path) -> None:
    for folder in ("folder", "empty"):
        (here / folder).mkdir()
    np.save(here / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(here / "wide.npy", models.normal(1, 5))
    np.save(here / "double.npy", models.normal(1, 4).astype(np.float64))
    stubs.saved(here / "words.onnx", "g (string[N] words) => (string[N] y) { y = Identity(words) }")
    ended = called("profile", *argv)
    assert ended.code == 3
    assert ended.err.startswith("edgeopt: ")
    assert named in ended.err
    assert not ended.out


@pytest.mark.usefixtures("idle")
def test_an_archive_in_the_place_of_an_array_is_refused_and_closed(here: Path) -> None:
    np.savez(here / "several.npz", a=models.normal(1, 4))
    ended = called("profile", "model.onnx", "--input", "x=several.npz")
    gc.collect()  # an open file is a ResourceWarning, which fails this test
    assert ended.code == 3
    assert "several.npz" in ended.err


@pytest.mark.usefixtures("idle")
def test_dimensions_that_vary_and_have_no_size_are_named_with_the_remedy(here: Path) -> None:
    stubs.saved(here / "m.onnx", "g (float[B,S] x) => (float[B,S] y) { y = Relu(x) }")
    ended = called("profile", "m.onnx")
    assert ended.code == 2
    assert "S (dimension 1 of 'x')" in ended.err
    assert "--dim S=SIZE" in ended.err


@pytest.mark.parametrize("data", ["empty", "prose.py"])
@pytest.mark.usefixtures("idle")
def test_a_message_about_data_names_the_option_that_was_given(data: str, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "prose.py").write_text("no data", encoding="utf-8")
    ended = called("profile", "model.onnx", "--data", data)
    assert data in ended.err
    assert "--calib" not in ended.err  # an option of another command


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("argv", [("--dim", "QQ=1"), ("--preset", "zzz"), ("--provider", "zzz")])
def test_a_list_of_what_is_known_is_a_sentence_of_its_own(argv: tuple[str, str], here: Path) -> None:
    assert re.search(r"[.;:!?] Known: ", called("profile", "model.onnx", *argv).err)


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat"])
@pytest.mark.skipif(not Path("/bin/true").exists(), reason="no /bin/true here")
def test_an_interpreter_that_is_none_is_named(program: str, here: Path) -> None:
    ended = called("profile", "model.onnx", "--python", program)
    assert ended.code in (2, 3)
    assert f"--python {program}" in ended.err


# settings that fail beside others


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A good model and one with an unknown operator, each on a provider that is there and one that is not."""
    folder = tmp_path_factory.mktemp("failing")
    pair = stubs.dense(folder / "model.onnx"), stubs.saved(folder / "custom.onnx", stubs.CUSTOM)
    providers = ("--provider", "cpu", "--provider", "tensorrt")
    return Run(called("profile", *pair, *SHORT, *providers, "--report", folder / "results.json"), folder)


def test_a_setting_that_fails_is_3_and_the_others_are_shown(failing: Run) -> None:
    assert failing.ended.code == 3
    assert failing.ended.out.count("FAILED") == 3
    assert "p50" in failing.ended.out
    assert "FAILED model cpu" not in failing.ended.out


def test_a_setting_that_fails_is_in_the_report_with_its_error(failing: Run) -> None:
    found = {m.setting.label: m for m in failing.results.measured}
    assert found["model cpu"].error is None
    assert found["model cpu"].latency is not None
    assert "Bogus" in str(found["custom cpu"].error)
    assert "pip install onnxruntime-gpu" in str(found["model tensorrt"].error)
    assert all(found[label].latency is None for label in ("custom cpu", "model tensorrt", "custom tensorrt"))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_the_error_of_a_setting(form: str, failing: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Bogus" in shown(failing.results, form, monkeypatch)


def test_csv_and_markdown_are_nothing_else_after_a_failure(failing: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(csv.DictReader(shown(failing.results, "csv", monkeypatch).splitlines()))
    assert [bool(r["error"]) for r in rows] == [False, True, True, True]
    text = shown(failing.results, "markdown", monkeypatch)
    assert all(line.startswith("|") for line in text.splitlines() if line and not line.startswith("FAILED"))


# names


ODD = ("a b é.onnx", "-dash.onnx", "mark[up]|`x`.onnx")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Files with odd names, called from their folder."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ODD:
        stubs.saved(folder / name, stubs.RELU)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return Run(called("profile", *SHORT, "--report", "results.json", "--", *ODD), folder)
    finally:
        os.chdir(before)


def test_a_file_may_be_called_anything(odd: Run) -> None:
    assert odd.ended.code == 0, odd.ended.err
    assert [m.setting.model for m in odd.results.measured] == list(ODD)
    assert all(Path(name).stem in odd.ended.out for name in ODD)
    with np.load(odd.folder / "results.npz", allow_pickle=False) as arrays:
        assert {f"{Path(name).stem}/times_ns" for name in ODD} <= set(arrays.files)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A model whose node, input and file have control characters in their names, and one name is very long."""
    import onnx

    folder = tmp_path_factory.mktemp("evil")
    made = onnx.load(stubs.saved(folder / "m.onnx", stubs.RELU))
    made.graph.input[0].name = made.graph.node[0].input[0] = "in\x1b[2J\nput"
    made.graph.node[0].name = "no\x1b]0;title\x07de\n" + "n" * 3000
    (folder / "evil\x1b[31m\nname.onnx").write_bytes(made.SerializeToString())
    return profile(folder / "evil\x1b[31m\nname.onnx", seconds=0.1, processes=1)


@pytest.mark.parametrize("form", FORMATS)
def test_control_characters_of_a_name_do_not_reach_the_terminal(
    form: str, evil: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)  # as on a terminal
    text = shown(evil, form, monkeypatch, "--ops")
    assert evil.measured[0].latency is not None
    assert not set(text) & set("\x1b\x07\r\b")


def test_a_name_of_many_lines_does_not_break_a_markdown_table(evil: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(evil, "markdown", monkeypatch, "--ops")
    assert all(line.startswith("|") and line.endswith("|") for line in text.splitlines() if line)


def test_a_very_long_name_does_not_fill_the_screen(evil: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(evil, "table", monkeypatch, "--ops").splitlines()) < 60  # 27 lines with a short name


@pytest.mark.usefixtures("idle")
def test_control_characters_of_a_file_do_not_reach_the_terminal_in_a_message(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)  # as on a terminal
    ended = called("profile", "gone\x1b[31m.onnx")
    assert ended.code == 3
    assert "\x1b" not in ended.err


# Ctrl-C


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text(encoding="ascii").split())
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
@pytest.mark.parametrize("whole", [False, True], ids=["to the process", "to its group, as a terminal does"])
def test_ctrl_c_is_130_and_leaves_neither_workers_nor_files(whole: bool, here: Path) -> None:
    (here / "room").mkdir()
    before = {f.name for f in here.iterdir()}
    command = [sys.executable, "-m", "edgeopt", "profile", "model.onnx", "--seconds", "60", "--report", "r.json"]
    started = subprocess.Popen(
        command,
        cwd=here,
        env={**os.environ, "TMPDIR": str(here / "room")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 60
        while not (workers := children(started.pid)) and started.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(0.5)
        workers = children(started.pid) or workers
        (os.killpg if whole else os.kill)(started.pid, signal.SIGINT)
        out, err = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            started.kill()
    assert workers
    assert started.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not out
    assert not list((here / "room").iterdir())
    assert {f.name for f in here.iterdir()} == before
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
