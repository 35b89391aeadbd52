"""`report.html`: one self-contained file that needs no network and can be read without JavaScript and in print.

A Jinja2 template renders the document and its charts; the only script sorts tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeopt.profiling.results import Measured, Results
from edgeopt.release.document import Run
from edgeopt.release.evidence import charts
from edgeopt.release.evidence.told import COLUMNS, cell, columns
from edgeopt.release.project.file import FLOAT
from edgeopt.release.project.metrics import METRICS, metric
from edgeopt.release.project.quantities import shown

_COLUMNS = [m for m in METRICS if m in {*COLUMNS, "size.download", "latency.p90"}]
_BY = ("accuracy.eval", "accuracy.top1", "accuracy.agreement", "accuracy.cosine")


def page(runs: Sequence[Run]) -> str:
    """The report of the last of `runs`, with the trend over all of them if there are several."""
    environment = _environment_of_pages()
    run = runs[-1]
    measured = _measured(run, run.profile)
    accuracy = next((m for m in _BY if sum(m in v.metrics for v in run.variants) > 1), "")
    return environment.get_template("report.html.j2").render(
        run=run,
        runs=len(runs),
        counts=Counter(g.outcome for g in run.gates),
        metric=metric,
        columns=columns(run, _COLUMNS),
        charts=charts,
        tradeoff=charts.tradeoff(run, accuracy) if accuracy else "",
        accuracy=metric(accuracy).title if accuracy else "",
        measured=measured,
        ecdf=charts.ecdf(list(measured.items())),
        series=charts.series(list(measured.items())),
        devices=[_on_device(run, name, found) for name, found in run.devices.items()],
        environment=_environment(run),
        trends=[(metric(m).title, svg) for m in COLUMNS if (svg := charts.trend(runs, m))],
    )


@dataclass(frozen=True)
class Row:
    """A project of several that were run together."""

    file: Path
    run: Run | None
    """None if it could not be run."""
    error: str = ""
    code: int = 0
    page: str = ""
    """Its own page, from that of all."""

    @property
    def name(self) -> str:
        """The project's name."""
        return self.run.project if self.run is not None else self.file.parent.name

    @property
    def verdict(self) -> str:
        """That of the run."""
        return self.run.verdict if self.run is not None else "error"

    @property
    def variants(self) -> list[str]:
        """A line for each variant: its size and speed."""
        found = self.run.variants if self.run is not None else ()
        return [" ".join(filter(None, (v.name, cell(v, "size.file"), cell(v, "speedup")))) for v in found]

    @property
    def problems(self) -> list[str]:
        """What did not pass."""
        if self.run is None:
            return [self.error]
        failed = [f"{v.name}: {v.error}" for v in self.run.variants if v.error is not None]
        return [*failed, *(f"{g.outcome}: {g.variant}: {g.message}" for g in self.run.gates if g.severity != "pass")]


def summary_of(rows: Sequence[Row], code: int) -> str:
    """One page of several projects, self-contained as a report is; code: the exit code of all."""
    verdict = next((r.verdict for r in rows if (r.code or 0) == code and code), "pass")
    return (
        _environment_of_pages()
        .get_template("runs.html.j2")
        .render(rows=rows, verdict=verdict, code=code, counts=Counter(r.verdict for r in rows))
    )


def _environment_of_pages() -> Environment:
    environment = Environment(
        loader=PackageLoader("edgeopt.release.evidence"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment


def _on_device(run: Run, name: str, found: Results) -> tuple[str, str, str, str]:
    """(device, what it is, two charts of its times)."""
    measured = list(_measured(run, found).items())
    told = next((m.error for _, m in measured if m.error), "nothing was measured there")
    if (there := next(iter(found.devices.values()), None)) is not None:
        told = f"{there.cpu}, {there.cores} cores, {there.system}"
    return name, told, charts.ecdf(measured), charts.series(measured)


def _measured(run: Run, profile: Results | None) -> dict[str, Measured]:
    """The first setting of each variant."""
    found: dict[str, Measured] = {}
    for m in profile.measured if profile is not None else ():
        name = Path(m.setting.model).stem if m.setting.model != run.model else FLOAT
        if run.variant(name) is not None and name not in found:
            found[name] = m
    return found


def _environment(run: Run) -> list[tuple[str, str]]:
    found = [
        ("project", run.project),
        ("file", run.project_file),
        ("model", f"{run.model} ({run.model_sha256[:12]})"),
        ("made", run.created),
    ]
    if run.profile is not None:
        e = run.profile.environment
        found += [("CPU", f"{e.cpu}, {e.cores} cores"), ("features", ", ".join(e.features)), ("system", e.system)]
        found += [
            ("governor", e.governor or "not known"),
            ("virtual", e.virtual or "no"),
            ("load before", ", ".join(f"{x:.2f}" for x in e.load)),
        ]
        found += [("preset", run.preset), ("measured for", f"{run.profile.seconds:.0f} s")]
    return [*found, ("versions", ", ".join(f"{k} {v}" for k, v in run.versions.items()))]
