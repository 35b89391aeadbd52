"""The results of a run as one document, `results.json`: all other artefacts are made from it, and gates can be judged
again on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from edgeopt.profiling.results import Range, Results, read

SCHEMA = "edgeopt.run/1"
RESULTS = "results.json"
Outcome = Literal["pass", "warn", "fail", "inconclusive", "not measured", "no baseline", "not comparable"]
Level = Literal["pass", "warn", "fail"]
_SEVERITY: Mapping[Outcome, Level] = {"pass": "pass", "warn": "warn", "inconclusive": "warn"}


class _DocumentPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", populate_by_name=True)


def _figure(given: Any) -> bool:
    return given is not None and not (isinstance(given, float) and not math.isfinite(given))


class LayerHistogram(_DocumentPart):
    """Values of a layer in float, and the range that its grid covers."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    clip: tuple[float, float] | None


class Layer(_DocumentPart):
    """A value that both the float model and the variant compute."""

    name: str
    op: str
    sqnr_db: float
    histogram: LayerHistogram | None = None


class StepResult(_DocumentPart):
    """How a file came to be. cached: it was there already."""

    step: Mapping[str, Any]
    cached: bool
    seconds: float
    notes: tuple[str, ...] = ()


class Evaluation(_DocumentPart):
    """What is found out about a file on samples. metrics: by the names that gates use."""

    metrics: Mapping[str, float] = {}
    intervals: Mapping[str, Range] = Field(default={}, description="95 % intervals of metrics that have one")
    drops: Mapping[str, Range] = Field(
        default={},
        description="how far accuracies are below the float model's on the same samples, with 95 % intervals",
    )
    layers: tuple[Layer, ...] = Field(default=(), description="worst first")
    far: tuple[str, ...] = Field(default=(), description="figures of outputs below the bar of their kind, in words")
    on_target: tuple[str, ...] = Field(default=(), description="what its target makes of the file, if a gate asks")
    opset: int = 0
    answers: tuple[Mapping[str, Any], ...] = Field(default=(), description="to made-up inputs, in a few numbers")

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, found: Any) -> Any:
        """`found` without missing and non-finite values: JSON has no NaN, and a gate cannot judge it."""
        return {k: x for k, x in found.items() if _figure(x)} if isinstance(found, Mapping) else found


class VariantResult(Evaluation):
    """A variant; error: why there is no file. sha256: of the file, or of the hashes of it and its data files."""

    name: str
    parent: str
    file: str | None = None
    sha256: str | None = None
    error: str | None = None
    steps: tuple[StepResult, ...] = ()
    on_devices: Mapping[str, str] = Field(default={}, description="why it was not measured, by device")


class GateResult(_DocumentPart):
    """One bound of one metric of one variant. line: of the project file; level: what the policy makes of the
    outcome.
    """

    variant: str
    metric: str
    bound: str
    limit: float
    value: float | None
    low: float | None = None
    high: float | None = None
    outcome: Outcome
    level: Level | None = None
    message: str
    line: int = 1

    @property
    def severity(self) -> Level:
        """`level`; in documents without it, the severity that the outcome had then."""
        return self.level or _SEVERITY.get(self.outcome, "fail")


class Run(_DocumentPart):
    """The document."""

    schema_version: Literal["edgeopt.run/1"] = Field(default="edgeopt.run/1", alias="schema")
    project: str
    project_file: str
    created: str
    preset: str
    model: str
    model_sha256: str
    samples: Mapping[str, int] = Field(default={}, description="that calibrate, and that variants are judged by")
    variants: tuple[VariantResult, ...]
    profile: Results | None = None
    devices: Mapping[str, Results] = Field(default={}, description="the profile on each device of the project")
    baseline: str | None = None
    ratios: Mapping[str, Mapping[str, Range]] = Field(
        default={},
        description="by variant and metric: over the baseline's, where its model was measured again beside it",
    )
    measured_against: str | None = Field(default=None, description="name and time of the baseline of these ratios")
    gates: tuple[GateResult, ...] = ()
    verdict: Literal["pass", "warn", "fail", "inconclusive", "error", "no baseline"] = "pass"
    exit_code: int = 0
    released: bool = Field(default=True, description="whether its files are the release, or lie in `failed`")
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}
    seconds: float = 0.0

    def variant(self, name: str) -> VariantResult | None:
        """The variant called `name`."""
        return next((v for v in self.variants if v.name == name), None)

    def to_json(self) -> str:
        """JSON text."""
        return self.model_dump_json(indent=1, by_alias=True)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document."""
    found = Run.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA} | found


def load(path: Path) -> Run:
    """The document at `path`, which may be the folder of a results.json.

    Raises:
        DataError: no such file, not JSON, or of another schema.
    """
    path = path / RESULTS if path.is_dir() else path
    return read(path, Run, "results file of a run", f"this takes {SCHEMA!r}, the results.json of edgeopt run")
