"""Click options generated from the option models, and option models built from the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from edgeopt.options.declare import ChoiceTable, Flag, Options, Spreading, called, flag_of, is_mapping, known_names
from edgeopt.options.reading import Reading
from edgeopt.options.texts import Text, pairs

Command = TypeVar("Command", bound=Callable[..., Any])
Chosen = TypeVar("Chosen", bound=Options)


def options_of(model: type[Options], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """A decorator that adds the options of `model` to a command, the function's own before those of reading samples."""

    def add(command: Command) -> Command:
        for name in reversed(order(model)):
            if flag_of(model.model_fields[name]).cli and name not in without:
                command = _option(model, name, model.model_fields[name])(command)
        return command

    return add


def order(model: type[Options]) -> list[str]:
    """Names of the fields: the function's own, then who does the work, then those of reading samples."""
    reading = [c for c in model.__mro__ if c in Reading.__mro__]
    own = sorted((c for c in reversed(model.__mro__) if c not in reading), key=lambda c: c is Spreading)
    names = [name for c in (*own, *reading) for name in getattr(c, "__annotations__", {}) if name in model.model_fields]
    return list(dict.fromkeys(names))


def _option(model: type[Options], name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag, flags = flag_of(field), [called(model, name, "command line")]
    if field.annotation is bool and field.default is True:
        flags = [f"--no-{name.replace('_', '-')}"]
    if flag.short:
        flags.insert(0, flag.short)
    repeated = _repeated(field, flag)
    shown = None if field.is_required() or repeated or not field.default else _shown(field.default, flag)
    words = f"{field.description}{' May be repeated.' if repeated else ''}"
    if flags[-1].startswith("--no-"):
        words = f"Do not {words[:1].lower()}{words[1:]}"
    return click.option(
        *flags,
        name,
        multiple=repeated,
        required=field.is_required(),
        **({"is_flag": True} if field.annotation is bool else {"type": _type(field, flag)}),
        metavar=_metavar(field, flag),
        help=words if shown is None or field.annotation is bool else f"{words}  [default: {shown}]",
    )


def _repeated(field: FieldInfo, flag: Flag) -> bool:
    kinds = [get_origin(a) for a in (field.annotation, *get_args(field.annotation))]
    several = tuple in kinds
    return flag.several or is_mapping(field) or (several and not (flag.text is not None and flag.text.whole))


def _shown(default: Any, flag: Flag) -> str:
    if flag.text is not None:
        return flag.text.show(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(field: FieldInfo, flag: Flag) -> str | None:
    metavar = flag.text.metavar if flag.text is not None else ""
    if is_mapping(field):
        return f"NAME={metavar or 'VALUE'}"
    return metavar or None


class _Names(click.ParamType[str]):
    """One of several names, which are looked up only for --help; the options model reports unknown ones."""

    name = "name"

    def __init__(self, field: FieldInfo) -> None:
        self.field = field

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(known_names(self.field))}]"


def _type(field: FieldInfo, flag: Flag) -> Any:
    if flag.text is not None or is_mapping(field):
        return str
    if any(isinstance(m, ChoiceTable) for m in field.metadata) or known_names(field):
        return _Names(field)
    kinds = {field.annotation, *get_args(field.annotation)} | {
        x for a in get_args(field.annotation) for x in get_args(a)
    }
    if str in kinds:
        return str
    return click.Path(path_type=Path) if Path in kinds else float if float in kinds else int


def chosen(model: type[Chosen], given: Mapping[str, object], **fixed: object) -> Chosen:
    """The options given on the command line; `fixed`: those that the command sets itself.

    Raises:
        click.BadParameter, UsageError: an invalid value, or options that exclude each other.
    """
    context = click.get_current_context()
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in given and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            found[name] = _value(model, name, field, given[name])
    return model.of({**found, **fixed}, "command line")


def _value(model: type[Options], name: str, field: FieldInfo, given: Any) -> Any:
    flag = flag_of(field)
    text = flag.text or Text("", str)
    try:
        if field.annotation is bool:
            return given if field.default is False else not given
        if is_mapping(field):
            return {k: text.read(v) for k, v in pairs(given, flag.example).items()}
        if isinstance(given, tuple):
            return tuple(text.read(x) if isinstance(x, str) else x for x in given)
        return text.read(given) if isinstance(given, str) else given
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint=called(model, name, "command line")) from e
