"""The quantization plan of a model: the form in which each node computes, and the values that get a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Form = Literal["float", "int8 static", "int8 dynamic", "int8 stored", "int4 stored", "fp16 stored", "fp16"]


@dataclass(frozen=True)
class Plan:
    """A form for every node of a model."""

    forms: Mapping[str, Form]
    """Node -> its form, for nodes that are not float."""
    clamps: Mapping[str, str]
    """Relu or Clip node that is replaced by an output grid -> the integer node before it."""
    grids: Mapping[str, str]
    """Value with a grid -> the value whose statistics determine it (itself, or the source of data only moved)."""
    kept_float: Mapping[str, str]
    """Every other node -> the reason why it stays float."""
    clamps_stay: bool = False
    """Whether `clamps` stay in the model, before the grid."""

    @cached_property
    def integer(self) -> frozenset[str]:
        """The nodes with static int8 quantization."""
        return self.having("int8 static")

    def having(self, *forms: Form) -> frozenset[str]:
        """The nodes that have one of `forms`."""
        return frozenset(n for n, form in self.forms.items() if form in forms)
