"""Read ONNX Runtime's trace of a session: the kernels that ran, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt.errors import WorkerError
from edgeopt.files import json_of

_KERNEL = "_kernel_time"
_SIZED = [t for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]
ELEMENT_BYTES = {t.name.lower(): max(1, int(t.itemsize)) for t in _SIZED}
"""Bytes of an element, by its type's name in a trace."""


@dataclass(frozen=True)
class KernelRun:
    """One run of a kernel."""

    name: str
    """Name of its node, or of the value that it produces."""
    op: str
    provider: str
    start_us: float
    """Start in microseconds."""
    us: float
    """Duration in microseconds."""
    args: Mapping[str, Any]

    @property
    def end_us(self) -> float:
        """When it ended, in microseconds."""
        return self.start_us + self.us

    def shapes(self, key: str) -> list[tuple[str, Sequence[int]]]:
        """(element type, shape) of its inputs (`input_type_shape`) or outputs (`output_type_shape`)."""
        return [(kind, shape) for entry in self.args.get(key, []) for kind, shape in entry.items()]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of the trace at `path`, as ONNX Runtime wrote them.

    Raises:
        WorkerError: it is not a trace.
    """
    try:
        return [event for event in json_of(path.read_text(encoding="utf-8")) if isinstance(event, dict)]
    except (OSError, ValueError) as error:
        raise WorkerError(f"ONNX Runtime's trace {path} cannot be read: {error}") from error


def kernel_runs(events: Sequence[Mapping[str, Any]]) -> list[KernelRun]:
    """The runs of kernels among `events`, in their order."""
    return [
        KernelRun(
            str(e["name"]).removesuffix(_KERNEL),
            str(e["args"].get("op_name", "?")),
            str(e["args"].get("provider", "?")),
            float(e["ts"]),
            float(e["dur"]),
            e["args"],
        )
        for e in events
        if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_KERNEL)
    ]
