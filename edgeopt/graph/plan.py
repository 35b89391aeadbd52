"""What a pipeline hands from step to step: frozen values; a step returns new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Where a model computes in integers.

    integer: names of the integer nodes. clamps: Relu or Clip node that an output grid takes over -> the integer node
    before it. grids: value with a grid -> the value whose statistics decide it (itself, or the source of the data it
    only moves). kept_float: every other node -> the reason.
    """

    integer: frozenset[str]
    clamps: Mapping[str, str]
    grids: Mapping[str, str]
    kept_float: Mapping[str, str]
