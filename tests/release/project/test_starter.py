"""What `edgeopt init` writes: a file that can be read, whatever the names, and says what it was told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.release.project.file import Project, load
from edgeopt.release.project.quantities import quantity
from edgeopt.release.project.starter import starter

ANY = st.text(st.characters(codec="utf-8"), min_size=1)


@given(model=ANY, name=ANY, data=ANY, size=st.integers(0, 10**13))
def test_any_name_survives_and_the_file_is_a_project(model: str, name: str, data: str, size: int) -> None:
    parsed = tomllib.loads(starter(model, name, data, size))
    assert (parsed["model"], parsed["name"], parsed["data"]["path"]) == (model, name, data)
    gate = Project.model_validate(parsed).gates["*"]["size.file"]
    assert gate.max is not None and quantity(gate.max, "bytes") >= size


def test_lines_that_are_commented_out_are_right_too(tmp_path: Path) -> None:
    text = starter("model.onnx", "model", "images", 10**6)
    rows = text.splitlines()
    hidden = [i for i, row in enumerate(rows) if row.startswith("# ") and " = " in row and not row.startswith("# A ")]
    assert len(hidden) >= 5
    for i in hidden:
        shown = [row[2:] if j == i else row for j, row in enumerate(rows)]
        (tmp_path / "edgeopt.toml").write_text("\n".join(shown))
        load(tmp_path / "edgeopt.toml")


@pytest.mark.parametrize("size", [0, 1, 200, 10**9])
def test_the_size_that_is_demanded_has_room_for_the_model_itself(size: int) -> None:
    found = Project.model_validate(tomllib.loads(starter("m", "n", "d", size)))
    bound = found.gates["*"]["size.file"].max
    assert bound is not None and size <= quantity(bound, "bytes") <= max(1.1 * size, 20_000)
