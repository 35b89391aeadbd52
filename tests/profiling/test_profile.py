"""Measurements from Python: what the document holds, what is kept of a failure, and how outputs are compared."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.errors import DataError, ModelError, UsageError
from edgeopt.listener import Listener
from edgeopt.options.profile import Profile
from edgeopt.profiling.arms import wanted
from edgeopt.profiling.cases import cases
from edgeopt.profiling.profile import compare, profile
from edgeopt.profiling.results import Comparison, Results, load
from tests import models
from tests.models import Ears
from tests.profiling import stubs

SHORT = {"seconds": 0.1, "processes": 1}


@dataclasses.dataclass(frozen=True)
class Run:
    """A measurement of two numbers of threads in two processes each, with its files."""

    results: Results
    report: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    model = stubs.dense(folder / "model.onnx")
    report = folder / "results.json"
    return Run(profile(model, threads=(1, 2), seconds=0.2, processes=2, report=report), report)


# the document


def test_the_report_is_what_the_call_returned(run: Run) -> None:
    assert load(run.report) == run.results


def test_every_setting_has_every_part_and_no_error(run: Run) -> None:
    assert [m.setting.label for m in run.results.measured] == ["threads=1", "threads=2"]
    for m in run.results.measured:
        assert m.error is None
        assert None not in (m.latency, m.cold, m.memory, m.size, m.placement, m.ops)
        assert m.setting.onnxruntime
        assert m.setting.shapes == {"x": (1, 4)}


def test_the_times_in_the_npz_are_the_runs_and_blocks_of_the_document(run: Run) -> None:
    assert run.results.raw == "results.npz"
    with np.load(run.report.parent / run.results.raw, allow_pickle=False) as arrays:
        assert len(arrays.files) == 2 * len(run.results.measured)
        for m in run.results.measured:
            times, block = arrays[f"{m.setting.label}/times_ns"], arrays[f"{m.setting.label}/block"]
            assert m.latency is not None
            assert len(times) == len(block) == m.latency.runs
            assert np.bincount(block).tolist() == [b.runs for b in m.latency.blocks]
            medians = [np.median(times[block == i]) / 1e6 for i in range(len(m.latency.blocks))]
            # a double holds these nanoseconds exactly; the division by 1e6 rounds once
            assert medians == pytest.approx([b.median_ms for b in m.latency.blocks], rel=1e-12)


def test_the_figures_agree_with_each_other(run: Run) -> None:
    for m in run.results.measured:
        x = m.latency
        assert x is not None
        assert x.processes == 2 == len({b.process for b in x.blocks})
        assert x.p50_ms.low <= x.p50_ms.value <= x.p50_ms.high
        assert x.p50_ms.value == pytest.approx(np.median([b.median_ms for b in x.blocks]), rel=1e-12)
        assert 0 < x.min_ms <= x.p50_ms.value
        assert x.contended == sum(b.contended for b in x.blocks)


def test_the_nodes_and_the_time_outside_of_them_make_the_wall_time(run: Run) -> None:
    for m in run.results.measured:
        assert m.ops is not None
        rest = m.ops.unexplained_ms / m.ops.wall_ms
        # sums of a few doubles of about 1
        assert sum(t.share for t in m.ops.types) + rest == pytest.approx(1, abs=1e-9)
        assert sum(n.share for n in m.ops.nodes) + rest == pytest.approx(1, abs=1e-9)


def test_the_size_of_the_file_is_the_file_s(run: Run) -> None:
    size = run.results.measured[0].size
    assert size is not None
    assert size.file_bytes == (run.report.parent / "model.onnx").stat().st_size
    assert size.parameters == 20
    assert size.macs == 16


def test_the_peak_of_memory_is_at_least_what_is_there(run: Run) -> None:
    for m in run.results.measured:
        assert m.memory is not None
        assert all(p.peak_bytes >= 0.9 * p.rss_bytes for p in m.memory.arena)  # the two are read one after the other


def test_multiply_accumulates_of_constant_weights_are_counted(tmp_path: Path) -> None:
    # ONNX Runtime packs constant weights, and its trace then leaves them out of a node's inputs
    text = "g (float[N,4] x) => (float[N,2] y) { h = MatMul(x, w)  y = Gemm(h, v) }"
    file = stubs.saved(tmp_path / "m.onnx", text, w=models.normal(4, 8), v=models.normal(8, 2))
    size = profile(file, **SHORT).measured[0].size
    assert size is not None
    assert size.macs == 4 * 8 + 8 * 2


def test_a_rate_bounds_the_throughput(tmp_path: Path) -> None:
    found = profile(stubs.dense(tmp_path / "m.onnx"), rate=50.0, **SHORT).measured[0]
    assert found.latency is not None
    assert found.setting.rate == 50
    # the schedule is absolute, so that it is not above; a busy machine may lose some
    assert 25 < found.latency.throughput_per_s <= 50.5


def test_a_model_without_inputs_is_measured(tmp_path: Path) -> None:
    text = "g () => (float[4] y) { y = RandomNormal <shape = [4]> () }"
    found = profile(stubs.saved(tmp_path / "m.onnx", text), **SHORT).measured[0]
    assert found.error is None
    assert found.latency is not None


# inputs


def told(model: Path, folder: Path, **choices: object) -> tuple[dict[str, tuple[int, ...]], str, list[str]]:
    """(shapes, what the inputs are, notes) of the only setting, without a measurement."""
    options, ears = Profile(**choices), Ears()  # type: ignore[arg-type]
    (case,) = cases(wanted(options, [model]), options, folder, ears.listener)
    return dict(case.shapes), case.told, ears.notes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return stubs.dense(tmp_path / "model.onnx")


def test_samples_of_a_npy_file_are_fed_one_by_one(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", models.normal(30, 4))
    shapes, words, _ = told(model, tmp_path, data=tmp_path / "x.npy")
    assert shapes == {"x": (1, 4)}
    assert words.startswith("30 samples of ")


def test_images_are_fed_as_the_model_wants_them(tmp_path: Path) -> None:
    (tmp_path / "c.onnx").write_bytes(models.convolution())
    models.pictures(tmp_path / "images", 3)
    shapes, words, _ = told(tmp_path / "c.onnx", tmp_path, data=tmp_path / "images", preprocess="unit")
    assert shapes == {"x": (1, 3, 8, 8)}
    assert words.startswith("3 samples of ")


def test_a_given_array_is_fed_as_it_is(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", models.normal(7, 4))
    shapes, words, _ = told(model, tmp_path, inputs={"x": tmp_path / "x.npy"})
    assert shapes == {"x": (7, 4)}
    assert "x.npy" in words


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_given_array_that_is_not_finite_is_told(value: float, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 4), value, np.float32))
    _, words, notes = told(model, tmp_path, inputs={"x": tmp_path / "x.npy"})
    assert any("finite" in line or "NaN" in line for line in [words, *notes])


def test_every_combination_has_a_label_of_what_differs() -> None:
    options = Profile(threads=(1, 2), batch=(1, 4), dims={"S": (3, 5), "T": (7,)})
    labels = [a.label for a in wanted(options, [Path("m.onnx")])]
    assert len(labels) == len(set(labels)) == 8
    assert labels[0] == "threads=1 batch=1 S=3"


def test_two_files_of_one_name_have_two_labels() -> None:
    labels = [a.label for a in wanted(Profile(), [Path("a/m.onnx"), Path("b/m.onnx")])]
    assert labels == ["a/m.onnx", "b/m.onnx"]


def test_swept_dimensions_are_the_shapes(tmp_path: Path) -> None:
    file = stubs.saved(tmp_path / "m.onnx", "g (float[B,S] x) => (float[B,S] y) { y = Relu(x) }")
    options = Profile(batch=(1, 4), dims={"S": (3, 5)})
    found = cases(wanted(options, [file]), options, tmp_path, Listener())
    assert [c.shapes["x"] for c in found] == [(1, 3), (1, 5), (4, 3), (4, 5)]


# what cannot be


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"seconds": 0.0}, "seconds 0"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"processes": 0}, "processes 0"),
        ({"threads": ()}, "threads"),
        ({"threads": (1, 0)}, "threads 0: at least 1"),
        ({"batch": (0,)}, "batch 0"),
        ({"dims": {"N": (0,)}}, "dims N 0"),
        ({"rate": -1.0}, "rate -1"),
        ({"rate": float("nan")}, "rate nan"),
        ({"margin": 0.0}, "margin 0"),
        ({"margin": float("nan")}, "margin nan"),
        ({"sustained_s": 0.0}, "sustained_s 0"),
        ({"trials": 0}, "trials 0"),
        ({"preset": "prr"}, "did you mean 'pr'"),
        ({"level": "al"}, "did you mean 'all'"),
        ({"providers": ()}, "provider"),
        ({"data": "x.npy", "inputs": {"x": Path("x.npy")}}, "leave inputs out"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_refused_at_once(choices: dict[str, object], named: str, model: Path) -> None:
    with pytest.raises(UsageError) as caught:
        profile(model, **choices)
    assert named in str(caught.value)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UsageError, match=r"edgeopt profile model\.onnx"):
        profile()


def test_a_single_setting_cannot_be_compared(model: Path) -> None:
    with pytest.raises(UsageError, match="two"):
        compare(model)


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        profile(tmp_path / "gone.onnx")


def test_a_model_that_takes_words_is_refused_by_the_input(tmp_path: Path) -> None:
    file = stubs.saved(tmp_path / "m.onnx", "g (string[N] words) => (string[N] y) { y = Identity(words) }")
    with pytest.raises(ModelError, match="'words'"):
        profile(file)


def test_a_pickled_array_is_refused(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        profile(model, inputs={"x": tmp_path / "x.npy"})


def test_weights_beside_the_model_are_counted_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(models.normal(4, 4).tobytes())
    (tmp_path / "m.onnx").write_bytes(models.external("w.data"))
    size = profile(tmp_path / "m.onnx", **SHORT).measured[0].size
    assert size is not None
    assert size.file_bytes == (tmp_path / "m.onnx").stat().st_size + 64
    with pytest.raises(UsageError, match=r"w\.data"):
        profile(tmp_path / "m.onnx", report=tmp_path / "w.data", **SHORT)
    assert (tmp_path / "w.data").read_bytes() == models.normal(4, 4).tobytes()


# failures in the middle


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models, of which the worker of `doomed` is killed at its third timed block."""
    folder = tmp_path_factory.mktemp("killed")
    python = stubs.interpreter(folder / "python", stubs.KILLED, blocks=2, model="doomed.onnx")
    pair = stubs.dense(folder / "model.onnx"), stubs.dense(folder / "doomed.onnx")
    report = folder / "results.json"
    return Run(compare(*pair, python=str(python), report=report, **SHORT), report)


def test_what_was_measured_before_the_worker_was_killed_is_kept(killed: Run) -> None:
    model, doomed = killed.results.measured
    assert doomed.error is not None
    assert "SIGKILL" in doomed.error
    assert doomed.latency is not None
    assert len(doomed.latency.blocks) == 2
    assert killed.results.failed
    assert model.error is None
    assert model.latency is not None
    assert len(model.latency.blocks) >= 3


def test_the_report_of_a_killed_worker_is_whole(killed: Run) -> None:
    assert load(killed.report) == killed.results
    with np.load(killed.report.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert {"model/times_ns", "doomed/times_ns"} <= set(arrays.files)


def test_rounds_that_both_ran_are_compared_after_a_kill(killed: Run) -> None:
    (c,) = killed.results.comparisons
    assert c.other == "doomed"
    assert c.ratio.low <= c.ratio.value <= c.ratio.high


def test_a_worker_that_hangs_is_ended_by_the_time_limit(tmp_path: Path) -> None:
    python = stubs.interpreter(tmp_path / "python", stubs.HANGS, blocks=-1, model="")
    found = profile(stubs.dense(tmp_path / "m.onnx"), python=str(python), timeout_s=1.0, **SHORT).measured[0]
    assert found.error is not None
    assert "within 1 s" in found.error
    assert found.latency is None


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.saved(tmp_path / "custom.onnx", stubs.CUSTOM)
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path / "room"))
    found = profile(tmp_path / "custom.onnx", **SHORT)
    assert found.failed
    assert not list((tmp_path / "room").iterdir())


# outputs


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Comparison]:
    """One Gemm against models of the same input, by name."""
    folder = tmp_path_factory.mktemp("compared")
    texts = {"relu": stubs.RELU, "two": stubs.TWO, "wide": stubs.WIDE, "random": stubs.RANDOM, "words": stubs.WORDS}
    others = [stubs.saved(folder / f"{name}.onnx", text) for name, text in texts.items()]
    found = compare(stubs.dense(folder / "model.onnx"), *others, **SHORT)
    return {c.other: c for c in found.comparisons}


@pytest.mark.parametrize(
    ("other", "matched", "words"),
    [
        ("relu", True, "other names"),
        ("two", False, "numbers differ"),
        ("wide", False, "shape [1, 8]"),
        ("random", True, "random gives other outputs for the same input"),
        ("words", False, "not compared"),
    ],
)
def test_outputs_that_do_not_match_are_told(
    other: str, matched: bool, words: str, compared: dict[str, Comparison]
) -> None:
    c = compared[other]
    assert words in " ".join(c.notes)
    assert (c.outputs is not None) == matched
    assert c.ratio.value > 0


def test_no_note_calls_a_reference_a_float_model(compared: dict[str, Comparison]) -> None:
    # the reference of `compare` is whatever came first
    assert not any("float model" in line for c in compared.values() for line in c.notes)


def test_outputs_that_are_all_nan_are_not_called_exact(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 4), np.nan, np.float32))
    pair = stubs.dense(tmp_path / "a.onnx"), stubs.saved(tmp_path / "b.onnx", stubs.RANDOM)
    (c,) = compare(*pair, inputs={"x": tmp_path / "x.npy"}, **SHORT).comparisons
    assert c.outputs is None or c.notes


@pytest.mark.parametrize("text", [stubs.RANDOM, stubs.RELU], ids=["random", "not"])
def test_a_model_whose_output_is_random_is_told(text: str, tmp_path: Path) -> None:
    found = profile(stubs.saved(tmp_path / "m.onnx", text), **SHORT)
    assert not found.failed
    assert any("other outputs" in line for line in found.notes) is (text == stubs.RANDOM)


def test_an_fp16_model_is_fed_what_it_takes(tmp_path: Path) -> None:
    text = "g (float16[N,4] x) => (float16[N,4] y) { y = Relu(x) }"
    file = stubs.saved(tmp_path / "m.onnx", text)
    assert onnx.load(file).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    found = profile(file, **SHORT).measured[0]
    assert found.error is None
    assert found.latency is not None


def test_models_may_be_given_by_name() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        edgeopt.profile(models=["nowhere.onnx"], preset="quick")
