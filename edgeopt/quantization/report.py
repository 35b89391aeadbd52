"""The report of `quantize`: frozen dataclasses that are written as JSON (schema `edgeopt.quantization.report/1`)."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from pydantic_core import to_jsonable_python

from edgeopt.errors import UsageError
from edgeopt.files import check_place, staged
from edgeopt.graph import above_protobuf, proto_bytes, write
from edgeopt.numbers.scores import OutputReport, lowest_agreement, lowest_sqnr_db
from edgeopt.numbers.words import counts, decibels, megabytes
from edgeopt.pictures import shortened
from edgeopt.quantization.outputs import STEPS

SCHEMA = "edgeopt.quantization.report/1"
_SHOWN = 4  # candidates that were not kept


@dataclass(frozen=True)
class ActivationReport:
    """A quantized activation: its range over the calibration samples, the mean and standard deviation of a subsample,
    and its grid.
    """

    seen: tuple[float, float]
    grid: tuple[float, float]
    scale: float
    zero_point: int


@dataclass(frozen=True)
class LatencyReport:
    """Median latency (ms) in ONNX Runtime on this machine, and the speed-up over float with its 95 % interval."""

    float_ms: float
    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    threads: int


@dataclass(frozen=True)
class MetricReport:
    """The user's metric for the float model and for the result; higher is better."""

    name: str
    on_float: float
    result: float


@dataclass(frozen=True)
class Candidate:
    """A candidate that was tried: its mode, its figures, and why it was kept or not."""

    mode: str
    worst_sqnr_db: float | None
    speedup: float | None
    verdict: str
    metric: float | None = None

    def describe(self) -> str:
        """A line for a reader."""
        near = "" if self.worst_sqnr_db is None else f", {decibels(self.worst_sqnr_db)}"
        speed = "" if self.speedup is None else f", {self.speedup:.2f}x"
        return f"{self.mode}{near}{speed}: {self.verdict}"


@dataclass(frozen=True)
class Report:
    """All measurements and decisions for one quantized file."""

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
    undecided: tuple[str, ...] = ()
    """Demands that are met on the held-out samples, which are too few to show it."""
    interrupted: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Options that differ from their defaults."""
    recipe: tuple[Mapping[str, Any], ...] = ()
    """The steps that produced the model."""
    later: tuple[OutputReport, ...] = ()
    """The outputs after recurrent states were fed back, if there are states."""
    schema: str = field(default=SCHEMA)

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of all outputs, in dB; infinite when every output is exact."""
        return lowest_sqnr_db(self.outputs)

    @property
    def agreement(self) -> float | None:
        """The lowest top-1 agreement over the outputs that look like class scores."""
        return lowest_agreement(self.outputs)

    @property
    def not_kept(self) -> tuple[Candidate, ...]:
        """What else was tried."""
        return tuple(c for c in self.candidates if c.verdict not in ("kept", "asked for"))

    def rows(self) -> Iterator[tuple[str, str]]:
        """The content of the report for a reader, as (label, text)."""
        yield "mode", self.reason
        yield "target", self.target + ("" if self.target == self.host else f" (this machine: {self.host})")
        small, large = self.output_bytes, self.input_bytes
        yield (
            "size",
            f"{megabytes(large)} -> {megabytes(small)} ({large / small:.2f}x smaller); "
            f"download {megabytes(self.download_bytes)}",
        )
        yield "weights", ", ".join(f"{k} {megabytes(v)}" for k, v in self.bytes_after.items())
        if self.latency is not None:
            x = self.latency
            yield (
                "latency",
                f"{x.float_ms:.2f} ms -> {x.latency_ms:.2f} ms, {x.speedup:.2f}x "
                f"[{x.speedup_low:.2f}, {x.speedup_high:.2f}], {x.threads} thread",
            )
        if self.metric is not None:
            yield "metric", f"{self.metric.name} {self.metric.on_float:.4g} -> {self.metric.result:.4g}"
        for o in self.outputs:
            yield f"output {shortened(o.output)}", f"{_nearness(o)} ({self.samples['held_out']} held-out samples)"
        for o in self.later:
            yield f"{shortened(o.output)}, fed back", f"after {STEPS} steps: {_nearness(o)}"
        if self.integer_nodes and not self.kernels["integer"]:  # 16 bits
            yield "in integers", f"{len(self.integer_nodes)} nodes, which this CPU runs in floats"
        for c in self.not_kept[:_SHOWN]:
            yield "not kept", c.describe()
        if len(self.not_kept) > _SHOWN:
            yield "not kept", f"{len(self.not_kept) - _SHOWN} more: --report FILE.json has them"
        yield "integer", counts(self.kernels["integer"])
        yield "Q/DQ left", counts(self.kernels["qdq"])
        yield "float", counts(self.kernels["floating"])
        chosen = {k: v for k, v in self.choices.items() if k not in ("output", "force")}
        if chosen:
            yield (
                "options",
                ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in chosen.items()),
            )
        reasons: dict[str, list[str]] = {}
        for node, reason in self.kept_float.items():
            reasons.setdefault(reason, []).append(node)
        for reason, nodes in reasons.items():
            first = ", ".join(node.partition(";")[0] for node in nodes[:3])  # tf2onnx joins the names of what it fuses
            yield "stays float", f"{len(nodes)}: {first}{' ...' if len(nodes) > 3 else ''} - {reason}"

    def to_json(self) -> str:
        """The report as JSON text; infinite values become null."""
        return json.dumps(to_jsonable_python(self, inf_nan_mode="null"), indent=2, sort_keys=True, allow_nan=False)


def _nearness(o: OutputReport) -> str:
    parts = [f"SQNR {decibels(o.sqnr_db)}, cosine {o.cosine:.5f}"]
    if o.agreement is not None and o.kind in (None, "classes", "probabilities", "tokens"):
        x = o.agreement_interval
        parts.append(f"top-1 agreement {o.agreement:.1%}" + ("" if x is None else f" [{x.low:.0%}, {x.high:.0%}]"))
    return (f"{o.kind}: " if o.kind else "") + "; ".join([", ".join(parts), *map(str, o.figures)])


@dataclass(frozen=True, repr=False)
class Result:
    """The quantized model, the path it was written to (None: not written), and the report.

    It prints as five lines, and in a notebook as a table.
    """

    model: ir.Model
    path: Path | None
    report: Report

    @property
    def proto(self) -> onnx.ModelProto:
        """The model as an `onnx.ModelProto`.

        Raises:
            UsageError: the model is too large for one protobuf message.
        """
        if above_protobuf(self.model):
            raise UsageError("the model is above 2 GB, which no ModelProto can hold: use save(path)")
        return onnx.load_model_from_string(proto_bytes(self.model, lean=True))

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the model to `path`, with an external data file beside it if it is above 2 GB; all of it or nothing.

        Raises:
            UsageError: `path` exists and `force` is not set, or it cannot be written.
        """
        place = Path(path)
        check_place(place, force)
        with staged(place) as stage:
            write(self.model, stage / place.name, lean=True)
        return place

    def __str__(self) -> str:
        report = self.report
        rows = dict(report.rows())
        worst = min(report.outputs, key=lambda o: o.sqnr_db, default=None)
        near = "no output is a float" if worst is None else f"output {worst.output}: {rows[f'output {worst.output}']}"
        file = "in memory" if self.path is None else str(self.path)
        lines = (
            ("mode", rows["mode"]),
            ("size", rows["size"]),
            ("latency", rows.get("latency", "not measured")),
            ("nearness", near),
            ("file", file),
        )
        return "\n".join(f"{label:<9} {text}" for label, text in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        demands = (("missed", self.report.missed), ("not shown", self.report.undecided))
        rows = (*self.report.rows(), *((label, line) for label, lines in demands for line in lines))
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows
        )
        return f"<table>{''.join(cells)}</table>"
