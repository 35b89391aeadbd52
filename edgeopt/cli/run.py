"""`edgeopt run`, `gate`, `baseline`, `init`, `report` and `verify`: the release pipeline."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.show import listener, print_table
from edgeopt.errors import INTERRUPTED, ComparabilityError, EdgeoptError, UsageError, ValidityError
from edgeopt.files import check_place, put
from edgeopt.numbers.words import printable

if TYPE_CHECKING:
    from edgeopt.release.document import Run


@dataclass(frozen=True)
class _How:
    """Options of `run` that each of its projects gets."""

    preset: str | None
    no_measure: bool
    allow_failed: bool
    no_code: bool


_GRAVEST = (INTERRUPTED, 3, 2, 1, 5, 4)  # exit codes of several projects
_file = click.option("--project", "project_file", type=click.Path(path_type=Path), help="[default: edgeopt.toml here]")


@click.command()
@click.argument("projects", nargs=-1, type=click.Path(path_type=Path), metavar="[PROJECT...]")
@_file
@click.option(
    "--summary", type=click.Path(path_type=Path), help="Page of several projects. [default: edgeopt-runs.html]"
)
@click.option(
    "--preset", type=click.Choice(["quick", "pr", "release"]), help="How long to measure. [default: the project's]"
)
@click.option("--no-measure", is_flag=True, help="Build and judge what needs no clock.")
@click.option("--allow-failed", is_flag=True, help="What did not pass becomes the release too.")
@click.option("--no-code", is_flag=True, help="Refuse a project that names functions: of a stranger's.")
def run(
    projects: tuple[Path, ...],
    project_file: Path | None,
    summary: Path | None,
    preset: str | None,
    no_measure: bool,
    allow_failed: bool,
    no_code: bool,
) -> int:
    """Build the variants of edgeopt.toml, measure them, judge the gates, write the evidence.

    Several project files are run one after the other, and have a page of their own.

    \b
    Example: edgeopt run --preset pr
    Example: edgeopt run */edgeopt.toml --summary build/models.html
    Exit codes: 0 pass; 1 a gate failed; 2 a mistake in the file; 3 a variant failed; 4 inconclusive and 5 no baseline,
    where the policy says so; 130 interrupted.
    """
    how = _How(preset, no_measure, allow_failed, no_code)
    if projects and project_file is not None:
        raise UsageError("--project, or project files as arguments: one of them")
    if len(projects) > 1:
        return _several(projects, summary or Path("edgeopt-runs.html"), how)
    if summary is not None:
        raise UsageError("--summary is of several projects")
    try:
        found, _ = _one(projects[0] if projects else project_file, how)
    except KeyboardInterrupt:
        return _interrupted(projects[0] if projects else project_file)
    return found.exit_code


def _several(files: tuple[Path, ...], summary: Path, how: _How) -> int:
    """Run every project, whatever becomes of the others, and write one page; the gravest exit code."""
    from edgeopt.release.evidence.page import Row, summary_of

    check_place(summary, True)
    rows = []
    for file in files:
        click.echo(f"\n{file}")
        try:
            found, page = _one(file, how)
            beside = os.path.relpath(page, summary.parent) if page.is_file() else ""
            rows.append(Row(file, found, code=found.exit_code, page=Path(beside).as_posix() if beside else ""))
        except EdgeoptError as e:
            click.echo(f"edgeopt: {printable(str(e))}", err=True)
            rows.append(Row(file, None, str(e), e.exit_code))
        except KeyboardInterrupt:
            _interrupted(file)
            rows.append(Row(file, None, "interrupted", INTERRUPTED))
            break
    code = next((c for c in _GRAVEST if any(r.code == c for r in rows)), 0)
    put(summary, summary_of(rows, code))
    click.echo()
    print_table([(r.name, r.verdict, str(r.file)) for r in rows], ("project", "verdict", "file"))
    click.echo(f"summary in {summary}")
    return code


def _interrupted(project_file: Path | None) -> int:
    from edgeopt.release.project import file as project

    file = project.find(project_file)
    folder = file.parent / project.load(file).output.folder
    click.echo(f"interrupted; finished steps are kept and the next run goes on; {folder} is as it was", err=True)
    return INTERRUPTED


def _one(project_file: Path | None, how: _How) -> tuple[Run, Path]:
    """(a run, which is told; where its page is)."""
    from edgeopt.release.evidence.manifest import MANIFEST
    from edgeopt.release.evidence.publishing import FAILED
    from edgeopt.release.pipeline import run as build
    from edgeopt.release.project import file as project

    file = project.find(project_file)
    folder = file.parent / project.load(file).output.folder
    with listener() as ears:
        found = build(
            file,
            preset=how.preset,
            measure=False if how.no_measure else None,
            allow_failed=how.allow_failed,
            code=not how.no_code,
            listener=ears,
        )
    _tell(found)
    click.echo(f"evidence in {folder}")
    if not found.released:
        stays = "the release there stays" if (folder / MANIFEST).is_file() else "there is no release yet"
        click.echo(f"not released ({found.verdict}): its files are in {folder / FAILED}; {stays} (--allow-failed)")
    return found, folder / "report.html"


def _tell(found: Run) -> None:
    """Print the variants and the verdict, and in GitHub Actions annotations for the gates."""
    from edgeopt.release.evidence.artefacts import notices

    _print(found)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in notices(found):
            click.echo(line)


def _print(found: Run) -> None:
    """Print the variants and the verdict."""
    from edgeopt.release.evidence.told import cell, columns, lines
    from edgeopt.release.project.metrics import metric

    names = columns(found)
    rows = [(v.name, *(cell(v, c) for c in names)) for v in found.variants if v.error is None]
    print_table(rows, ("variant", *(metric(c).title for c in names)))
    for line in lines(found):
        click.echo(printable(line))


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@_file
def gate(results: Path, project_file: Path | None) -> int:
    """Judge stored results again, by the gates as they are now; nothing is measured.

    \b
    Example: edgeopt gate build/edgeopt/results.json
    """
    from edgeopt.release import document
    from edgeopt.release.project import file as project
    from edgeopt.release.verdict.judging import judged_again

    file = project.find(project_file)
    found = judged_again(project.load(file), file, document.load(results))
    _tell(found)
    return found.exit_code


@click.group()
def baseline() -> None:
    """The release that regressions are judged against.

    \b
    Example: edgeopt baseline save v1.4 --models
    """


@baseline.command()
@click.argument("name", required=False)
@click.option("--models", is_flag=True, help="Keep the files too, so that they can be measured beside the new ones.")
@_file
def save(name: str | None, models: bool, project_file: Path | None) -> None:
    """Keep the last run as NAME; the first one becomes current."""
    from edgeopt.release.project import file as project
    from edgeopt.release.verdict import baseline as kept

    file = project.find(project_file)
    found = project.load(file)
    name = kept.save(found, file.parent, name, models=models)
    click.echo(f"kept {found.baseline.folder / name}; current: {kept.kept(found, file.parent).name}")


@baseline.command()
@click.argument("name")
@_file
def promote(name: str, project_file: Path | None) -> None:
    """Let regressions be judged against NAME."""
    from edgeopt.release.project import file as project
    from edgeopt.release.verdict import baseline as kept

    file = project.find(project_file)
    kept.promote(project.load(file), file.parent, name)
    click.echo(f"current: {name}")


@baseline.command()
@_file
def show(project_file: Path | None) -> None:
    """What is kept, and the figures of the current one."""
    from edgeopt.release.project import file as project
    from edgeopt.release.verdict import baseline as kept

    file = project.find(project_file)
    found = project.load(file)
    current = kept.kept(found, file.parent)
    for name in kept.names(found, file.parent):
        click.echo(printable(f"{name}{'   <- current' if name == current.name else ''}"))
    if current.run is None:
        click.echo(printable(f"no current baseline; {current.problem}"))
    else:
        _print(current.run)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", metavar="PATH", help="Samples. [default: calibration_data beside the model, else random]")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("edgeopt.toml"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the output.")
def init(model: Path, calib: str | None, output: Path, force: bool) -> None:
    """Write a commented edgeopt.toml that runs as it is.

    \b
    Example: edgeopt init model.onnx --calib images/
    """
    from edgeopt.release.project.starter import starter, weight_bytes

    check_place(output, force, (model, calib))
    size = weight_bytes(model)
    beside = model.parent / "calibration_data"
    if calib is None:
        calib = str(beside) if beside.is_dir() else "random"
    if Path(calib).exists():
        calib = _from(output.parent, Path(calib))
    elif calib != "random" and ":" not in calib:
        raise UsageError(f"--calib {calib}: no such file or folder")
    put(output, starter(_from(output.parent, model), model.stem, calib, size))
    there = output == Path("edgeopt.toml")
    click.echo(f"wrote {output}; now: edgeopt run{'' if there else f' --project {shlex.quote(str(output))}'}")


def _from(folder: Path, path: Path) -> str:
    """`path` relative to a project file in `folder`; an absolute path outside of `folder` stays absolute."""
    if path.is_absolute() and not path.is_relative_to(folder.absolute()):
        return str(path)
    return os.path.relpath(path, folder)


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the output.")
def report(results: tuple[Path, ...], output: Path, force: bool) -> None:
    """The page of stored results; of several, oldest first, the last one with the trend.

    \b
    Example: edgeopt report monday/results.json build/edgeopt/results.json -o trend.html
    Exit codes: 5 the results are of several projects.
    """
    from edgeopt.release import document
    from edgeopt.release.evidence.page import page

    check_place(output, force, results)
    runs = [document.load(r) for r in results]
    for file, run in zip(results, runs, strict=True):
        if run.project != runs[0].project:
            projects = f"{results[0]} is of project {runs[0].project!r}, {file} of {run.project!r}"
            raise ComparabilityError(f"{projects}: a trend is of one project")
    put(output, page(runs))
    click.echo(f"wrote {output}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def verify(folder: Path) -> int:
    """Check a folder of artefacts against its manifest: hashes, and that each file answers as it did.

    \b
    Example: edgeopt verify build/edgeopt
    Exit codes: 0 all holds; 1 something is missing, changed or not known; 3 there is no manifest.
    """
    from edgeopt.release.evidence.manifest import verify as check

    try:
        for line in check(folder):
            click.echo(printable(line))
    except ValidityError as e:
        click.echo(f"edgeopt: {printable(str(e))}", err=True)
        return 1
    return 0
