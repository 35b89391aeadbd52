"""The choices of a `quantize` run, who is told what goes on, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.data import Feed, Preprocess
from edgeopt.errors import UsageError, suggestion
from edgeopt.numbers.ranges import RANGES
from edgeopt.quantization.report import Report

Effort = Literal["fast", "normal", "high"]
Rounding = Literal["nearest", "gptq", "adaround", "best", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "gptq", "adaround", "best", "stochastic")
EFFORTS: tuple[Effort, ...] = ("fast", "normal", "high")
Mode = Literal["auto", "static", "dynamic", "fp16", "weights"]
Data = str | Path | Iterable[Feed | NDArray[Any]]
_BUDGETS_S = {True: 600.0, False: 60.0}  # of a search, of a repair
MODES: tuple[Mode, ...] = ("auto", "static", "dynamic", "fp16", "weights")


@dataclass(frozen=True)
class Options:
    """What can be chosen; the defaults are what most models want. `overrides` are single fields of `Preprocess`;
    refit: weights fitted to what layers read in integers; thresholds None are not demanded; rounding, budget_s None: by effort; costs: a file of measured costs
    that places nodes, and takes what is measured here; data_option: what errors call the data.
    """

    mode: Mode = "auto"
    target: str = "host"
    effort: Effort = "normal"
    budget_s: float | None = None
    pareto: Path | None = None
    costs: Path | None = None
    range_rule: str = "mse"
    rounding: Rounding | None = None
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = None
    refit: bool = False
    samples: int = 128
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    bits: Literal[4, 8] = 8
    io_types: Literal["keep", "fp16"] = "keep"
    max_ram: int | None = None
    measure: bool = True
    preprocess: str | Preprocess | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    data_option: str = "--calib"
    qat: bool = False
    qat_minutes: float | None = 10.0
    qat_epochs: int = 4
    metric: str | Callable[[Any], float] | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None

    @property
    def search_s(self) -> float:
        """Seconds for a search, or for the repair of a result that misses its bar."""
        return self.budget_s if self.budget_s is not None else _BUDGETS_S[self.effort == "high"]

    @property
    def searches(self) -> bool:
        """Whether a static result is where a search begins."""
        return self.effort == "high" and self.mode in ("auto", "static")

    def __post_init__(self) -> None:
        known_names = (
            (self.mode, MODES, "mode"),
            (self.effort, EFFORTS, "effort"),
            (self.range_rule, RANGES, "range rule"),
            (self.rounding or "gptq", ROUNDINGS, "rounding"),
        )
        for value, known, what in known_names:
            if value not in known:
                raise UsageError(f"no {what} {value!r}{suggestion(value, known)} Known: {', '.join(known)}")
        if self.io_types not in ("keep", "fp16"):
            raise UsageError(f"--io-types {self.io_types}: keep or fp16")
        if self.bits not in (4, 8):
            raise UsageError(f"--bits {self.bits}: 4 or 8")
        if self.qat and self.mode not in ("auto", "static"):
            raise UsageError(f"--qat trains a static result, not --mode {self.mode}")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(
                f"--smooth {self.smooth:g}: from 0 (all ranges in the activations) to 1 (all in the weights)"
            )
        if self.budget_s is not None and not 0 < self.budget_s < math.inf:
            raise UsageError(f"--budget {self.budget_s:g}: above 0 seconds")
        if self.pareto is not None and not self.searches:
            raise UsageError(
                "--pareto goes with --effort high and --mode static or auto: it is the front of what the search tried"
            )
        if self.samples < 1:
            raise UsageError(f"--samples {self.samples}: at least 1")
        if self.max_ram is not None and self.max_ram < 1:
            raise UsageError(f"--max-ram {self.max_ram}: at least a byte")
        if self.max_drop is not None and (self.metric is None or not 0 <= self.max_drop < math.inf):
            raise UsageError(
                "--max-drop goes with --eval package.module:function (or agreement, cosine, kl), and is 0 or more"
            )
        demands = {
            "--min-sqnr": self.min_sqnr,
            "--min-speedup": self.min_speedup,
            "--min-agreement": self.min_agreement,
        }
        for name, demand in demands.items():
            most = 1.0 if name == "--min-agreement" else math.inf
            if demand is not None and not demand <= most:
                raise UsageError(f"{name} {demand:g}: a number{'' if most == math.inf else ' from 0 to 1'}")


@dataclass(frozen=True)
class Result:
    """The quantized model, where it was written (None: nowhere), and the evidence."""

    model: ir.Model
    path: Path | None
    report: Report
