"""The library as a user sees it: what there is, how results print, and what a type checker says of a user's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.errors import UsageError
from tests import tiny
from tests.models import normal
from tests.quantization.test_sensitivity import chain

FEEDS = [{"x": normal(2, 16, seed=i)} for i in range(40)]
CHOICES: dict[str, Any] = {"mode": "static", "include": ("Gemm",), "measure": False, "target": "cpu-portable"}


@pytest.fixture(scope="module")
def result() -> edgeopt.Result:
    return edgeopt.quantize(chain(), FEEDS, **CHOICES)


def test_everything_that_is_listed_is_there() -> None:
    assert sorted(dir(edgeopt)) == sorted(edgeopt.__all__)
    for name in dir(edgeopt):
        assert getattr(edgeopt, name) is not None
    assert {"quantize", "Recipe", "State", "steps", "passes", "Target"} <= {*dir(edgeopt)}


def test_every_pass_is_a_module_of_its_name() -> None:
    for name in dir(edgeopt.passes):
        assert getattr(edgeopt.passes, name).__name__ == f"edgeopt.passes.{name}"
    with pytest.raises(AttributeError):
        _ = edgeopt.passes.no_such_pass


def test_a_result_prints_in_five_lines(result: edgeopt.Result) -> None:
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines] == ["mode", "size", "latency", "nearness", "file"]
    assert f"SQNR {result.report.worst_sqnr_db:.1f} dB" in lines[3] and lines[2].endswith("not measured")
    assert repr(result) == str(result)


def test_a_result_in_a_notebook_is_a_table_of_what_the_report_says(result: edgeopt.Result) -> None:
    page = result._repr_html_()
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert page.startswith("<table>") and len(cells) == len([*result.report.rows()]) + len(result.report.missed)
    hostile = edgeopt.quantize(chain(), FEEDS, **{**CHOICES, "exclude": ("first",)})
    assert "<script" not in hostile._repr_html_() and "&gt;" in page  # 5.1 kB -> 1.9 kB


def test_the_options_that_were_chosen_are_in_the_report(result: edgeopt.Result) -> None:
    (line,) = (text for label, text in result.report.rows() if label == "options")
    assert line == 'target=cpu-portable, include=["Gemm"], mode=static, measure=false'


def test_a_result_becomes_a_proto_and_a_file_of_the_same_function(result: edgeopt.Result, tmp_path: Path) -> None:
    assert isinstance(result.proto, onnx.ModelProto)
    onnx.checker.check_model(result.proto, full_check=True)
    path = result.save(tmp_path / "small.onnx")
    want = tiny.run(result.model, FEEDS[0])[0]
    assert np.array_equal(tiny.run(path, FEEDS[0])[0], want)
    assert [f.name for f in tmp_path.iterdir()] == ["small.onnx"]


def test_saving_writes_over_nothing_unless_it_is_told_to(result: edgeopt.Result, tmp_path: Path) -> None:
    place = tmp_path / "small.onnx"
    place.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        result.save(place)
    assert place.read_bytes() == b"mine"
    assert result.save(str(place), force=True) == place and place.stat().st_size > 100
    with pytest.raises(UsageError):
        result.save(tmp_path / "nowhere" / "small.onnx")
