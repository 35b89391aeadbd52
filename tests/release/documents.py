"""Made-up runs with everything that a page shows: blocks, traces, memory, layers with their values."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt.profiling.results import Block, Measured, Memory, NodeTime, Ops, Phase, Placement, Results, TypeTime
from edgeopt.release.document import GateResult, Layer, LayerHistogram, Run, StepResult, VariantResult
from tests.release.runs import around, measured, run, variant


def histogram(seed: int = 0, clip: tuple[float, float] | None = (-2.0, 2.0)) -> LayerHistogram:
    """Of a thousand normal values."""
    counts, edges = np.histogram(np.random.default_rng(seed).standard_normal(1000), 40)
    return LayerHistogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)), clip=clip)


def layers(count: int, name: str = "layer") -> tuple[Layer, ...]:
    """Worst first, from 4 dB; the first six with values."""
    return tuple(
        Layer(name=f"{name}_{i}", op="Conv", sqnr_db=4.0 + i / 2, histogram=histogram(i) if i < 6 else None)
        for i in range(count)
    )


def traced(nodes: int, name: str = "node") -> Measured:
    """All that a profile says of one model."""
    (first,) = measured("x").measured
    rng = np.random.default_rng(0)
    blocks = tuple(
        Block(process=i % 3, round=i // 3, runs=9, median_ms=10 + float(rng.gamma(2, 0.2)), contended=i % 17 == 0)
        for i in range(120)
    )
    ops = Ops(
        wall_ms=12.0,
        unexplained_ms=0.4,
        by_kind_ms={"integer": 6.0, "float": 4.0},
        types=tuple(
            TypeTime(op=op, kind=kind, nodes=3, time_ms=ms, share=ms / 12, cumulative=1)
            for op, kind, ms in (
                ("QLinearConv", "integer", 6.0),
                ("Conv", "float", 4.0),
                ("QuantizeLinear", "qdq", 0.4),
            )
        ),
        nodes=tuple(
            NodeTime(
                name=f"{name}_{i}",
                op="Conv",
                provider="CPUExecutionProvider",
                time_ms=1 / (1 + i),
                share=0.1,
                shapes="1x3x224x224, 32x3x3x3",
            )
            for i in range(nodes)
        ),
    )
    phases = tuple(
        Phase(name=n, rss_bytes=10**8 + i, peak_bytes=10**8 + 2 * i)
        for i, n in enumerate(("loaded", "session created", "first inference"))
    )
    assert first.latency is not None
    return first.model_copy(
        update={
            "latency": first.latency.model_copy(update={"blocks": blocks}),
            "ops": ops,
            "memory": Memory(arena=phases, no_arena=phases, peak_per_phase=True),
            "placement": Placement(
                requested="CPUExecutionProvider",
                nodes={"CPUExecutionProvider": nodes},
                coverage_nodes=1.0,
                coverage_time=1.0,
                partitions=1,
                fallback_ops={},
                fallback_nodes=(),
                agrees=True,
            ),
        }
    )


def profile(*names: str, nodes: int = 20, node: str = "node") -> Results:
    """Of float and variants called `names`."""
    found, one = measured("model", *names), traced(nodes, node)
    rows = tuple(one.model_copy(update={"setting": m.setting}) for m in found.measured)
    return found.model_copy(update={"measured": rows})


def made(name: str, at: float, *, nodes: int = 20, layer: str = "layer") -> VariantResult:
    """A variant with figures around `at` ms."""
    metrics = {
        "size.file": 5e6 + at,
        "size.download": 4e6 + at,
        "latency.p50": at,
        "latency.p90": 1.2 * at,
        "speedup": 20 / at,
        "memory.peak_rss": 1e8,
        "quant.sqnr": at,
        "accuracy.agreement": 1 - at / 100,
    }
    step = StepResult(
        step={"step": "quantize", "effort": "fast"},
        cached=False,
        seconds=2.0,
        notes=("static: 20.4 dB on 4 held-out samples",),
    )
    return variant(
        name,
        {n: around(metrics[n], 0.05) for n in ("latency.p50", "speedup")},
        metrics=metrics,
        steps=(step,),
        layers=layers(nodes, layer),
    )


def full(*names: str, nodes: int = 20, shift: float = 0.0, **more: Any) -> Run:
    """A run with variants called `names` and gates of every outcome."""
    names = names or ("int8", "fp16", "weights")
    base = {"size.file": 2e7, "latency.p50": 20.0 + shift}
    first = variant("float", {"latency.p50": around(20.0 + shift, 0.02)}, metrics=base)
    found = run(
        first,
        *(made(n, 8.0 + 3 * i + shift, nodes=nodes) for i, n in enumerate(names)),
        **{"profile": profile(*names, nodes=nodes)} | more,
    )
    outcomes = ("pass", "warn", "fail", "inconclusive", "not measured", "no baseline", "not comparable")
    gates = tuple(
        GateResult.model_validate(
            {
                "variant": names[0],
                "metric": m,
                "bound": "max",
                "limit": 1.0,
                "value": 2.0,
                "outcome": o,
                "message": f"{m} is what it is",
                "line": 9 + i,
            }
        )
        for i, (o, m) in enumerate(
            zip(
                outcomes,
                (
                    "size.file",
                    "latency.p50",
                    "memory.peak_rss",
                    "speedup",
                    "accuracy.eval",
                    "size.download",
                    "latency.p90",
                ),
                strict=True,
            )
        )
    )
    return found.model_copy(
        update={"gates": gates, "verdict": "fail", "exit_code": 1, "versions": {"edgeopt": "0.1.0"}}
    )
