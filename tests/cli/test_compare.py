"""`edgeopt compare`: a model with its int8 version and with itself, stored results, verdicts as exit codes, and
`edgeopt schema`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.profiling.results import Comparison, Results, load
from tests import models
from tests.cli.test_cli import DIGITS, Ended
from tests.profiling import stubs
from tests.profiling.stubs import SHORT, called


@dataclass(frozen=True)
class Run:
    """A call, with the document that it wrote."""

    ended: Ended
    report: Path

    @property
    def results(self) -> Results:
        return load(self.report)

    @property
    def comparison(self) -> Comparison:
        (found,) = self.results.comparisons
        return found


# measured


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits model against its int8 version, on samples that it was not calibrated with."""
    folder = tmp_path_factory.mktemp("digits")
    made = edgeopt.quantize(DIGITS / "digits.onnx", DIGITS / "calib", mode="static", measure=False)
    graph.write(made.model, folder / "digits.int8.onnx")
    pair = (DIGITS / "digits.onnx", folder / "digits.int8.onnx")
    report = folder / "results.json"
    return Run(called("compare", *pair, *SHORT, "--data", DIGITS / "test", "--report", report), report)


def test_runs_one_after_the_other_are_the_weaker_evidence(tmp_path: Path) -> None:
    model = DIGITS / "digits.onnx"
    made = Run(
        called("compare", model, model, "--sustained", "1s", "--report", tmp_path / "r.json"), tmp_path / "r.json"
    )
    assert not made.comparison.interleaved and made.comparison.ratio_uncontended is None
    assert "not interleaved: weaker evidence" in made.ended.out


def test_an_int8_model_is_compared_on_speed_size_and_outputs(digits: Run) -> None:
    assert digits.ended.code == 0, digits.ended.err
    c = digits.comparison
    assert (c.reference, c.other, c.interleaved) == ("digits", "digits.int8", True)
    assert c.outputs is not None
    (y,) = c.outputs
    assert y.output == "logits"
    assert y.sqnr_db is not None
    # 8 bits give 20 dB and more on this model, and as good as the same classes
    assert y.sqnr_db > 20
    assert y.cosine > 0.99
    assert y.agreement is not None
    assert y.agreement > 0.9
    assert c.file_ratio is not None
    assert 0.2 < c.file_ratio < 0.5  # int8 weights are a quarter, the rest is the graph
    assert not c.notes


def test_both_models_get_the_same_samples(digits: Run) -> None:
    a, b = (m.setting for m in digits.results.measured)
    assert a.inputs == b.inputs
    assert "samples of " in a.inputs


def test_the_table_of_a_comparison_has_every_figure(digits: Run) -> None:
    out = digits.ended.out
    c = digits.comparison
    assert "digits.int8 against digits" in out
    for fact in (
        c.verdict.upper(),
        "latency ratio",
        "speed-up",
        "file size ratio",
        "peak memory ratio",
        "SQNR",
        "top-1",
    ):
        assert fact in out


def test_the_speed_up_is_one_over_the_ratio(digits: Run) -> None:
    r = digits.comparison.ratio
    assert 0 < r.low <= r.value <= r.high
    assert f"{1 / r.value:.2f}x [{1 / r.high:.2f}, {1 / r.low:.2f}]" in digits.ended.out


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits model against itself."""
    report = tmp_path_factory.mktemp("itself") / "results.json"
    model = str(DIGITS / "digits.onnx")
    # nothing that moves less than by half is a change: a busy machine does not come so far with 0.5 ms an inference
    call = ("compare", model, model, "--seconds", "0.4", "--processes", "1", "--margin", "60%", "--report", report)
    return Run(called(*call), report)


def test_a_model_is_as_fast_as_itself_and_exact(itself: Run) -> None:
    assert itself.ended.code == 0, itself.ended.err
    c = itself.comparison
    assert c.verdict in ("equivalent", "inconclusive")
    assert c.file_ratio == 1
    assert c.outputs is not None
    assert c.outputs[0].max_abs == 0
    assert "SQNR exact" in itself.ended.out


def test_the_same_model_twice_has_two_labels(itself: Run) -> None:
    assert itself.comparison.reference != itself.comparison.other


def test_a_reference_that_fails_is_3_and_the_other_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stubs.dense(tmp_path / "model.onnx")
    stubs.saved(tmp_path / "custom.onnx", stubs.CUSTOM)
    ended = called("compare", "custom.onnx", "model.onnx", *SHORT, "--fail-on", "regressed", "--report", "r.json")
    assert ended.code == 3
    assert "FAILED custom" in ended.out
    found = {m.setting.label: m for m in load(tmp_path / "r.json").measured}
    assert found["model"].latency is not None
    assert "Bogus" in str(found["custom"].error)


# stored


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A results document of one setting, as `edgeopt profile --report` writes it."""
    folder = tmp_path_factory.mktemp("stored")
    ended = called("profile", stubs.dense(folder / "model.onnx"), *SHORT, "--report", folder / "results.json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


Write = Callable[..., None]


@pytest.fixture
def write(stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write("b.json", [1.0, 2.0], cpu="other")`: the document with other block medians, environment or setting, in the
    working folder.
    """
    monkeypatch.chdir(tmp_path)

    def written(name: str, medians: list[float], **other: object) -> None:
        found = json.loads(json.dumps(stored))
        latency = found["measured"][0]["latency"]
        latency["blocks"] = [{**latency["blocks"][0], "round": i, "median_ms": x} for i, x in enumerate(medians)]
        for key, value in other.items():
            place = next(p for p in (found, found["environment"], found["measured"][0]["setting"]) if key in p)
            place[key] = value
        (tmp_path / name).write_text(json.dumps(found), encoding="utf-8")

    return written


FLAT, SLOW, FAST, LOOSE = [1.0] * 20, [2.0] * 20, [0.5] * 20, [0.5, 1.5] * 10


@pytest.mark.parametrize(
    ("other", "verdict"), [(FLAT, "equivalent"), (SLOW, "regressed"), (FAST, "improved"), (LOOSE, "inconclusive")]
)
@pytest.mark.parametrize("demand", ["", "regressed", "inconclusive", "regressed inconclusive"])
def test_a_verdict_is_an_exit_code_only_where_it_was_asked_for(
    other: list[float], verdict: str, demand: str, write: Write
) -> None:
    write("a.json", FLAT)
    write("b.json", other)
    ended = called("compare", "a.json", "b.json", *(x for d in demand.split() for x in ("--fail-on", d)))
    assert verdict.upper() in ended.out
    assert ended.code == ({"regressed": 1, "inconclusive": 4}[verdict] if verdict in demand.split() else 0)


def test_stored_results_are_called_the_weaker_evidence(write: Write, tmp_path: Path) -> None:
    write("a.json", FLAT)
    write("b.json", SLOW)
    ended = called("compare", "a.json", "b.json", "--report", "c.json")
    assert ended.code == 0, ended.err
    (c,) = load(tmp_path / "c.json").comparisons
    assert c.ratio.value == 2
    assert not c.interleaved
    assert "weaker evidence" in ended.out


def test_a_margin_decides_what_is_a_change(write: Write) -> None:
    write("a.json", FLAT)
    write("b.json", [1.04] * 20)
    assert "REGRESSED" in called("compare", "a.json", "b.json", "--margin", "3%").out
    assert "EQUIVALENT" in called("compare", "a.json", "b.json", "--margin", "0.05").out


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_every_format_has_the_verdict_and_the_ratio(form: str, write: Write, tmp_path: Path) -> None:
    write("a.json", FLAT)
    write("b.json", SLOW, label="other")
    ended = called("compare", "a.json", "b.json", "--format", form)
    assert ended.code == 0, ended.err
    if form == "json":
        (tmp_path / "c.json").write_text(ended.out, encoding="utf-8")
        assert load(tmp_path / "c.json").comparisons[0].verdict == "regressed"
    elif form == "csv":
        rows = list(csv.DictReader(ended.out.splitlines()))
        assert [(r["label"], r["verdict"], r["ratio"]) for r in rows] == [
            ("model", "", ""),
            ("other", "regressed", "2.0"),
        ]
    else:
        assert "REGRESSED" in ended.out
        assert "2.000" in ended.out


def test_csv_of_two_stored_results_of_one_label_compares_only_the_second(write: Write) -> None:
    write("a.json", FLAT)
    write("b.json", SLOW)
    rows = list(csv.DictReader(called("compare", "a.json", "b.json", "--format", "csv").out.splitlines()))
    assert [r["verdict"] for r in rows] == ["", "regressed"]


def test_two_stored_results_of_one_label_can_be_told_apart_in_the_table(write: Write) -> None:
    write("a.json", FLAT)
    write("b.json", SLOW)
    head = called("compare", "a.json", "b.json").out.splitlines()[0].split()
    assert len(head) == len(set(head)) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"cpu": "i4004"},
        {"features": ["avx9"]},
        {"cores": 640},
        {"system": "CP/M"},
        {"onnxruntime": "0.1"},
        {"threads": 7},
        {"provider": "CUDAExecutionProvider"},
        {"level": "none"},
        {"shapes": {"x": [9, 4]}},
        {"rate": 5.0},
    ],
    ids=str,
)
def test_results_of_other_conditions_are_5_and_the_difference_is_named(other: dict[str, Any], write: Write) -> None:
    write("a.json", FLAT)
    write("b.json", FLAT, **other)
    ended = called("compare", "a.json", "b.json")
    assert ended.code == 5
    assert next(iter(other)) in ended.err
    assert not ended.out


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"schema": "edgeopt.profiling.results/2"}', "edgeopt.profiling.results/2"),
        ('{"schema": "edgeopt.profiling.results/1"}', "kind"),
        ("{}", "edgeopt.profiling.results/1"),
        ("[1]", "edgeopt.profiling.results/1"),
        ("", "not a results file"),
        ("\xff\xfe", "not a results file"),
        ("{" * 5000, "not a results file"),
        ("[" * 100000, "not a results file"),
        (None, "not a results file"),
    ],
    ids=["newer", "empty results", "object", "list", "nothing", "bytes", "braces", "deep", "missing"],
)
def test_a_file_that_is_no_results_file_is_3_and_named(text: str | None, named: str, write: Write) -> None:
    write("a.json", FLAT)
    if text is not None:
        Path("b.json").write_text(text, encoding="latin-1")
    for pair in (("a.json", "b.json"), ("b.json", "a.json")):
        ended = called("compare", *pair)
        assert ended.code == 3
        assert "b.json" in ended.err
        assert named in ended.err


@pytest.mark.parametrize("medians", [[], [0.0] * 5, [-1.0] * 5], ids=["none", "zero", "negative"])
def test_stored_times_that_cannot_be_are_an_error_in_words(medians: list[float], write: Write) -> None:
    write("a.json", FLAT)
    write("b.json", medians)
    ended = called("compare", "a.json", "b.json")
    assert ended.code == 3
    assert "b.json" in ended.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((), "A B"),
        (("model.onnx",), "two models"),
        (("a.json",), "two at a time"),
        (("a.json", "model.onnx"), "two at a time"),
        (("a.json", "a.json", "a.json"), "two at a time"),
        (("a.json", "a.json", "--fail-on", "slow"), "regressed"),
        (("a.json", "a.json", "--margin", "lots"), "--margin"),
        (("a.json", "a.json", "--margin", "0"), "--margin"),
        (("a.json", "a.json", "--margin", "nan"), "--margin"),
        (("a.json", "a.json", "--report", "nowhere/c.json"), "nowhere"),
        (("a.json", "a.json", "--report", "a.json"), "overwrite"),
        (("model.onnx", "model.onnx", "--report", "model.onnx"), "overwrite"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_a_wrong_call_is_2_and_overwrites_nothing(
    argv: tuple[str, ...], named: str, write: Write, tmp_path: Path
) -> None:
    write("a.json", FLAT)
    stubs.dense(tmp_path / "model.onnx")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    ended = called("compare", *argv)
    assert ended.code == 2, ended.err
    assert named in ended.err
    assert not ended.out
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_an_input_that_only_one_model_has_is_refused_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stubs.dense(tmp_path / "a.onnx")
    stubs.saved(tmp_path / "b.onnx", "g (float[N,4] z) => (float[N,4] y) { y = Relu(z) }")
    np.save("x.npy", models.normal(1, 4))
    ended = called("compare", "a.onnx", "b.onnx", "--input", "x=x.npy")
    assert ended.code == 2
    assert "Known: z" in ended.err
    assert "b.onnx" in ended.err


# the schema


def test_the_schema_names_every_field_of_a_document(stored: dict[str, Any]) -> None:
    ended = called("schema", "results")
    assert ended.code == 0
    schema = json.loads(ended.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"].keys() == stored.keys()
    assert set(schema["required"]) <= stored.keys()
    assert schema["properties"]["schema"]["const"] == stored["schema"]
    for name, part in (("Measured", stored["measured"][0]), ("Latency", stored["measured"][0]["latency"])):
        assert schema["$defs"][name]["properties"].keys() == part.keys()


@pytest.mark.parametrize(("argv", "named"), [((), "results"), (("result",), "results"), (("results", "x"), "x")])
def test_a_schema_that_is_none_is_2_and_names_those_that_are(argv: tuple[str, ...], named: str) -> None:
    ended = called("schema", *argv)
    assert ended.code == 2
    assert named in ended.err
    assert not ended.out
