"""What `quantize` reports: frozen values that become JSON as they are (`edgeopt.quantization.report/1`)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt.numbers.scores import OutputReport, lowest_agreement, lowest_sqnr_db

SCHEMA = "edgeopt.quantization.report/1"


@dataclass(frozen=True)
class ActivationReport:
    """A quantized activation over the calibration samples: what was seen (mean, std of a subsample) and the grid it got."""

    seen: tuple[float, float]
    mean: float
    std: float
    grid: tuple[float, float]
    scale: float
    zero_point: int


@dataclass(frozen=True)
class LatencyReport:
    """Median latency in this machine's ONNX Runtime, and the speed-up over float with its 95 % interval."""

    float_ms: float
    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    threads: int


@dataclass(frozen=True)
class MetricReport:
    """The user's own metric of the float model and of the result; higher is better."""

    name: str
    on_float: float
    result: float


@dataclass(frozen=True)
class Candidate:
    """A mode that was tried: its figures, and why it was kept or not."""

    mode: str
    worst_sqnr_db: float | None
    speedup: float | None
    verdict: str
    metric: float | None = None


@dataclass(frozen=True)
class Report:
    """The evidence for one quantized file."""

    mode: str
    reason: str
    target: str
    host: str
    input_bytes: int
    output_bytes: int
    download_bytes: int
    bytes_before: Mapping[str, int]
    bytes_after: Mapping[str, int]
    outputs: tuple[OutputReport, ...]
    latency: LatencyReport | None
    kernels: Mapping[str, Mapping[str, int]]
    integer_nodes: tuple[str, ...]
    activations: Mapping[str, ActivationReport]
    kept_float: Mapping[str, str]
    samples: Mapping[str, int]
    preprocess: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    metric: MetricReport | None = None
    missed: tuple[str, ...] = ()
    interrupted: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Options that were chosen otherwise than the default."""
    recipe: tuple[Mapping[str, Any], ...] = ()
    """The steps that made the model."""
    schema: str = field(default=SCHEMA)

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of all outputs, in dB; infinite when every output is exact."""
        return lowest_sqnr_db(self.outputs)

    @property
    def agreement(self) -> float | None:
        """The lowest top-1 agreement of the outputs that look like class scores."""
        return lowest_agreement(self.outputs)

    def to_json(self) -> str:
        """JSON text; infinities become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, sort_keys=True, allow_nan=False)


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


@dataclass(frozen=True)
class Result:
    """The quantized model, where it was written (None: nowhere), and the evidence."""

    model: ir.Model
    path: Path | None
    report: Report
