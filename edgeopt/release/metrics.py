"""What can be gated: one row a metric, its unit and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.errors import suggestion
from edgeopt.release.units import Kind

ACCURACY = "accuracy."


@dataclass(frozen=True)
class Metric:
    """A figure of a variant. higher: whether more is better; title: in words."""

    kind: Kind
    higher: bool
    title: str


METRICS: Mapping[str, Metric] = {
    "size.file": Metric("bytes", False, "file size"),
    "size.download": Metric("bytes", False, "download size (deflate)"),
    "latency.p50": Metric("ms", False, "latency, median"),
    "latency.p90": Metric("ms", False, "latency, 90th percentile"),
    "latency.p99": Metric("ms", False, "latency, 99th percentile"),
    "cold.session_create": Metric("ms", False, "session creation"),
    "cold.first_inference": Metric("ms", False, "first inference"),
    "memory.peak_rss": Metric("bytes", False, "peak memory"),
    "speedup": Metric("ratio", True, "speed against the float model"),
    "quant.sqnr": Metric("dB", True, "SQNR of the worst output"),
    "quant.min_layer_sqnr": Metric("dB", True, "SQNR of the worst layer"),
    "ep.coverage": Metric("share", True, "nodes on the provider"),
    "ep.partitions": Metric("count", False, "partitions of the provider"),
    "accuracy.agreement": Metric("share", True, "top-1 agreement with float"),
    "accuracy.cosine": Metric("number", True, "cosine with float"),
    "accuracy.top1": Metric("share", True, "top-1 accuracy"),
    "accuracy.top5": Metric("share", True, "top-5 accuracy"),
    "accuracy.eval": Metric("number", True, "own metric"),
}


def metric(name: str) -> Metric:
    """The row of `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r}{suggestion(name, METRICS)} Known: {', '.join(METRICS)}")
    return METRICS[name]
