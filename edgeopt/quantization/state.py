"""What a recipe hands from step to step: a frozen `State`; a step returns a new one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import onnx_ir as ir

from edgeopt.data import Feed, Look, Sample
from edgeopt.graph.plan import Plan
from edgeopt.hardware.target import Target
from edgeopt.listener import Listener
from edgeopt.numbers.grid import QParams
from edgeopt.numbers.observers import Statistics
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.probe import Probe

if TYPE_CHECKING:
    from edgeopt.ptq.moments import LayerMoments

T = TypeVar("T")


@dataclass
class Cache:
    """What is costly and shared between recipes: each entry is a function of its key, so that nothing depends on who asked first.
    Models are keys by identity, and kept alive here.
    """

    probes: dict[int, Mapping[str, Probe]] = field(default_factory=dict)
    """Extremes by value, of each float model: of one sample, then of all that calibrated."""
    statistics: dict[int, dict[str, Statistics]] = field(default_factory=dict)
    moments: dict[int, dict[str, LayerMoments]] = field(default_factory=dict)
    models: dict[object, ir.Model] = field(default_factory=dict)
    costs: Costs | None = None
    """Measured times of nodes."""
    looks: dict[str, Look] = field(default_factory=dict)
    """What each sample that was read looked like."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that was spent, by stage."""

    def model(self, key: object, make: Callable[[], ir.Model]) -> ir.Model:
        """The model of `key`, made once."""
        if key not in self.models:
            self.models[key] = make()
        return self.models[key]

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Resources:
    """What steps may use, and who is told."""

    feeds: tuple[Feed, ...]
    """Samples on which the float model ran; not those that calibrate, where there are others."""
    run: Callable[[Feed], object]
    """The float model."""
    listener: Listener = field(default_factory=Listener)
    cache: Cache = field(default_factory=Cache)
    max_ram: int | None = None
    """Bytes for calibration; None: half of the free memory."""
    timed: bool = False
    """Whether this machine's clock says something of the target."""
    costs_path: Path | None = None
    """File of measured times of nodes."""


@dataclass(frozen=True)
class State:
    """A model on its way from floats to integers."""

    model: ir.Model
    """As the steps so far have made it; canonical."""
    target: Target
    samples: tuple[Sample, ...]
    """Samples to calibrate with."""
    resources: Resources
    source: ir.Model
    """The same function in floats: what `plan` and `statistics` are for."""
    plan: Plan | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """Shape and extremes of the float values of `source`."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """What calibration saw of each value that decides a grid."""
    params: Mapping[str, QParams] = field(default_factory=dict)
    """Grids by value: activations, weights and biases."""
    written: bool = False
    """Whether plan and grids are in the model."""
    placed: tuple[Plan, Callable[[State, Mapping[str, Probe]], Plan]] | None = None
    """The plan of the last placement and how to place again when more is known; a plan that a user's step made stays."""

    def of(self, model: ir.Model) -> State:
        """This state with another model of the same function; what was found of the one before is forgotten."""
        return replace(
            self, model=model, source=model, plan=None, probes={}, statistics={}, params={}, written=False, placed=None
        )
