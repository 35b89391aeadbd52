"""The frozen `State` that a recipe passes from step to step; each step returns a new one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeopt.data import Feed, Look, Sample
from edgeopt.graph.plan import Plan
from edgeopt.hardware.target import Target
from edgeopt.listener import Listener
from edgeopt.numbers.grid import QParams
from edgeopt.numbers.observers import Statistics
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.meter import Meter
from edgeopt.runtime.probe import Probe
from edgeopt.runtime.spread import Spread

if TYPE_CHECKING:
    from edgeopt.ptq.moments import LayerMoments


@dataclass
class SharedResults:
    """Costly results shared between recipes.

    Each entry depends only on its key, so that results do not depend on the order of requests. Models are identified by
    `id` and kept alive here.
    """

    probes: dict[int, Mapping[str, Probe]] = field(default_factory=dict)
    """Shape and extremes of each value, for each float model: of one sample, later of all calibration samples."""
    statistics: dict[int, dict[str, Statistics]] = field(default_factory=dict)
    moments: dict[int, dict[tuple[str, ...], LayerMoments]] = field(default_factory=dict)
    """Moments of each layer, by its nodes, for each float model."""
    models: dict[object, ir.Model] = field(default_factory=dict)
    costs: Costs | None = None
    """Measured times of nodes."""
    looks: dict[str, Look] = field(default_factory=dict)
    """Summary of each sample that was read."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each stage, in seconds."""

    def model(self, key: object, make: Callable[[], ir.Model]) -> ir.Model:
        """The model for `key`, built only once."""
        if key not in self.models:
            self.models[key] = make()
        return self.models[key]

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Resources:
    """Data and services that steps may use."""

    feeds: tuple[Feed, ...]
    """Samples on which the float model was run; not calibration samples, unless there are no others."""
    run: Callable[[Feed], object]
    """Runs the float model on a feed."""
    listener: Listener = field(default_factory=Listener)
    cache: SharedResults = field(default_factory=SharedResults)
    max_ram: int | None = None
    """Memory limit in bytes, beside what Python itself takes."""
    spread: Spread | None = None
    """Who does independent work; None: this process."""
    meter: Meter | None = None
    """Who times models for the target; None if nobody here can."""
    timed: bool = False
    """Whether nodes are placed by times that `meter` measures."""
    costs_path: Path | None = None
    """The user's file with measured times of nodes."""
    book: Path | None = None
    """The file of times that edgeopt keeps, used if the user names none."""
    by_table: bool = False
    """Whether nodes are placed by the target's table alone."""


@dataclass(frozen=True)
class State:
    """A model between two steps of quantization."""

    model: ir.Model
    """The model after the steps so far, in canonical form."""
    target: Target
    samples: tuple[Sample, ...]
    """Calibration samples."""
    resources: Resources
    source: ir.Model
    """The equivalent float model, to which `plan` and `statistics` refer."""
    plan: Plan | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """Shape and extremes of the float values of `source`."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """Calibration statistics of each value that determines a grid."""
    params: Mapping[str, QParams] = field(default_factory=dict)
    """The grid of each value: activations, weights and biases."""
    written: bool = False
    """Whether plan and grids have been written into the model."""
    placed: tuple[Plan, Callable[[State, Mapping[str, Probe]], Plan]] | None = None
    """The plan of the last placement, and the function that places again when more is known.

    A plan that a user's step made is not replaced.
    """

    def of(self, model: ir.Model) -> State:
        """This state with another model that computes the same function; all results for the old model are dropped."""
        return replace(
            self, model=model, source=model, plan=None, probes={}, statistics={}, params={}, written=False, placed=None
        )
