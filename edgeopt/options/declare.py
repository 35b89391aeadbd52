"""Declaration of options: an option is a field of an `Options` model. Its type defines the values, `Field` its default,
bounds and description, and `Flag` how it is written if this does not follow from the field's name and type.

An option has three faces: an argument in Python (`range_rule`), a flag on the command line (`--range`) and a key in a
project file (`range`). An error message uses the name of the current face; rules about several options write `{name}`
for it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    get_args,
    overload,
)

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError, model_validator
from pydantic.fields import FieldInfo

from edgeopt.errors import UsageError, suggestion
from edgeopt.listener import Listener
from edgeopt.options.texts import Text

Face = Literal["python", "command line", "project file"]
_MOST = 3  # largest number of errors reported for one call


@dataclass(frozen=True)
class Flag:
    """How an option is written. name: on the command line, with dashes; key: in a project file; if empty, both are made
    from the field's name. text: how values are written that are not just a word or a number; example: of a NAME=VALUE;
    several: whether the flag of one value or a sequence of them is repeated;
    cli, step: whether the command line and a step of a project file have the option.
    """

    name: str = ""
    text: Text | None = None
    key: str = ""
    short: str = ""
    example: str = ""
    several: bool = False
    cli: bool = True
    step: bool = True


PYTHON_ONLY = Flag(cli=False, step=False)
NO_STEP = Flag(step=False)


@dataclass(frozen=True)
class ChoiceTable:
    """The allowed names of an option: the keys of the table `module:NAME`, which is imported only when a name is
    checked.
    """

    place: str

    def names(self) -> tuple[str, ...]:
        """The keys, in the order of the table."""
        module, _, name = self.place.partition(":")
        return tuple(getattr(importlib.import_module(module), name))


def known_names(field: FieldInfo) -> tuple[str, ...]:
    """The names that `field` accepts; empty if it is not a choice among names."""
    table = next((m for m in field.metadata if isinstance(m, ChoiceTable)), None)
    return table.names() if table is not None else _literals(field.annotation)


def _literals(annotation: Any) -> tuple[str, ...]:
    """All strings of Literals in `annotation`, also inside tuples and unions."""
    return tuple(dict.fromkeys(a for a in _leaves(annotation) if isinstance(a, str)))


def _leaves(annotation: Any) -> Iterable[Any]:
    if getattr(annotation, "__origin__", None) is Literal:
        return get_args(annotation)
    return (leaf for part in get_args(annotation) if not isinstance(part, Flag | ChoiceTable) for leaf in _leaves(part))


def flag_of(field: FieldInfo) -> Flag:
    """The `Flag` of `field`, or an empty one."""
    return next((m for m in field.metadata if isinstance(m, Flag)), Flag())


def called(options: type[BaseModel], name: str, face: Face) -> str:
    """The name of the field `name` of `options` in `face`."""
    flag = flag_of(options.model_fields[name]) if name in options.model_fields else Flag()
    if face == "command line":
        return flag.name or f"--{name.replace('_', '-')}"
    return flag.key or name if face == "project file" else name


if TYPE_CHECKING:
    _Base = BaseModel
else:

    class _Told(type(BaseModel)):
        """Metaclass: calling the class raises UsageError with a readable message; `model_validate`, used for the other
        faces, is not affected.
        """

        def __call__(cls, *args: object, **kwargs: object) -> BaseModel:
            try:
                return super().__call__(*args, **kwargs)
            except ValidationError as e:
                raise UsageError(in_words(cls, e, "python")) from e

    class _Base(BaseModel, metaclass=_Told):
        """With errors in words."""


class Options(_Base):
    """Options of one function, frozen."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, populate_by_name=True
    )

    @classmethod
    def of(cls, given: Mapping[str, Any], face: Face) -> Self:
        """The options `given` by field name; error messages use the names of `face`.

        Raises:
            UsageError: an unknown name, an invalid value, or options that exclude each other.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as e:
            raise UsageError(in_words(cls, e, face)) from e

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            table = next((m for m in field.metadata if isinstance(m, ChoiceTable)), None)
            if table is not None and value is not None and value not in (names := table.names()):
                raise ValueError(f"{{{name}}} {value!r}: unknown{suggestion(value, names)} Known: {', '.join(names)}")
        return self

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values for a report."""
        kept = {
            name
            for name, field in type(self).model_fields.items()
            if flag_of(field) != PYTHON_ONLY and getattr(self, name) != field.get_default(call_default_factory=True)
        }
        return self.model_dump(mode="json", include=kept, fallback=lambda x: getattr(x, "__qualname__", str(x)))


class Spreading(Options):
    """Who does work whose parts do not depend on each other."""

    jobs: Annotated[int | None, NO_STEP] = Field(
        default=None,
        ge=1,
        le=1024,
        description="Processes for what samples or nodes give one by one. [default: threads of this one]",
    )
    cluster: Annotated[str | None, Flag(text=Text("dask://HOST:PORT", str), step=False)] = Field(
        default=None, description="The same on the workers of a Dask scheduler."
    )
    executor: Annotated[Any, SkipValidation, PYTHON_ONLY] = Field(
        default=None, description="The same by any `concurrent.futures.Executor`."
    )


Output = Annotated[Path | None, Flag(short="-o", step=False)]
Force = Annotated[bool, NO_STEP]
Callbacks = Annotated[Listener, SkipValidation, PYTHON_ONLY]


_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def in_words(options: type[BaseModel], error: ValidationError, face: Face) -> str:
    """The error messages for options, with the names of `face`: one line for each option, at most three."""
    found: dict[str, str] = {}
    for x in error.errors():
        place = str(x["loc"][0]) if x["loc"] else str(x["msg"])
        found.setdefault(place, _in_words(options, x, face))
    return "\n".join(list(found.values())[:_MOST])


def _in_words(options: type[BaseModel], error: Mapping[str, Any], face: Face) -> str:
    told = str(error["msg"]).removeprefix("Value error, ")
    message = re.sub(r"\{(\w+)\}", lambda m: called(options, m[1], face), told)
    if not error["loc"] or message != told:
        return message
    name, value = str(error["loc"][0]), error["input"]
    if error["type"] == "extra_forbidden":
        return f"no option {name!r}{suggestion(name, [called(options, n, face) for n in options.model_fields])}"
    field = options.model_fields[name]
    key = f" {error['loc'][1]}" if len(error["loc"]) > 1 and is_mapping(field) else ""
    words = f"{called(options, name, face)}{key} {f'{value:g}' if isinstance(value, float) else value}"
    known = known_names(field)
    if error["type"] == "literal_error" and known:
        return f"{words}: unknown{suggestion(str(value), known)} Known: {', '.join(known)}"
    bounds = {kind: getattr(m, kind) for m in field.metadata for kind in _BOUNDS if getattr(m, kind, None) is not None}
    bounds = bounds or {k: x for k, x in error.get("ctx", {}).items() if k in _BOUNDS}  # bounds of an item
    if bounds and isinstance(value, int | float):
        if {"ge", "le"} <= bounds.keys():
            return f"{words}: from {bounds['ge']:g} to {bounds['le']:g}"
        return f"{words}: {' and '.join(f'{_BOUNDS[kind]} {bound:g}' for kind, bound in bounds.items())}"
    return f"{words}: {message[:1].lower()}{message[1:]}"


def is_mapping(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) is Mapping


P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
O = TypeVar("O", bound=Options)  # noqa: E741
R = TypeVar("R")
A_in = TypeVar("A_in", contravariant=True)
B_in = TypeVar("B_in", contravariant=True)
O_in = TypeVar("O_in", contravariant=True)
R_out = TypeVar("R_out", covariant=True)


class OfOne(Protocol[A_in, O_in, P, R_out]):
    """A function of one argument and options, which are given as one value or as keyword arguments."""

    @overload
    def __call__(self, a: A_in, options: O_in, /) -> R_out: ...
    @overload
    def __call__(self, a: A_in, /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...


class OfTwo(Protocol[A_in, B_in, O_in, P, R_out]):
    """A function of two arguments and options."""

    @overload
    def __call__(self, a: A_in, b: B_in, options: O_in, /) -> R_out: ...
    @overload
    def __call__(self, a: A_in, b: B_in, /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...


class OfMany(Protocol[A_in, O_in, P, R_out]):
    """A function of one or several equal arguments and options."""

    @overload
    def __call__(self, a: Sequence[A_in], options: O_in, /) -> R_out: ...
    @overload
    def __call__(self, a: A_in | Sequence[A_in], /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...
    @overload
    def __call__(self, a: A_in, b: A_in, /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...
    @overload
    def __call__(self, a: A_in, b: A_in, c: A_in, /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...
    @overload
    def __call__(self, a: A_in, b: A_in, c: A_in, d: A_in, /, *args: P.args, **kwargs: P.kwargs) -> R_out: ...


@dataclass(frozen=True)
class takes(Generic[P, O]):
    """Decorator for a function whose last parameter is an `options` model: its fields become keyword arguments, visible
    to type checkers and IDEs; an `options` value is accepted in their place.
    """

    options: Callable[P, O]

    @overload
    def __call__(self, function: Callable[[A, O], R]) -> OfOne[A, O, P, R]: ...
    @overload
    def __call__(self, function: Callable[[A, B, O], R]) -> OfTwo[A, B, O, P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        return _called_with(function, cast(type[Options], self.options))

    def of_many(self, function: Callable[[Sequence[A], O], R]) -> OfMany[A, O, P, R]:
        """The same for a function of a sequence, whose items become positional arguments."""
        found = _called_with(lambda things, options: function(things, options), cast(type[Options], self.options))
        name = next(iter(inspect.signature(function).parameters))

        @functools.wraps(function)
        def call(*things: Any, **given: Any) -> R:
            if things and name in given:
                raise UsageError(f"{function.__name__}(): {name} by position or by name, not both")
            things = (*things, *([given.pop(name)] if name in given else []))
            options = (things[-1],) if things and isinstance(things[-1], Options) else ()
            rest = things[: len(things) - len(options)]
            several = len(rest) == 1 and isinstance(rest[0], Sequence) and not isinstance(rest[0], str)
            return cast(R, found(tuple(rest[0]) if several else rest, *options, **given))

        return cast(OfMany[A, O, P, R], call)


def _called_with(function: Callable[..., Any], options: type[Options]) -> Callable[..., Any]:
    names = list(inspect.signature(function).parameters)[:-1]

    @functools.wraps(function)
    def call(*things: Any, **given: Any) -> Any:
        if len(things) < len(names):
            missing = [n for n in names[len(things) :] if n not in given]
            if missing:
                raise UsageError(f"{function.__name__}() lacks its argument {missing[0]!r}")
            things = (*things, *(given.pop(n) for n in names[len(things) :]))
        chosen = things[len(names) :] or ((given.pop("options"),) if "options" in given else ())
        if not chosen:
            return function(*things, options.of(given, "python"))
        if len(chosen) > 1 or given or not isinstance(chosen[0], options):
            raise UsageError(f"{function.__name__}() takes one {options.__name__}, or its fields as keyword arguments")
        return function(*things[: len(names)], chosen[0])

    kinds = inspect.Parameter
    own = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in names]
    fields = [
        kinds(name, kinds.KEYWORD_ONLY, default=f.get_default(call_default_factory=True), annotation=f.annotation)
        for name, f in options.model_fields.items()
    ]
    call.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
    return call
