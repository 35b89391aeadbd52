"""Straight-line code: one call of torch after the other, on values by slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.train.network.torch_data import Unsupported


@dataclass(frozen=True)
class Instruction:
    """One call: where its inputs are (None: left out), what it calls, where its outputs go, what is dropped afterwards.

    node: what it computes, or the last of several.
    """

    node: ir.Node
    function: Callable[..., Any]
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    dropped: tuple[int, ...] = ()


def run(step: Instruction, values: dict[int, Any]) -> None:
    """Raises: ModelError: the form of an operator is not covered, or torch cannot compute it; by node name."""
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
    """The steps with what each is the last to touch, but for `kept`."""
    found, seen = [], set(kept)
    for step in reversed(steps):
        touched = {i for i in (*step.inputs, *step.outputs) if i is not None}
        found.append(replace(step, dropped=tuple(sorted(touched - seen))))
        seen |= touched
    return tuple(found[::-1])
