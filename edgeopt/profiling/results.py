"""The results document of `profile` and `compare`: one schema, published by `edgeopt schema results`, read back
strictly.

Times are milliseconds, sizes bytes, shares between 0 and 1. Block medians are in the document, so that stored results
can be compared; single inferences are in an .npz beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import DataError
from edgeopt.files import json_of, text_of
from edgeopt.numbers.intervals import Interval, Verdict

SCHEMA = "edgeopt.profiling.results/1"
Document = TypeVar("Document", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Range(_Model):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, x: Interval, scale: float = 1.0) -> Range:
        """`x` multiplied by `scale`."""
        return cls(value=x.value * scale, low=x.low * scale, high=x.high * scale)


class Environment(_Model):
    """Where it was measured: enough to decide whether two documents can be compared."""

    cpu: str
    features: tuple[str, ...] = Field(description="CPU features that kernels choose by")
    cores: int = Field(description="processors that the process may use")
    governor: str | None = None
    mhz: float | None = None
    virtual: str | None = Field(default=None, description="container or hypervisor, where it can be seen")
    load: tuple[float, ...] = Field(default=(), description="load averages before the run")
    pressure: float | None = Field(
        default=None, description="share of time some task waited for a CPU, last 10 s, before the run"
    )
    memory_bytes: int | None = None
    system: str
    edgeopt: str


class Setting(_Model):
    """What was measured: a model, how, and on what input."""

    label: str
    model: str
    sha256: str
    provider: str
    provider_options: Mapping[str, str] = {}
    threads: int = 1
    session: Mapping[str, str] = Field(default={}, description="session options that were set")
    level: str = "all"
    fixed_dims: Mapping[str, int] = Field(default={}, description="dimensions that the runtime was told are fixed")
    shapes: Mapping[str, tuple[int, ...]] = {}
    inputs: str = Field(default="generated", description="where the input values came from")
    rate: float = Field(default=0.0, description="inferences a second that were asked for; 0: back to back")
    python: str = ""
    onnxruntime: str = ""
    numpy: str = ""
    device: str = Field(default="local", description="where it ran, by the name that was given")


class Block(_Model):
    """A run of inferences without a pause. process, round: what pairs blocks of several settings."""

    process: int
    round: int
    runs: int
    median_ms: float = Field(gt=0)
    contended: bool = Field(description="the system made it wait or took the CPU away")


class Point(_Model):
    """A stretch of a sustained run."""

    at_s: float
    p50_ms: float
    runs: int
    celsius: float | None = Field(default=None, description="the highest temperature, where the system tells")
    mhz: float | None = None
    throttled: bool | None = Field(default=None, description="whether the board says that it holds itself back")


class Latency(_Model):
    """Of one setting. p50: median of block medians. Percentiles are null where the sample is too small for them."""

    p50_ms: Range
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    min_ms: float
    mean_ms: float
    mad_ms: float
    throughput_per_s: float
    runs: int
    processes: int
    outliers: int = Field(description="blocks beyond Tukey's fences; counted and kept")
    contended: int
    p50_uncontended_ms: float | None
    steady: bool = Field(description="every process's warm-up became steady before its time was up")
    precise: bool = Field(description="the interval is as narrow as was asked for")
    blocks: tuple[Block, ...] = Field(min_length=1)
    series: tuple[Point, ...] = ()
    last_to_first: float | None = Field(
        default=None, description="of a sustained run: p50 of the last stretch over the first's"
    )


class Cold(_Model):
    """Medians over fresh processes."""

    create_ms: float
    first_ms: float
    second_ms: float
    processes: int


class Phase(_Model):
    """Memory of the process after a step, and at its peak during the step where the kernel can tell."""

    name: str
    rss_bytes: int
    peak_bytes: int
    pss_bytes: int | None = None
    private_dirty_bytes: int | None = None
    private_clean_bytes: int | None = None


class Memory(_Model):
    """Of a fresh process that loads and runs; arena: with ONNX Runtime's memory arena or without."""

    arena: tuple[Phase, ...]
    no_arena: tuple[Phase, ...]
    peak_per_phase: bool = Field(description="the peak counter could be reset before each phase")


class Size(_Model):
    """Facts about the file; what needs shapes is null when they are not known, and `why` says why."""

    file_bytes: int
    deflate_bytes: int | None
    xz_bytes: int | None
    weights_by_dtype: Mapping[str, int]
    weights_by_op: Mapping[str, int]
    parameters: int
    activations: int | None = Field(default=None, description="elements of all values that an executor must store")
    activation_bytes: int | None = None
    peak_activation_bytes: int | None = Field(
        default=None, description="the most that lives at one time, in execution order"
    )
    macs: int | None = None
    why: str = ""


class Placement(_Model):
    """Who computes what: the assignment that the runtime tells, cross-checked with the trace of a run."""

    requested: str
    nodes: Mapping[str, int] = Field(description="nodes by provider")
    coverage_nodes: float
    coverage_time: float | None
    partitions: int = Field(description="subgraphs of the requested provider")
    fallback_ops: Mapping[str, int]
    fallback_nodes: tuple[str, ...]
    agrees: bool | None = Field(
        description="the trace shows the providers that the assignment told; null: one is not known"
    )


class NodeTime(_Model):
    """Of one node as it was executed (after fusion); time_ms is the median over the traced runs."""

    name: str
    op: str
    provider: str
    time_ms: float
    share: float
    shapes: str


class TypeTime(_Model):
    """Of an operator type."""

    op: str
    kind: Literal["integer", "float", "qdq"]
    nodes: int
    time_ms: float
    share: float
    cumulative: float


class Ops(_Model):
    """Where the time goes in a traced run; tracing slows small nodes, so the sum is not the latency."""

    wall_ms: float
    unexplained_ms: float = Field(description="wall time minus the sum of the nodes")
    types: tuple[TypeTime, ...]
    nodes: tuple[NodeTime, ...]
    by_kind_ms: Mapping[str, float]


class Measured(_Model):
    """One setting and all that was found out about it; error: why there is no more."""

    setting: Setting
    error: str | None = None
    latency: Latency | None = None
    cold: Cold | None = None
    memory: Memory | None = None
    size: Size | None = None
    placement: Placement | None = None
    ops: Ops | None = None


class OutputError(_Model):
    """How far an output is from the reference's, over the samples. sqnr_db is null where it is infinite: for an exact
    output, and for one that is not zero where the reference is.
    """

    output: str
    exact: bool
    sqnr_db: float | None
    cosine: float
    max_abs: float
    agreement: float | None


class Comparison(_Model):
    """A setting against the reference. ratio: how many times as long it takes."""

    reference: str
    other: str
    ratio: Range
    ratio_uncontended: float | None
    verdict: Verdict
    margin: float
    interleaved: bool = Field(description="false: not measured in turns, the weaker evidence")
    file_ratio: float | None
    peak_memory_ratio: float | None
    outputs: tuple[OutputError, ...] | None
    notes: tuple[str, ...] = ()


class SelfCheck(_Model):
    """A setting against itself, `trials` times."""

    label: str
    trials: int
    margin: float
    false_alarms: int = Field(description="trials called improved or regressed")
    inconclusive: int
    excludes_one: int = Field(description="trials whose 95 % interval does not contain 1")
    smallest_visible: float = Field(description="relative change that would have been told in 90 % of the trials")
    ratios: tuple[Range, ...]


class Results(_Model):
    """The document."""

    schema_version: Literal["edgeopt.profiling.results/1"] = Field(
        default="edgeopt.profiling.results/1", alias="schema"
    )
    kind: Literal["profile", "compare", "self-check"]
    created: str
    environment: Environment
    devices: Mapping[str, Environment] = Field(
        default={}, description="other devices by name, where they could be asked"
    )
    preset: str
    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...] = ()
    self_check: SelfCheck | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    raw: str | None = Field(default=None, description="file beside this one with the times of single inferences")

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", populate_by_name=True)

    @property
    def failed(self) -> bool:
        """Whether a setting could not be measured."""
        return any(m.error for m in self.measured)

    def to_json(self) -> str:
        """JSON text."""
        return self.model_dump_json(indent=1, by_alias=True)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document."""
    found = Results.model_json_schema(by_alias=True, mode="serialization")
    required = ["schema", *found["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **found, "required": required}


def load(path: Path) -> Results:
    """The document at `path`.

    Raises:
        DataError: no such file, not JSON, or of another schema.
    """
    return read(path, Results, "results file", f"this edgeopt reads {SCHEMA!r}; measure again with this version")


def read(path: Path, model: type[Document], what: str, wanted: str) -> Document:
    """The document of type `model`, a `what`, at `path`; wanted: what is told where the schema is another.

    Raises:
        DataError: no such file, not JSON, or of another schema.
    """
    try:
        text = text_of(path)
        found = json_of(text)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not a {what} ({e})") from e
    version = found.get("schema") if isinstance(found, dict) else None
    if version != model.model_fields["schema_version"].default:
        raise DataError(f"{path}: schema {version!r}, {wanted}")
    try:
        return model.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: not a valid {what}: {where}: {first['msg']}") from e
