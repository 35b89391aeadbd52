"""What each node of a model computes in: the plan that numbers (grids) and one writer of the graph go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Form = Literal["float", "int8 static", "int8 dynamic", "int8 stored", "int4 stored", "fp16 stored", "fp16"]


@dataclass(frozen=True)
class Plan:
    """A form for every node."""

    forms: Mapping[str, Form]
    """Node -> its form, where that is not float."""
    clamps: Mapping[str, str]
    """Relu or Clip node that an output grid takes over -> the integer node before it."""
    grids: Mapping[str, str]
    """Value with a grid -> the value whose statistics decide it (itself, or the source of the data it only moves)."""
    kept_float: Mapping[str, str]
    """Every other node -> the reason."""

    @cached_property
    def integer(self) -> frozenset[str]:
        """The nodes that compute in integers on grids."""
        return self.having("int8 static")

    def having(self, *forms: Form) -> frozenset[str]:
        """The nodes of one of `forms`."""
        return frozenset(n for n, form in self.forms.items() if form in forms)
