"""The metrics that can be gated, with unit and direction. `DEVICE.latency.p50` is that metric on a device of the
project.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeopt.errors import suggestion
from edgeopt.release.project.quantities import Kind

ACCURACY = "accuracy."
AGAINST_FLOAT = ("accuracy.agreement", "accuracy.cosine", "accuracy.close")  # 1 for the float model by definition


@dataclass(frozen=True)
class MetricRow:
    """Unit, direction and title of a metric."""

    kind: Kind
    higher: bool
    """Whether higher is better."""
    title: str


METRICS: Mapping[str, MetricRow] = {
    "size.file": MetricRow("bytes", False, "file size"),
    "size.download": MetricRow("bytes", False, "download size (deflate)"),
    "latency.p50": MetricRow("ms", False, "latency, median"),
    "latency.p90": MetricRow("ms", False, "latency, 90th percentile"),
    "latency.p99": MetricRow("ms", False, "latency, 99th percentile"),
    "cold.session_create": MetricRow("ms", False, "session creation"),
    "cold.first_inference": MetricRow("ms", False, "first inference"),
    "memory.peak_rss": MetricRow("bytes", False, "peak memory"),
    "speedup": MetricRow("ratio", True, "speed against the float model"),
    "quant.sqnr": MetricRow("dB", True, "SQNR of the worst output"),
    "quant.min_layer_sqnr": MetricRow("dB", True, "SQNR of the worst layer"),
    "ep.coverage": MetricRow("share", True, "nodes on the provider"),
    "ep.partitions": MetricRow("count", False, "partitions of the provider"),
    "target.problems": MetricRow("count", False, "what is wrong for its target"),
    "target.coverage": MetricRow("share", True, "nodes (or layers in integers) on its target"),
    "target.partitions": MetricRow("count", False, "partitions on its target"),
    "target.sqnr": MetricRow("dB", True, "SQNR of the worst output on its target"),
    "accuracy.close": MetricRow("share", True, "outputs close to float, each by its kind"),
    "accuracy.agreement": MetricRow("share", True, "top-1 agreement with float"),
    "accuracy.cosine": MetricRow("number", True, "cosine with float"),
    "accuracy.top1": MetricRow("share", True, "top-1 accuracy"),
    "accuracy.top5": MetricRow("share", True, "top-5 accuracy"),
    "accuracy.eval": MetricRow("number", True, "own metric"),
}


MEASURED = ("latency.", "cold.", "memory.", "speedup", "ep.")  # what is known of every device


def on_device(name: str) -> tuple[str, str]:
    """(device, metric) of `name`; the device is empty where it names none."""
    device, dot, rest = name.partition(".")
    return (device, rest) if dot and name not in METRICS and rest in METRICS else ("", name)


def metric(name: str) -> MetricRow:
    """The row of metric `name`.

    Raises:
        ValueError: there is no such metric.
    """
    device, own = on_device(name)
    if own not in METRICS:
        raise ValueError(f"no metric {name!r}{suggestion(name, METRICS)} Known: {', '.join(METRICS)}")
    if device and not own.startswith(MEASURED):
        raise ValueError(
            f"{own} is no metric of a device; those are {', '.join(m for m in METRICS if m.startswith(MEASURED))}"
        )
    return replace(METRICS[own], title=f"{METRICS[own].title} on {device}") if device else METRICS[own]


def shown_columns(columns: Sequence[str], devices: Iterable[str], having: Iterable[Collection[str]]) -> list[str]:
    """Those of `columns` that some variant has, and after them those of each device; having: the metrics of each."""
    known = {name for metrics in having for name in metrics}
    every = [*columns, *(f"{device}.{column}" for device in devices for column in columns)]
    return [name for name in every if name in known]
