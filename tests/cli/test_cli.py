"""The command line: exit codes, what goes to stdout and what to stderr, names of files, the same bytes twice, and
what is not imported.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.cli import main
from tests import models, tiny

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits"
STATIC = ("--mode", "static", "--include", "Gemm", "--no-measure")


@dataclass(frozen=True)
class Ended:
    """What a call of the command line left: exit code, stdout, stderr."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with model.onnx (one Gemm) and x.npy (30 samples for it)."""
    (tmp_path / "model.onnx").write_bytes(models.dense())
    np.save(tmp_path / "x.npy", models.normal(30, 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("targets")` calls the command line in this process, in the folder `here`."""

    def call(*argv: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        out, err = capsys.readouterr()
        return Ended(ended.value.code, out, err)

    return call


def python(*argv: str, cwd: Path) -> Ended:
    """A Python process of its own."""
    made = subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    return Ended(made.returncode, made.stdout, made.stderr)


def names(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()}


# a real model, once


@dataclass(frozen=True)
class Real:
    """One `edgeopt quantize digits.onnx --format json --report report.json` in a process of its own."""

    folder: Path
    ended: Ended


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("real")
    shutil.copy(DIGITS / "digits.onnx", folder)
    command = ("-m", "edgeopt", "quantize", "digits.onnx", "--calib", str(DIGITS / "calib"), "--no-measure")
    return Real(folder, python(*command, "--format", "json", "--report", "report.json", cwd=folder))


def test_python_dash_m_quantizes_a_real_model(real: Real) -> None:
    assert real.ended.code == 0, real.ended.err
    assert names(real.folder) == {"digits.onnx", "digits.int8.onnx", "report.json"}
    onnx.checker.check_model(str(real.folder / "digits.int8.onnx"), full_check=True)


def test_json_on_stdout_is_all_of_stdout_and_has_its_schema(real: Real) -> None:
    report = json.loads(real.ended.out)
    assert report["schema"] == "edgeopt.quantization.report/1"
    assert report["output_bytes"] == (real.folder / "digits.int8.onnx").stat().st_size
    assert report["input_bytes"] == (DIGITS / "digits.onnx").stat().st_size
    assert report["outputs"][0]["output"] == "logits"
    assert report["outputs"][0]["agreement"] >= 0.9
    assert report["samples"]["calibration"] > 100


def test_the_report_file_is_what_stdout_says(real: Real) -> None:
    assert json.loads((real.folder / "report.json").read_text(encoding="utf-8")) == json.loads(real.ended.out)


def test_every_note_of_the_report_is_on_stderr(real: Real) -> None:
    notes = json.loads(real.ended.out)["notes"]
    assert any(note.startswith("preprocessing: from ") for note in notes)
    lines = real.ended.err.splitlines()
    assert set(notes) <= set(lines)
    assert len(lines) == len(notes)  # and nothing else: no warnings, no log lines


def test_the_same_input_gives_the_same_bytes_again_and_under_another_name(real: Real, run: Run, here: Path) -> None:
    shutil.copy(DIGITS / "digits.onnx", here / "other.onnx")
    ended = run("quantize", "other.onnx", "--calib", str(DIGITS / "calib"), "--no-measure", "-o", "twice.onnx")
    assert ended.code == 0
    assert (here / "twice.onnx").read_bytes() == (real.folder / "digits.int8.onnx").read_bytes()


# names of files


@pytest.mark.parametrize(
    ("mode", "made"),
    [
        ("static", "model.int8.onnx"),
        ("dynamic", "model.int8.onnx"),
        ("auto", "model.int8.onnx"),
        ("fp16", "model.fp16.onnx"),
    ],
)
def test_the_output_lies_beside_the_model_by_default(mode: str, made: str, run: Run, here: Path) -> None:
    (here / "deep").mkdir()
    shutil.move(here / "model.onnx", here / "deep")
    ended = run("quantize", "deep/model.onnx", "--calib", "x.npy", "--mode", mode, "--include", "Gemm", "--no-measure")
    assert ended.code == 0, ended.err
    assert names(here / "deep") == {"model.onnx", made}
    assert names(here) == {"deep", "x.npy"}


def test_o_names_the_output(run: Run, here: Path) -> None:
    assert run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, "-o", "small.onnx").code == 0
    assert names(here) == {"model.onnx", "x.npy", "small.onnx"}


@pytest.mark.parametrize("victim", ["model.onnx", "small.onnx", "x.npy"])
def test_a_report_overwrites_neither_the_model_nor_the_result_nor_the_samples(
    victim: str, run: Run, here: Path
) -> None:
    before = {name: (here / name).read_bytes() for name in names(here)}
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, "-o", "small.onnx", "--report", victim)
    assert ended.code == 2
    assert victim in ended.err
    assert {name: (here / name).read_bytes() for name in names(here)} == before


@pytest.mark.parametrize("place", ["nowhere/report.json", "x.npy/report.json", "folder"])
def test_a_report_that_cannot_be_written_is_known_before_the_work(place: str, run: Run, here: Path) -> None:
    (here / "folder").mkdir()
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, "-o", "small.onnx", "--report", place)
    assert ended.code == 2
    assert place in ended.err
    assert names(here) == {"model.onnx", "x.npy", "folder"}


# exit codes


def test_done_is_0_and_the_table_ends_with_the_file(run: Run) -> None:
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *STATIC)
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith("wrote model.int8.onnx in ")
    assert "calibration: " in ended.err
    assert "calibration: " not in ended.out


@pytest.mark.parametrize(
    ("demand", "missed"),
    [(("--min-sqnr", "500"), "SQNR"), (("--min-agreement", "1.0"), "agreement"), (("--min-speedup", "1"), "speed-up")],
)
def test_a_missed_figure_is_1_and_the_file_is_written(
    demand: tuple[str, str], missed: str, run: Run, here: Path
) -> None:
    # the weights are coarse on purpose: an outlier in each column leaves few levels to the rest, so that some top-1
    # differ
    w = models.normal(4, 4)
    w[0] = 1000.0
    (here / "model.onnx").write_bytes(models.dense(w=w))
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, *demand)
    assert ended.code == 1
    assert f"MISSED: {missed}" in ended.out
    assert "model.int8.onnx" in names(here)


def test_a_met_figure_is_0(run: Run) -> None:
    assert (
        run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, "--min-sqnr", "20", "--min-agreement", "0.5").code
        == 0
    )


def test_a_share_that_the_samples_are_too_few_to_show_is_4_and_the_file_is_written(run: Run, here: Path) -> None:
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *STATIC, "--min-agreement", "0.999")
    assert ended.code == 4 and "NOT SHOWN: agreement 100.0% [" in ended.out and "MISSED" not in ended.out
    assert "model.int8.onnx" in names(here)


GOOD = ("quantize", "model.onnx", "--calib", "x.npy", *STATIC)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("quantise",), "Did you mean 'quantize'"),
        (("--bogus",), "--bogus"),
        (("quantize",), "MODEL"),
        (("quantize", "model.onnx"), "--calib"),
        (("quantize", "model.onnx", "--calib", "x.npy", "--random"), "--random"),
        ((*GOOD, "--calib", "nowhere"), "nowhere"),
        ((*GOOD, "--target", "cpu-arm"), "did you mean 'cpu-arm64'"),
        ((*GOOD, "--exclude", "Gem"), "did you mean 'Gemm'"),
        ((*GOOD, "--mode", "statik"), "static"),
        ((*GOOD, "--range", "max"), "minmax"),
        ((*GOOD, "--samples", "0"), "--samples"),
        ((*GOOD, "--samples", "many"), "--samples"),
        ((*GOOD, "--bits", "5"), "--bits"),
        ((*GOOD, "--prefer", "speed"), "--mode auto"),
        ((*GOOD, "--prefer", "sped"), "--prefer"),
        ((*GOOD, "--kind", "nothing=classes"), "no output of the model"),
        ((*GOOD, "--kind", "y=clases"), "--kind"),
        ((*GOOD, "--kind", "y"), "--kind"),
        ((*GOOD, "-o", "nowhere/small.onnx"), "nowhere"),
        ((*GOOD, "-o", "x.npy"), "is what the command reads"),
        *(
            ((*GOOD, "--max-ram", size), "--max-ram")
            for size in ("", "G", "2T", "nan", "inf", "1e400", "-1G", "0", "lots")
        ),
        *(((*GOOD, "--resize", side), "--resize") for side in ("", "wide", "nan", "inf", "0", "-5", "1,2,3", "2.5")),
        *(((*GOOD, "--crop", side), "--crop") for side in ("", "nan", "0x0", "-1x4", "1,2,3")),
        *(((*GOOD, "--mean", x), "--mean") for x in ("", "red", "nan")),
        ((*GOOD, "--std", "0"), "--std"),
        ((*GOOD, "--scale", "nan"), "--scale"),
        ((*GOOD, "--min-sqnr", "nan"), "--min-sqnr"),
        (("inspect",), "MODEL"),
        (("inspect", "model.onnx", "--dim", "N=many"), "--dim"),
        (("simplify", "model.onnx", "-o", "x.npy"), "--force"),
        (("targets", "--format", "xml"), "xml"),
    ],
    ids=lambda x: " ".join(x).removeprefix(" ".join(GOOD)) if isinstance(x, tuple) else "",
)
def test_a_wrong_call_is_2_and_says_what_is_wrong(argv: tuple[str, ...], named: str, run: Run, here: Path) -> None:
    ended = run(*argv)
    assert ended.code == 2
    assert named in ended.err
    assert not ended.out
    assert names(here) == {"model.onnx", "x.npy"}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("quantize", "nowhere.onnx", "--calib", "x.npy"), "nowhere.onnx"),
        (("quantize", "x.npy", "--calib", "x.npy"), "x.npy"),
        (("quantize", ".", "--calib", "x.npy"), "."),
        (("quantize", "/", "--calib", "x.npy"), "/"),
        (("quantize", "n" * 300, "--calib", "x.npy", "-o", "small.onnx"), "nnn"),
        (("quantize", "model.onnx", "--calib", "empty"), "empty"),
        (("quantize", "model.onnx", "--calib", "wide.npy"), "wide.npy"),
        (("inspect", "nowhere.onnx"), "nowhere.onnx"),
        (("inspect", "x.npy"), "x.npy"),
        (("simplify", "nowhere.onnx"), "nowhere.onnx"),
        (("simplify", "x.npy"), "x.npy"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, tuple) else "",
)
def test_a_bad_model_or_bad_data_is_3_and_nothing_is_written(
    argv: tuple[str, ...], named: str, run: Run, here: Path
) -> None:
    (here / "empty").mkdir()
    np.save(here / "wide.npy", models.normal(30, 5))
    ended = run(*argv)
    assert ended.code == 3
    assert named in ended.err
    assert ended.err.startswith("edgeopt: ")
    assert names(here) == {"model.onnx", "x.npy", "empty", "wide.npy"}


def test_an_interrupted_run_is_130_and_leaves_nothing(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeopt.quantization.check.compare", interrupt)
    ended = run(*GOOD)
    assert ended.code == 130
    assert "interrupted" in ended.err
    assert not ended.out
    assert names(here) == {"model.onnx", "x.npy"}


def test_a_real_ctrl_c_is_130_without_a_traceback(here: Path) -> None:
    (here / "slow.py").write_text(
        "import os, signal\nimport numpy as np\n"
        "def feeds():\n    for i in range(50):\n        if i == 20:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield {'x': np.zeros((1, 4), np.float32)}\n"
    )
    before = names(here)
    ended = python("-B", "-m", "edgeopt", "quantize", "model.onnx", "--calib", "slow:feeds", *STATIC, cwd=here)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert names(here) == before


# the rest of the commands


WEIGHTS = "-m edgeopt quantize model.onnx --random --mode dynamic --no-measure -o o.onnx"


@pytest.mark.parametrize(
    ("redirected", "told"),
    [("> /dev/full", "No space left"), (">&-", "stdout is closed"), ("| true", "Broken pipe")],
    ids=["full", "closed", "reader gone"],
)
def test_what_is_done_but_cannot_be_told_is_6_and_the_file_is_there(redirected: str, told: str, here: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    script = f"{sys.executable} {WEIGHTS} 2> err {redirected}; exit ${{PIPESTATUS[0]}}"
    made = subprocess.run(["bash", "-c", script], cwd=here, capture_output=True, text=True, check=False)
    last = (here / "err").read_text().splitlines()[-1]
    assert (made.returncode, told in last, "Traceback" in (here / "err").read_text()) == (6, True, False)
    assert (here / "o.onnx").is_file()


def test_a_report_that_fails_at_the_end_is_6_and_the_file_is_there(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise edgeopt.UsageError("report.json: no space")

    monkeypatch.setattr("edgeopt.cli.quantize.put", full)
    ended = run(*WEIGHTS.split()[2:], "--report", "report.json")
    assert (ended.code, "o.onnx is written, but --report is not" in ended.err) == (6, True)


def test_names_in_a_model_move_no_cursor_and_are_no_command(run: Run, here: Path) -> None:
    text = models.DENSE.replace("x) =>", "evil) =>").replace("(x,", "(evil,").replace("float[N,4] y", "float[N,4] y")
    made = tiny.proto(text, w=models.normal(4, 4), b=models.normal(4))
    for thing in (*made.graph.input, *made.graph.node):
        if hasattr(thing, "name") and thing.name == "evil":
            thing.name = "a\x1b[2J\n::error::b"
        if hasattr(thing, "input"):
            thing.input[:] = ["a\x1b[2J\n::error::b" if n == "evil" else n for n in thing.input]
    onnx.save(made, here / "evil.onnx")
    ended = run("inspect", "evil.onnx")
    assert ended.code == 0 and "\x1b" not in ended.out
    assert not any(line.strip().startswith("::") for line in ended.out.splitlines())


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    assert "edgeopt quantize model.onnx" in run().err


@pytest.mark.parametrize("command", [(), ("quantize",), ("inspect",), ("simplify",), ("targets",)])
def test_help_goes_to_stdout_with_an_example(command: tuple[str, ...], run: Run) -> None:
    ended = run(*command, "--help")
    assert ended.code == 0
    assert " ".join(["edgeopt", *command]) in ended.out
    assert "Example" in ended.out
    assert not ended.err


def test_the_version_is_the_package_s(run: Run) -> None:
    assert run("--version").out == f"edgeopt, version {edgeopt.__version__}\n"


def test_targets_as_json_are_every_target_by_name(run: Run) -> None:
    found = json.loads(run("targets", "--format", "json").out)
    assert {"cpu-arm64", "cpu-portable"} <= found.keys()
    assert all(t["sources"] for t in found.values())


def test_targets_as_a_table_are_every_target(run: Run) -> None:
    ended = run("targets")
    assert ended.code == 0
    assert all(name in ended.out for name in json.loads(run("targets", "--format", "json").out))


# imports


def imported(code: str, cwd: Path) -> set[str]:
    """The top-level modules in memory after `code`, in a process of its own."""
    ended = python("-c", f"import sys\n{code}\nprint('MODULES', *(m for m in sys.modules if '.' not in m))", cwd=cwd)
    assert ended.code == 0, ended.err
    return set(ended.out.rpartition("MODULES")[2].split())


def test_import_edgeopt_imports_nothing_heavy(tmp_path: Path) -> None:
    found = imported("import edgeopt", tmp_path)
    assert "edgeopt" in found
    assert not found & {"onnxruntime", "torch", "click", "rich", "onnx", "onnx_ir", "numpy", "pydantic", "PIL"}


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_the_help_imports_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    code = f"from edgeopt.cli import main\ntry:\n    main({argv})\nexcept SystemExit as e:\n    assert e.code == 0"
    found = imported(code, tmp_path)
    assert "click" in found
    assert not found & {"onnxruntime", "torch", "rich", "onnx", "onnx_ir", "numpy", "pydantic", "PIL"}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3, 0.8])
def test_a_signal_at_any_moment_is_130_without_a_traceback(delay: float, name: str, here: Path) -> None:
    code = "import edgeopt.__main__ as m; print('on', flush=True); m.run()"
    command = [sys.executable, "-c", code, *WEIGHTS.split()[2:]]
    started = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "on\n"
    time.sleep(delay)
    started.send_signal(getattr(signal, name))
    _, err = started.communicate(timeout=60)
    assert started.returncode in (0, 130) and "Traceback" not in err
    left = names(here) - {"model.onnx", "x.npy"}
    assert left <= {"o.onnx"}  # all of it, where the signal came between the file and the end, or nothing
    for file in left:
        onnx.checker.check_model(here / file, full_check=True)


def test_as_a_module_it_imports_nothing_from_the_working_directory(here: Path) -> None:
    (here / "onnx.py").write_text("raise SystemExit(7)\n")
    ended = python("-m", "edgeopt", "inspect", "model.onnx", cwd=here)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("ignored", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)"])
def test_a_signal_that_a_destructor_swallows_still_ends_the_command(ignored: str, here: Path) -> None:
    code = (
        f"import signal\n{ignored}"
        + """
import os, signal, sys, time
import edgeopt.__main__ as m
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
import edgeopt.cli
def main():
    Deaf()
    time.sleep(10)
    print("slept")
edgeopt.cli.main = main
m.run()
"""
    )
    ended = python("-c", code, cwd=here)
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")


def test_a_signal_waits_until_an_extension_is_imported(here: Path) -> None:
    code = """
import os, signal, time
import edgeopt.__main__ as m
import edgeopt.cli
class ExtensionFileLoader:
    def exec_module(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print("whole", flush=True)
def main():
    ExtensionFileLoader().exec_module()
    time.sleep(10)
    print("slept")
edgeopt.cli.main = main
m.run()
"""
    ended = python("-c", code, cwd=here)
    assert (ended.code, ended.out, ended.err) == (130, "whole\n", "interrupted\n")


@pytest.mark.parametrize("redirected", [">&-", "> /dev/full", "| true", "2> /dev/full", "2>&-"])
def test_a_stream_that_fails_changes_no_other_exit_code(redirected: str, here: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    script = f"{sys.executable} -m edgeopt quantize nowhere.onnx --random {redirected}; exit ${{PIPESTATUS[0]}}"
    made = subprocess.run(["bash", "-c", script], cwd=here, capture_output=True, text=True, check=False)
    assert made.returncode == 3 and "Traceback" not in made.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("quantize", "model.onnx", "--calib", "x.npy", "-o", "x.npy", "--force"),
        ("simplify", "model.onnx", "--data", "x.npy", "-o", "x.npy", "--force"),
        ("sensitivity", "model.onnx", "--calib", "x.npy", "--picture", "model.onnx", "--force"),
        ("data", "x.npy", "--model", "model.onnx", "--sheet", "model.onnx", "--force"),
        ("init", "model.onnx", "--calib", "x.npy", "-o", "model.onnx", "--force"),
    ],
    ids=lambda argv: " ".join(argv[:1] + argv[-2:-1]),
)
def test_what_a_command_reads_is_never_overwritten(argv: tuple[str, ...], run: Run, here: Path) -> None:
    before = {f.name: f.read_bytes() for f in here.iterdir()}
    ended = run(*argv)
    assert (ended.code, "is what the command reads" in ended.err) == (2, True)
    assert before == {f.name: f.read_bytes() for f in here.iterdir()}


def test_samples_that_show_nothing_are_refused(run: Run, here: Path) -> None:
    np.savez(here / "nan.npz", x=np.full((1, 4), np.nan, np.float32))
    np.savez(here / "empty.npz", x=np.zeros((0, 4), np.float32))
    assert run("simplify", "model.onnx", "--data", "nan.npz", "-o", "s.onnx").code == 3
    for name in ("nan.npz", "empty.npz"):
        ended = run("quantize", "model.onnx", "--calib", name, "--mode", "dynamic", "--no-measure", "-o", "q.onnx")
        assert ended.code == 3 and not (here / "q.onnx").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--mode", "static", "--bits", "4"), "--bits is of --mode weights"),
        (("--mode", "dynamic", "--io-types", "fp16"), "--io-types is of --mode fp16"),
    ],
)
def test_an_option_of_another_mode_is_refused(argv: tuple[str, ...], told: str, run: Run) -> None:
    ended = run("quantize", "model.onnx", "--calib", "x.npy", *argv)
    assert (ended.code, told in ended.err) == (2, True)


def test_a_missing_model_is_told_before_an_output_that_exists(run: Run, here: Path) -> None:
    (here / "modle.int8.onnx").write_bytes(b"old")
    ended = run("quantize", "modle.onnx", "--calib", "x.npy")
    assert ended.code == 3 and "did you mean 'model.onnx'" in ended.err
