"""What people write on a command line: read back as it was meant, or refused with what to write."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.options.texts import (
    COUNTS,
    NUMBERS,
    SHARE,
    SIDES,
    TIME,
    Text,
    counts,
    numbers,
    pairs,
    rate,
    seconds,
    share,
    side_or_sides,
    sides,
    size,
    whole,
)

LAW = settings(max_examples=100, deadline=None, derandomize=True)
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}

decimals = st.decimals(0, 10_000, places=3)
names = st.text("abcxyz_.-", min_size=1, max_size=8)


@LAW
@given(decimals, st.sampled_from([*UNITS]), st.sampled_from(["", " ", "  "]))
def test_a_time_is_its_number_times_its_unit(number: object, unit: str, space: str) -> None:
    found = seconds(f" {number}{space}{unit} ")
    assert found == float(str(number)) * UNITS[unit]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("2min", 120), ("1.5h", 5400), ("3", 3), (".5", 0.5)],
)
def test_times_as_people_write_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("30/s", 30), ("30", 30), (" 0.5/s ", 0.5)])
def test_rates_as_people_write_them(text: str, expected: float) -> None:
    assert rate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("3%", 0.03), ("0.03", 0.03), (" 2.5 % ", 0.025), ("100%", 1), ("1", 1)]
)
def test_shares_as_people_write_them(text: str, expected: float) -> None:
    assert share(text) == expected


@LAW
@given(decimals)
def test_a_share_in_percent_is_a_hundredth_of_its_number(number: object) -> None:
    assert share(f"{number}%") == share(f"{number}") / 100


@pytest.mark.parametrize(
    ("text", "expected"), [("2G", 2_000_000_000), ("500MB", 500_000_000), ("1 k", 1000), ("64KiB", 64_000), ("7B", 7)]
)
def test_sizes_as_people_write_them(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["2", "512", "0.5e3"])
def test_a_few_bytes_are_asked_about(text: str) -> None:
    with pytest.raises(ValueError, match=rf"bytes; write a unit: {re.escape(text)}M"):
        size(text)


@pytest.mark.parametrize(("text", "expected"), [("224", (224, 224)), ("224x192", (224, 192)), ("8,9", (8, 9))])
def test_a_side_is_one_number_or_two(text: str, expected: tuple[int, int]) -> None:
    assert sides(text) == expected
    assert side_or_sides(text) == (expected if text != "224" else 224)


@pytest.mark.parametrize(
    ("text", "value"),
    [(TIME, 120.0), (TIME, 0.5), (SHARE, 0.03), (COUNTS, (1, 2)), (NUMBERS, (0.5, 1.0)), (SIDES, (8, 9))],
)
def test_a_default_is_shown_as_it_is_written(text: Text, value: object) -> None:
    assert text.read(text.show(value)) == value


@LAW
@given(st.lists(st.integers(0, 100), min_size=1))
def test_counts_are_in_the_order_they_were_written_each_once(numbers: list[int]) -> None:
    assert counts(", ".join(map(str, numbers))) == tuple(dict.fromkeys(numbers))


@LAW
@given(st.dictionaries(names, st.text(min_size=1, max_size=8)))
def test_pairs_are_read_as_they_were_written_whatever_is_in_the_value(expected: dict[str, str]) -> None:
    assert pairs([f"{k}={v}" for k, v in expected.items()], "a=b") == expected


def test_only_the_first_equals_sign_divides() -> None:
    assert pairs(["a=b=c", "x=="], "a=b") == {"a": "b=c", "x": "="}


Refused = tuple[Callable[[str], object], str, str]
REFUSED: list[Refused] = [
    *(
        (lambda text: seconds(text), text, "is no time; write 30s, 10m or 500ms")
        for text in ("", "s", "-3s", "3 days", "1.2.3s", ".", "nan", "inf", "1e3s", "10 m s", "3S", "30s.")
    ),
    *((rate, text, "is no rate; write 30/s") for text in ("", "/s", "0", "0/s", "-30/s", "30/m", "fast", "30/s/s")),
    *(
        (lambda text: share(text), text, "is no share; write 3% or 0.03")
        for text in ("", "%", "3%%", "%3", "three", "3,5%")
    ),
    *(
        (lambda text: counts(text), text, "write numbers, e.g. 1,2,4")
        for text in ("", ",", "1,", ",1", "1,,2", "-1", "1.5", "1;2", "two", "²", "1e3", "+1")
    ),
    *((size, text, "write 500MB or 2G") for text in ("", "G", "two", "1T", "nan")),
    *((sides, text, "write 224 or 224x224") for text in ("", "x", "0", "8x", "1x2x3", "-1")),
    *((numbers, text, "is no list of numbers") for text in ("", "a", "1,,2", "1;2")),
    *(
        (lambda text: pairs(["ok=1", text], "seq=128"), text, "write NAME=VALUE, e.g. seq=128")
        for text in ("", "=", "a", "a=", "=b")
    ),
    *((lambda text: whole(text), text, "is no whole number") for text in ("", "x", "1.0", "+1", "²", " 1", "--1")),
]


@pytest.mark.parametrize(
    ("read", "text", "remedy"), REFUSED, ids=[f"{remedy[:11]}-{text}" for _, text, remedy in REFUSED]
)
def test_what_cannot_be_read_is_refused_with_what_to_write(
    read: Callable[[str], object], text: str, remedy: str
) -> None:
    with pytest.raises(ValueError) as e:
        read(text)
    assert str(e.value).startswith(repr(text)) and str(e.value).endswith(remedy)
