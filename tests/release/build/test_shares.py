"""Intervals of shares: against values of the papers, and laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.numbers.intervals import wilson
from edgeopt.release.build.shares import fall


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_an_interval_of_a_share_is_that_of_newcombes_table(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(n=st.integers(1, 10**6), data=st.data())
def test_an_interval_of_a_share_holds_it_lies_in_0_to_1_and_narrows_with_more_samples(
    n: int, data: st.DataObject
) -> None:
    p = data.draw(st.integers(0, n)) / n
    found, more = wilson(p, n), wilson(p, 4 * n)
    assert 0 <= found.low <= p <= found.high <= 1
    assert more.high - more.low < found.high - found.low


@given(n=st.integers(1, 10**5), data=st.data())
def test_a_fall_is_the_difference_of_shares_with_an_interval_around_it(n: int, data: st.DataObject) -> None:
    worse = data.draw(st.integers(0, n))
    better = data.draw(st.integers(0, n - worse))
    found, other = fall(worse, better, n), fall(better, worse, n)
    assert found.value == (worse - better) / n and found.low <= found.value <= found.high
    assert (found.low, found.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_a_fall_of_nothing_in_few_samples_may_still_be_one() -> None:
    assert fall(0, 0, 30).high > 0.05 and fall(0, 0, 3000).high < 0.001
