"""Judges a stored run again by the current gates, without building or measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeopt.errors.lines import has, line_of
from edgeopt.release.document import Run
from edgeopt.release.project.file import Project
from edgeopt.release.project.lines import rows_of
from edgeopt.release.verdict.baseline import by, kept
from edgeopt.release.verdict.gates import judge


def judged_again(project: Project, file: Path, document: Run) -> Run:
    """`document` judged by the gates of `project` (at `file`) and the current baseline; ratios measured against another
    baseline are ignored.
    """
    old = kept(project, file.parent)
    ratios = document.ratios if document.measured_against == old.known_as else {}
    return judge(project, document, by(project, old, document, ratios), line_finder(file))


def line_finder(file: Path) -> Callable[[str, str, str], int]:
    """(variant, metric, bound) -> line of the gate in the project file."""
    rows = rows_of(file)

    def line(variant: str, metric: str, bound: str) -> int:
        owner = variant if has(rows, ["gates", variant, metric]) else "*"
        return line_of(rows, ["gates", owner, metric, bound])

    return line
