"""Small projects to run: a model of one Gemm, samples, and a clock that is made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.listener import Listener
from edgeopt.profiling.results import Cold, Comparison, Measured, Memory, Phase, Results
from edgeopt.release.build import building
from tests import models
from tests.release.runs import around, measured

TOML = """\
model = "model.onnx"
[data]
path = "x.npy"
[profile]
measure = false
[variants.lean]
steps = [{ step = "simplify" }]
[variants.half]
steps = [{ step = "fp16" }]
[variants.child]
from = "lean"
steps = [{ step = "fp16", io_types = "fp16" }]
[gates."*"]
size.file = { max = "1 MB" }
"""


def project(folder: Path, toml: str = TOML) -> Path:
    """The file of a project in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(models.dense())
    np.save(folder / "x.npy", models.normal(30, 4))
    (folder / "edgeopt.toml").write_text(toml)
    return folder / "edgeopt.toml"


def edited(file: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in `file`."""
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


class Heard(list[str]):
    """The notes of a run."""

    @property
    def listener(self) -> Listener:
        return Listener(note=self.append)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every step that is really done from now on."""
    done: list[str] = []
    run_step = building.actions.run_step

    def counted(step: Any, source: Path, output: Path, context: Any) -> Mapping[str, Any]:
        done.append(step.step)
        return run_step(step, source, output, context)

    monkeypatch.setattr(building.actions, "run_step", counted)
    return done


Clock = Callable[..., None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """`clock(half=2.0, cpu="x")`: from now on everything takes 10 ms, those that are named so many times as long
    (inf: it dies).
    """
    slower: dict[str, float] = {}
    machine = {"cpu": "some CPU"}

    def took(path: str | Path) -> float:
        return 10.0 * slower.get(f"{Path(path).parent.name}/{Path(path).stem}", slower.get(Path(path).stem, 1.0))

    def compare(*paths: str | Path, report: Path | None = None, **how: Any) -> Results:
        rows = [_measured(Path(p), took(p)) for p in paths]
        first = rows[0]
        comparisons = tuple(
            Comparison(
                reference=first.setting.label,
                other=m.setting.label,
                ratio=around(took(p) / took(paths[0]), 0.01),
                ratio_uncontended=None,
                verdict="equivalent",
                margin=0.03,
                interleaved=True,
                file_ratio=None,
                peak_memory_ratio=None,
                outputs=None,
            )
            for p, m in zip(paths[1:], rows[1:], strict=True)
            if m.error is None
        )
        found = measured("x", cpu=machine["cpu"]).model_copy(
            update={"measured": tuple(rows), "comparisons": comparisons}
        )
        if report is not None:
            report.write_text(found.to_json())
            report.with_suffix(".npz").write_bytes(b"raw")
        return found

    monkeypatch.setattr("edgeopt.profiling.profile.compare", compare)

    def call(cpu: str = "some CPU", **times: float) -> None:
        slower.clear()
        slower.update(times)
        machine["cpu"] = cpu

    return call


def _measured(path: Path, ms: float) -> Measured:
    (one,) = measured("x").measured
    if ms == float("inf"):
        setting = one.setting.model_copy(update={"label": path.stem, "model": str(path)})
        return one.model_copy(update={"setting": setting, "latency": None, "error": "died"})
    assert one.latency is not None
    latency = one.latency.model_copy(update={"p50_ms": around(ms, 0.01), "p90_ms": 1.2 * ms})
    phase = Phase(name="loaded", rss_bytes=10**6, peak_bytes=int(10**6 * ms))
    return one.model_copy(
        update={
            "setting": one.setting.model_copy(update={"label": f"{path.parent.name}/{path.stem}", "model": str(path)}),
            "latency": latency,
            "cold": Cold(create_ms=2 * ms, first_ms=3 * ms, second_ms=ms, processes=2),
            "memory": Memory(arena=(phase,), no_arena=(phase,), peak_per_phase=True),
        }
    )
