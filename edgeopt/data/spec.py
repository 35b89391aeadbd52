"""What the readers must know of a model's input, and the types they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[Any]]
Sample = tuple[str, Callable[[], Feed]]


@dataclass(frozen=True)
class InputSpec:
    """A graph input; None in `shape` is a dimension that may vary."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def fixed(self, axis: int) -> int | None:
        """The size of dimension `axis` if the model fixes it."""
        return self.shape[axis] if self.shape is not None and -len(self.shape) <= axis < len(self.shape) else None


def specs(model: ir.Model) -> list[InputSpec]:
    """The inputs of `model` (canonical)."""
    return [
        InputSpec(
            str(v.name),
            np.dtype(v.dtype.numpy()) if v.dtype is not None else np.dtype(np.float32),
            None if v.shape is None else tuple(d if isinstance(d, int) else None for d in v.shape),
        )
        for v in model.graph.inputs
    ]
