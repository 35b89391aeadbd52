"""The evidence in the formats of others: JUnit, Markdown, workflow commands, OpenMetrics and CycloneDX, judged by their
own rules.

JUnit: the schemas of Ant (Windy Road Technology) and of the xUnit plugin of Jenkins (junit-10), as tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.release.document import GateResult, Run
from edgeopt.release.evidence import artefacts, manifest
from edgeopt.release.project.metrics import METRICS
from edgeopt.release.verdict.gates import Against, judge
from tests import models
from tests.release.runs import around, project, run, variant

OUTCOMES = ("pass", "warn", "fail", "inconclusive", "not measured", "no baseline", "not comparable")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def gate(outcome: str = "fail", **more: Any) -> GateResult:
    """A judged gate of the variant a."""
    first = {"variant": "a", "metric": "size.file", "bound": "max", "limit": 1.0, "value": 2.0, "message": "too large"}
    return GateResult.model_validate({**first, "outcome": outcome, **more})


def everything(**more: Any) -> Run:
    """A run with a gate of every outcome and a variant without a file."""
    metrics = {name: 0.5 + i for i, name in enumerate(METRICS)}
    made = run(
        variant("float", metrics={"size.file": 9e6, "latency.p50": 20.0}, intervals={"latency.p50": around(20, 0.1)}),
        variant(metrics=metrics, intervals={n: around(metrics[n], 0.1) for n in ("latency.p50", "speedup")}),
        variant("b", error="quantize: no samples"),
        versions={"edgeopt": "0.1.0", "onnx-ir": "1.1.0"},
        **more,
    )
    return made.model_copy(update={"gates": tuple(gate(o, bound=b) for o, b in zip(OUTCOMES, BOUNDS, strict=True))})


BOUNDS = ("min", "max", "warn", "max_drop", "max_regression", "low", "high")

# JUnit

TOKEN, INT, DECIMAL, ANY = r"\S(.*\S)?", r"\d+", r"\d+(\.\d*)?", r"(?s).*"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


@dataclass(frozen=True)
class Element:
    """needed, allowed: attributes with what they look like; children: of which kinds; order: all of these once, in
    this order.
    """

    needed: Mapping[str, str]
    allowed: Mapping[str, str]
    children: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    most: int | None = None


SAID = {"message": ANY}
PLAIN = {n: Element({}, {}) for n in ("system-out", "system-err")}
COUNTS = {"name": TOKEN, "tests": INT, "failures": INT, "errors": INT}
PROPERTIES = {"properties": Element({}, {}, ("property",)), "property": Element({"name": TOKEN, "value": ANY}, {})}
PARTS = ("properties", "testcase", "system-out", "system-err")
RESULTS = ("skipped", "error", "failure")
ANT = (
    PLAIN
    | PROPERTIES
    | {
        "testsuites": Element({}, {}, ("testsuite",)),
        "testsuite": Element(
            COUNTS | {"timestamp": MOMENT, "hostname": TOKEN, "time": DECIMAL, "package": TOKEN, "id": INT},
            {"skipped": INT},
            PARTS,
            PARTS,
        ),
        "testcase": Element({"name": TOKEN, "classname": TOKEN, "time": DECIMAL}, {}, RESULTS, most=1),
        "skipped": Element({}, {"message": ANY, "type": ANY}),
        "error": Element({"type": ANY}, SAID),
        "failure": Element({"type": ANY}, SAID),
    }
)
JENKINS = (
    PLAIN
    | PROPERTIES
    | {n: Element({}, SAID | {"type": ANY}) for n in RESULTS}
    | {
        "testsuites": Element(
            {}, {"name": ANY, "time": DECIMAL, "tests": INT, "failures": INT, "errors": INT}, ("testsuite",)
        ),
        "testsuite": Element(
            COUNTS,
            dict.fromkeys(("skipped", "timestamp", "hostname", "id", "package", "file", "log", "url", "group"), ANY)
            | {"time": DECIMAL},
            (*PARTS, "testsuite"),
        ),
        "testcase": Element(
            {"name": ANY}, dict.fromkeys(("time", "classname", "group"), ANY), (*RESULTS, "system-out", "system-err")
        ),
    }
)


def against_schema(node: ET.Element, known: Mapping[str, Element]) -> Iterator[str]:
    """What is wrong with `node` and all in it."""
    rule = known[node.tag]
    for name in rule.needed.keys() - node.attrib.keys():
        yield f"{node.tag}: no {name}"
    for name, value in node.attrib.items():
        pattern = {**rule.allowed, **rule.needed}.get(name)
        if pattern is None or not re.fullmatch(pattern, value):
            yield f"{node.tag}: {name} = {value!r}"
    tags = [child.tag for child in node]
    unknown = sorted(set(tags) - set(rule.children))
    if unknown:
        yield f"{node.tag}: has {unknown}"
    seen = list(dict.fromkeys(tags))
    if rule.order and (seen != [t for t in rule.order if t in seen] or set(rule.order) - {"testcase"} - set(seen)):
        yield f"{node.tag}: {seen} for {list(rule.order)}"
    if rule.most is not None and len(tags) > rule.most:
        yield f"{node.tag}: {len(tags)} children"
    for child in node:
        if child.tag in known:
            yield from against_schema(child, known)


@pytest.mark.parametrize(
    "made",
    [everything(), run(variant(metrics={"size.file": 1.0})), run(variant("b", error="x"))],
    ids=["all", "no gates", "failed"],
)
@pytest.mark.parametrize("schema", [ANT, JENKINS], ids=["ant", "jenkins"])
def test_junit_is_of_the_common_schemas(made: Run, schema: Mapping[str, Element]) -> None:
    assert list(dict.fromkeys(against_schema(ET.fromstring(artefacts.junit(made)), schema))) == []


@given(st.lists(st.sampled_from(OUTCOMES), max_size=8))
def test_junit_counts_every_gate_once_by_its_outcome(outcomes: list[str]) -> None:
    made = run(variant()).model_copy(update={"gates": tuple(gate(o) for o in outcomes)})
    suites = list(ET.fromstring(artefacts.junit(made)))
    assert len(suites) == bool(outcomes)
    for suite in suites:
        assert len(suite.findall("testcase")) == int(suite.get("tests", "")) == len(outcomes)
        assert int(suite.get("skipped", "")) == outcomes.count("inconclusive") == len(suite.findall("testcase/skipped"))
        assert len(suite.findall("testcase/failure")) == int(suite.get("failures", ""))
        assert int(suite.get("failures", "")) == sum(o not in ("pass", "warn", "inconclusive") for o in outcomes)


@given(TEXT)
def test_junit_says_the_message_of_a_gate_with_no_more_lost_than_xml_cannot_hold(message: str) -> None:
    made = run(variant()).model_copy(update={"gates": (gate("fail", message=message),)})
    (failure,) = ET.fromstring(artefacts.junit(made)).findall(".//failure")
    told = failure.get("message", "")
    assert len(told) == len(message)
    assert all(a == b for a, b in zip(told, message, strict=True) if b.isprintable())


# Markdown


def cells(row: str) -> int:
    """Of a row of a table."""
    return len(re.findall(r"(?<!\\)\|", row)) - 1


@given(message=TEXT, error=TEXT, note=TEXT)
def test_every_table_of_the_summary_has_rows_of_one_width(message: str, error: str, note: str) -> None:
    made = run(variant(metrics={"size.file": 5.0, "quant.sqnr": 9.0}), variant("b", error=error), notes=(note,))
    made = made.model_copy(update={"gates": (gate("fail", message=message),)})
    text = artefacts.summary(made)
    tables = [t.strip("\n").split("\n") for t in text.split("\n\n") if t.startswith("|")]
    assert len(tables) == 2
    for rows in tables:
        assert re.fullmatch(r"(\|-+)+\|", rows[1]) and {cells(row) for row in rows} == {cells(rows[0])}


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🙂"])
def test_a_summary_is_below_a_mebibyte_whatever_is_said_and_begins_with_the_verdict(letter: str) -> None:
    made = run(variant(metrics={"size.file": 5.0}), notes=(letter * 2_000_000,))
    text = artefacts.summary(made)
    size_bytes = len(text.encode())
    assert size_bytes < 2**20
    assert text.startswith("## p: pass\n") and text.endswith("\n")


def test_a_failed_variant_in_a_run_without_figures_is_told_in_a_row_as_wide_as_the_head() -> None:
    rows = artefacts.summary(run(variant("float"), variant(error="no samples"))).split("\n")
    table = [row for row in rows if row.startswith("|")]
    assert any("no samples" in row for row in table) and len({cells(row) for row in table}) == 1


# GitHub


def unescaped(text: str) -> str:
    """What GitHub shows: %25, %0D and %0A are read back (actions/toolkit, command.ts)."""
    for code, letter in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, letter)
    return text


@given(message=TEXT, file=TEXT)
def test_an_annotation_read_back_says_the_message_and_the_file(message: str, file: str) -> None:
    made = run(variant(), project_file=file).model_copy(update={"gates": (gate("fail", message=message, line=7),)})
    (row,) = artefacts.notices(made)
    found = re.fullmatch(r"::error file=([^,:\r\n]*),line=7,title=([^,:\r\n]*)::([^\r\n]*)", row)
    assert found and (unescaped(found[1]), unescaped(found[3])) == (file, message)


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(1, 99)), max_size=20))
def test_annotations_are_the_worst_eight_in_the_order_of_lines(given_: list[tuple[str, int]]) -> None:
    made = run(variant()).model_copy(update={"gates": tuple(gate(o, line=n) for o, n in given_)})
    rows = [re.match(r"::(\w+) file=[^,]*,line=(\d+)", row) for row in artefacts.notices(made)]
    told = [(row[1], int(row[2])) for row in rows if row]
    failed = sorted(n for o, n in given_ if o not in ("pass", "warn", "inconclusive"))
    warned = sorted(n for o, n in given_ if o in ("warn", "inconclusive"))
    assert told == ([("error", n) for n in failed] + [("warning", n) for n in warned])[:8]


# OpenMetrics


@given(name=TEXT)
@settings(max_examples=50)
def test_openmetrics_are_read_by_the_parser_of_prometheus_with_values_in_base_units(name: str) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    made = everything(project=name)
    families = {f.name: f for f in parser.text_string_to_metric_families(artefacts.openmetrics(made))}
    assert {s.labels["project"] for f in families.values() for s in f.samples} == {name}
    a = made.variants[1].metrics
    base = {
        "edgeopt_latency_p50_seconds": ("latency.p50", 1e-3),
        "edgeopt_size_file_bytes": ("size.file", 1),
        "edgeopt_quant_sqnr_decibels": ("quant.sqnr", 1),
        "edgeopt_speedup": ("speedup", 1),
    }
    for family, (metric, scale) in base.items():
        (value,) = [s.value for s in families[family].samples if s.labels["variant"] == "a"]
        assert value == pytest.approx(a[metric] * scale, rel=1e-6)
    told = {s.labels["bound"]: s.value for s in families["edgeopt_gate_passed"].samples}
    assert told == dict(zip(BOUNDS, (1, 1, 0, 0, 0, 0, 0), strict=True))
    assert len(families) == len(METRICS) + 1


def test_no_sample_of_openmetrics_is_given_twice_where_a_variant_has_gates_of_its_own_and_shared_ones() -> None:
    found = project(
        'size.file = { max = "1 B", warn = "1 B" }',
        more='[gates."*"]\nsize.file = { max = "9 B" }\nspeedup = { min = 1 }',
    )
    made = judge(found, run(variant(metrics={"size.file": 5.0, "speedup": 2.0})), Against())
    rows = [row.rpartition(" ")[0] for row in artefacts.openmetrics(made).split("\n") if row and row[0] != "#"]
    assert len(rows) == len(set(rows)) == 5


# CycloneDX


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder with a source model and the files of the variants a and c."""
    (tmp_path / "source.onnx").write_bytes(models.dense())
    for i, name in enumerate("ac", 1):
        (tmp_path / f"{name}.onnx").write_bytes(models.dense(b=models.normal(4, seed=i)))
    return tmp_path


def released(folder: Path, **more: Any) -> Run:
    """`everything`, of files that are there, with c made from a."""
    found = everything(model=str(folder / "source.onnx"), **more)
    child = variant("c", metrics={"size.file": 3.0}).model_copy(update={"parent": "a"})
    return found.model_copy(update={"variants": (*found.variants, child)})


@pytest.mark.parametrize("name", ["p", "a b", 'q"<&>', "né☃🙂", "a\nb", ""])
def test_the_bill_of_materials_is_of_the_official_schema(name: str, shipped: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion

    text = manifest.bom(released(shipped, project=name), shipped)
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_bill_of_materials_has_each_file_with_its_hash_and_each_figure_with_its_interval(shipped: Path) -> None:
    made = released(shipped)
    found = json.loads(manifest.bom(made, shipped))
    parts = {c["bom-ref"]: c for c in found["components"]}
    assert len(parts) == len(found["components"])
    assert {"model:float", "model:a", "model:c"} == {r for r in parts if r.startswith("model:")}
    for ref, file in (("model:float", "source"), ("model:a", "a"), ("model:c", "c")):
        assert parts[ref]["hashes"] == [{"alg": "SHA-256", "content": manifest.sha256(shipped / f"{file}.onnx")}]
    rows = {
        r["type"].split()[0]: r for r in parts["model:a"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert rows.keys() == made.variants[1].metrics.keys()
    assert {n for n, r in rows.items() if "confidenceInterval" in r} == made.variants[1].intervals.keys()


def test_a_variant_made_from_another_depends_on_it_in_the_bill_of_materials(shipped: Path) -> None:
    found = json.loads(manifest.bom(released(shipped), shipped))
    depends = {d["ref"]: d["dependsOn"] for d in found["dependencies"]}
    assert depends == {"model:a": ["model:float"], "model:c": ["model:a"]}
