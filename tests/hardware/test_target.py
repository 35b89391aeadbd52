"""Every target file says what the code needs, and a machine is known by its features."""

from __future__ import annotations

import importlib.resources
import platform
from pathlib import Path

import pytest

from edgeopt.errors import UsageError
from edgeopt.graph.ops import OPS
from edgeopt.hardware import target
from edgeopt.numbers.grid import STORAGE

FILES = target.names()[1:]
every_file = pytest.mark.parametrize("name", FILES)


def test_host_comes_first_and_every_file_after_it() -> None:
    assert target.names()[0] == "host"
    assert {"cpu-arm64", "cpu-portable", "cpu-x86-avx2", "cpu-x86-vnni"} <= set(FILES)


@every_file
def test_a_target_knows_its_name_and_its_sources(name: str) -> None:
    found = target.load(name)
    assert found.name == name and found.title
    assert found.sources and all(len(source) > 20 for source in found.sources)


@every_file
def test_every_cost_row_is_an_operator_with_an_integer_rule(name: str) -> None:
    for row in target.load(name).cost:
        assert row.partition(".")[0] in OPS


@every_file
def test_no_cost_is_negative_and_crossing_is_never_free(name: str) -> None:
    found = target.load(name)
    assert found.quantize_ps > 0 and found.dequantize_ps > 0 and found.place.margin >= 0
    for cost in found.cost.values():
        assert min(*cost.float_ps, *cost.int_ps) >= 0


@every_file
def test_the_grids_fit_their_storage(name: str) -> None:
    found = target.load(name)
    assert (found.activation_type.qmin, found.activation_type.qmax) == STORAGE[found.grid.activations]
    assert not found.activation_type.symmetric
    assert (found.weight_type.qmin, found.weight_type.qmax, found.weight_type.symmetric) == (-127, 127, True)


@every_file
def test_a_target_cannot_be_changed(name: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        target.load(name).fp16_kernels = True


def test_the_portable_target_pays_and_saturates_like_the_slowest_machine() -> None:
    portable, slowest = target.load("cpu-portable"), target.load("cpu-x86-avx2")
    assert portable.cost == slowest.cost
    assert portable.grid.saturates and slowest.grid.saturates and not target.load("cpu-x86-vnni").grid.saturates


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no target 'cpu-x86-avx'.*did you mean 'cpu-x86-avx2'.*cpu-arm64"):
        target.load("cpu-x86-avx")


def test_host_is_one_of_the_files() -> None:
    assert target.host() in FILES
    assert target.load("host") == target.load(target.host())


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", {"sse4_2", "avx2", "fma"}, "cpu-x86-avx2"),
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, "cpu-x86-vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "cpu-x86-vnni"),
        ("AMD64", {"sse4_2"}, "cpu-portable"),
        ("x86_64", set(), "cpu-portable"),
        ("aarch64", {"asimd", "asimddp"}, "cpu-arm64"),
        ("arm64", set(), "cpu-arm64"),
        ("riscv64", set(), "cpu-portable"),
    ],
)
def test_a_machine_is_known_by_its_features(
    machine: str, flags: set[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset(flags))
    assert target.host() == name


def test_a_mistake_is_told_with_the_line_of_its_own_table(tmp_path: Path) -> None:
    text = importlib.resources.files("edgeopt.hardware").joinpath("targets", "cpu-portable.toml").read_text("utf-8")
    rows = text.splitlines()
    number = next(i for i, row in enumerate(rows) if row.startswith("MatMul ="))
    rows[number] = "MatMul = { float = [26, 300], int = [-12, 300] }"
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"mine\.toml:{number + 1}: cost\.MatMul"):
        target.load(file)
