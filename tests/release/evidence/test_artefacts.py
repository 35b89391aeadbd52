"""The evidence as files: what each says agrees with the verdict, and odd names break none of them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import DataError
from edgeopt.release.document import Layer, Run, StepResult, load, schema
from edgeopt.release.evidence import artefacts
from edgeopt.release.evidence.page import page
from edgeopt.release.verdict.gates import Against, judge
from tests.release.runs import around, measured, project, run, variant
from tests.release.schemas import mistakes

ODD = (
    "a<b",
    "a&b",
    'a"b',
    "a'b",
    "a\nb",
    "a\rb",
    "a|b",
    "né☃",
    "a\x00b",
    "a\x1bb",
    "a\x7fb",
    "<script>alert(1)</script>",
    "</title>",
    "{{ 7*7 }}",
    "a\\b",
    "::error::x",
    "]]>",
    "\u2028",
    "\ufffe",
    "🙂",
)


def of(name: str = "p", **more: object) -> Run:
    """A run called `name`, with a variant that passed, one that failed and one that was not made."""
    found = project('size.file = { max = "1 B" }\nlatency.p50 = { max = "10 ms" }')
    made = run(
        variant("float", metrics={"size.file": 9.0, "latency.p50": 20.0}, intervals={"latency.p50": around(20, 0.1)}),
        variant(
            metrics={"size.file": 5.0, "latency.p50": 10.0, "accuracy.agreement": 0.9, "quant.sqnr": 9.0},
            intervals={"latency.p50": around(10, 0.1)},
            layers=(Layer(name=f"layer {name}", op="Conv", sqnr_db=3.0),),
            steps=(
                StepResult(
                    step={"step": "quantize", "exclude": [name]}, cached=False, seconds=1.0, notes=(f"note {name}",)
                ),
            ),
        ),
        variant("b", error=f"quantize: {name}"),
        project=name,
        project_file=f"{name}.toml",
        notes=(f"note {name}",),
        profile=measured("model", "a"),
        **more,
    )
    return judge(found, made, Against())


class Text(HTMLParser):
    """The words of a page, its tags, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", ODD)
def test_a_project_of_any_name_has_well_formed_junit(name: str) -> None:
    root = ET.fromstring(artefacts.junit(of(name)))
    assert [s.get("name") for s in root] == ["a", "b"]
    kept = "".join(c for c in name if c.isalnum())
    assert all(kept[:1] in (p.get("value") or "") for p in root.iter("property") if p.get("name") == "project")
    assert len(root.findall("testsuite/properties/property[@name='project']")) == 2


@pytest.mark.parametrize("name", ODD)
def test_a_project_of_any_name_has_a_page_with_no_more_elements_than_a_plain_one(name: str) -> None:
    plain, odd = Text(), Text()
    plain.feed(page([of("p")]))
    odd.feed(page([of(name)]))
    assert odd.tags == plain.tags


@pytest.mark.parametrize("name", ODD)
def test_the_summary_keeps_its_rows_whatever_the_name(name: str) -> None:
    plain, odd = artefacts.summary(of("p")), artefacts.summary(of(name))
    assert len(odd.split("\n")) == len(plain.split("\n")) and "\r" not in odd
    assert odd.split("\n")[0].endswith(": error")
    bars = [row.count("|") - row.count("\\|") for row in odd.split("\n")]
    assert bars == [row.count("|") for row in plain.split("\n")]


@pytest.mark.parametrize("name", ODD)
def test_an_annotation_is_one_line_with_its_own_command_and_no_other(name: str) -> None:
    plain, odd = list(artefacts.notices(of("p"))), list(artefacts.notices(of(name)))
    assert len(odd) == len(plain) > 0
    for row in odd:
        assert len(row.splitlines()) == 1 or name in ("\u2028",)
        assert re.match(r"::(error|warning) file=[^,:]*,line=\d+,title=[^,:]*::", row)


@pytest.mark.parametrize("name", ODD)
def test_openmetrics_has_a_sample_a_line_whatever_the_name(name: str) -> None:
    text = artefacts.openmetrics(of(name))
    assert text.endswith("# EOF\n") and text.count("# EOF") == 1
    for row in text.removesuffix("\n").split("\n"):
        assert re.fullmatch(r'# (TYPE|UNIT|HELP|EOF).*|[a-z_]\w*\{(\w+="([^"\\\n]|\\["\\n])*",?)+\} [-+.\deE]+', row), (
            row
        )


@pytest.mark.parametrize("name", ODD)
def test_a_run_of_any_name_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    made = of(name)
    (tmp_path / "results.json").write_text(made.to_json(), encoding="utf-8")
    assert load(tmp_path / "results.json") == made


def test_results_are_of_the_published_schema() -> None:
    assert list(mistakes(json.loads(of().to_json()), schema())) == []


@settings(max_examples=50)
@given(value=st.floats(), name=st.sampled_from(["quant.sqnr", "accuracy.eval", "size.file"]))
def test_a_run_with_any_figure_can_be_read_back_and_drawn(
    value: float, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = run(variant(metrics={name: value}))
    file = tmp_path_factory.mktemp("r") / "results.json"
    file.write_text(made.to_json(), encoding="utf-8")
    assert load(file).variants[1].name == "a"
    page([made, made])
    artefacts.summary(made)


@pytest.mark.parametrize("outcome", ["no baseline", "not measured", "inconclusive", "fail", "pass", "warn"])
@pytest.mark.parametrize("level", ["pass", "warn", "fail"])
def test_junit_annotations_and_metrics_call_a_failure_what_ends_the_build_and_nothing_else(
    outcome: str, level: str
) -> None:
    gate = {
        "no baseline": "size.file = { max_regression = 0 }",
        "not measured": "accuracy.eval = { min = 1 }",
        "inconclusive": 'latency.p50 = { max = "10 ms" }',
        "fail": 'size.file = { max = "1 B" }',
        "pass": 'size.file = { max = "9 B" }',
        "warn": 'size.file = { warn = "1 B" }',
    }[outcome]
    policy = "\n".join(f'{n} = "{level}"' for n in ("inconclusive", "not_measured", "no_baseline"))
    made = run(variant(metrics={"size.file": 5.0, "latency.p50": 10.0}, intervals={"latency.p50": around(10, 0.1)}))
    made = judge(project(gate, policy), made, Against())
    assert made.gates[0].outcome == outcome
    (suite,) = ET.fromstring(artefacts.junit(made))
    errors = [row for row in artefacts.notices(made) if row.startswith("::error")]
    if outcome == "inconclusive":  # skipped, as JUnit has no word for it
        assert suite.get("skipped") == "1"
    else:
        assert (suite.get("failures") != "0") == (made.exit_code != 0)
    assert bool(errors) == (made.exit_code != 0)


def test_at_most_eight_annotations_failures_first() -> None:
    gates = "\n".join(
        f"{n} = {{ min = 1, warn = 2 }}"
        for n in ("speedup", "accuracy.eval", "accuracy.top1", "accuracy.top5", "quant.sqnr", "accuracy.cosine")
    )
    made = judge(project(gates), run(variant(metrics={"speedup": 1.5})), Against())
    rows = list(artefacts.notices(made))
    assert len(rows) == 8 and len(made.gates) == 12
    assert sorted(rows, key=lambda r: not r.startswith("::error")) == rows


def test_a_failed_variant_is_an_error_of_its_suite_and_stands_in_every_artefact() -> None:
    made = of("p")
    root = ET.fromstring(artefacts.junit(made))
    (suite,) = [s for s in root if s.get("name") == "b"]
    assert suite.get("errors") == "1" and suite.find(".//error") is not None
    for text in (artefacts.summary(made), page([made])):
        assert "quantize: p" in text


def test_the_counts_of_junit_are_those_of_its_cases() -> None:
    for suite in ET.fromstring(artefacts.junit(of("p"))):
        for count, tag in (
            ("tests", "testcase"),
            ("failures", "testcase/failure"),
            ("errors", "testcase/error"),
            ("skipped", "testcase/skipped"),
        ):
            assert suite.get(count) == str(len(suite.findall(tag)))


# reading results


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        '{"schema": "edgeopt.run/1"}',
        '{"schema": "edgeopt.run/2"}',
        '{"schema": "edgeopt.profiling.results/1"}',
        '{"schema": ["edgeopt.run/1"]}',
        "[" * 100_000,
        '{"schema": "edgeopt.run/1", "variants": 5}',
        "\x00",
    ],
)
def test_what_is_no_document_of_a_run_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"results\.json"):
        load(file)
    for other in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError):
            load(other)


def test_every_line_of_a_document_left_out_is_refused_or_still_a_document(tmp_path: Path) -> None:
    rows = of("p").to_json().split("\n")
    file = tmp_path / "results.json"
    for i in range(len(rows)):
        file.write_text("\n".join(rows[:i] + rows[i + 1 :]))
        try:
            page([load(file)])
        except DataError as e:
            assert "results.json" in str(e)
