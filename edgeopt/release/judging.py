"""A stored run judged again by the gates as they are now: nothing is built or measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeopt.release import project as projects
from edgeopt.release.baseline import refusal, stored
from edgeopt.release.document import Run
from edgeopt.release.gates import Against, judge
from edgeopt.release.project import Project


def judged_again(project: Project, file: Path, document: Run) -> Run:
    """`document` by the gates of `project` (of `file`) as they are now.

    Raises:
        DataError: the baseline cannot be read.
    """
    old = stored(project, file.parent)
    stand = Against() if old is None else Against(old, document.ratios, refusal(old, document))
    return judge(project, document, stand, line_finder(file))


def line_finder(file: Path) -> Callable[[str, str, str], int]:
    """(variant, metric, bound) -> line of the gate in the project file."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    prefix = ["tool", "edgeopt"] if file.name == "pyproject.toml" else []

    def line(variant: str, metric: str, bound: str) -> int:
        own = projects.line_of(text, [*prefix, "gates", variant, metric, bound])
        shared = projects.line_of(text, [*prefix, "gates", "*", metric, bound])
        place = [*prefix, "gates", variant, metric]
        return own if projects.has(text, place) else shared

    return line
