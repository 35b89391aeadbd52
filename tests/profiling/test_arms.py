"""Sweeps: every combination once, and labels that say what differs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.options.profile import Profile
from edgeopt.profiling.arms import PRESETS, Arm, wanted
from edgeopt.runtime.process import Here
from edgeopt.runtime.providers import CPU, Requested, parse

LAW = settings(max_examples=60, deadline=None, derandomize=True)
M = Path("m.onnx")

paths = st.sampled_from(["m.onnx", "m.ort", "n.onnx", "a/m.onnx", "b/m.onnx", "m #2.onnx"]).map(Path)
providers = st.sampled_from(["cpu", "xnnpack", "openvino:device_type=CPU", "openvino:device_type=GPU"])
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True)


def arms(
    models: Sequence[Path],
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (),
    dims: Mapping[str, Sequence[int]] | None = None,
) -> list[Arm]:
    sizes = {name: tuple(x) for name, x in (dims or {}).items()}
    return wanted(Profile(providers=tuple(providers), threads=threads, batch=batches, dims=sizes), models)


@LAW
@given(
    st.lists(paths, min_size=1, max_size=3, unique=True),
    st.lists(providers, min_size=1, max_size=2, unique=True),
    sizes,
    st.one_of(st.just([]), sizes),
    st.dictionaries(st.sampled_from(["N", "seq"]), sizes),
)
def test_a_sweep_is_every_combination_once_with_a_label_of_its_own(
    models: list[Path],
    requested: list[str],
    threads: list[int],
    batches: list[int],
    dims: dict[str, list[int]],
) -> None:
    found = arms(models, requested, threads, batches, dims)
    swept = [dict(zip(dims, x, strict=True)) for x in itertools.product(*dims.values())]
    expected = list(itertools.product(models, map(parse, requested), threads, batches or [None], swept))
    assert [(a.model, a.provider, a.threads, a.batch, a.dims) for a in found] == expected
    assert len({a.label for a in found}) == len(found)


@LAW
@given(st.lists(paths, min_size=1, max_size=5))
def test_labels_are_unique_however_often_a_model_is_named(models: list[Path]) -> None:
    found = arms(models)
    assert [a.model for a in found] == models
    assert len({a.label for a in found}) == len(found)


def test_the_same_model_again_is_numbered() -> None:
    assert [a.label for a in arms([M, M, M])] == ["m", "m #2", "m #3"]
    assert [a.label for a in arms([M, M], threads=(1, 2))] == [
        "m threads=1",
        "m threads=2",
        "m threads=1 #2",
        "m threads=2 #2",
    ]


def test_one_setting_is_called_after_its_model() -> None:
    (arm,) = arms([Path("folder/m.onnx")], batches=(4,), threads=(2,), dims={"seq": (128,)})
    assert arm.label == "m"
    assert (arm.threads, arm.batch, arm.dims) == (2, 4, {"seq": 128})
    assert (arm.provider, arm.level, arm.rate, arm.session, arm.place) == (Requested(CPU), "all", 0.0, {}, Here())


def test_a_label_names_what_varies_and_nothing_else() -> None:
    found = arms([M], ["cpu", "openvino:device_type=GPU"], (2,), (1, 8), {"seq": (16,), "N": (3, 5)})
    assert [a.label for a in found[:4]] == ["cpu batch=1 N=3", "cpu batch=1 N=5", "cpu batch=8 N=3", "cpu batch=8 N=5"]
    assert found[4].label == "openvino:device_type=GPU batch=1 N=3"


def test_files_of_the_same_name_are_told_apart_by_their_path() -> None:
    a, b, n = Path("a/m.onnx"), Path("b/m.onnx"), Path("b/n.onnx")
    assert [x.label for x in arms([a, b, n])] == [str(a), str(b), "n"]
    assert [x.label for x in arms([a, a])] == ["m", "m #2"]


def test_no_model_is_no_setting() -> None:
    assert arms([]) == []


def test_each_preset_looks_longer_and_closer_than_the_one_before() -> None:
    for short, long in itertools.pairwise(PRESETS[name] for name in ("quick", "pr", "release")):
        assert short.processes < long.processes
        assert short.seconds < long.seconds and short.warm_up_s < long.warm_up_s
        assert short.precision > long.precision
