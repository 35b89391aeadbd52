"""Intervals of falls of shares: laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.release.build.shares import fall


@given(n=st.integers(1, 10**5), data=st.data())
def test_a_fall_is_the_difference_of_shares_with_an_interval_around_it(n: int, data: st.DataObject) -> None:
    worse = data.draw(st.integers(0, n))
    better = data.draw(st.integers(0, n - worse))
    found, other = fall(worse, better, n), fall(better, worse, n)
    assert found.value == (worse - better) / n and found.low <= found.value <= found.high
    assert (found.low, found.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_a_fall_of_nothing_in_few_samples_may_still_be_one() -> None:
    assert fall(0, 0, 30).high > 0.05 and fall(0, 0, 3000).high < 0.001
