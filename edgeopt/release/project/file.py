"""`edgeopt.toml` (or `[tool.edgeopt]` in pyproject.toml): what a project builds, measures and requires.

Errors name their line and, for a misspelt name, the probable one. `edgeopt schema project` prints the JSON Schema, with
which editors complete the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AllowInfNan,
    BeforeValidator,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from edgeopt.errors import UsageError, suggestion
from edgeopt.errors.lines import Rows, line_of
from edgeopt.files import text_of, toml_of
from edgeopt.options.devices import TAKEN, DeviceTable
from edgeopt.options.models import Dtype
from edgeopt.options.reading import Reading
from edgeopt.release.document import Level
from edgeopt.release.project.lines import prefix, rows_of
from edgeopt.release.project.metrics import METRICS, metric, on_device
from edgeopt.release.project.quantities import quantity
from edgeopt.release.project.recipes import STEPS, Count, Names, Numbers, Place, Step, Table, mistake, reading_fields

FILE = "edgeopt.toml"
FLOAT = "float"  # the name of the unmodified model
Preset = Literal["quick", "pr", "release"]
PRESETS: tuple[str, ...] = get_args(Preset)
_NEEDS = {  # the key of [accuracy] that a metric needs
    "accuracy.top1": ("labels", "true"),
    "accuracy.top5": ("labels", "true"),
    "accuracy.eval": ("eval", '"package.module:function"'),
}
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _amount(given: Any) -> Any:
    """`given`, checked to be a number or text; its unit is checked once the metric is known."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f'a number, or a text with a unit, e.g. "6 MB", not {given!r}')
    return given


Quantity = Annotated[Annotated[float, AllowInfNan()] | str, BeforeValidator(_amount)]


class Variant(Table):
    """A file to ship: steps in order, from the model or from another variant."""

    parent: str = Field(default=FLOAT, alias="from")
    steps: tuple[Step, ...] = Field(min_length=1, strict=False)


class ExportTable(Table):
    """Make the model from torch first, and compare it with torch on samples of [data] too; see `edgeopt export`."""

    factory: str
    inputs: Mapping[str, Numbers] = Field(min_length=1)
    dynamic: Mapping[str, Numbers] = {}
    dtypes: Mapping[str, Dtype] = {}


class _Data(Table):
    """Samples to calibrate and train with; eval: others to judge by (else what did not calibrate)."""

    path: str = Field(min_length=1)
    eval: str | None = None


if TYPE_CHECKING:

    class Data(_Data, Reading):
        """With the options of reading."""

else:
    Data = create_model("Data", __base__=_Data, __doc__=_Data.__doc__, **reading_fields())


class ProfileTable(Table):
    """How to measure; gates look at the first provider and the first number of threads."""

    measure: bool = True
    preset: Preset | None = None
    providers: Names = Field(default=("cpu",), min_length=1)
    threads: tuple[Count, ...] = Field(default=(1,), min_length=1, strict=False)
    dims: Mapping[str, Count] = {}


class Accuracy(Table):
    """More than SQNR, cosine and agreement with float. labels: the folders of the data are classes (top-1, top-5);
    eval: a metric of your own, `package.module:function`.
    """

    labels: bool = False
    eval: str | None = None


class Gate(Table):
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


_OneLevel = Gate | Mapping[str, Gate]  # size.file, or a table of a metric's second word
_Nested = Mapping[str, Mapping[str, _OneLevel | Mapping[str, _OneLevel]]]  # and those of a device


class Policy(Table):
    """What becomes of gates that cannot tell."""

    inconclusive: Level = "warn"
    not_measured: Level = "fail"
    no_baseline: Level = "warn"


class Output(Table):
    """What is written, and where."""

    folder: Place = Path("build/edgeopt")
    html: bool = True
    ort: bool = False


class Baseline(Table):
    """The last release, as `edgeopt baseline save` keeps it."""

    folder: Place = Path("edgeopt-baseline")


class Project(Table):
    """The file. gates: by variant name, or "*" for all variants but float, and by metric."""

    name: str = ""
    model: Place | None = None
    export: ExportTable | None = None
    data: Data
    variants: Mapping[str, Variant] = Field(min_length=1)
    profile: ProfileTable = ProfileTable()
    accuracy: Accuracy = Accuracy()
    gates: Mapping[str, Mapping[str, Gate]] = {}
    devices: Mapping[str, DeviceTable] = {}
    policy: Policy = Policy()
    baseline: Baseline = Baseline()
    output: Output = Output()

    @field_validator("gates", mode="before", json_schema_input_type=_Nested)
    @classmethod
    def _flat(cls, found: Any) -> Any:
        """Accepts `size.file = {...}` and `"size.file" = {...}` alike."""
        if not isinstance(found, dict):
            return found
        return {
            variant: _joined(variant, gates) if isinstance(gates, dict) else gates for variant, gates in found.items()
        }

    @field_validator("variants")
    @classmethod
    def _named(cls, found: Mapping[str, Variant]) -> Mapping[str, Variant]:
        for name, variant in found.items():
            if not _NAME.fullmatch(name) or name == FLOAT:
                raise mistake(
                    [name], f"{name!r} cannot be a variant's name: letters, digits, - and _, and not {FLOAT!r}"
                )
            known = [FLOAT, *(n for n in found if n != name)]
            if variant.parent not in known:
                raise mistake([name, "from"], f"{variant.parent!r}: no such variant{suggestion(variant.parent, known)}")
        in_order(found)
        return found

    @field_validator("devices")
    @classmethod
    def _devices_named(cls, found: Mapping[str, DeviceTable]) -> Mapping[str, DeviceTable]:
        taken = {*(name.partition(".")[0] for name in METRICS)}
        for name in found:
            if not _DEVICE.fullmatch(name) or name in taken or TAKEN.fullmatch(name):
                raise mistake(
                    [name], f"{name!r} cannot be a device's name: letters, digits, - and _, and no metric's word"
                )
        return found

    @model_validator(mode="after")
    def _whole(self) -> Project:
        if (self.model is None) == (self.export is None):
            raise ValueError('name a model (model = "model.onnx") or an [export], and not both')
        known = ["*", FLOAT, *self.variants]
        for variant, gates in self.gates.items():
            if variant not in known:
                raise mistake(["gates", variant], f"no such variant{suggestion(variant, known)}")
            for name, gate in gates.items():
                device, _ = on_device(name)
                if device and device not in self.devices:
                    raise mistake(["gates", variant, name], f"no device {device!r}{suggestion(device, self.devices)}")
                _check_gate(["gates", variant, name], name, gate)
                need = _NEEDS.get(name)
                if need is not None and not getattr(self.accuracy, need[0]):
                    raise mistake(["gates", variant, name], f"needs accuracy.{need[0]} = {need[1]}")
        return self


def _flat(name: str, inner: Any) -> Iterator[tuple[str, Any]]:
    """(metric, gate) of a table below `name`, however deep its gates lie."""
    if isinstance(inner, dict) and inner and all(isinstance(v, dict) for v in inner.values()):
        for key, value in inner.items():
            yield from _flat(f"{name}.{key}", value)
    else:
        yield name, inner


def _joined(variant: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Gates by the full names of their metrics."""
    found: dict[str, Any] = {}
    for name, inner in tables.items():
        for whole, gate in _flat(name, inner):
            before = found.get(whole, {})
            if before and not (isinstance(gate, dict) and isinstance(before, dict) and before.keys().isdisjoint(gate)):
                raise mistake([variant, whole], "is there twice")
            found[whole] = before | gate if before else gate
    return found


def _check_gate(place: list[str], name: str, gate: Gate) -> None:
    try:
        row = metric(name)
    except ValueError as e:
        raise mistake(place, str(e)) from e
    for bound in Gate.model_fields:
        given = getattr(gate, bound)
        kind = "share" if bound == "max_regression" else row.kind
        if given is not None:
            try:
                quantity(given, kind)
            except ValueError as e:
                raise mistake([*place, bound], str(e)) from e
    if gate.max_drop is not None and not name.startswith("accuracy."):
        raise mistake([*place, "max_drop"], "of accuracy metrics only; use min, or max_regression against a baseline")
    wrong = "max" if row.higher else "min"
    if getattr(gate, wrong) is not None:
        raise mistake([*place, wrong], f"{'higher' if row.higher else 'lower'} is better here; bound the other side")


def in_order(variants: Mapping[str, Variant]) -> list[str]:
    """Variant names, each after its parent.

    Raises:
        ValueError: the parents form a cycle.
    """
    done: list[str] = []
    while len(done) < len(variants):
        ready = [n for n, v in variants.items() if n not in done and (v.parent == FLOAT or v.parent in done)]
        if not ready:
            left = [n for n in variants if n not in done]
            raise mistake([left[0], "from"], f"made from each other: {', '.join(left)}")
        done += ready
    return done


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edgeopt.project/1",
    } | Project.model_json_schema(by_alias=True)


def find(path: Path | None) -> Path:
    """`path`, or the project file in the current folder.

    Raises:
        UsageError: there is none.
    """
    if path is not None:
        if not path.is_file():
            raise UsageError(f"{path}: no such project file; edgeopt init MODEL writes one")
        return path
    for name in (FILE, "pyproject.toml"):
        file = Path(name)
        if file.is_file() and _table(file) is not None:
            return file
    raise UsageError(f"no {FILE} here; edgeopt init model.onnx --calib images/ writes one")


def load(path: Path) -> Project:
    """The project at `path`; relative paths in it start from its folder.

    Raises:
        UsageError: not TOML, or invalid; says the line.
    """
    table = _table(path)
    if table is None:
        raise UsageError(f"{path}: no table [tool.edgeopt]; edgeopt init model.onnx writes a project file of its own")
    try:
        return Project.model_validate(table)
    except ValidationError as e:
        rows = rows_of(path)
        errors = [x for x in e.errors() if x["type"] != "too_short" or not _inside(x["loc"], e.errors())]
        told = list(dict.fromkeys(_told(error, rows, path) for error in errors))
        more = [f"... and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
        raise UsageError("\n".join([*told[:_MOST_TOLD], *more])) from e


_MOST_TOLD = 20  # mistakes


def _table(path: Path) -> Any:
    """The project's table in `path`; None if there is none."""
    try:
        found: Any = toml_of(text_of(path))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {e}") from e
    for name in prefix(path):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _inside(loc: Sequence[Any], errors: Sequence[Any]) -> bool:
    """Whether an error nested inside `loc` explains that `loc` is empty."""
    return any(len(x["loc"]) > len(loc) and tuple(x["loc"][: len(loc)]) == tuple(loc) for x in errors)


def _told(error: Mapping[str, Any], rows: Rows, path: Path) -> str:
    """One error as text: file, line, key, what is wrong and what was probably meant."""
    loc, context = error["loc"], error.get("ctx", {})
    tags = [i for i, p in enumerate(loc) if i and isinstance(loc[i - 1], int) and p in STEPS]
    place = [*(str(p) for i, p in enumerate(loc) if i not in tags), *context.get("place", ())]
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message.replace("a valid tuple", "an array").replace("a valid dictionary", "a table")  # as TOML says
    if error["type"] == "extra_forbidden":
        message = f"no such key{suggestion(place[-1], _fields(loc))}"
    elif error["type"] == "union_tag_invalid":
        tag = str(context["tag"])
        message = f"no step {tag!r}{suggestion(tag, STEPS)} Known: {', '.join(STEPS)}"
    elif error["type"] == "union_tag_not_found":
        message = f'a step needs its name, e.g. {{ step = "quantize" }}; known: {", ".join(STEPS)}'
    where = ".".join(place)
    return f"{path}:{line_of(rows, place)}: {where + ': ' if where else ''}{message}"


def _fields(loc: Sequence[Any]) -> list[str]:
    """Keys that are valid in the place of the unknown one at `loc`."""
    model: type[Table] = Project
    match tuple(loc):
        case ("variants", _, "steps", int(), str(step), _):
            model = STEPS[step]
        case ("variants", _, _):
            model = Variant
        case ("gates", _, _, _):
            model = Gate
        case (str(table), _):
            kind = Project.model_fields[table].annotation
            model = next(t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, Table))
    return [f.alias or name for name, f in model.model_fields.items()]
