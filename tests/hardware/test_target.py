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
    assert found.place.rule == "all" or (found.quantize_ps > 0 and found.dequantize_ps > 0)
    assert found.place.margin >= 0 and (found.place.rule == "all" or found.cost)
    for cost in found.cost.values():
        assert min(*cost.float_ps, *cost.int_ps) >= 0


@every_file
def test_the_grids_fit_their_storage(name: str) -> None:
    found = target.load(name)
    assert (found.activation_type.qmin, found.activation_type.qmax) == STORAGE[found.grid.activations]
    assert found.activation_type.symmetric == found.grid.symmetric
    assert (found.weight_type.qmin, found.weight_type.qmax, found.weight_type.symmetric) == (-127, 127, True)


@every_file
def test_every_operator_with_a_kernel_has_a_row_with_inputs(name: str) -> None:
    assert all(OPS[op].inputs for op in target.load(name).place.operators)


@every_file
def test_what_a_target_is_checked_in_is_named_with_its_version(name: str) -> None:
    check = target.load(name).check
    pinned = [package for package in check.packages if "==" in package or package.rpartition("@")[0]]
    assert bool(pinned) == bool(check.provider) == (check.kind not in ("cpu", "rules"))


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


def written(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder / "mine.toml"


def test_a_variant_differs_in_its_own_tables_only() -> None:
    base, wide = target.load("qnn-htp"), target.load("qnn-htp:a16")
    assert (base.grid.activations, wide.grid.activations) == ("uint8", "uint16")
    assert wide.name == "qnn-htp:a16" and wide.place == base.place and wide.grid.fixed == base.grid.fixed
    assert wide.activation_type.qmax == 65535


def test_a_file_of_the_users_is_like_a_known_target_but_for_what_it_says_and_has_variants(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """title = "mine"
like = "cpu-arm64"
sources = ["measured on my board, one thread"]
[place]
margin = 0.5
[variants.i8.grid]
activations = "int8"
""",
    )
    mine, known = target.load(file), target.load("cpu-arm64")
    assert (mine.name, mine.place.margin, mine.cost) == ("mine", 0.5, known.cost)
    assert target.load(f"{file}:i8").grid.activations == "int8"
    with pytest.raises(UsageError, match=r"no variant 'i9'; did you mean 'i8'"):
        target.load(f"{file}:i9")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('like = ["a"]', r"like = \['a'\]: no target"),
        ("variants = 3", r"mine\.toml: variants: a table for each variant"),
        ('like = "cpu-arm65"', r"like = 'cpu-arm65': no target; did you mean 'cpu-arm64'"),
        ('[grid]\nactivations = "uint4"', r"mine\.toml:4: grid\.activations"),
        ('[grid]\nactivation = "uint8"', r"mine\.toml:4: grid\.activation: no such key; did you mean 'activations'"),
        ('[place]\nrule = "most"', r"mine\.toml:4: place\.rule"),
        ("[demands]\nshape = 1", r"mine\.toml:4: demands\.shape: no such key; did you mean 'shapes'"),
        ('[check]\nkind = "provder"', r"mine\.toml:4: check\.kind"),
    ],
)
def test_a_slip_in_a_table_is_told_with_its_line(line: str, says: str, tmp_path: Path) -> None:
    text = f'title = "mine"\nsources = ["nowhere at all, to be refused"]\n{line}\n'
    with pytest.raises(UsageError, match=says):
        target.load(written(tmp_path, text))


def test_a_file_may_be_like_one_that_is_like_another_and_like_a_variant(tmp_path: Path) -> None:
    for name in ("rknn", "qnn-htp:a16"):
        mine = target.load(
            written(tmp_path, f'title = "mine"\nlike = "{name}"\nsources = ["my own board, measured"]\n')
        )
        known = target.load(name)
        assert (mine.grid, mine.place, mine.demands, mine.cost) == (known.grid, known.place, known.demands, known.cost)


@pytest.mark.parametrize(("here", "exact"), [("cpu-x86-avx2", True), ("cpu-x86-vnni", False)])
def test_exact_sums_of_a_target_are_exact_on_a_machine_that_saturates(
    here: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "host", lambda: here)
    assert ("session.x64quantprecision" in target.arithmetic(target.load("wasm"))) == exact
    assert "session.x64quantprecision" not in target.arithmetic(target.load("cpu-x86-avx2"))
    # ONNX Runtime has no kernel of int8 by the uint8 weights that exact sums need
    assert ("session.qdqisint8allowed" in target.arithmetic(target.load("xnnpack"))) != exact
