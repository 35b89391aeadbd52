"""The choices of a measurement: what cannot be is refused at once, by its name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import UsageError
from edgeopt.options.profile import Profile, ProfileOne
from edgeopt.profiling.arms import PRESETS, looking, wanted
from edgeopt.runtime.process import Here

LAW = settings(max_examples=40, deadline=None, derandomize=True)
M = Path("m.onnx")
LEVELS = get_args(Profile.model_fields["level"].annotation)


def refusal(**choices: Any) -> str:
    """What is said about `choices` on a command line."""
    with pytest.raises(UsageError) as e:
        ProfileOne.of(choices, "command line")
    assert e.value.exit_code == 2
    return str(e.value)


def test_the_defaults_are_one_thread_on_the_cpu() -> None:
    (arm,) = wanted(Profile(), [M])
    assert (arm.label, arm.provider.label, arm.threads, arm.batch, arm.rate, arm.level) == (
        "m",
        "cpu",
        1,
        None,
        0,
        "all",
    )
    assert looking(Profile()) == PRESETS["quick"]


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize(
    ("field", "option"),
    [("threads", "--threads"), ("batch", "--batch"), ("trials", "--trials"), ("processes", "--processes")],
)
def test_a_count_below_one_is_refused(field: str, option: str, number: int) -> None:
    swept = field in ("threads", "batch")
    assert refusal(**{field: (2, number) if swept else number}).startswith(f"{option} {number}: ")
    taken: dict[str, Any] = {field: (2, 1) if swept else 1}
    assert getattr(ProfileOne(**taken), field) == taken[field]


@pytest.mark.parametrize("number", [0, -1])
def test_a_dimension_below_one_is_refused(number: int) -> None:
    assert refusal(dims={"N": (1,), "seq": (8, number)}).startswith(f"--dim seq {number}: at least 1")


def test_a_dimension_without_sizes_is_refused() -> None:
    assert "--dim" in refusal(dims={"seq": ()})


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("field", "option"), [("seconds", "--seconds"), ("sustained_s", "--sustained")])
def test_a_time_that_is_no_time_is_refused(field: str, option: str, number: float) -> None:
    assert refusal(**{field: number}).startswith(f"{option} {number:g}: ")


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, -math.inf])
def test_a_rate_that_is_no_rate_is_refused(rate: float) -> None:
    assert refusal(rate=rate).startswith(f"--rate {rate:g}: ")


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.03, 3.0, math.nan, math.inf, -math.inf])
def test_a_margin_that_is_no_share_is_refused(margin: float) -> None:
    assert refusal(margin=margin).startswith(f"--margin {margin:g}: ")


@LAW
@given(
    st.floats(1e-3, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(1, 100),
)
def test_every_number_in_range_is_taken(seconds: float, rate: float, margin: float, processes: int) -> None:
    options = Profile(seconds=seconds, rate=rate, margin=margin, processes=processes)
    assert (looking(options).seconds, looking(options).processes) == (seconds, processes)
    assert wanted(options, [M])[0].rate == rate


@pytest.mark.parametrize("field", ["providers", "threads"])
def test_nothing_to_measure_is_refused(field: str) -> None:
    assert refusal(**{field: ()}).startswith(f"--{field.removesuffix('s') if field == 'providers' else field}")


@pytest.mark.parametrize(
    ("field", "name", "meant", "known"),
    [
        ("preset", "quik", "quick", tuple(PRESETS)),
        ("level", "extend", "extended", LEVELS),
        ("level", "non", "none", LEVELS),
    ],
)
def test_a_misspelt_name_is_refused_with_what_was_meant(
    field: str, name: str, meant: str, known: tuple[str, ...]
) -> None:
    told = refusal(**{field: name})
    assert told.startswith(f"--{field} {name}: unknown; did you mean {meant!r}? Known: ")
    assert all(k in told for k in known)


@pytest.mark.parametrize(
    ("name", "meant"), [("cup", "cpu"), ("openvin", "openvino"), ("CUDAExecutionprovide", "CUDAExecutionProvider")]
)
def test_a_misspelt_provider_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"--provider {name}: unknown; did you mean {meant!r}"):
        wanted(Profile(providers=("cpu", name)), [M])


def test_a_provider_option_without_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match="'device_type' is no option; write openvino:key=value"):
        wanted(Profile(providers=("openvino:device_type",)), [M])


def test_a_provider_that_a_plugin_brings_is_known() -> None:
    (arm,) = wanted(Profile(providers=("Mine:a=b",), plugins={"Mine": "libmine.so"}), [M])
    assert (arm.provider.name, arm.provider.options, arm.provider.library) == (
        "Mine",
        {"a": "b"},
        str(Path("libmine.so").absolute()),
    )


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_is_taken(name: str) -> None:
    assert wanted(Profile(level=name), [M])[0].level == name


def test_samples_and_values_of_one_input_together_are_refused() -> None:
    assert "leave --input out" in refusal(data="images", inputs={"x": Path("x.npy")})
    Profile(data="images")
    Profile(inputs={"x": Path("x.npy")})


def test_random_data_is_what_is_generated_anyway() -> None:
    assert refusal(data="random") == "--data random: leave it out"


def test_every_setting_has_what_is_not_swept() -> None:
    options = Profile(
        threads=(1, 2), batch=(1, 4), session={"a": "b"}, level="basic", rate=30.0, python="/usr/bin/python3"
    )
    found = wanted(options, [M])
    assert [a.label for a in found] == [f"threads={n} batch={b}" for n in (1, 2) for b in (1, 4)]
    for arm in found:
        assert (arm.session, arm.level, arm.rate, arm.place) == ({"a": "b"}, "basic", 30.0, Here("/usr/bin/python3"))


def test_a_provider_that_is_named_twice_is_measured_once() -> None:
    assert len(wanted(Profile(providers=("cpu", "cpu")), [M])) == 1


def test_the_same_model_twice_is_two_settings() -> None:
    assert [a.label for a in wanted(Profile(), [M, M])] == ["m", "m #2"]


def test_what_is_chosen_replaces_the_presets() -> None:
    found = looking(Profile(preset="pr", seconds=1.5, processes=7))
    assert (found.seconds, found.processes) == (1.5, 7)
    assert found.precision == PRESETS["pr"].precision


@pytest.mark.parametrize(("sustained_s", "block_s"), [(600.0, 1.0), (20.0, 1.0), (4.0, 0.2)])
def test_a_sustained_run_has_at_least_twenty_blocks_of_a_second_at_most(sustained_s: float, block_s: float) -> None:
    found = looking(Profile(preset="pr", sustained_s=sustained_s))
    assert (found.sustained_s, found.block_s, found.processes) == (sustained_s, block_s, 1)
