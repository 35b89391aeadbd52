"""Every figure of the comparison on arrays small enough to work it out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt.errors import ValidityError
from edgeopt.numbers.kinds import KINDS, Kind
from edgeopt.numbers.scores import class_scores, compare
from edgeopt.runtime.session import open_session, run_all
from tests import tiny


def one(r: np.ndarray, y: np.ndarray):
    (found,) = compare(["y"], [[r]], [[y]])
    return found


def test_sqnr_is_signal_over_noise_in_decibels() -> None:
    found = one(np.float32([3, 4, 0]), np.float32([3, 4, 0.5]))
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25), abs=1e-12)
    assert found.output == "y" and found.max_abs == 0.5 and found.agreement is None


def test_cosine_is_the_angle_between_the_outputs() -> None:
    assert one(np.float32([1, 0]), np.float32([1, 1])).cosine == pytest.approx(1 / math.sqrt(2), abs=1e-12)
    assert one(np.float32([1, 2]), np.float32([-1, -2])).cosine == pytest.approx(-1, abs=1e-12)


def test_all_samples_count_together() -> None:
    r, y = [[np.float32([3])], [np.float32([4])]], [[np.float32([2])], [np.float32([4])]]
    (found,) = compare(["y"], r, y)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 1)) and found.max_abs == 1
    assert found.cosine == pytest.approx((6 + 16) / math.sqrt(25 * 20))


def test_samples_may_differ_in_shape() -> None:
    (found,) = compare(["y"], [[np.float32([1, 2])], [np.float32([2])]], [[np.float32([1, 2])], [np.float32([1])]])
    assert found.sqnr_db == pytest.approx(10 * math.log10(9))


def test_equal_outputs_have_no_noise() -> None:
    found = one(np.float32([1, -2]), np.float32([1, -2]))
    assert found.sqnr_db == math.inf and found.cosine == pytest.approx(1) and found.max_abs == 0


def test_outputs_of_zeros_have_no_signal() -> None:
    same, other = (
        one(np.zeros(3, np.float32), np.zeros(3, np.float32)),
        one(np.zeros(3, np.float32), np.ones(3, np.float32)),
    )
    assert (same.sqnr_db, same.cosine) == (math.inf, 1.0)
    assert (other.sqnr_db, other.cosine) == (-math.inf, 0.0)


def test_the_sums_are_float64() -> None:
    r = np.full(1000, 1e20, np.float32)  # whose squares leave float32
    assert one(r, r * np.float32(1.5)).sqnr_db == pytest.approx(10 * math.log10(4), abs=1e-6)


def test_half_precision_is_compared_with_float32() -> None:
    assert one(np.float32([1, 2]), np.float16([1, 2.5])).sqnr_db == pytest.approx(10 * math.log10(5 / 0.25))


@pytest.mark.parametrize(
    ("r", "y", "expected"),
    [
        ([[1, 2, 0], [5, 1, 1]], [[0, 9, 1], [0, 1, 0]], 0.5),
        ([[1, 2]], [[1, 2]], 1.0),
        ([[1, 2]], [[2, 1]], 0.0),
    ],
)
def test_agreement_is_the_share_of_equal_classes(r: list[list[float]], y: list[list[float]], expected: float) -> None:
    assert one(np.float32(r), np.float32(y)).agreement == expected


def test_agreement_of_a_sequence_of_probabilities_counts_every_position() -> None:
    r = np.float32([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]])
    y = np.float32([[[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.6, 0.4]]])
    assert one(r, y).agreement == 0.75


@pytest.mark.parametrize(
    ("array", "scores"),
    [
        (np.zeros((1, 10), np.float32), True),
        (np.zeros((4, 2), np.float16), True),
        (np.zeros((1, 1), np.float32), False),
        (np.zeros(10, np.float32), False),
        (np.zeros((1, 10), np.int64), False),
        (np.full((2, 5, 4), 0.25, np.float32), True),
        (np.full((2, 5, 4), 0.5, np.float32), False),
        (np.zeros((1, 3, 8, 8), np.float32), False),
    ],
)
def test_class_scores_are_known_by_shape_type_and_sum(array: np.ndarray, scores: bool) -> None:
    assert class_scores([array]) is scores


def test_outputs_of_integers_are_left_out_and_the_others_keep_their_order() -> None:
    r = [[np.float32([1]), np.int64([1]), np.float32([2])]]
    assert [e.output for e in compare(["a", "b", "c"], r, r)] == ["a", "c"]


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValidityError, match=r"'y' has shape \[3\], the reference gives \[2\]"):
        one(np.zeros(2, np.float32), np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValidityError, match="'y' is not finite"):
        one(np.float32([1, 2]), np.float32([1, bad]))


def test_where_the_float_model_is_not_finite_nothing_is_compared() -> None:
    found = one(np.float32([1, -np.inf, 2]), np.float32([1, -3e38, 2]))
    assert found.sqnr_db == math.inf and found.max_abs == 0
    assert one(np.float32([1, np.nan, 2]), np.float32([1, np.nan, 3])).max_abs == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_outputs_come_in_the_order_of_the_feeds(workers: int) -> None:
    session = open_session(tiny.model("g (float[1] x) => (float[1] y, float[1] z) { y = Neg(x)  z = Abs(x) }"))
    found = run_all(session, [(str(i), {"x": np.float32([i])}) for i in range(9)], workers=workers)
    assert [[float(a[0]) for a in outputs] for outputs in found] == [[-i, i] for i in range(9)]


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("state", "exact")])
def test_figures_of_outputs_with_masked_elements_are_those_of_the_rest(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 9, 9) if kind in ("tokens", "mask", "detections") else (1, 9)
    r = [rng.standard_normal(shape).astype(np.float32) for _ in range(6)]
    for x in r:
        x[..., 0] = -np.inf
    (found,) = compare(["y"], [[x] for x in r], [[np.maximum(x, np.float32(-3e38))] for x in r], {"y": kind})
    assert found.kind == kind and all(f.close and f.value > 0.999 for f in found.figures)


@pytest.mark.parametrize("kind", ["signal", "classes", "tokens", "regression", "embedding", "detections", "mask"])
def test_what_float_leaves_open_does_not_count_as_right(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    x = [100 + rng.standard_normal((1, 6, 40)).astype(np.float32) for _ in range(8)]
    y = [v + 3 * rng.standard_normal(v.shape).astype(np.float32) for v in x]
    there = [rng.random(v.shape) < 0.5 for v in x]
    open_ = [np.where(t, v, np.float32(np.nan)) for t, v in zip(there, x, strict=True)]
    (whole,) = compare(["y"], [[v] for v in x], [[v] for v in y], {"y": "signal"})
    for result in (y, [np.where(t, v, np.float32(np.nan)) for t, v in zip(there, y, strict=True)]):
        (part,) = compare(["y"], [[v] for v in open_], [[v] for v in result], {"y": kind})
        assert part.kind == "signal" and part.agreement is None
        assert [f.value for f in part.figures] == pytest.approx([f.value for f in whole.figures], abs=1)
    assert not class_scores(open_)
