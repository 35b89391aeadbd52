"""Made-up runs and projects, to judge and to draw without building anything."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from edgeopt.profiling.results import Environment, Latency, Measured, Range, Results, Setting
from edgeopt.release.document import Run, VariantResult
from edgeopt.release.project.file import Project

HEAD = """model = "model.onnx"
[data]
path = "x.npy"
[accuracy]
labels = true
eval = "package.module:function"
[variants.a]
steps = [{ step = "fp16" }]
"""


def project(gates: str = "", policy: str = "", more: str = "") -> Project:
    """A project with the variant a; `gates` are lines of [gates.a], `policy` of [policy]."""
    return Project.model_validate(tomllib.loads(f"{HEAD}[gates.a]\n{gates}\n[policy]\n{policy}\n{more}"))


def around(value: float, share: float) -> Range:
    """`value` with an interval of `share` of it to both sides."""
    return Range(value=value, low=value * (1 - share), high=value * (1 + share))


def variant(name: str = "a", intervals: Mapping[str, Range] | None = None, **more: Any) -> VariantResult:
    """A result with metrics by their names."""
    return VariantResult(name=name, parent="" if name == "float" else "float", intervals=intervals or {}, **more)


def run(*variants: VariantResult, **more: Any) -> Run:
    """A run of float and `variants`."""
    given = variants if any(v.name == "float" for v in variants) else (variant("float"), *variants)
    first = {
        "project": "p",
        "project_file": "edgeopt.toml",
        "created": "2024-05-06T07:08:09+00:00",
        "preset": "quick",
        "model": "/m/model.onnx",
        "model_sha256": "0" * 64,
    }
    return Run.model_validate({**first, **more, "variants": given})


def measured(*names: str, cpu: str = "some CPU") -> Results:
    """What a clock found out about models called `names`, on a machine with `cpu`."""
    block = {"process": 0, "round": 0, "runs": 9, "median_ms": 10.0, "contended": False}
    latency = Latency.model_validate(
        dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "p50_uncontended_ms"), None)
        | {
            "p50_ms": around(10.0, 0.01),
            "min_ms": 9.0,
            "mean_ms": 10.0,
            "mad_ms": 0.1,
            "throughput_per_s": 100.0,
            "runs": 9,
            "processes": 1,
        }
        | {"outliers": 0, "contended": 0, "steady": True, "precise": True, "blocks": (block,)}
    )
    settings = [Setting(label=n, model=f"/m/{n}.onnx", sha256="0" * 64, provider="cpu") for n in names]
    return Results(
        kind="compare",
        created="2024-05-06T07:08:09+00:00",
        environment=Environment(cpu=cpu, features=("avx2",), cores=2, system="Linux", edgeopt="0.1.0"),
        preset="quick",
        measured=tuple(Measured(setting=s, latency=latency) for s in settings),
    )
