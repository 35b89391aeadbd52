"""Straight-line code: a sequence of torch calls on values by slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.train.network.torch_data import Unsupported


@dataclass(frozen=True)
class Instruction:
    """One call of a function."""

    node: ir.Node
    """The node it computes, or the last of several."""
    function: Callable[..., Any]
    inputs: tuple[int | None, ...]
    """Slots; None: an omitted input."""
    outputs: tuple[int, ...]
    """Slots."""
    dropped: tuple[int, ...] = ()
    """Slots to free afterwards."""


def run(step: Instruction, values: dict[int, Any]) -> None:
    """Execute `step` on `values`, by slot.

    Raises:
        ModelError: a form of the operator is not supported, or torch cannot compute it; with the node's name.
    """
    try:
        result = step.function(*(None if i is None else values[i] for i in step.inputs))
    except Unsupported as e:
        raise ModelError(f"node {step.node.name!r} cannot be trained: {e}") from e
    except (RuntimeError, TypeError, IndexError) as e:  # torch's own, out of memory included
        raise ModelError(
            f"node {step.node.name!r} fails in torch: {(str(e).splitlines() or [type(e).__name__])[0]}"
        ) from e
    if isinstance(result, tuple | list):
        values.update(zip(step.outputs, result, strict=False))
    else:
        values[step.outputs[0]] = result


def with_drops(steps: Sequence[Instruction], kept: set[int]) -> tuple[Instruction, ...]:
    """The steps, each of which drops the slots it is the last to use, except `kept`."""
    found, seen = [], set(kept)
    for step in reversed(steps):
        touched = {i for i in (*step.inputs, *step.outputs) if i is not None}
        found.append(replace(step, dropped=tuple(sorted(touched - seen))))
        seen |= touched
    return tuple(found[::-1])
