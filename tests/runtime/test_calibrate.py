"""Calibration: the same bytes however it is split, and errors that name the value and the sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import CalibrationError, DataError
from edgeopt.numbers.observers import Statistics
from edgeopt.runtime import calibrate
from edgeopt.runtime.calibrate import SUBSAMPLE, Sample, forecast, groups, merge, observe
from edgeopt.runtime.probe import Probe, probe
from edgeopt.runtime.session import with_outputs
from tests import tiny

PLENTY = 1 << 30
TEXT = """g (float[1,8,H,W] x) => (float[1,8,H,W] y) {
    a = Conv <pads = [1,1,1,1]> (x, w)
    b = Relu(a)
    c = Mul(b, x)
    y = Tanh(c)
}"""
VALUES = ["x", "a", "b", "c", "y"]


def model() -> ir.Model:
    return tiny.model(TEXT, w=np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32))


def samples(count: int = 14, *, vary: bool = False) -> list[Sample]:
    rng = np.random.default_rng(1)
    shapes = [(1, 8, 12 + (i % 5 if vary else 0), 12) for i in range(count)]
    arrays = [rng.standard_normal(s).astype(np.float32) * 3.0**i for i, s in enumerate(shapes)]
    return [(f"s{i}", lambda x=x: {"x": x}) for i, x in enumerate(arrays)]


def seen(
    data: list[Sample],
    values: list[str] = VALUES,
    *,
    cores: int = 2,
    room: int = PLENTY,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Statistics]:
    monkeypatch.setattr(calibrate, "cores", lambda: cores)
    made = model()
    return observe(made, values, data, probes=probe(made, data[0][1]()), room=room).statistics


def bits(statistics: Mapping[str, Statistics]) -> dict[str, tuple[object, ...]]:
    """Every bit of the statistics, by value."""
    return {
        name: (
            s.minmax.lo.hex(),
            s.minmax.hi.hex(),
            s.histogram.exponent,
            s.histogram.counts.tobytes(),
            s.histogram.zeros,
        )
        for name, s in sorted(statistics.items())
    }


def naive(data: list[Sample]) -> dict[str, Statistics]:
    """One sample after the other, everything exposed, unfused."""
    found = {name: Statistics() for name in VALUES}
    exposed = with_outputs(model(), VALUES[1:])
    for _, read in data:
        outputs = [read()["x"], *tiny.run(exposed, read())]
        for name, x in zip(VALUES, outputs, strict=True):
            found[name] = found[name].update(x, SUBSAMPLE)
    return found


def test_one_worker_and_seven_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = bits(seen(samples(), cores=1, monkeypatch=monkeypatch))
    assert one == bits(seen(samples(), cores=7, monkeypatch=monkeypatch))
    assert one == bits(seen(samples(), cores=100, monkeypatch=monkeypatch))


def test_the_order_of_the_samples_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bits(seen(samples(), monkeypatch=monkeypatch)) == bits(seen(samples()[::-1], monkeypatch=monkeypatch))


def test_the_statistics_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = seen(samples(), monkeypatch=monkeypatch), naive(samples())
    assert found.keys() == plain.keys()
    for name in VALUES:
        # the fused kernels sum in another order: 1e-5 of the range; the input is not computed at all
        assert found[name].minmax.lo == pytest.approx(plain[name].minmax.lo, rel=1e-5, abs=1e-5)
        assert found[name].minmax.hi == pytest.approx(plain[name].minmax.hi, rel=1e-5, abs=1e-5)
        assert found[name].histogram.counts.sum() == plain[name].histogram.counts.sum()
    assert found["x"] == plain["x"]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_groups_under_a_memory_cap_give_what_one_pass_gives(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cores", lambda: 1)
    made = model()
    probes = probe(made, samples()[0][1]())
    each = 4 * probes["a"].size
    cap = {1: PLENTY, 2: 3 * each, 5: 1}[parts]
    assert len(groups(VALUES, probes, cap)) == parts
    found = observe(made, VALUES, samples(), probes=probes, room=cap).statistics
    whole = observe(made, VALUES, samples(), probes=probes, room=PLENTY * 4).statistics
    # other exposed values mean other fusions, so float32 rounding may differ in what is computed, and in nothing else
    assert found["x"] == whole["x"]
    for name in VALUES:
        assert found[name].minmax.hi == pytest.approx(whole[name].minmax.hi, rel=1e-5)
        assert found[name].minmax.lo == pytest.approx(whole[name].minmax.lo, rel=1e-5, abs=1e-5)
        assert found[name].histogram.counts.sum() == whole[name].histogram.counts.sum()


def test_groups_are_as_few_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cores", lambda: 2)
    probes = {name: Probe((100,), 0, 1) for name in "abcdef"} | {"huge": Probe((10_000,), 0, 1)}
    assert groups(list("abcdef"), probes, 2 * 1200) == [list("abc"), list("def")]
    assert groups(["a", "huge", "b"], probes, 2 * 1200) == [["a"], ["huge"], ["b"]]  # one at least
    assert groups([], probes, 2400) == []
    assert groups(["a", "unprobed", "b"], probes, 2 * 400) == [["a", "unprobed"], ["b"]]


def test_the_forecast_counts_the_passes_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cores", lambda: 2)
    made = model()
    probes = probe(made, samples()[0][1]())
    size = 4 * probes["a"].size
    expected = forecast(made, VALUES, probes, PLENTY)
    assert expected.passes == 1 and expected.ram_bytes >= 2 * 5 * size
    assert forecast(made, VALUES, probes, 1).passes == 5


def test_shapes_may_vary_from_sample_to_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples(vary=True)
    found = seen(data, cores=3, monkeypatch=monkeypatch)
    assert bits(found) == bits(seen(data, cores=1, monkeypatch=monkeypatch))
    assert found["x"].histogram.counts.sum() == sum(read()["x"].size for _, read in data)


def test_a_tensor_without_elements_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.model("g (float[N,4] x) => (float[N,4] y) { a = Relu(x)  y = Exp(a) }")
    some: Sample = ("some", lambda: {"x": np.float32([[1, -2, 3, 0]])})
    empty: Sample = ("empty", lambda: {"x": np.zeros((0, 4), np.float32)})
    probes = probe(made, some[1]())
    for cores in (1, 3):
        monkeypatch.setattr(calibrate, "cores", lambda n=cores: n)
        alone = observe(made, ["x", "a"], [some], probes=probes, room=PLENTY).statistics
        assert observe(made, ["x", "a"], [empty, some, empty], probes=probes, room=PLENTY).statistics == alone
    nothing = observe(made, ["x", "a"], [empty], probes=probes, room=PLENTY).statistics
    assert nothing == {"x": Statistics(), "a": Statistics()}


def test_inputs_alone_need_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.runtime.session.open_session", lambda *_: pytest.fail("a session was opened"))
    made = model()
    found = observe(made, ["x"], samples(2), probes={}, room=PLENTY).statistics
    assert found["x"].histogram.counts.sum() == 2 * 8 * 144


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value", ["x", "a"])
def test_a_value_that_is_not_finite_is_named_with_its_sample(bad: float, value: str) -> None:
    x = samples(1)[0][1]()["x"].copy()
    x[0, 3, 5, 5] = bad
    data: list[Sample] = [*samples(4), ("broken.png", lambda: {"x": x})]
    with pytest.raises(CalibrationError, match=rf"value '{value}' is not finite on sample broken\.png"):
        observe(model(), [value], data, probes={}, room=PLENTY)


def test_without_samples_there_is_nothing_to_calibrate_with() -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        observe(model(), ["x"], [], probes={}, room=PLENTY)


def unreadable(name: str) -> Sample:
    def read() -> Mapping[str, np.ndarray]:
        raise DataError(f"{name} is torn")

    return name, read


def test_a_few_unreadable_samples_are_skipped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [*samples(39), unreadable("torn.png")]
    monkeypatch.setattr(calibrate, "cores", lambda: 3)
    found = observe(model(), ["x"], data, probes={}, room=PLENTY)
    assert found.skipped == {"torn.png": "torn.png is torn"}
    assert found.statistics["x"].histogram.counts.sum() == 39 * 8 * 144


def test_many_unreadable_samples_are_refused() -> None:
    data = [*samples(5), unreadable("a"), unreadable("b")]
    with pytest.raises(DataError, match="torn"):
        observe(model(), ["x"], data, probes={}, room=PLENTY)


def test_a_sample_that_the_model_refuses_is_an_error() -> None:
    data: list[Sample] = [("flat", lambda: {"x": np.zeros((1, 8, 12), np.float32)})]
    with pytest.raises(DataError, match="failed on a sample"):
        observe(model(), ["a"], data, probes={}, room=PLENTY)


def test_progress_ends_at_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda done, total: told.append((done, total))  # noqa: E731
    monkeypatch.setattr(calibrate, "cores", lambda: 1)
    made = model()
    observe(made, VALUES, samples(4), probes=probe(made, samples(1)[0][1]()), room=1, progress=note)
    assert told[-1] == (20, 20) and [d for d, _ in told] == sorted(d for d, _ in told)


def test_merging_shards_is_merging_their_statistics() -> None:
    parts = [naive(samples(4)[i::2]) for i in range(2)]
    assert merge(parts) == naive(samples(4)) == merge(parts[::-1])
    assert merge([{"a": Statistics()}, {"b": Statistics()}]).keys() == {"a", "b"}
