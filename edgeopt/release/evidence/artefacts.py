"""The artefacts of a run, all made from the results document: for people (summary, report), for CI (JUnit, OpenMetrics,
annotations), for audits (manifest, ML-BOM).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from edgeopt.files import put, sha256
from edgeopt.numbers.words import markdown, printable
from edgeopt.release.document import GateResult, Run
from edgeopt.release.evidence.manifest import ORT, SUMS, bom, holds, manifest, shipped
from edgeopt.release.evidence.page import page
from edgeopt.release.evidence.told import cell, columns
from edgeopt.release.project.file import Project
from edgeopt.release.project.metrics import METRICS, metric

_MOST_ANNOTATIONS = 8
_MOST_SUMMARY = 1_000_000  # bytes; GitHub takes a MiB
FILES = {
    "results.json", "junit.xml", "summary.md", "metrics.txt", "annotations.txt", "report.html", "bom.json",
    "manifest.json", "profile.json", "profile.npz", SUMS,
}  # fmt: skip
OF_RELEASE = {"bom.json", "manifest.json", SUMS}
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def write(run: Run, project: Project, folder: Path) -> None:
    """Write all artefacts of `run` into `folder`, which holds its models; each file is written atomically."""
    files: dict[str, str] = {
        "results.json": run.to_json() + "\n",
        "junit.xml": junit(run),
        "summary.md": summary(run),
        "metrics.txt": openmetrics(run),
        "annotations.txt": "".join(f"{line}\n" for line in notices(run)),
    }
    if run.profile is not None:
        files["profile.json"] = run.profile.to_json() + "\n"
    if project.output.html:
        files["report.html"] = page([run])
    _put(folder, files)
    if project.output.ort:
        _convert(run, folder, project.profile.dims)
    _put(folder, {"bom.json": bom(run, folder), "manifest.json": manifest(run, folder, project.profile.dims)})
    unlisted = {SUMS} if run.released else OF_RELEASE
    there = sorted(name for name in FILES - unlisted if (folder / name).is_file())
    _put(folder, {SUMS: "".join(f"{sha256(folder / name)}  {name}\n" for name in there)})


def tell_github(run: Run) -> None:
    """Append the summary to the job summary, when running in GitHub Actions."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if place:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(summary(run))


def _convert(run: Run, folder: Path, dims: Mapping[str, int]) -> None:
    """Convert every variant to .ort and check it on generated inputs; files that still match the last manifest are
    kept.
    """
    from edgeopt.release.build.evaluate import made_up
    from edgeopt.runtime.ort_format import to_ort

    for v in shipped(run, folder):
        path = folder / f"{v.name}.onnx"
        there = all((folder / f"{v.name}{suffix}").is_file() for suffix in ORT)
        if not there or not holds(v.name, folder, run.versions):
            to_ort(path, folder, made_up(path, dims))


def _put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        put(folder / name, text)


def junit(run: Run) -> str:
    """JUnit XML, one suite a variant and one case a gate, valid by the schemas of Ant and of Jenkins' xUnit plugin. An
    undecided gate is skipped unless the policy fails it; a variant without a file is an error.
    """
    suites = ET.Element("testsuites")
    for name in dict.fromkeys([*(v.name for v in run.variants), *(g.variant for g in run.gates)]):
        cases = list(_cases(run, name))
        if cases:
            suites.append(_suite(run, name, cases, len(suites)))
    for node in suites.iter():
        node.text = None if node.text is None else printable(node.text)
        for key, value in node.items():
            node.set(key, printable(value))
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _suite(run: Run, name: str, cases: Sequence[ET.Element], number: int) -> ET.Element:
    counts = {f: str(sum(c.find(tag) is not None for c in cases)) for f, tag in _COUNTED.items()}
    facts = {
        "name": name,
        "package": "edgeopt",
        "id": str(number),
        "hostname": "localhost",
        "time": "0",
        "tests": str(len(cases)),
        "timestamp": run.created.split("+")[0],
    }
    suite = ET.Element("testsuite", facts | counts)
    properties = ET.SubElement(suite, "properties")
    for key, value in (("project", run.project), ("preset", run.preset)):
        ET.SubElement(properties, "property", name=key, value=value)
    suite.extend(cases)
    said = (f"{g.metric} {g.bound}: {g.outcome}: {g.message}\n" for g in run.gates if g.variant == name)
    ET.SubElement(suite, "system-out").text = "".join(said)
    ET.SubElement(suite, "system-err")
    return suite


def _cases(run: Run, name: str) -> Iterator[ET.Element]:
    variant = run.variant(name)
    if variant is not None and variant.error is not None:
        yield _case(name, "build", "error", variant.error, "error")
    for g in run.gates:
        if g.variant == name:
            yield _case(name, f"{g.metric} {g.bound}", _result(g), g.message, g.outcome)


def _case(variant: str, name: str, result: str | None, message: str, kind: str) -> ET.Element:
    case = ET.Element("testcase", classname=f"edgeopt.{variant}", name=name, time="0")
    if result is not None:
        ET.SubElement(case, result, message=message, type=kind)
    return case


def _result(g: GateResult) -> str | None:
    """The JUnit element of a gate's outcome; None: passed."""
    if g.severity == "fail" and g.outcome != "inconclusive":
        return "failure"
    return None if g.outcome in ("pass", "warn") else "skipped"


def summary(run: Run) -> str:
    """The verdict, the variants and the gates in Markdown."""
    names = columns(run)
    width = max(1, len(names))
    lines = [
        f"## {markdown(run.project)}: {run.verdict}",
        "",
        _row("variant", *(metric(c).title for c in names), width=width),
    ]
    lines.append("|---" * (width + 1) + "|")
    for v in run.variants:
        cells = [cell(v, c) for c in names] if v.error is None else [v.error]
        lines.append(_row(v.name, *cells, width=width))
    if run.gates:
        lines += ["", "| gate | outcome | |", "|---|---|---|"]
        lines += [_row(f"{g.variant}: {g.metric} {g.bound}", g.outcome, g.message, width=2) for g in run.gates]
    lines += ["", *(f"- {markdown(n)}" for n in run.notes)]
    if run.profile is not None:
        lines.append(f"\nMeasured on {run.profile.environment.cpu}, preset {run.preset}; intervals are 95 %.")
    return "\n".join(lines).encode()[:_MOST_SUMMARY].decode(errors="ignore") + "\n"


def _row(first: str, *cells: str, width: int) -> str:
    """A Markdown table row with `width` cells after the first."""
    return "| " + " | ".join(markdown(c) for c in (first, *cells, *[""] * (width - len(cells)))) + " |"


def notices(run: Run) -> Iterator[str]:
    """Workflow commands by which GitHub annotates the gate's line of the project file."""
    file = _property(_in_workspace(run.project_file))
    worst = [g for g in run.gates if g.severity != "pass"]
    worst.sort(key=lambda g: (g.severity != "fail", g.line))
    for g in worst[:_MOST_ANNOTATIONS]:
        level = "error" if g.severity == "fail" else "warning"
        yield f"::{level} file={file},line={g.line},title={_property(f'{g.variant}: {g.metric}')}::{_data(g.message)}"


def _in_workspace(file: str) -> str:
    """`file` relative to the checkout's root, as GitHub expects it."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if not workspace:
        return file
    path, root = Path(file).resolve(), Path(workspace).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def openmetrics(run: Run) -> str:
    """OpenMetrics text in base units (seconds, bytes, ratios): one family a metric, one sample a variant; gates are 0
    or 1.
    """
    lines = []
    for name, row in METRICS.items():
        places = [("", name), *((device, f"{device}.{name}") for device in run.devices)]
        having = [(v, device, whole) for device, whole in places for v in run.variants if whole in v.metrics]
        if not having:
            continue
        unit, scale = {"ms": ("_seconds", 1e-3), "bytes": ("_bytes", 1.0), "dB": ("_decibels", 1.0)}.get(
            row.kind, ("", 1.0)
        )
        family = "edgeopt_" + name.replace(".", "_") + unit
        lines.append(f"# TYPE {family} gauge")
        if unit:
            lines.append(f"# UNIT {family} {unit[1:]}")
        lines.append(f"# HELP {family} {row.title}.")
        for v, device, whole in having:
            on = f',device="{device}"' if device else ""
            lines.append(f"{family}{{{_labels(run, v.name)}{on}}} {v.metrics[whole] * scale:.9g}")
    if run.gates:
        lines += ["# TYPE edgeopt_gate_passed gauge", "# HELP edgeopt_gate_passed Whether the gate passed."]
        lines += [
            f'edgeopt_gate_passed{{{_labels(run, g.variant)},metric="{g.metric}",bound="{g.bound}"}}'
            f" {int(g.outcome in ('pass', 'warn'))}"
            for g in run.gates
        ]
    return "\n".join([*lines, "# EOF", ""])


def _labels(run: Run, variant: str) -> str:
    text = run.project.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'project="{text}",variant="{variant}"'
