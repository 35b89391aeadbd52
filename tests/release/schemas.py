"""A small validator of JSON Schema, for the keywords that pydantic writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip
KNOWN = {
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "additionalProperties",
    "anyOf",
    "const",
    "default",
    "description",
    "discriminator",
    "enum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "format",
    "items",
    "maximum",
    "minItems",
    "maxItems",
    "minLength",
    "minProperties",
    "minimum",
    "oneOf",
    "pattern",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "title",
    "type",
    "allOf",
    "not",
    "patternProperties",
}


def mistakes(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, at: str = "$"
) -> Iterator[str]:
    """What `schema` has against `value`, with its place; a keyword that is not known here is a mistake too."""
    root = root if root is not None else schema
    if schema is True or schema == {}:
        return
    for keyword in schema.keys() - KNOWN:
        if not keyword.startswith("x-"):
            yield f"{at}: keyword {keyword!r} is not known to this validator"
    if "$ref" in schema:
        inner: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            inner = inner[part]
        yield from mistakes(value, inner, root, at)
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {value!r} is no {schema['type']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    yield from _choices(value, schema, root, at)
    if isinstance(value, dict):
        yield from _object(value, schema, root, at)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at}: fewer than {schema['minItems']} items"
        for i, item in enumerate(value):
            yield from mistakes(item, schema.get("items", {}), root, f"{at}[{i}]")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
        ):
            yield f"{at}: {value} is out of range"


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _choices(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            found = [list(mistakes(value, s, root, at)) for s in schema[keyword]]
            if all(found):
                yield f"{at}: fits none of {keyword}: {min(found, key=len)}"
    for inner in schema.get("allOf", ()):
        yield from mistakes(value, inner, root, at)


def _object(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at}: {name} is missing"
    for name, inner in value.items():
        if name in known:
            yield from mistakes(inner, known[name], root, f"{at}.{name}")
        elif other is False:
            yield f"{at}: {name!r} is not allowed"
        elif other is not True:
            yield from mistakes(inner, other, root, f"{at}.{name}")
