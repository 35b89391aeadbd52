"""Tables of options for the documentation, from the models that declare them: `<!-- options: quantize -->` in a page
becomes the table of that command. A hook of mkdocs; `table(name)` gives the Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from edgeopt.cli.flags import order
from edgeopt.options.declare import PYTHON_ONLY, Options, called, flag_of, known_names
from edgeopt.options.distill import Distill
from edgeopt.options.models import CheckFile, Export, Inspect, PreviewOptions, Shrink, Simplify
from edgeopt.options.profile import Profile
from edgeopt.options.quantize import Quantize, SensitivityOptions
from edgeopt.options.reading import Reading

TABLES: Mapping[str, type[Options]] = {
    "quantize": Quantize,
    "sensitivity": SensitivityOptions,
    "profile": Profile,
    "compare": Profile,
    "distill": Distill,
    "shrink": Shrink,
    "simplify": Simplify,
    "check": CheckFile,
    "export": Export,
    "inspect": Inspect,
    "data": PreviewOptions,
    "reading": Reading,
}
PLACE = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)


class NoTextError(ValueError):
    """An option that does not say what it is, or a table that is not there."""


def table(name: str) -> str:
    """The options of the command `name`: flag, argument of Python, values, default, what it does.

    Raises:
        NoTextError: there is no such table, or an option without a description.
    """
    if name not in TABLES:
        raise NoTextError(f"no options {name!r}; known: {', '.join(TABLES)}")
    return "\n".join(["| flag | in Python | values | default | |", "|---|---|---|---|---|", *_rows(TABLES[name], name)])


def _rows(options: type[Options], name: str) -> Iterator[str]:
    for field_name in order(options):
        field = options.model_fields[field_name]
        if name != "reading" and options is not Reading and field_name in Reading.model_fields:
            continue  # a table of their own
        if flag_of(field) == PYTHON_ONLY:
            continue
        if not field.description:
            raise NoTextError(f"{options.__name__}.{field_name} has no description")
        flag = called(options, field_name, "command line")
        cells = (f"`{flag}`", f"`{field_name}`", _values(field), _default(field), field.description)
        yield f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"


def _values(field: FieldInfo) -> str:
    names = known_names(field)
    if names:
        return ", ".join(names)
    kinds = _kinds(field.annotation)
    limits = [
        f"{sign} {getattr(m, key):g}"
        for m in field.metadata
        for key, sign in _SIGNS.items()
        if getattr(m, key, None) is not None
    ]
    return " ".join([" or ".join(dict.fromkeys(kinds)), *limits]).strip()


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_WORDS = {"int": "integer", "float": "number", "str": "text", "Path": "path", "bool": "switch", "NoneType": ""}


def _kinds(annotation: Any) -> list[str]:
    parts = [a for a in get_args(annotation) if a is not Ellipsis]
    if not parts:
        if isinstance(annotation, int):  # of a Literal
            return [str(annotation)]
        name = getattr(annotation, "__name__", "")
        return [word] if (word := _WORDS.get(name, "")) else []
    return [kind for part in parts for kind in _kinds(part)]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value == () or value == {} or field.is_required():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with its tables, as mkdocs asks for it."""
    return PLACE.sub(lambda m: table(m[1]), markdown)
