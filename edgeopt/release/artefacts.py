"""The evidence of a run as files: for people (summary, report), for pipelines (JUnit, OpenMetrics, annotations), for an
audit (manifest, ML-BOM). All of them are made from the one document.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from edgeopt.release.document import Run
from edgeopt.release.manifest import bom, manifest
from edgeopt.release.metrics import METRICS
from edgeopt.release.page import page
from edgeopt.release.project import FLOAT, Project
from edgeopt.release.told import COLUMNS, cell
from edgeopt.staging import staged

_MOST_ANNOTATIONS = 8
_MOST_SUMMARY = 1_000_000
_FAILED = ("fail", "not measured", "no baseline", "not comparable")


def write(run: Run, project: Project, folder: Path) -> None:
    """All artefacts of `run` into `folder`, each whole or not at all; the summary also where GitHub Actions wants it."""
    files: dict[str, str] = {
        "results.json": run.to_json() + "\n",
        "junit.xml": junit(run),
        "summary.md": summary(run),
        "metrics.txt": openmetrics(run),
        "annotations.txt": "".join(f"{line}\n" for line in notices(run)),
    }
    if project.output.html:
        files["report.html"] = page([run])
    _put(folder, files)
    if project.output.ort:
        _convert(run, folder)
    _put(folder, {"bom.json": bom(run, folder), "manifest.json": manifest(run, folder)})
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if place:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(files["summary.md"])


def _convert(run: Run, folder: Path) -> None:
    """Every variant as .ort too, checked on made-up inputs."""
    from edgeopt import graph
    from edgeopt.inspection import made_up_feed
    from edgeopt.runtime.ort_format import to_ort

    for v in run.variants:
        if v.error is None and v.name != FLOAT:
            path, made = folder / f"{v.name}.onnx", folder / f"{v.name}.ort"
            if not made.is_file() or made.stat().st_mtime_ns < path.stat().st_mtime_ns:
                to_ort(path, folder, made_up_feed(graph.load(path), {}))


def _put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        with staged(folder / name) as stage:
            (stage / name).write_text(text, encoding="utf-8")


def junit(run: Run) -> str:
    """A suite a variant, a case a gate; inconclusive ones are skipped, a variant without a file is an error."""
    suites = ET.Element("testsuites", name=run.project)
    for v in run.variants:
        cases = [g for g in run.gates if g.variant == v.name]
        if not cases and v.error is None:
            continue
        failed = sum(g.outcome in _FAILED for g in cases)
        skipped = sum(g.outcome == "inconclusive" for g in cases)
        errors = int(v.error is not None)
        suite = ET.SubElement(
            suites, "testsuite", name=v.name, tests=str(len(cases) + errors), failures=str(failed), errors=str(errors), skipped=str(skipped),
            time="0", timestamp=run.created.split("+")[0],
        )  # fmt: skip
        if v.error is not None:
            case = ET.SubElement(suite, "testcase", classname=f"edgeopt.{v.name}", name="build", time="0")
            ET.SubElement(case, "error", message=_clean(v.error), type="error")
        for g in cases:
            case = ET.SubElement(
                suite, "testcase", classname=f"edgeopt.{v.name}", name=f"{g.metric} {g.bound}", time="0"
            )
            if g.outcome in _FAILED:
                ET.SubElement(case, "failure", message=_clean(g.message), type=g.outcome)
            elif g.outcome == "inconclusive":
                ET.SubElement(case, "skipped", message=_clean(g.message))
            else:
                ET.SubElement(case, "system-out").text = _clean(f"{g.outcome}: {g.message}")
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def summary(run: Run) -> str:
    """The verdict, the variants and the gates in Markdown."""
    columns = [c for c in COLUMNS if any(c in v.metrics for v in run.variants)]
    lines = [
        f"## {run.project}: {run.verdict}",
        "",
        "| variant | " + " | ".join(METRICS[c].title for c in columns) + " |",
    ]
    lines.append("|---" * (len(columns) + 1) + "|")
    for v in run.variants:
        cells = [cell(v, c) for c in columns] if v.error is None else [_escaped(v.error)] + [""] * (len(columns) - 1)
        lines.append(f"| {v.name} | " + " | ".join(cells) + " |")
    if run.gates:
        lines += ["", "| gate | outcome | |", "|---|---|---|"]
        lines += [f"| {g.variant}: {g.metric} {g.bound} | {g.outcome} | {_escaped(g.message)} |" for g in run.gates]
    lines += ["", *(f"- {_escaped(n)}" for n in run.notes)]
    if run.profile is not None:
        lines.append(f"\nMeasured on {run.profile.environment.cpu}, preset {run.preset}; intervals are 95 %.")
    return "\n".join(lines)[:_MOST_SUMMARY] + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def notices(run: Run) -> Iterator[str]:
    """Workflow commands that GitHub shows at the gate's line of the project file."""
    worst = [g for g in run.gates if g.outcome != "pass"]
    worst.sort(key=lambda g: (g.outcome not in _FAILED, g.line))
    for g in worst[:_MOST_ANNOTATIONS]:
        level = "error" if g.outcome in _FAILED else "warning"
        yield f"::{level} file={_property(run.project_file)},line={g.line},title={_property(f'{g.variant}: {g.metric}')}::{_data(g.message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def openmetrics(run: Run) -> str:
    """OpenMetrics text: a family a metric in base units (seconds, bytes, ratios), a sample a variant; gates as 0 or 1."""
    lines = []
    for name, row in METRICS.items():
        having = [v for v in run.variants if name in v.metrics]
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
        lines += [f"{family}{{{_labels(run, v.name)}}} {v.metrics[name] * scale:.9g}" for v in having]
    if run.gates:
        lines += ["# TYPE edgeopt_gate_passed gauge", "# HELP edgeopt_gate_passed Whether the gate passed."]
        lines += [
            f'edgeopt_gate_passed{{{_labels(run, g.variant)},metric="{g.metric}",bound="{g.bound}"}} {int(g.outcome in ("pass", "warn"))}'
            for g in run.gates
        ]
    return "\n".join([*lines, "# EOF", ""])


def _labels(run: Run, variant: str) -> str:
    text = run.project.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'project="{text}",variant="{variant}"'
