"""The ways of `edgeopt quantize` to round, clip, equalize and smooth, and the front of its search."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edgeopt.ptq.reconstruct import ROUNDERS
from edgeopt.quantization.moves import MOVES, Move
from tests import models
from tests.cli.test_cli import STATIC, Run, here, names, run  # noqa: F401  (fixtures)

GOOD = ("quantize", "model.onnx", "--calib", "x.npy", *STATIC)
HIGH = (*GOOD, "--effort", "high", "--budget", "20s")
WAYS = {
    **{f"--rounding {r}": ("--rounding", r) for r in ROUNDERS},
    "--clip-weights": ("--clip-weights",),
    "--equalize": ("--equalize",),
    "--smooth 0": ("--smooth", "0"),
    "--smooth 1": ("--smooth", "1"),
    "all": ("--rounding", "adaround", "--clip-weights", "--equalize", "--smooth", "0.5"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_a_valid_model_near_the_float_one(way: str, run: Run, here: Path) -> None:  # noqa: F811
    ended = run(*GOOD, *WAYS[way], "--format", "json")
    assert ended.code == 0, ended.err
    onnx.checker.check_model(str(here / "model.int8.onnx"), full_check=True)
    report = json.loads(ended.out)
    assert report["mode"] == "static" and report["outputs"][0]["sqnr_db"] > 20
    assert names(here) == {"model.onnx", "x.npy", "model.int8.onnx"}


@pytest.mark.parametrize("read", ["x.npy", "samples/0.npy", "model.onnx", "recipe.toml"])
def test_a_report_never_replaces_what_is_read(read: str, run: Run, here: Path) -> None:  # noqa: F811
    (here / "samples").mkdir()
    (here / "samples" / "0.npy").write_bytes((here / "x.npy").read_bytes())
    (here / "recipe.toml").write_text("# mine")
    before = (here / read).read_bytes()
    calib = "samples" if read.startswith("samples") else "x.npy"
    recipe = ("--recipe", "recipe.toml") if read == "recipe.toml" else ()
    ended = run("quantize", "model.onnx", "--calib", calib, "--no-measure", *recipe, "--report", read)
    assert ended.code == 2 and f"{read}: is what the command reads" in ended.err
    assert (here / read).read_bytes() == before


@pytest.mark.parametrize("way", ["--rounding stochastic", "--rounding adaround", "all"])
def test_the_same_call_gives_the_same_bytes(way: str, run: Run, here: Path) -> None:  # noqa: F811
    for output in ("a.onnx", "b.onnx"):
        assert run(*GOOD, *WAYS[way], "-o", output).code == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()


def test_roundings_differ_in_what_they_write(run: Run, here: Path) -> None:  # noqa: F811
    for rounding in ("nearest", "stochastic"):
        assert run(*GOOD, "--rounding", rounding, "-o", f"{rounding}.onnx").code == 0
    assert (here / "nearest.onnx").read_bytes() != (here / "stochastic.onnx").read_bytes()


def test_the_default_rounding_is_gptq_and_the_nearest_with_effort_fast(run: Run, here: Path) -> None:  # noqa: F811
    for effort, rounding in (("normal", "gptq"), ("fast", "nearest")):
        assert run(*GOOD, "--effort", effort, "-o", "a.onnx", "--force").code == 0
        assert run(*GOOD, "--effort", effort, "--rounding", rounding, "-o", "b.onnx", "--force").code == 0
        assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        *((("--smooth", x), "--smooth") for x in ("nan", "2", "-0.1", "inf", "-inf", "much", "")),
        (("--rounding", "nerest"), "nearest"),
        (("--rounding", ""), "--rounding"),
        (("--pareto", "front"), "--effort high"),
        (("--pareto", "x.npy", "--effort", "high"), "x.npy"),
        (("--pareto", "x.npy/front", "--effort", "high"), "x.npy"),
        (("--pareto", "n" * 300, "--effort", "high"), "nnn"),
        (("--budget", "0", "--effort", "high"), "--budget"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, tuple) else "",
)
def test_a_wrong_choice_is_2_says_what_is_wrong_and_writes_nothing(
    argv: tuple[str, ...],
    named: str,
    run: Run,  # noqa: F811
    here: Path,  # noqa: F811
) -> None:
    ended = run(*GOOD, *argv)
    assert ended.code == 2
    assert named in ended.err
    assert not ended.out
    assert names(here) == {"model.onnx", "x.npy"}


def test_a_front_is_written_beside_the_result_and_told_on_stderr(run: Run, here: Path) -> None:  # noqa: F811
    ended = run(*HIGH, "--pareto", "deep/front", "--format", "json")
    assert ended.code == 0, ended.err
    rows = json.loads((here / "deep" / "front" / "pareto.json").read_text(encoding="utf-8"))
    assert names(here / "deep" / "front") == {r["file"] for r in rows} | {"pareto.json", "pareto.svg"}
    assert names(here) == {"model.onnx", "x.npy", "model.int8.onnx", "deep"}
    assert json.loads(ended.out)["mode"].startswith("static")
    assert all(f"pareto: {r['file']}" in ended.err for r in rows)
    for r in rows:
        onnx.checker.check_model(str(here / "deep" / "front" / r["file"]), full_check=True)


def test_an_interrupted_search_is_130_and_leaves_its_best_so_far_and_a_journal_with_which_it_goes_on(
    run: Run,  # noqa: F811
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("edgeopt.quantization.search.MOVES", (*MOVES[:5], Move("interrupted", interrupt)))
        assert run(*HIGH).code == 130
    assert names(here) == {"model.onnx", "x.npy", "model.int8.onnx", "model.int8.onnx.search.jsonl"}
    ended = run(*HIGH)
    assert ended.code == 0, ended.err
    assert "known from before" in ended.err
    assert names(here) == {"model.onnx", "x.npy", "model.int8.onnx"}


def test_a_search_whose_front_cannot_be_written_at_the_end_says_so_without_a_traceback(
    run: Run,  # noqa: F811
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeopt.quantization.front.picture", full)
    ended = run(*HIGH, "--pareto", "front")
    assert ended.code in (2, 3)
    assert ended.err.splitlines()[-1].startswith("edgeopt: ")


@pytest.mark.parametrize("way", ["--equalize", "--smooth 1", "all"])
def test_a_model_with_nothing_to_quantize_is_no_traceback(way: str, run: Run, here: Path) -> None:  # noqa: F811
    text = "g (float[N,4] x) => (float[N,4] y) { a = Sin(x)  y = Cos(a) }"
    (here / "model.onnx").write_bytes(models.tiny.proto(text).SerializeToString())
    ended = run("quantize", "model.onnx", "--calib", "x.npy", "--no-measure", *WAYS[way])
    assert ended.code == 0, ended.err
    ended = run("quantize", "model.onnx", "--calib", "x.npy", "--mode", "static", "--force", *WAYS[way])
    assert ended.code != 0 and ended.err.splitlines()[-1].startswith("edgeopt: ")
