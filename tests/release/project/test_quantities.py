"""Quantities of a project file: every unit, what a bare number means, what is refused, and that what is shown can be
read back.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.release.project.metrics import METRICS, metric
from edgeopt.release.project.quantities import Kind, quantity, shown

KINDS: tuple[Kind, ...] = get_args(Kind)
UNITS: tuple[tuple[Kind, str, float], ...] = (
    ("bytes", "B", 1), ("bytes", "kB", 1e3), ("bytes", "KB", 1e3), ("bytes", "MB", 1e6), ("bytes", "GB", 1e9),
    ("bytes", "KiB", 1024), ("bytes", "MiB", 1024**2), ("bytes", "GiB", 1024**3),
    ("ms", "ns", 1e-6), ("ms", "us", 1e-3), ("ms", "ms", 1), ("ms", "s", 1e3),
    ("share", "%", 0.01), ("share", "pp", 0.01), ("dB", "dB", 1), ("ratio", "x", 1),
)  # fmt: skip
ALL_UNITS = {unit for _, unit, _ in UNITS}
NUMBERS = st.floats(0.001, 1e6) | st.integers(0, 10**6)


@pytest.mark.parametrize(("kind", "unit", "size"), UNITS)
@given(x=NUMBERS, space=st.sampled_from(["", " ", "  "]))
def test_a_number_with_a_unit_is_that_many_of_the_documents_unit(
    kind: Kind, unit: str, size: float, x: float, space: str
) -> None:
    assert math.isclose(quantity(f" {x!r}{space}{unit} ", kind), x * size, rel_tol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_of_another_kind_is_refused_with_an_example(kind: Kind) -> None:
    own = {unit for k, unit, _ in UNITS if k == kind}
    for unit in ALL_UNITS - own:
        with pytest.raises(ValueError, match=r"write e\.g\."):
            quantity(f"3 {unit}", kind)


@pytest.mark.parametrize("kind", KINDS)
@given(x=NUMBERS)
def test_a_bare_number_is_taken_where_it_is_unambiguous_and_refused_for_bytes_and_times(kind: Kind, x: float) -> None:
    if kind in ("bytes", "ms"):
        for given in (x, repr(x)):
            with pytest.raises(ValueError, match=r"write e\.g\."):
                quantity(given, kind)
    else:
        assert quantity(x, kind) == quantity(repr(x), kind) == float(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "given",
    [
        True,
        False,
        "",
        " ",
        "MB",
        "six MB",
        "1 2 MB",
        "1,5 MB",
        "1.2.3 x",
        "--3 dB",
        "0x10 B",
        "nan",
        "inf",
        "1 mb",
        "3 MB/s",
        "5 % %",
        "\x00",
        "1\n2",
    ],
)
def test_what_is_no_quantity_is_refused_in_words(kind: Kind, given: object) -> None:
    with pytest.raises(ValueError, match=r"e\.g\."):
        quantity(given, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e400", "10**400"])
def test_a_number_that_is_not_finite_is_no_bound_of_any_kind(given: str) -> None:
    number = {"1e400": "1e400", "10**400": 10**400}.get(given) or float(given)
    taken = []
    for kind in KINDS:
        unit = next((u for k, u, _ in UNITS if k == kind), "")
        try:
            taken.append((kind, quantity(f"{number} {unit}" if isinstance(number, str) else number, kind)))
        except ValueError:
            continue
    assert not taken


@given(x=st.floats(1, 1e11))
def test_shown_bytes_read_back_as_the_same_to_three_digits(x: float) -> None:
    assert math.isclose(quantity(shown(x, "bytes"), "bytes"), x, rel_tol=0.01 if x >= 1e3 else 0.5)


@given(x=st.floats(0.01, 1e7))
def test_shown_times_read_back_as_the_same_to_three_digits(x: float) -> None:
    assert math.isclose(quantity(shown(x, "ms"), "ms"), x, rel_tol=0.01, abs_tol=0.0005)


@pytest.mark.parametrize("kind", ["share", "dB", "ratio", "count"])
@given(x=st.floats(0, 1000))
def test_other_shown_figures_read_back_too(kind: Kind, x: float) -> None:
    assert math.isclose(quantity(shown(x, kind), kind), x, abs_tol=0.5 if kind == "count" else 0.051)


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_that_is_not_known_is_shown_as_such(kind: Kind) -> None:
    assert shown(None, kind) == "n/a"


def test_every_metric_has_a_kind_that_quantities_know_and_is_found_by_its_name() -> None:
    for name, row in METRICS.items():
        assert row.kind in KINDS and metric(name) is row and shown(1.0, row.kind)


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_with_a_character_missing_is_told_what_was_meant(name: str) -> None:
    near = name[:-1]
    with pytest.raises(ValueError, match="did you mean") as e:
        metric(near)
    assert f"no metric {near!r}" in str(e.value)
