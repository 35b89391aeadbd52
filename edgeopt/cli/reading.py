"""How samples are read: the options that `quantize`, `sensitivity`, `shrink` and `distill` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_OPTIONS = (
    click.option("--preprocess", metavar="PRESET", help="imagenet, unit, signed or raw255. [default: preprocess.toml, or found out]"),
    click.option("--resize", metavar="S|HxW", help="Shorter side, or both."),
    click.option("--crop", metavar="HxW", help="Centre crop."),
    click.option("--mean", metavar="R,G,B"),
    click.option("--std", metavar="R,G,B", help="y = (x * scale - mean) / std, x in 0..255."),
    click.option("--scale", type=float),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"], case_sensitive=False)),
    click.option("--color", type=click.Choice(["rgb", "bgr", "gray"])),
    click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json for text."),
)  # fmt: skip
Command = TypeVar("Command", bound=Callable[..., Any])
_NAMES = ("resize", "crop", "mean", "std", "scale", "layout", "color")


def reading(command: Command) -> Command:
    """`command` with the options that say how samples become inputs."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_as(given: dict[str, Any]) -> dict[str, Any]:
    """What `reading` gave, taken out of `given`, as the library calls it."""
    raw = {name: given.pop(name) for name in _NAMES}
    return {"preprocess": given.pop("preprocess"), "tokenizer": given.pop("tokenizer"), "overrides": _overrides(raw)}


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(x) for x in text.split(","))
    except ValueError as e:
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from e
    if not all(math.isfinite(x) for x in numbers) or (option == "--std" and min(numbers) <= 0):
        raise click.BadParameter(f"{text!r}: finite numbers, and --std above 0", param_hint=option)
    return numbers


def _side(text: str | None, option: str) -> int | tuple[int, int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) > len(("height", "width")) or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise click.BadParameter(f"{text!r}; write 224 or 224x224", param_hint=option)
    sides = [int(p) for p in parts]
    return sides[0] if len(sides) == 1 and option == "--resize" else (sides[0], sides[-1])


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    found = {
        "resize": _side(given["resize"], "--resize"),
        "crop": _side(given["crop"], "--crop"),
        "mean": _numbers(given["mean"], "--mean"),
        "std": _numbers(given["std"], "--std"),
        "scale": (_numbers(str(given["scale"]), "--scale") or (None,))[0] if given["scale"] is not None else None,
        "layout": given["layout"].upper() if given["layout"] else None,
        "color": given["color"],
    }
    return {k: v for k, v in found.items() if v is not None}
