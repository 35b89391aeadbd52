"""What people write on a command line, as numbers: `10m`, `30/s`, `3%`, `1,2`, `name=value`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str | None, option: str) -> float | None:
    """Of `500ms`, `30s`, `10m`, or a plain number of seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"([\d.]+)\s*(ms|s|min|m|h)?", text.strip())
    number = _number(found[1]) if found else None
    if found is None or number is None:
        raise click.BadParameter(f"{text!r} is no time; write 30s, 10m or 500ms", param_hint=option)
    return number * _SECONDS[found[2] or "s"]


def rate(text: str | None) -> float:
    """Inferences a second of `30/s` or `30`."""
    if text is None:
        return 0.0
    number = _number(text.strip().removesuffix("/s"))
    if number is None or number <= 0:
        raise click.BadParameter(f"{text!r} is no rate; write 30/s", param_hint="--rate")
    return number


def share(text: str, option: str) -> float:
    """Of `3%` or `0.03`."""
    number = _number(text.strip().removesuffix("%"))
    if number is None:
        raise click.BadParameter(f"{text!r} is no share; write 3% or 0.03", param_hint=option)
    return number / 100 if text.strip().endswith("%") else number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def counts(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers of `1,2,4`, each once."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts):
        raise click.BadParameter(f"{text!r}; write numbers, e.g. 1,2,4", param_hint=option)
    return tuple(dict.fromkeys(int(p) for p in parts))


def pairs(given: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Values by name of repeated `NAME=VALUE`."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise click.BadParameter(f"{text!r}; write NAME=VALUE, e.g. {example}", param_hint=option)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found


def whole(given: Mapping[str, str], option: str) -> dict[str, int]:
    """The values as whole numbers."""
    for value in given.values():
        if not re.fullmatch(r"-?[0-9]+", value):
            raise click.BadParameter(f"{value!r} is no whole number", param_hint=option)
    return {name: int(value) for name, value in given.items()}
