"""Stored results against each other: what makes them incomparable is told by name, and what they say stays the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.errors import ComparabilityError, DataError, UsageError
from edgeopt.numbers.intervals import unpaired_ratio_interval
from edgeopt.profiling.results import (
    Block,
    Comparison,
    Environment,
    Latency,
    Measured,
    Memory,
    Phase,
    Range,
    Results,
    Setting,
    Size,
    load,
)
from edgeopt.profiling.stored import compare_stored

ENVIRONMENT = Environment(
    cpu="Cortex-A72", features=("neon",), cores=4, governor="performance", system="Linux", edgeopt="0.1.0"
)
SETTING = Setting(
    label="m",
    model="m.onnx",
    sha256="0",
    provider="CPUExecutionProvider",
    shapes={"x": (1, 3)},
    python="3.12",
    onnxruntime="1.23.0",
    numpy="2.0",
)
BARS_ENVIRONMENT: dict[str, Any] = {
    "cpu": "Cortex-A53",
    "features": ("neon", "dotprod"),
    "cores": 2,
    "governor": None,
    "system": "Windows",
}
BARS_SETTING: dict[str, Any] = {
    "device": "pi5",  # whose environment is in neither document
    "onnxruntime": "1.24.0",
    "provider": "OpenVINOExecutionProvider",
    "provider_options": {"device_type": "GPU"},
    "threads": 2,
    "session": {"session.intra_op.allow_spinning": "0"},
    "level": "basic",
    "fixed_dims": {"N": 1},
    "shapes": {"x": (2, 3)},
    "rate": 30.0,
}
FREE_ENVIRONMENT: dict[str, Any] = {
    "mhz": 1500.0,
    "virtual": "docker",
    "load": (0.5, 0.4, 0.3),
    "pressure": 0.01,
    "memory_bytes": 2**32,
    "edgeopt": "0.2.0",
}
FREE_SETTING: dict[str, Any] = {
    "label": "other",
    "model": "other.onnx",
    "sha256": "1",
    "inputs": "x.npy",
    "python": "3.13",
    "numpy": "2.1",
}
QUIET = [[1.0, 1.001, 0.999, 1.0, 1.002], [1.0, 1.0, 0.998, 1.001]]


def timed(blocks_ms: Sequence[Sequence[float]], **setting: Any) -> Measured:
    """A setting and the block medians of each of its processes."""
    blocks = [
        Block(process=p, round=r, runs=10, median_ms=x, contended=False)
        for p, found in enumerate(blocks_ms)
        for r, x in enumerate(found)
    ]
    x = np.concatenate([np.array(b) for b in blocks_ms])
    middle = float(np.median(x))
    latency = Latency(
        p50_ms=Range(value=middle, low=float(x.min()), high=float(x.max())),
        p90_ms=None,
        p95_ms=None,
        p99_ms=None,
        min_ms=float(x.min()),
        mean_ms=float(x.mean()),
        mad_ms=0.0,
        throughput_per_s=1e3 / middle,
        runs=len(x),
        processes=len(blocks_ms),
        outliers=0,
        contended=0,
        p50_uncontended_ms=middle,
        steady=True,
        precise=True,
        blocks=tuple(blocks),
    )
    return Measured(setting=SETTING.model_copy(update=setting), latency=latency)


def stored(path: Path, *measured: Measured, **environment: Any) -> Path:
    """The results file of `measured`."""
    document = Results(
        kind="profile",
        created="2026-11-01T12:00:00+00:00",
        environment=ENVIRONMENT.model_copy(update=environment),
        preset="quick",
        measured=measured,
    )
    path.write_text(document.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return stored(tmp_path / "a.json", timed(QUIET))


def slower(by: float) -> list[list[float]]:
    return [[by * x for x in p] for p in QUIET]


def one(found: Results) -> Comparison:
    (comparison,) = found.comparisons
    return comparison


@pytest.mark.parametrize(
    ("by", "verdict"), [(1.0, "equivalent"), (1.1, "regressed"), (0.9, "improved"), (1.01, "equivalent")]
)
def test_equal_conditions_are_compared_and_told_to_be_the_weaker_evidence(
    by: float, verdict: str, a: Path, tmp_path: Path
) -> None:
    found = compare_stored(a, stored(tmp_path / "b.json", timed(slower(by))))
    c = one(found)
    assert c.ratio.value == pytest.approx(by, rel=1e-15)
    assert c.ratio.low < c.ratio.value < c.ratio.high
    # no block is off by more than 0.2 %
    assert [c.ratio.low, c.ratio.high] == pytest.approx([by] * 2, rel=0.005)
    assert c.ratio_uncontended == pytest.approx(by, rel=1e-15)
    assert (c.verdict, c.interleaved, c.margin, c.outputs) == (verdict, False, 0.03, None)
    assert found.kind == "compare" and "not interleaved" in found.notes[0]


@pytest.mark.parametrize(("margin", "verdict"), [(0.03, "regressed"), (0.2, "equivalent")])
def test_the_margin_decides_what_counts_as_a_change(margin: float, verdict: str, a: Path, tmp_path: Path) -> None:
    c = one(compare_stored(a, stored(tmp_path / "b.json", timed(slower(1.1))), margin=margin))
    assert (c.verdict, c.margin) == (verdict, margin)


@pytest.mark.parametrize("margin", [0.0, -1.0, 1.0, math.inf, math.nan])
def test_a_margin_that_is_no_share_is_refused(margin: float, a: Path) -> None:
    with pytest.raises(UsageError, match="margin"):
        compare_stored(a, a, margin=margin)


def test_every_field_of_the_conditions_is_in_one_of_the_tables() -> None:
    assert sorted(BARS_ENVIRONMENT | FREE_ENVIRONMENT) == sorted(Environment.model_fields)
    assert sorted(BARS_SETTING | FREE_SETTING) == sorted(Setting.model_fields)
    assert not BARS_ENVIRONMENT.keys() & FREE_ENVIRONMENT.keys() and not BARS_SETTING.keys() & FREE_SETTING.keys()


@pytest.mark.parametrize("field", BARS_ENVIRONMENT)
def test_another_machine_is_refused_by_the_field_that_differs(field: str, a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", timed(QUIET), **{field: BARS_ENVIRONMENT[field]})
    with pytest.raises(ComparabilityError) as e:
        compare_stored(a, b)
    assert e.value.exit_code == 5
    assert f"not comparable: {field} " in str(e.value) and "; measure both models in one run" in str(e.value)


@pytest.mark.parametrize("field", BARS_SETTING)
def test_another_setting_is_refused_by_label_and_field(field: str, a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", timed(QUIET, **{field: BARS_SETTING[field]}))
    with pytest.raises(ComparabilityError) as e:
        compare_stored(a, b)
    assert e.value.exit_code == 5
    assert f"not comparable: m: {field} " in str(e.value) and "; measure both models in one run" in str(e.value)


@pytest.mark.parametrize("field", FREE_ENVIRONMENT)
def test_what_says_nothing_about_the_machine_may_differ(field: str, a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", timed(QUIET), **{field: FREE_ENVIRONMENT[field]})
    assert one(compare_stored(a, b)).ratio.value == 1


@pytest.mark.parametrize("field", FREE_SETTING)
def test_what_tells_the_two_models_apart_may_differ(field: str, a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", timed(QUIET, **{field: FREE_SETTING[field]}))
    assert one(compare_stored(a, b)).ratio.value == 1


def test_every_difference_is_told_with_both_values(tmp_path: Path, a: Path) -> None:
    b = stored(tmp_path / "b.json", timed(QUIET, threads=2, level="basic"), cores=2, features=("neon", "dotprod"))
    with pytest.raises(ComparabilityError) as e:
        compare_stored(a, b)
    for told in ("cores 4 and 2", "features neon and neon,dotprod", "m: threads 1 and 2", "m: level all and basic"):
        assert told in str(e.value)


def test_a_difference_in_a_setting_that_only_one_has_does_not_matter(tmp_path: Path) -> None:
    a = stored(tmp_path / "a.json", timed(QUIET), timed(QUIET, label="only a", threads=8))
    b = stored(tmp_path / "b.json", timed(QUIET), timed(QUIET, label="only b", threads=3))
    assert one(compare_stored(a, b)).ratio.value == 1


def test_settings_are_matched_by_label_whatever_their_order(tmp_path: Path) -> None:
    speeds = {"x": 1.0, "y": 2.0, "z": 3.0}
    a = stored(tmp_path / "a.json", *(timed(QUIET, label=label) for label in speeds))
    b = stored(tmp_path / "b.json", *(timed(slower(by), label=label) for label, by in reversed(speeds.items())))
    found = compare_stored(a, b)
    assert [(c.reference, c.other) for c in found.comparisons] == [(f"a:{label}", f"b:{label}") for label in speeds]
    assert [c.ratio.value for c in found.comparisons] == pytest.approx(list(speeds.values()), rel=1e-15)
    assert [m.setting.label for m in found.measured] == ["a:x", "b:x", "a:y", "b:y", "a:z", "b:z"]


def test_one_setting_each_is_matched_whatever_its_label(a: Path, tmp_path: Path) -> None:
    c = one(compare_stored(a, stored(tmp_path / "b.json", timed(slower(2.0), label="m.int8"))))
    assert (c.reference, c.other) == ("m", "m.int8")
    assert c.ratio.value == pytest.approx(2, rel=1e-15)


def test_a_setting_that_was_not_timed_is_not_matched(tmp_path: Path) -> None:
    failed = Measured(setting=SETTING.model_copy(update={"label": "broken"}), error="no")
    a = stored(tmp_path / "a.json", timed(QUIET), failed)
    b = stored(tmp_path / "b.json", failed, timed(QUIET, label="other"))
    c = one(compare_stored(a, b))
    assert (c.reference, c.other) == ("m", "other")


def test_no_shared_label_is_refused_with_the_labels_of_both(tmp_path: Path) -> None:
    a = stored(tmp_path / "a.json", timed(QUIET, label="x"), timed(QUIET, label="y"))
    b = stored(tmp_path / "b.json", timed(QUIET, label="z"))
    with pytest.raises(ComparabilityError, match=r"a\.json has x, y; .*b\.json has z$"):
        compare_stored(a, b)


def test_results_without_any_latency_are_refused(a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", Measured(setting=SETTING, error="no"))
    with pytest.raises(ComparabilityError, match=r"b\.json has none that was timed"):
        compare_stored(a, b)


def test_what_is_no_results_file_is_refused_by_name(a: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=r"b\.json"):
        compare_stored(a, tmp_path / "b.json")
    with pytest.raises(DataError, match=r"missing\.json"):
        compare_stored(tmp_path / "missing.json", a)


def test_the_interval_is_that_of_the_processes_blocks_wherever_they_are_in_the_list(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = ([rng.lognormal(p, 0.1, 5 + p) for p in range(3)] for _ in range(2))
    found = timed([x.tolist() for x in second])
    assert found.latency is not None
    # by round, so that the processes take turns
    mixed = found.latency.model_copy(update={"blocks": tuple(sorted(found.latency.blocks, key=lambda b: b.round))})
    a = stored(tmp_path / "a.json", timed([x.tolist() for x in first]))
    b = stored(tmp_path / "b.json", found.model_copy(update={"latency": mixed}))
    assert one(compare_stored(a, b)).ratio == Range.of(unpaired_ratio_interval(first, second))


def test_file_and_peak_memory_are_compared_where_both_know_them(a: Path, tmp_path: Path) -> None:
    def sized(file_bytes: int, peaks: Sequence[int]) -> Measured:
        phases = tuple(Phase(name="run", rss_bytes=1, peak_bytes=p) for p in peaks)
        return timed(QUIET).model_copy(
            update={
                "size": Size(
                    file_bytes=file_bytes,
                    deflate_bytes=None,
                    xz_bytes=None,
                    weights_by_dtype={},
                    weights_by_op={},
                    parameters=0,
                ),
                "memory": Memory(arena=phases, no_arena=phases, peak_per_phase=True),
            }
        )

    large = stored(tmp_path / "large.json", sized(1000, [100, 400, 200]))
    c = one(compare_stored(large, stored(tmp_path / "small.json", sized(250, [100, 200, 150]))))
    assert (c.file_ratio, c.peak_memory_ratio) == (0.25, 0.5)
    c = one(compare_stored(large, a))
    assert (c.file_ratio, c.peak_memory_ratio) == (None, None)


def test_without_a_calm_block_there_is_no_ratio_without_contention(a: Path, tmp_path: Path) -> None:
    found = timed(QUIET)
    assert found.latency is not None
    busy = found.latency.model_copy(update={"p50_uncontended_ms": None})
    b = stored(tmp_path / "b.json", found.model_copy(update={"latency": busy}))
    assert one(compare_stored(a, b)).ratio_uncontended is None


def test_the_report_is_the_document(a: Path, tmp_path: Path) -> None:
    found = compare_stored(a, a, report=tmp_path / "report.json")
    assert load(tmp_path / "report.json") == found
    with pytest.raises(UsageError):
        compare_stored(a, a, report=tmp_path / "missing" / "report.json")


def test_the_same_files_give_the_same_comparison(a: Path, tmp_path: Path) -> None:
    b = stored(tmp_path / "b.json", timed(slower(1.02)))
    assert compare_stored(a, b).comparisons == compare_stored(a, b).comparisons
