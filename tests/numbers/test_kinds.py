"""Figures of nearness: 1 or infinite for the same outputs, lower with more error, blind to what does not count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.numbers.figure import Figure
from edgeopt.numbers.kinds import KINDS, Kind, edit_distance, figures
from edgeopt.numbers.pixels import class_axis

SHAPES: dict[str, tuple[int, ...]] = {
    "classes": (1, 10),
    "probabilities": (1, 10),
    "embedding": (2, 32),
    "tokens": (1, 12, 8),
    "mask": (1, 1, 16, 16),
    "detections": (1, 200, 6),
    "regression": (1, 3),
    "signal": (1, 400),
    "exact": (1, 50),
}
JUDGED: list[Any] = list(SHAPES)


def outputs(kind: str, n: int = 12, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal(SHAPES[kind]).astype(np.float32) for _ in range(n)]
    if kind == "probabilities":
        found = [np.exp(3 * x) / np.exp(3 * x).sum(-1, keepdims=True) for x in found]
    return [1 / (1 + np.exp(-4 * x)) for x in found] if kind == "mask" else found


def noisy(xs: list[np.ndarray], level: float) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [(x + level * x.std() * rng.standard_normal(x.shape)).astype(x.dtype) for x in xs]


def test_every_kind_but_a_state_has_figures() -> None:
    assert {*SHAPES, "state"} == set(KINDS)
    assert figures("state", outputs("signal"), outputs("signal")) == ()


@pytest.mark.parametrize("kind", JUDGED)
def test_an_output_is_as_near_to_itself_as_can_be(kind: Kind) -> None:
    x = outputs(kind)
    found = figures(kind, x, x)
    assert found and all(f.close for f in found)
    assert all(f.value == math.inf if f.unit == "dB" else f.value == pytest.approx(1) for f in found)


@pytest.mark.parametrize("kind", JUDGED)
def test_more_noise_is_further_away_and_much_of_it_is_not_close(kind: Kind) -> None:
    x = outputs(kind)
    little, more, much = (figures(kind, x, noisy(x, level)) for level in (0.01, 0.5, 10.0))
    for a, b, c in zip(little, more, much, strict=True):
        assert a.value >= b.value >= c.value or a.name == "height at the peak"
    assert not all(f.close for f in much)
    assert kind == "exact" or all(f.close for f in little)


# what counts, against the definition


def test_a_change_of_the_largest_class_costs_what_float_gave_the_one_more_than_the_other() -> None:
    r = [np.float64([[0.5, 0.4, 0.1]]), np.float64([[0.2, 0.7, 0.1]])]
    y = [np.float64([[0.4, 0.5, 0.1]]), np.float64([[0.1, 0.8, 0.1]])]
    (found,) = figures("probabilities", r, y)
    assert found.value == pytest.approx(1 - (0.5 - 0.4) / 2)


def test_classes_of_which_float_is_not_sure_may_not_be_dead() -> None:
    rng = np.random.default_rng(0)
    similarities = [0.2 + 0.1 * rng.random((1, 1000)) for _ in range(30)]
    stays, kept = figures("classes", similarities, [0 * x for x in similarities])
    assert stays.close and not kept.close
    assert all(
        f.close for f in figures("classes", similarities, [x + 1e-4 * rng.random(x.shape) for x in similarities])
    )


def test_logits_are_taken_by_their_softmax() -> None:
    p = np.float64([[0.6, 0.3, 0.1]])
    changed = np.float64([[0, 5, 1]])
    of_logits, of_probabilities = (figures("classes", [x], [changed])[0].value for x in (np.log(p) + 7, p))
    assert of_logits == pytest.approx(of_probabilities) == pytest.approx(0.7)


def test_a_turned_embedding_has_the_same_neighbours_and_no_longer_fits_what_was_stored() -> None:
    x = outputs("embedding")
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 32)))[0]
    order, varies = figures("embedding", x, [3 * v @ turn for v in x])
    assert order.value == pytest.approx(1, abs=1e-6) and not varies.close


def test_a_scaled_embedding_is_the_same() -> None:
    x = outputs("embedding")
    order, varies = figures("embedding", x, [3 * v for v in x])
    assert order.value == pytest.approx(1, abs=1e-6) and varies.value > 100


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_silence_and_the_opposite_of_a_signal_are_not_near(gain: float) -> None:
    x = outputs("signal")
    assert not any(f.close for f in figures("signal", x, [np.float32(gain) * v for v in x]))


def test_what_all_embeddings_have_in_common_hides_no_error() -> None:
    x = [v + 20 for v in outputs("embedding")]
    y = noisy([v - 20 for v in x], 0.5)
    r, z = (np.concatenate(a) for a in (x, [v + 20 for v in y]))
    r, z = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (r, z))
    want = 10 * np.log10(((r - r.mean(0)) ** 2).sum() / ((r - z) ** 2).sum())
    _, varies = figures("embedding", x, [v + 20 for v in y])
    assert varies.value == pytest.approx(want, abs=1e-3) and want < 10 and not varies.close
    assert 10 * np.log10((r**2).sum() / ((r - z) ** 2).sum()) > 25


def test_an_embedding_that_is_the_same_for_all_has_no_neighbours() -> None:
    x = outputs("embedding")
    order, varies = figures("embedding", x, [np.ones_like(v) for v in x])
    assert not order.close and not varies.close


def test_a_mask_may_be_fatter_only_if_it_crosses_the_levels_at_the_same_places() -> None:
    disc = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9).astype(np.float32)[None, None]
    steeper, wider = (
        np.clip(disc * 0.8 + 0.1, 0, 1),
        (np.hypot(*np.mgrid[-16:16, -16:16]) < 12).astype(np.float32)[None, None],
    )
    assert all(f.close for f in figures("mask", [disc], [steeper]))
    (overlap, _) = figures("mask", [disc], [wider])
    assert overlap.value == pytest.approx(disc.sum() / wider.sum()) and not overlap.close


def test_a_peak_at_another_place_is_as_bad_as_float_is_low_there() -> None:
    r = np.zeros((1, 1, 8, 8), np.float32)
    r[0, 0, 2, 2], r[0, 0, 5, 5] = 1.0, 0.6
    y = r.copy()
    y[0, 0, 5, 5] = 1.1
    assert figures("mask", [r], [y])[1].value == pytest.approx(0.6)


def test_the_scores_of_boxes_are_not_hidden_by_their_coordinates() -> None:
    x = [v * np.float32([100, 100, 100, 100, 1, 1]) for v in outputs("detections")]
    dead = [v * np.float32([1, 1, 1, 1, 0, 1]) for v in x]
    sqnr = 10 * np.log10(sum((v**2).sum() for v in x) / sum(((v - d) ** 2).sum() for v, d in zip(x, dead, strict=True)))
    (found,) = figures("detections", x, dead)
    assert sqnr > 40 and found.value == pytest.approx(0, abs=0.1) and not found.close


def boxes(scores: int = 10, shown: int = 2) -> np.ndarray:
    """Boxes [1, 4 + scores, 300] in pixels, with scores of which the first `shown` reach .9 and the others 1e-3."""
    rng = np.random.default_rng(8)
    peaks = rng.random((1, scores, 300)) ** 40 * np.where(np.arange(scores) < shown, 0.9, 1e-3)[:, None]
    return np.concatenate([rng.random((1, 4, 300)) * 320, peaks], axis=1).astype(np.float32)


def test_scores_of_classes_that_no_sample_shows_are_judged_together() -> None:
    x = boxes()
    noisy, dead = x.copy(), x.copy()
    noisy[:, -1] = 0  # one of those that nothing shows
    dead[:, 5] = 0  # one that is shown
    assert figures("detections", [x], [noisy])[0].value == pytest.approx(10 * math.log10(8), abs=2)
    assert figures("detections", [x], [dead])[0].value < 1
    assert figures("detections", [x], [x])[0].value == math.inf


def test_small_boxes_and_an_objectness_do_not_excuse_dead_scores() -> None:
    rng = np.random.default_rng(9)
    parts = [rng.random((1, 2, 300)), 0.2 * rng.random((1, 2, 300)), 0.2 * rng.random((1, 1, 300)) ** 9]
    x = np.concatenate([*parts, 0.04 * rng.random((1, 4, 300)) ** 9], axis=1).astype(np.float32)
    dead = x.copy()
    dead[:, 5:] = 0
    assert not figures("detections", [x], [dead])[0].close


def test_scores_of_which_no_sample_shows_any_class_may_not_be_dead() -> None:
    x = boxes(shown=0)
    dead = x.copy()
    dead[:, 4:] = 0
    assert not figures("detections", [x], [dead])[0].close


def test_a_group_of_channels_of_another_scale_is_judged_alone_in_a_signal_too() -> None:
    rng = np.random.default_rng(3)
    scale = np.float32([100.0] * 4 + [0.1] * 20)[:, None, None]
    x = [rng.standard_normal((1, 24, 6, 6)).astype(np.float32) * scale + 10 for _ in range(4)]
    dead = [np.where(np.arange(24)[:, None, None] < 4, v, np.float32(10)) for v in x]
    whole, group = figures("signal", x, dead)
    assert whole.close and not group.close and group.value == pytest.approx(0, abs=0.1)
    assert [f.value for f in figures("signal", x, x)] == [math.inf, math.inf]


def test_a_spectrum_that_falls_off_and_a_dead_channel_are_no_groups() -> None:
    rng = np.random.default_rng(4)
    falls = np.logspace(0, -6, 64)
    dead = np.where(np.arange(64) == 7, 1e-9, 1.0)
    for scale in (falls, dead):
        x = [(rng.standard_normal((1, 50, 64)) * scale).astype(np.float32) for _ in range(3)]
        assert [f.name for f in figures("signal", x, [v + np.float32(1e-5) for v in x])] == ["SI-SNR"]


@pytest.mark.parametrize("shape", [(1, 400), (1, 80, 100), (1, 100, 80)])
def test_a_signal_that_is_quiet_for_a_while_is_no_group(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    time = np.where(np.arange(max(shape)) < max(shape) // 5, 1e-3, 1.0)
    loud = time if shape[-1] == max(shape) else time[:, None]
    x = [(rng.standard_normal(shape) * loud).astype(np.float32) for _ in range(8)]
    rounded = [np.round(v * 30) / 30 for v in x]
    assert all(f.close for f in figures("signal", x, rounded))


def test_a_gain_is_no_error_of_a_group_either() -> None:
    rng = np.random.default_rng(6)
    x = [(rng.standard_normal((1, 8, 50)) * np.where(np.arange(8) < 4, 100, 1)[:, None]).astype("f") for _ in range(3)]
    assert [f.name for f in figures("signal", x, x)] == ["SI-SNR", "weakest group of channels"]
    assert all(f.value > 60 for f in figures("signal", x, [1.5 * v for v in x]))


def test_a_large_mean_does_not_hide_the_error_of_what_varies() -> None:
    x = [100 + v for v in outputs("regression", 40)]
    constant = [np.full((1, 3), 100.0, np.float32) for _ in x]
    correlation, varying = figures("regression", x, constant)
    assert not correlation.close and not varying.close and varying.value == pytest.approx(0, abs=1)


def test_a_gain_does_not_change_a_signal() -> None:
    x = outputs("signal")
    (found,) = figures("signal", x, [v * np.float32(0.5) for v in x])
    assert found.value > 100


def test_repeats_are_one_in_what_is_decoded() -> None:
    def row(text: str) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[[ord(c) - ord("a") for c in text]][None]

    _, decoded = figures("tokens", [row("aabbcc")], [row("abbbcc")])
    assert decoded.value == 1
    _, decoded = figures("tokens", [row("aabbcc")], [row("aabbdd")])
    assert decoded.value == pytest.approx(1 - 1 / 3)


texts = st.text("abc", max_size=7)


@given(texts, texts, texts)
def test_the_edit_distance_is_a_metric_and_that_of_the_definition(a: str, b: str, c: str) -> None:
    def distance(x: str, y: str) -> int:
        return edit_distance([*map(ord, x)], [*map(ord, y)])

    def slow(x: str, y: str) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    assert distance(a, b) == distance(b, a) and (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    if len(a) + len(b) <= 9:
        assert distance(a, b) == slow(a, b)


@pytest.mark.parametrize(("kind", "n"), [("embedding", 1), ("regression", 3)])
def test_too_few_samples_have_no_order(kind: Kind, n: int) -> None:
    x = outputs(kind, n)
    assert figures(kind, x, x) == ()


def test_an_output_that_is_constant_is_not_judged_by_what_varies() -> None:
    x = [np.full((1, 3), 2.0, np.float32)] * 9
    assert figures("regression", x, [v + 0.5 for v in x]) == ()


def test_a_figure_says_its_value_and_its_bar() -> None:
    assert str(Figure("equal", 0.5, 0.99)) == "equal 0.500 (bar 0.990)"
    assert str(Figure("SI-SNR", 12.0, 10.0, "dB")) == "SI-SNR 12.0 dB (bar 10.0 dB)"
    just = Figure("SI-SNR", 9.996, 10.0, "dB")  # below the bar, so it must not look equal to it
    assert str(just) == "SI-SNR 9.996 dB (bar 10.000 dB)" and not just.close


def test_how_far_a_figure_is_below_its_bar() -> None:
    assert Figure("SI-SNR", 7.0, 10.0, "dB").short_db == 3 and Figure("SI-SNR", 12.0, 10.0, "dB").short_db == 0
    assert Figure("SI-SNR", -np.inf, 10.0, "dB").short_db == np.inf
    assert Figure("overlap", 0.6, 0.8).short_db == pytest.approx(10 * np.log10(2))


def test_scores_of_classes_that_no_sample_shows_are_no_group_of_their_own() -> None:
    rng = np.random.default_rng(0)
    r = rng.uniform(0, 1, (4, 300, 3)).astype(np.float32)
    r[..., 1] *= 0.02  # a class that never shows
    y = r + np.float32([0.02, 0.004, 0.02]) * rng.standard_normal(r.shape).astype(np.float32)
    assert all(f.close for f in figures("signal", [r], [y]))
    dead = y * np.float32([1, 0, 1])
    assert [f.name for f in figures("signal", [r], [dead]) if not f.close] == ["classes that no sample shows"]
    pixels = r * np.float32([100, 1, 100])  # of other scales it is one
    noisy = pixels + np.float32([0.5, 0.02, 0.5]) * rng.standard_normal(r.shape).astype(np.float32)
    assert not all(f.close for f in figures("signal", [pixels], [noisy]))


def test_the_mean_of_a_spectrum_hides_no_error() -> None:
    x = outputs("signal")
    high = [v - 20 for v in x]
    for level, db in ((0.5, 6), (0.05, 26)):
        (found,) = figures("signal", high, [v - 20 for v in noisy(x, level)])
        assert found.value == pytest.approx(db, abs=0.5) and found.close == (db > 10)


def test_columns_of_which_samples_have_different_numbers_are_judged_all_the_same() -> None:
    x = [np.random.default_rng(n).standard_normal((n, 1)).astype(np.float32) for n in (3, 5, 9)]
    assert [f.name for f in figures("regression", x, x)] == ["correlation over the samples", "of what varies"]


def test_classes_of_pixels_are_judged_by_what_is_largest_and_by_their_overlap() -> None:
    best = np.repeat(np.arange(3), 8)[:, None] * np.ones(24, int)
    logits = 9 * np.eye(3, dtype=np.float32)[best].transpose(2, 0, 1)[None]
    reference = [logits + 0.1 * np.random.default_rng(i).standard_normal(logits.shape) for i in range(3)]
    assert class_axis(reference) == 1 == class_axis([x + 5 for x in reference])
    assert class_axis([x.transpose(0, 2, 3, 1) for x in reference]) == 3
    assert class_axis([np.random.default_rng(0).standard_normal(x.shape) for x in reference]) is None
    many = np.pad(logits, ((0, 0), (0, 147), (0, 0), (0, 0)), constant_values=-9)
    assert class_axis([many, many]) == 1  # more classes than columns
    kept, overlap = figures("mask", reference, [3 * x - 1 for x in reference])  # another scale, the same classes
    assert kept.value == 1 == overlap.value
    moved = [x.copy() for x in reference]
    for x in moved:
        x[:, :, 8:11] = x[:, :, 4:7]  # three of 24 rows have the class above
    kept, overlap = figures("mask", reference, moved)
    assert kept.value == pytest.approx(1 - 3 / 24, abs=0.01)
    assert overlap.value == pytest.approx((8 / 11 + 5 / 8 + 1) / 3, abs=0.01)


def test_rare_classes_of_pixels_may_not_die() -> None:
    best = np.zeros((80, 80), int)
    best[10:17, 10:17] = 1  # .8 % of the pixels
    reference = [9 * np.eye(2)[best].transpose(2, 0, 1)[None]] * 2
    background = [9 * np.eye(2)[best * 0].transpose(2, 0, 1)[None]] * 2
    stays, common, rare = figures("mask", reference, background)
    assert stays.close and common.close and rare.value == 0 and not rare.close
    assert all(f.close for f in figures("mask", reference, reference))


def test_angles_may_be_whole_turns_apart_and_other_signals_may_not() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(-np.pi, np.pi, (8, 32, 1))
    r = np.concatenate([angle, rng.standard_normal((8, 32, 1))], -1).astype(np.float32)
    noisy = angle + 0.3 * rng.standard_normal(angle.shape)
    wrapped = (noisy + np.pi) % (2 * np.pi) - np.pi  # 3.1 became -3.1 here and there
    y = np.concatenate([wrapped, r[..., 1:]], -1).astype(np.float32)
    (near,) = figures("signal", [r], [y])
    assert np.abs(wrapped - noisy).max() > 6 and near.value > 15
    (other,) = figures("signal", [2 * r], [2 * y])  # no angles: they leave -pi ... pi
    assert other.value < 8
    far = np.concatenate([angle + 2 * np.pi, r[..., 1:]], -1).astype(np.float32)  # no angle leaves -pi ... pi
    assert not all(f.close for f in figures("signal", [r], [far]))
    (wrong,) = figures("signal", [r], [np.float32(rng.uniform(-np.pi, np.pi, r.shape))])
    assert wrong.value < 3


def test_where_all_positions_have_one_class_the_others_may_not_be_dead() -> None:
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((1, 50, 3)) + np.array([9.0, 0, 0]) for _ in range(6)]
    p = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits]
    dead = [np.broadcast_to(np.array([1.0, 0, 0]), x.shape) for x in p]
    found = {f.name: f for f in figures("tokens", p, dead)}
    assert found["decoded alike"].close and not found["classes that no sample shows"].close
    near = [x + 1e-5 * rng.random(x.shape) for x in p]
    assert {f.name: f for f in figures("tokens", p, near)}["classes that no sample shows"].close
    both = [x if i else x[..., [1, 0, 2]] for i, x in enumerate(p)]
    assert "classes that no sample shows" not in {f.name for f in figures("tokens", both, both)}


def test_positions_at_which_float_is_a_tie_are_not_decoded() -> None:
    rng = np.random.default_rng(6)
    tie = rng.integers(0, 2, (1, 400))
    sure = np.full((1, 400, 3), 0.02, np.float32)
    sure[0, np.arange(400), np.arange(400) % 3] = 0.96
    tied = np.stack([0.49 + 0.02 * tie, 0.49 + 0.02 * (1 - tie), np.full_like(tie, 0.02, float)], -1).astype(np.float32)
    flipped = tied[..., [1, 0, 2]]
    x, y = np.concatenate([sure, tied], 1), np.concatenate([sure, flipped], 1)
    assert {f.name: f.value for f in figures("tokens", [x], [y])}["decoded alike"] == 1
    wrong = np.concatenate([np.roll(sure, 1, -1), tied], 1)
    assert {f.name: f.close for f in figures("tokens", [x], [wrong])}["decoded alike"]  # shifted by one position
    blank = np.concatenate([sure[:, :1].repeat(400, 1), tied], 1)
    assert {f.name: f.value for f in figures("tokens", [x], [blank])}["decoded alike"] < 0.01
