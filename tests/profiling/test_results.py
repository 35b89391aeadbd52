"""The results document: what is written is what is read, fits the published schema, and anything else is refused by
name.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgeopt.errors import DataError
from edgeopt.numbers.intervals import Interval
from edgeopt.profiling.results import SCHEMA, Environment, Measured, Placement, Range, Results, Setting, load, schema

LAW = settings(max_examples=40, deadline=None, derandomize=True)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=5),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
}


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """All that a field of the document may hold; sequences and mappings of up to two."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return st.builds(annotation, **{k: within(f) for k, f in annotation.model_fields.items()})
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(of)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, of))
    if origin is tuple:
        return st.lists(values(of[0]), max_size=2).map(tuple)
    return st.dictionaries(values(of[0]), values(of[1]), max_size=2)


def within(field: FieldInfo) -> st.SearchStrategy[Any]:
    """The values of a field inside its limits."""
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Gt):
            return st.floats(min_value=1e-300, allow_infinity=False)
        if isinstance(limit, annotated_types.MinLen):
            return st.lists(values(typing.get_args(field.annotation)[0]), min_size=1, max_size=3).map(tuple)
    return values(field.annotation)


documents = values(Results)


def small(**changed: Any) -> Results:
    """A document of one setting that could not be measured."""
    return Results(
        kind="profile",
        created="2026-11-01T12:00:00+00:00",
        environment=Environment(cpu="A", features=("avx2",), cores=2, system="Linux", edgeopt="0.1.0"),
        preset="quick",
        measured=(Measured(setting=Setting(label="m", model="m.onnx", sha256="0", provider="cpu"), error="no"),),
    ).model_copy(update=changed)


def written(folder: Path, document: Mapping[str, Any] | str | bytes) -> Path:
    path = folder / "results.json"
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def plain() -> dict[str, Any]:
    """A document as JSON."""
    found: dict[str, Any] = json.loads(small().to_json())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    "enum",
    "const",
    "$ref",
    "minItems",
    "exclusiveMinimum",
}
WORDS = {"title", "description", "default"}  # say nothing about what is valid


def faults(value: Any, rule: Mapping[str, Any], defs: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Where `value` breaks `rule`, for the keywords that the schema uses."""
    if "$ref" in rule:
        yield from faults(value, defs[rule["$ref"].removeprefix("#/$defs/")], defs, where)
    if "anyOf" in rule and all(any(faults(value, r, defs, where)) for r in rule["anyOf"]):
        yield f"{where}: none of anyOf"
    if value not in rule.get("enum", [value]) or value != rule.get("const", value):
        yield f"{where}: {value!r} is not one of those allowed"
    if "type" in rule:
        expected = JSON_TYPES[rule["type"]]
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            yield f"{where}: {value!r} is no {rule['type']}"
            return
    if isinstance(value, list) and len(value) < rule.get("minItems", 0):
        yield f"{where}: too few"
    if isinstance(value, int | float) and value <= rule.get("exclusiveMinimum", -math.inf):
        yield f"{where}: {value!r} is too small"
    yield from inside(value, rule, defs, where)


def inside(value: Any, rule: Mapping[str, Any], defs: Mapping[str, Any], where: str) -> Iterator[str]:
    """The same for what an object or an array holds."""
    if isinstance(value, list) and "items" in rule:
        for i, x in enumerate(value):
            yield from faults(x, rule["items"], defs, f"{where}.{i}")
    if isinstance(value, dict):
        known, other = rule.get("properties", {}), rule.get("additionalProperties", True)
        yield from (f"{where}.{k}: missing" for k in rule.get("required", []) if k not in value)
        for k, x in value.items():
            if k not in known and other is False:
                yield f"{where}.{k}: unknown"
            yield from faults(x, known.get(k, other if isinstance(other, dict) else {}), defs, f"{where}.{k}")


def valid(document: Any) -> list[str]:
    """What the schema finds wrong with `document`."""
    found = schema()
    return list(faults(document, found, found["$defs"]))


def rules(rule: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema within `rule`, itself first."""
    if isinstance(rule, bool):
        return
    yield rule
    parts = [*rule.get("properties", {}).values(), *rule.get("$defs", {}).values(), *rule.get("anyOf", [])]
    parts += [rule[k] for k in ("items", "additionalProperties") if k in rule]
    for part in parts:
        yield from rules(part)


@LAW
@given(documents)
def test_what_is_read_is_what_was_written(folder: Path, document: Results) -> None:
    assert load(written(folder, document.to_json())) == document


@LAW
@given(documents)
def test_every_document_fits_the_schema(document: Results) -> None:
    assert valid(json.loads(document.to_json())) == []


@LAW
@given(documents)
def test_a_document_gives_the_same_text_every_time(document: Results) -> None:
    assert document.to_json() == document.model_copy(deep=True).to_json()


def test_the_schema_says_which_version_of_json_schema_and_of_the_document_it_is() -> None:
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["$id"] == SCHEMA == found["properties"]["schema"]["const"] == json.loads(small().to_json())["schema"]
    assert json.loads(json.dumps(found)) == found


def test_the_schema_uses_only_keywords_that_are_checked_here_and_references_that_resolve() -> None:
    found = schema()
    used = list(rules(found))
    assert set().union(*used) - {"$schema", "$id", "$defs"} <= KEYWORDS | WORDS
    assert {r["$ref"] for r in used if "$ref" in r} == {f"#/$defs/{name}" for name in found["$defs"]}
    assert all(r["type"] in JSON_TYPES for r in used if "type" in r)
    assert all(set(r["required"]) <= r["properties"].keys() for r in used if "required" in r)


def test_the_schema_allows_no_unknown_key_anywhere() -> None:
    objects = [r for r in rules(schema()) if "properties" in r]
    assert len(objects) == 1 + len(schema()["$defs"])
    assert all(r["additionalProperties"] is False for r in objects)


def test_the_schema_requires_the_key_that_says_which_schema_it_is(plain: dict[str, Any]) -> None:
    del plain["schema"]
    assert valid(plain)


@pytest.mark.parametrize("key", ["kind", "created", "environment", "preset", "measured"])
def test_a_missing_key_is_refused_by_name_and_by_the_schema(key: str, plain: dict[str, Any], tmp_path: Path) -> None:
    del plain[key]
    assert valid(plain) == [f".{key}: missing"]
    with pytest.raises(DataError, match=rf"results\.json: not a valid results file: {key}: .*required"):
        load(written(tmp_path, plain))


def test_a_missing_key_deep_inside_is_refused_by_its_path(plain: dict[str, Any], tmp_path: Path) -> None:
    del plain["measured"][0]["setting"]["sha256"]
    assert valid(plain) == [".measured.0.setting.sha256: missing"]
    with pytest.raises(DataError, match=r"measured\.0\.setting\.sha256: .*required"):
        load(written(tmp_path, plain))


@pytest.mark.parametrize("path", [(), ("environment",), ("measured", 0), ("measured", 0, "setting")], ids=str)
def test_an_unknown_key_is_refused_by_its_path(
    path: tuple[str | int, ...], plain: dict[str, Any], tmp_path: Path
) -> None:
    part: Any = plain
    for key in path:
        part = part[key]
    part["surprise"] = 1
    where = ".".join(map(str, (*path, "surprise")))
    assert valid(plain) == [f".{where}: unknown"]
    with pytest.raises(DataError, match=f"not a valid results file: {where}: .*not permitted"):
        load(written(tmp_path, plain))


@pytest.mark.parametrize(("key", "value"), [("kind", "guess"), ("measured", None), ("seconds", "long"), ("notes", "x")])
def test_a_value_of_the_wrong_kind_is_refused_by_name_and_by_the_schema(
    key: str, value: object, plain: dict[str, Any], tmp_path: Path
) -> None:
    plain[key] = value
    assert valid(plain)
    with pytest.raises(DataError, match=f"not a valid results file: {key}: "):
        load(written(tmp_path, plain))


@pytest.mark.parametrize("version", ["edgeopt.profiling.results/2", "", None, 1])
def test_another_schema_version_is_refused_with_both_versions(
    version: object, plain: dict[str, Any], tmp_path: Path
) -> None:
    plain["schema"] = version
    with pytest.raises(DataError) as e:
        load(written(tmp_path, plain))
    assert f"{version!r}" in str(e.value) and SCHEMA in str(e.value) and "measure again" in str(e.value)


@pytest.mark.parametrize("text", ["[]", "null", '"edgeopt.profiling.results/1"', "{}", "3"])
def test_json_that_does_not_say_its_schema_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.json: schema None"):
        load(written(tmp_path, text))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"hello", b"\xff\xfe", b"\x08\x07onnx"], ids=["empty", "cut", "words", "not UTF-8", "binary"]
)
def test_a_file_that_is_not_json_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.json: not a results file \("):
        load(written(tmp_path, content))


def test_a_file_that_is_not_there_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(DataError, match=f"{path}: not a results file"):
            load(path)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_becomes_null(number: float, tmp_path: Path) -> None:
    placement = Placement(
        requested="cpu",
        nodes={},
        coverage_nodes=1.0,
        coverage_time=number,
        partitions=0,
        fallback_ops={},
        fallback_nodes=(),
        agrees=None,
    )
    document = small(measured=(small().measured[0].model_copy(update={"placement": placement}),))
    plain = json.loads(document.to_json(), parse_constant=pytest.fail)
    assert plain["measured"][0]["placement"]["coverage_time"] is None
    assert valid(plain) == []
    (read,) = load(written(tmp_path, document.to_json())).measured
    assert read.placement is not None and read.placement.coverage_time is None


def test_null_in_place_of_a_number_that_must_be_there_is_refused_by_name(plain: dict[str, Any], tmp_path: Path) -> None:
    plain["seconds"] = None
    assert valid(plain) == [".seconds: None is no number"]
    with pytest.raises(DataError, match=r"not a valid results file: seconds: .*number"):
        load(written(tmp_path, plain))


def test_a_document_has_failed_when_one_of_its_settings_has() -> None:
    bad = small().measured[0]
    good = bad.model_copy(update={"error": None})
    assert [small(measured=m).failed for m in ((), (good,), (good, bad))] == [False, False, True]


def test_a_range_is_an_interval_in_another_unit() -> None:
    assert Range.of(Interval(2.0, 1.0, 4.0), 0.5) == Range(value=1.0, low=0.5, high=2.0)
    assert Range.of(Interval(2.0, 1.0, 4.0)) == Range(value=2.0, low=1.0, high=4.0)
