"""Compares two stored results, if they were measured under the same conditions; weaker evidence than an interleaved
run.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from edgeopt.errors import ComparabilityError, UsageError
from edgeopt.numbers.intervals import unpaired_ratio_interval, verdict
from edgeopt.profiling.comparable import refuse_different
from edgeopt.profiling.latency import medians
from edgeopt.profiling.profile import peak_ratio, size_ratio
from edgeopt.profiling.results import Comparison, Measured, Range, Results, load
from edgeopt.profiling.saving import Files


def compare_stored(a: str | Path, b: str | Path, *, margin: float = 0.03, report: str | Path | None = None) -> Results:
    """The settings of the results at `b` against those with the same label at `a` (or the only one of each).

    Raises:
        DataError: not results files of this version.
        ComparabilityError: measured under different conditions; names them.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin:g}: a share between 0 and 1, e.g. 0.03")
    files = Files(report, None, (Path(a), Path(b)))
    first, second = load(Path(a)), load(Path(b))
    pairs = _pairs(first, second, f"{a}", f"{b}")
    refuse_different(first, second, pairs)
    pairs = [_told_apart(x, y, Path(a), Path(b)) for x, y in pairs]
    found = tuple(_compared(x, y, margin) for x, y in pairs)
    document = Results(
        kind="compare",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=second.environment,
        preset="stored",
        measured=tuple(m for pair in pairs for m in pair),
        comparisons=found,
        notes=("from stored results, not interleaved: drift between the two runs is not in the interval",),
    )
    return files.written(document, {})


def _pairs(a: Results, b: Results, name_a: str, name_b: str) -> list[tuple[Measured, Measured]]:
    ours, theirs = ({m.setting.label: m for m in r.measured if m.latency is not None} for r in (a, b))
    if len(ours) == len(theirs) == 1:
        return [(next(iter(ours.values())), next(iter(theirs.values())))]
    shared = [label for label in ours if label in theirs]
    if not shared:
        raise ComparabilityError(
            f"no setting of one is in the other: {name_a} has {', '.join(ours) or 'none that was timed'}; {name_b} has"
            f" {', '.join(theirs) or 'none that was timed'}"
        )
    return [(ours[label], theirs[label]) for label in shared]


def _told_apart(x: Measured, y: Measured, a: Path, b: Path) -> tuple[Measured, Measured]:
    """The two with different labels: a label that both have gets the file's name as a prefix."""
    if x.setting.label != y.setting.label:
        return x, y
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b)) if a != b else (a.stem, f"{b.stem}#2")
    renamed = [
        m.model_copy(update={"setting": m.setting.model_copy(update={"label": f"{name}:{m.setting.label}"})})
        for m, name in zip((x, y), names, strict=True)
    ]
    return renamed[0], renamed[1]


def _compared(a: Measured, b: Measured, margin: float) -> Comparison:
    assert a.latency is not None and b.latency is not None
    ratio = unpaired_ratio_interval(medians(a.latency.blocks), medians(b.latency.blocks))
    calm = a.latency.p50_uncontended_ms, b.latency.p50_uncontended_ms
    return Comparison(
        reference=a.setting.label,
        other=b.setting.label,
        ratio=Range.of(ratio),
        ratio_uncontended=calm[1] / calm[0] if calm[0] and calm[1] else None,
        verdict=verdict(ratio, margin),
        margin=margin,
        interleaved=False,
        file_ratio=size_ratio(a, b),
        peak_memory_ratio=peak_ratio(a, b),
        outputs=None,
    )
