"""Samples that are too many for memory are the same from disk."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import distill
from edgeopt.errors import UsageError
from edgeopt.train.spill import Spill, Spilled
from tests.train import toys

FEEDS = [
    {"x": toys.normal(i, 2, 1 + i % 3), "n": np.int64([[i]]), "b": np.array(i % 2 == 0), "h": np.float16([i, -i, 3])}
    for i in range(9)
]


@pytest.mark.parametrize("limit", [0, 100, 10**9])
def test_what_was_added_comes_back_bit_by_bit_wherever_it_lay(limit: int) -> None:
    spill = Spill(limit)
    for feed in FEEDS:
        spill.add(feed)
    found = spill.feeds()
    assert len(found) == len(spill) == len(FEEDS) and isinstance(found, Spilled) == (limit < 10**9)
    for a, b in zip(found, FEEDS, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a)


def test_a_part_has_the_feeds_that_were_asked_for_in_that_order() -> None:
    spill = Spill(0)
    for feed in FEEDS:
        spill.add(feed)
    found = spill.feeds()
    assert isinstance(found, Spilled)
    assert [int(f["n"][0, 0]) for f in found.part([7, 2, 2])] == [7, 2, 2]
    assert [int(f["n"][0, 0]) for f in found.part([3, 4])] == [3, 4]


def test_a_full_disk_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Spill, feed: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spill, "_write", full)
    with pytest.raises(UsageError, match="set TMPDIR to one with space, or read fewer with --samples"):
        Spill(0).add(FEEDS[0])


def test_training_from_disk_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def once() -> bytes:
        return distill(toys.perceptron(), toys.samples(40), teacher=toys.perceptron(7), **toys.QUICK).model

    held = once()
    monkeypatch.setattr("edgeopt.train.batches.free_bytes", lambda: 0)
    assert toys.same_bytes(held, once())
