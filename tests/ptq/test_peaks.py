"""Peaks of channels against a look at every number of every sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgeopt.data import Feed
from edgeopt.errors import DataError
from edgeopt.ptq.peaks import Peaks, peaks
from tests import tiny
from tests.models import normal
from tests.static import values

TEXT = """g (float[N,3,4,4] x) => (float[N,5,4,4] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    y = Relu(c)
}"""
MODEL = tiny.model(TEXT, w=normal(5, 3, 3, 3), b=normal(5, seed=1))
FEEDS = tiny.feeds(6, x=(2, 3, 4, 4))


def sample(feed: Feed) -> Callable[[], Feed]:
    return lambda: feed


def broken() -> Feed:
    raise DataError("torn")


SAMPLES = [(str(i), sample(f)) for i, f in enumerate(FEEDS)]


@pytest.mark.parametrize(("name", "axis", "channels"), [("x", 1, 3), ("c", 1, 5), ("c", -1, 4), ("y", 1, 5)])
def test_peaks_are_the_extremes_of_each_channel(name: str, axis: int, channels: int) -> None:
    found = peaks(MODEL, {name: axis}, SAMPLES)[name]
    highest, absolute = [-np.inf] * channels, [0.0] * channels
    for feed in FEEDS:
        x = np.moveaxis(values(MODEL, [name], feed)[name], axis, -1).reshape(-1, channels)
        for row in x.astype(np.float64):
            for c in range(channels):
                highest[c], absolute[c] = max(highest[c], row[c]), max(absolute[c], abs(row[c]))
    np.testing.assert_allclose(found.highest, highest, rtol=1e-5)
    np.testing.assert_allclose(found.absolute, absolute, rtol=1e-5)


def test_several_values_are_found_at_once_and_none_without_any() -> None:
    assert peaks(MODEL, {"x": 1, "c": 1, "y": -1}, SAMPLES).keys() == {"x", "c", "y"}
    assert peaks(MODEL, {}, SAMPLES) == {}


def test_merging_is_looking_at_both() -> None:
    x = normal(3, 4, 5)
    both, parts = Peaks.of(x, 1), Peaks.of(x[:1], 1).merge(Peaks.of(x[1:], 1))
    assert np.array_equal(both.highest, parts.highest) and np.array_equal(both.absolute, parts.absolute)


def test_a_channel_below_zero_has_a_highest_below_zero_and_an_absolute_above() -> None:
    found = Peaks.of(np.float32([[-3.0, 2.0], [-1.0, -5.0]]), 1)
    assert found.highest.tolist() == [-1.0, 2.0] and found.absolute.tolist() == [3.0, 5.0]


def test_a_sample_without_numbers_changes_nothing() -> None:
    some = Peaks.of(normal(2, 3), 1)
    merged = some.merge(Peaks.of(np.zeros((0, 3), np.float32), 1))
    assert np.array_equal(merged.highest, some.highest) and np.array_equal(merged.absolute, some.absolute)


def test_samples_that_cannot_be_read_are_left_out() -> None:
    many = [(str(i), sample(FEEDS[i % 6])) for i in range(30)]
    with_broken = [*many[:7], ("torn", broken), *many[7:]]
    assert np.array_equal(peaks(MODEL, {"c": 1}, with_broken)["c"].highest, peaks(MODEL, {"c": 1}, many)["c"].highest)


def test_no_sample_that_can_be_read_is_an_error_in_words_and_not_a_value_that_is_missing() -> None:
    with pytest.raises(DataError, match="torn"):
        peaks(MODEL, {"c": 1}, [(str(i), broken) for i in range(32)])
