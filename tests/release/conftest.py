"""Fixtures that several files share."""

from collections.abc import Mapping
from typing import Any

import pytest

from edgeopt.runtime.measure import PairedLatency
from tests.release.projects import clock, steps

__all__ = ["clock", "steps"]


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a simplify step would time for a second is not timed."""

    def at_once(sessions: Mapping[str, Any], *args: Any, **more: Any) -> dict[str, PairedLatency]:
        return dict.fromkeys(sessions, PairedLatency(1.0, 1.0, 1.0, 1.0))

    monkeypatch.setattr("edgeopt.simplification.interleaved", at_once)
