"""The tables of steps in the project file, generated from the options of the functions of those names."""

from __future__ import annotations

import copy
import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from edgeopt.options.declare import PYTHON_ONLY, ChoiceTable, Options, called, flag_of, in_words
from edgeopt.options.distill import Distill
from edgeopt.options.models import Shrink, Simplify
from edgeopt.options.quantize import Quantize
from edgeopt.options.reading import Reading


class Table(BaseModel):
    """Of the types that TOML tells apart: true is no number and 7 no text, but 7 may stand for 7.0."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Place = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[int, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]
_MODELS = Annotated[  # in TOML, what takes models of any form in Python
    tuple[Path, ...] | None,
    BeforeValidator(lambda x: (x,) if isinstance(x, str) else x, json_schema_input_type=str | list[str] | None),
]


def mistake(place: Sequence[str], message: str) -> PydanticCustomError:
    """An error to raise for the key at `place`, relative to the validator's location."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "place": list(place)})


class StepTable(Table):
    """A step that is a function's options. chosen: their model; fixed: what the step's name says of them."""

    chosen: ClassVar[type[Options]]
    fixed: ClassVar[Mapping[str, Any]]
    step: str

    def choices(self) -> dict[str, Any]:
        """What the table sets, by the options' field names."""
        return {**self.model_dump(exclude={"step"}, exclude_unset=True), **self.fixed}

    @model_validator(mode="after")
    def _together(self) -> StepTable:
        given = {"data": "data.path"} if "data" in self.chosen.model_fields else {}
        try:
            self.chosen.model_validate({**given, **self.choices()})
        except ValidationError as e:
            first = re.match(r"\{(\w+)\}", str(e.errors()[0]["msg"]).removeprefix("Value error, "))
            place = [called(self.chosen, first[1], "project file")] if first else []
            raise mistake(place, in_words(self.chosen, e, "project file")) from e
        return self


class Python(Table):
    """A function of yours, `State -> State`, over the model so far and the samples of [data]: see docs/python.md."""

    step: Literal["python"]
    call: str = Field(
        pattern=r"^[\w.]+:\w+$", description="package.module:function, looked for beside the project file"
    )


def _annotation(annotation: Any) -> Any:
    """`annotation` adapted to TOML: paths are strings, tuples are arrays, a target is a name or a file, samples are a
    path.
    """
    if annotation is Path:
        return Place
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_annotation(parts[0]), *parts[1:])]
    if origin is tuple:
        inner = tuple(p if p is Ellipsis else _annotation(p) for p in parts)
        return Annotated[tuple[inner], Field(strict=False)]  # type: ignore[valid-type]
    if origin in (Union, UnionType):
        kept = [p for p in parts if not (isinstance(p, type) and issubclass(p, BaseModel))]
        if str in kept and Path in kept:
            kept = [p for p in kept if p is not Path and get_origin(p) is not Iterable]
        return functools.reduce(operator.or_, [_annotation(p) for p in kept])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Mapping[parts[0], _annotation(parts[1])]  # type: ignore[valid-type, misc]
    return annotation


def _field(name: str, field: FieldInfo) -> tuple[Any, FieldInfo]:
    """The option `field` as a key of a step's table."""
    found, flag = copy.copy(field), flag_of(field)
    found.annotation = _annotation(_MODELS if field.annotation is Any else field.annotation)
    found.metadata = [m for m in field.metadata if m is not SkipValidation]
    if flag.key:
        found.alias = found.validation_alias = found.serialization_alias = flag.key
    table = next((m for m in field.metadata if isinstance(m, ChoiceTable)), None)
    if table is not None:
        found.json_schema_extra = functools.partial(_enumerated, table, field.default is None)
    return found.annotation, found


def _enumerated(table: ChoiceTable, optional: bool, schema: dict[str, Any]) -> None:
    schema["enum"] = [*table.names(), *([None] if optional else [])]


def table_of(
    name: str,
    options: type[Options],
    keep: Iterable[str] | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
) -> type[StepTable]:
    """The table class of step `name`, with the options marked for steps, or those in `keep`."""
    reading = set(Reading.model_fields) - ({"samples"} if options is Distill else set())
    kept = set(keep) if keep is not None else {n for n, f in options.model_fields.items() if _in_steps(n, f, reading)}
    fields = {n: _field(n, f) for n, f in options.model_fields.items() if n in kept}
    made: type[StepTable] = create_model(  # type: ignore[call-overload]
        name.capitalize(), __base__=StepTable, __doc__=options.__doc__, step=(Literal[name], ...), **fields
    )
    made.chosen, made.fixed = options, fixed or {}
    return made


def _in_steps(name: str, field: FieldInfo, reading: set[str]) -> bool:
    return flag_of(field).step and name not in reading


STEPS: Mapping[str, type[Table]] = {
    "simplify": table_of("simplify", Simplify, ["transformer", "backend"]),
    "quantize": table_of("quantize", Quantize),
    "fp16": table_of("fp16", Quantize, ["keep", "exclude", "io_types"], fixed={"mode": "fp16", "measure": False}),
    "weights": table_of("weights", Quantize, ["bits", "exclude"], fixed={"mode": "weights", "measure": False}),
    "shrink": table_of("shrink", Shrink),
    "distill": table_of("distill", Distill),
    "python": Python,
}
if TYPE_CHECKING:
    Step = StepTable
else:
    Step = Annotated[functools.reduce(operator.or_, STEPS.values()), Field(discriminator="step")]


def reading_fields() -> dict[str, tuple[Any, FieldInfo]]:
    """The options of reading as keys of [data]."""
    return {n: _field(n, f) for n, f in Reading.model_fields.items() if flag_of(f) != PYTHON_ONLY}
