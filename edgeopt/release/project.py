"""`edgeopt.toml` (or `[tool.edgeopt]` in pyproject.toml): what a project builds, measures and demands.

Every mistake is told with its line and, for a name that is nearly right, with the name that was meant. The JSON Schema is
published by `edgeopt schema project`, so that editors complete the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgeopt.errors import UsageError, suggestion
from edgeopt.release.metrics import metric
from edgeopt.release.units import quantity

FILE = "edgeopt.toml"
FLOAT = "float"  # the name of the model as it came
Level = Literal["pass", "warn", "fail"]
Quantity = float | str
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Simplify(_Table):
    """Fewer nodes, the same numbers."""

    step: Literal["simplify"]


class Quantize(_Table):
    """int8 with calibration; see `edgeopt quantize`."""

    step: Literal["quantize"]
    mode: Literal["auto", "static", "dynamic"] = "auto"
    effort: Literal["fast", "normal", "high"] = "normal"
    target: str = "host"
    range_rule: str = Field(default="mse", alias="range")
    rounding: Literal["nearest", "gptq", "adaround", "stochastic"] | None = None
    clip_weights: bool = False
    equalize: bool = False
    smooth: float | None = Field(default=None, ge=0, le=1)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    budget_s: float = Field(default=600.0, gt=0)
    qat: bool = False


class Fp16(_Table):
    """Half precision."""

    step: Literal["fp16"]
    keep: tuple[str, ...] = ()
    io_types: Literal["keep", "fp16"] = "keep"


class Weights(_Table):
    """Weights alone in integers."""

    step: Literal["weights"]
    bits: Literal[4, 8] = 8
    exclude: tuple[str, ...] = ()


class Shrink(_Table):
    """Fewer channels or blocks; to be distilled."""

    step: Literal["shrink"]
    width: float = Field(default=1.0, gt=0, le=1)
    depth: float = Field(default=1.0, gt=0, le=1)
    keep: tuple[str, ...] = ()


class Distill(_Table):
    """Better weights by the answers of a teacher; the project's model unless another is named."""

    step: Literal["distill"]
    teacher: Path | None = None
    loss: str = "auto"
    epochs: int = Field(default=20, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    seed: int = 0


Step = Annotated[Simplify | Quantize | Fp16 | Weights | Shrink | Distill, Field(discriminator="step")]


class Variant(_Table):
    """A file to ship: steps in order, from the model or from another variant."""

    parent: str = Field(default=FLOAT, alias="from")
    steps: tuple[Step, ...] = Field(min_length=1)


class Export(_Table):
    """Make the model from torch first; see `edgeopt export`."""

    factory: str
    inputs: Mapping[str, tuple[int, ...]] = Field(min_length=1)
    dynamic: Mapping[str, tuple[int, ...]] = {}


class Data(_Table):
    """Samples to calibrate and train with; eval: others to judge by (else what did not calibrate)."""

    path: str
    eval: str | None = None
    samples: int = Field(default=128, ge=1)
    preprocess: str | None = None
    tokenizer: Path | None = None


class Profile(_Table):
    """How to measure; gates look at the first provider and the first number of threads."""

    measure: bool = True
    preset: Literal["quick", "pr", "release"] | None = None
    providers: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = (1,)
    dims: Mapping[str, int] = {}


class Accuracy(_Table):
    """More than SQNR, cosine and agreement with float. labels: the folders of the data are classes (top-1, top-5); eval: a
    metric of your own, `package.module:function`.
    """

    labels: bool = False
    eval: str | None = None


class Gate(_Table):
    """Bounds of one metric. max_regression: against the baseline, relative; max_drop: against float, absolute."""

    min: Quantity | None = None
    max: Quantity | None = None
    warn: Quantity | None = None
    max_regression: Quantity | None = None
    max_drop: Quantity | None = None

    @model_validator(mode="after")
    def _any(self) -> Gate:
        if not any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError("a gate without a bound; write min, max, warn, max_regression or max_drop")
        return self


class Policy(_Table):
    """What becomes of gates that cannot tell."""

    inconclusive: Level = "warn"
    not_measured: Level = "fail"
    no_baseline: Level = "warn"


class Output(_Table):
    """What is written, and where."""

    folder: Path = Path("build/edgeopt")
    html: bool = True
    ort: bool = False


class Baseline(_Table):
    """The last release, as `edgeopt baseline save` keeps it."""

    folder: Path = Path("edgeopt-baseline")


class Project(_Table):
    """The file. gates: by variant name, or "*" for all variants but float, and by metric."""

    name: str = ""
    model: Path | None = None
    export: Export | None = None
    data: Data
    variants: Mapping[str, Variant] = Field(min_length=1)
    profile: Profile = Profile()
    accuracy: Accuracy = Accuracy()
    gates: Mapping[str, Mapping[str, Gate]] = {}
    policy: Policy = Policy()
    baseline: Baseline = Baseline()
    output: Output = Output()

    @field_validator("gates", mode="before")
    @classmethod
    def _flat(cls, found: Any) -> Any:
        """`size.file = {...}` and `"size.file" = {...}` alike."""
        if not isinstance(found, dict):
            return found
        return {variant: _joined(gates) if isinstance(gates, dict) else gates for variant, gates in found.items()}

    @field_validator("variants")
    @classmethod
    def _named(cls, found: Mapping[str, Variant]) -> Mapping[str, Variant]:
        for name, variant in found.items():
            if not _NAME.fullmatch(name) or name == FLOAT:
                raise ValueError(f"{name!r} cannot be a variant's name: letters, digits, - and _, and not {FLOAT!r}")
            known = [FLOAT, *(n for n in found if n != name)]
            if variant.parent not in known:
                raise ValueError(
                    f"{name}: from = {variant.parent!r}: no such variant{suggestion(variant.parent, known)}"
                )
        in_order(found)
        return found

    @model_validator(mode="after")
    def _whole(self) -> Project:
        if (self.model is None) == (self.export is None):
            raise ValueError('name a model (model = "model.onnx") or an [export], and not both')
        known = ["*", FLOAT, *self.variants]
        for variant, gates in self.gates.items():
            if variant not in known:
                raise ValueError(f"gates.{variant}: no such variant{suggestion(variant, known)}")
            for name, gate in gates.items():
                _check_gate(f"gates.{variant}.{name}", name, gate)
        return self


def _joined(tables: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in tables.items():
        nested = isinstance(inner, dict) and inner and all(isinstance(v, dict) for v in inner.values())
        found |= _joined(inner, f"{before}{name}.") if nested else {before + name: inner}
    return found


def _check_gate(where: str, name: str, gate: Gate) -> None:
    try:
        row = metric(name)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e
    for bound in ("min", "max", "warn", "max_regression", "max_drop"):
        given = getattr(gate, bound)
        kind = "share" if bound == "max_regression" else row.kind
        if given is not None:
            try:
                quantity(given, kind)
            except ValueError as e:
                raise ValueError(f"{where}.{bound}: {e}") from e
    if gate.max_drop is not None and not name.startswith("accuracy."):
        raise ValueError(f"{where}.max_drop: of accuracy metrics only; use min, or max_regression against a baseline")
    wrong = "max" if row.higher else "min"
    if getattr(gate, wrong) is not None:
        raise ValueError(f"{where}.{wrong}: {'higher' if row.higher else 'lower'} is better here; bound the other side")


def in_order(variants: Mapping[str, Variant]) -> list[str]:
    """Names such that each comes after the one that it is made from.

    Raises:
        ValueError: some are made from each other.
    """
    done: list[str] = []
    while len(done) < len(variants):
        ready = [n for n, v in variants.items() if n not in done and (v.parent == FLOAT or v.parent in done)]
        if not ready:
            raise ValueError(f"made from each other: {', '.join(n for n in variants if n not in done)}")
        done += ready
    return done


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edgeopt.project/1",
    } | Project.model_json_schema(by_alias=True)


def find(path: Path | None) -> Path:
    """`path`, or the project file here.

    Raises:
        UsageError: there is none.
    """
    if path is not None:
        if not path.is_file():
            raise UsageError(f"{path}: no such project file; edgeopt init MODEL writes one")
        return path
    for name in (FILE, "pyproject.toml"):
        file = Path(name)
        if file.is_file() and (name == FILE or "edgeopt" in _parsed(file).get("tool", {})):
            return file
    raise UsageError(f"no {FILE} here; edgeopt init model.onnx --calib images/ writes one")


def load(path: Path) -> Project:
    """The project of `path`; paths in it are relative to its folder.

    Raises:
        UsageError: not TOML, or a mistake in it; says the line.
    """
    whole = _parsed(path)
    inside = path.name == "pyproject.toml"
    table = whole.get("tool", {}).get("edgeopt", {}) if inside else whole
    prefix = ("tool", "edgeopt") if inside else ()
    try:
        return Project.model_validate(table)
    except ValidationError as e:
        text = path.read_text(encoding="utf-8")
        errors = [x for x in e.errors() if x["type"] != "too_short" or not _inside(x["loc"], e.errors())]
        lines = [_told(error, text, prefix, path) for error in errors[:5]]
        raise UsageError("\n".join(dict.fromkeys(lines))) from e


def _inside(loc: Sequence[Any], errors: Sequence[Any]) -> bool:
    """Whether a mistake further in explains that nothing is left at `loc`."""
    return any(len(x["loc"]) > len(loc) and tuple(x["loc"][: len(loc)]) == tuple(loc) for x in errors)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {e}") from e


def _told(error: Mapping[str, Any], text: str, prefix: Sequence[str], path: Path) -> str:
    """One mistake: file, line, place, what and what was meant."""
    tags = set(_STEPS)
    place = [
        str(p)
        for i, p in enumerate(error["loc"])
        if not (str(p) in tags and i and isinstance(error["loc"][i - 1], int))
    ]
    message = str(error["msg"]).removeprefix("Value error, ")
    inner = re.match(r"(gates\.[^:]+|[A-Za-z0-9_.-]+): ", message)
    if inner and not place:
        place = inner[1].split(".", 2)
    if error["type"] == "extra_forbidden":
        message = f"no such key{suggestion(place[-1], _fields(place[:-1], error['loc']))}"
    elif error["type"] == "union_tag_invalid":
        tag = str(error["ctx"]["tag"])
        message = f"no step {tag!r}{suggestion(tag, _STEPS)} Known: {', '.join(_STEPS)}"
    elif error["type"] == "union_tag_not_found":
        message = f'a step needs its name, e.g. {{ step = "quantize" }}; known: {", ".join(_STEPS)}'
    line = line_of(text, [*prefix, *place])
    where = ".".join(place)
    return f"{path}:{line}: {where + ': ' if where and not message.startswith(where) else ''}{message}"


_STEPS: Mapping[str, type[_Table]] = {
    "simplify": Simplify, "quantize": Quantize, "fp16": Fp16, "weights": Weights, "shrink": Shrink, "distill": Distill,
}  # fmt: skip
_TABLES: Mapping[str, type[_Table]] = {
    "export": Export, "data": Data, "profile": Profile, "accuracy": Accuracy, "policy": Policy, "baseline": Baseline, "output": Output,
}  # fmt: skip


def _fields(place: Sequence[str], loc: Sequence[Any]) -> list[str]:
    """Keys that can stand in the table at `place`."""
    model: type[_Table] = Project
    if place and place[0] in _TABLES:
        model = _TABLES[place[0]]
    elif place and place[0] == "gates":
        model = Gate
    elif place and place[0] == "variants":
        step = next((str(p) for p in loc if str(p) in _STEPS), None)
        model = Variant if step is None else _STEPS[step]
    return [f.alias or name for name, f in model.model_fields.items()]


def line_of(text: str, place: Sequence[str]) -> int:
    """The line of the key at `place` in `text`, or of the nearest table around it; 1 if there is none."""
    return _nearest(text, place)[0]


def has(text: str, place: Sequence[str]) -> bool:
    """Whether `place` itself is a key or a table in `text`."""
    return _nearest(text, place)[1] >= sum(len(name.split(".")) for name in place)


def _nearest(text: str, place: Sequence[str]) -> tuple[int, int]:
    """(line, how many of the parts of `place` stand there)."""
    place = [part for name in place for part in name.split(".")]
    table: list[str] = []
    best, depth = 1, 0
    counts: dict[str, int] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        header = re.fullmatch(r"\[(\[?)\s*([^\]]+?)\s*\]?\]\s*(?:#.*)?", line)
        if header:
            table = _keys(header[2])
            if header[1]:
                name = ".".join(table)
                table = [*table, str(counts.get(name, 0))]
                counts[name] = counts.get(name, 0) + 1
            here = [part for name in table for part in name.split(".")]
        else:
            key = re.match(
                r"((?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=", line
            )
            if not key:
                continue
            here = [part for name in [*table, *_keys(key[1])] for part in name.split(".")]
        same = 0
        while same < min(len(here), len(place)) and here[same] == place[same]:
            same += 1
        if same == len(here) and same > depth:
            best, depth = number, same
    return best, depth


def _keys(dotted: str) -> list[str]:
    return [a or b or c for a, b, c in re.findall(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)", dotted)]
