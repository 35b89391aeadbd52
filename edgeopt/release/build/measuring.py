"""Profiling options of a project, and the metrics read from the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import WorkerError
from edgeopt.profiling.results import Measured, Range, Results
from edgeopt.release.build.actions import Context, data_choices, import_from_root
from edgeopt.release.document import VariantResult
from edgeopt.release.project.file import Project

if TYPE_CHECKING:
    from edgeopt.listener import Listener

REPORT = "profile.json"
Figures = tuple[dict[str, float], dict[str, Range]]


def choices(project: Project, root: Path, preset: str) -> dict[str, Any]:
    """Keyword arguments of `edgeopt.compare`: providers, threads, dims, and the project's samples as inputs."""
    p, data = project.profile, project.data
    samples = root / data.path
    return {
        "preset": preset,
        "providers": p.providers,
        "threads": p.threads,
        "dims": {name: (size,) for name, size in p.dims.items()},
        "data": str(samples) if samples.exists() else None if data.path == "random" else data.path,
        **{k: v for k, v in data_choices(project, root).items() if k != "samples"},
    }


def measured(
    variants: Sequence[VariantResult], context: Context, preset: str, folder: Path, device: str = ""
) -> Results:
    """Profile of float and all variants that have a file, interleaved: here, with the document and raw times in
    `folder`, or on a device of the project.
    """
    from edgeopt.profiling.profile import compare, profile

    import_from_root(context, "data.path")
    paths = [v.file for v in variants if v.file is not None and v.error is None]
    function = compare if len(paths) > 1 else profile
    how = choices(context.project, context.root, preset)
    if device:
        how |= there(context.project, device)
    report = None if device else folder / REPORT
    return function(*paths, report=report, listener=context.listener, **how)


def there(project: Project, device: str) -> dict[str, Any]:
    """Keyword arguments of `edgeopt.compare` by which it measures on a device of the project."""
    table = project.devices[device]
    how: dict[str, Any] = {"devices": (device,), "known": project.devices}
    how |= {"providers": (table.provider or "cpu",)}  # those of [profile] are of this machine
    return how | ({"threads": (table.threads,)} if table.threads else {})


def moved(found: Results, places: Mapping[str, str]) -> Results:
    """`found` with model paths replaced by `places`."""
    rows = [
        m.model_copy(
            update={
                "setting": m.setting.model_copy(update={"model": places.get(m.setting.model, m.setting.model)}),
            }
        )
        for m in found.measured
    ]
    return found.model_copy(update={"measured": tuple(rows)})


def with_measured(v: VariantResult, found: Results, device: str = "") -> VariantResult:
    """`v` with the metrics of its first setting, or with the error that prevented them, which on a device is none of
    the variant's.
    """
    m = next((m for m in found.measured if v.file is not None and m.setting.model == v.file), None)
    if m is None:
        return v
    if m.error is not None:
        if device:
            return v.model_copy(update={"on_devices": {**v.on_devices, device: m.error}})
        return v.model_copy(update={"error": f"profile: {m.error}"})
    metrics, intervals = figures(m)
    ratio = next((c.ratio for c in found.comparisons if c.other == m.setting.label), None)
    if ratio is not None:
        intervals["speedup"] = inverse(ratio)
        metrics["speedup"] = intervals["speedup"].value
    if device:
        metrics = {f"{device}.{name}": x for name, x in metrics.items()}
        intervals = {f"{device}.{name}": x for name, x in intervals.items()}
    return v.model_copy(update={"metrics": {**v.metrics, **metrics}, "intervals": {**v.intervals, **intervals}})


def figures(m: Measured) -> Figures:
    """Metrics by gate name, and the 95 % intervals of those that have one."""
    found: dict[str, float | None] = {}
    intervals: dict[str, Range] = {}
    if m.latency is not None:
        intervals["latency.p50"] = m.latency.p50_ms
        found |= {"latency.p50": m.latency.p50_ms.value, "latency.p90": m.latency.p90_ms}
        found |= {"latency.p99": m.latency.p99_ms}
    if m.cold is not None:
        found |= {"cold.session_create": m.cold.create_ms, "cold.first_inference": m.cold.first_ms}
    if m.memory is not None:
        found["memory.peak_rss"] = float(max(x.peak_bytes for x in m.memory.arena))
    if m.placement is not None:
        found |= {"ep.coverage": m.placement.coverage_nodes, "ep.partitions": float(m.placement.partitions)}
    return {name: x for name, x in found.items() if x is not None}, intervals


def inverse(x: Range) -> Range:
    """1 / x."""
    return Range(value=1 / x.value, low=1 / x.high, high=1 / x.low)


def again(old: Path, new: Path, how: Mapping[str, Any], listener: Listener) -> dict[str, Range]:
    """Ratios new / old by metric, both models measured now and interleaved; without an interval, low = high = the
    ratio. `speedup` is old / new latency.

    Raises:
        EdgeoptError: one of them cannot be measured.
    """
    from edgeopt.profiling.profile import compare

    first = {"providers": how["providers"][:1], "threads": how["threads"][:1]}
    found = compare(old, new, listener=listener, **{**how, **first})
    for m in found.measured:
        if m.error is not None:
            raise WorkerError(m.error)
    (x, _), (y, _) = (figures(m) for m in found.measured)
    shares = {name: y[name] / x[name] for name in y if x.get(name, 0.0) > 0}
    ratios = {name: Range(value=r, low=r, high=r) for name, r in shares.items()}
    for c in found.comparisons:
        ratios |= {"latency.p50": c.ratio, "speedup": inverse(c.ratio)}
    return ratios
