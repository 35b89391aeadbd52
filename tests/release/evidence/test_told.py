"""A run in a few lines: every failure and every gate is told, the worst last, beside the verdict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.release.document import GateResult
from edgeopt.release.evidence.told import COLUMNS, cell, lines
from edgeopt.release.project.metrics import METRICS
from edgeopt.release.project.quantities import shown
from tests.release.runs import around, run, variant

OUTCOMES = ("pass", "warn", "inconclusive", "not comparable", "no baseline", "not measured", "fail")


@given(st.lists(st.sampled_from(OUTCOMES), max_size=9), st.integers(0, 3))
def test_all_is_told_once_and_the_worst_stands_next_to_the_verdict(outcomes: list[str], failed: int) -> None:
    gates = tuple(
        GateResult.model_validate(
            {
                "variant": "a",
                "metric": "size.file",
                "bound": "max",
                "limit": 1.0,
                "value": 1.0,
                "outcome": o,
                "message": f"m{i}",
            }
        )
        for i, o in enumerate(outcomes)
    )
    made = run(variant(), *(variant(f"f{i}", error=f"e{i}") for i in range(failed)))
    told = list(lines(made.model_copy(update={"gates": gates, "verdict": "error"})))
    assert told[:failed] == [f"f{i}: FAILED: e{i}" for i in range(failed)]
    assert told[-1] == "verdict: error" and len(told) == failed + len(outcomes) + 1
    order = [OUTCOMES.index(row[:14].rstrip()) if row[:14].rstrip() in OUTCOMES else -1 for row in told[failed:-1]]
    assert order == sorted(OUTCOMES.index(o) for o in outcomes)
    assert sorted(row.split()[-1] for row in told[failed:-1]) == sorted(f"m{i}" for i in range(len(outcomes)))


def test_a_cell_shows_the_figure_with_its_interval_where_it_has_one_and_nothing_where_it_is_not_known() -> None:
    for name, row in METRICS.items():
        plain, ranged = variant(metrics={name: 5.0}), variant(intervals={name: around(5.0, 0.2)}, metrics={name: 5.0})
        assert cell(plain, name) == shown(5.0, row.kind)
        assert cell(ranged, name) == f"{shown(5.0, row.kind)} [{shown(4.0, row.kind)}, {shown(6.0, row.kind)}]"
        assert cell(variant(), name) == ""


def test_columns_are_metrics() -> None:
    assert set(COLUMNS) <= set(METRICS) and len(set(COLUMNS)) == len(COLUMNS)
