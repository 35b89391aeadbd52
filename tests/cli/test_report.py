"""`edgeopt report` from the command line: one page of one or several runs, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.cli import main
from tests.cli.test_cli import Ended, Run
from tests.release.documents import full


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a.json and b.json."""
    for i, name in enumerate("ab"):
        (tmp_path / f"{name}.json").write_text(
            full(shift=float(i), created=f"2024-05-0{i + 1}T00:00:00+00:00").to_json(), encoding="utf-8"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(...)` calls `edgeopt report` in this process, in the folder `here`."""

    def call(*argv: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(["report", *argv])
        out, err = capsys.readouterr()
        return Ended(ended.value.code, out, err)

    return call


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_one_run_gives_its_page_and_several_the_last_ones_with_the_trend(here: Path, run: Run) -> None:
    found = run("a.json")
    assert found == Ended(0, "wrote report.html\n", "")
    one = (here / "report.html").read_text(encoding="utf-8")
    assert "2024-05-01" in one and "Trend over" not in one
    assert run("a.json", "b.json", "-o", "both.html").code == 0
    both = (here / "both.html").read_text(encoding="utf-8")
    assert "2024-05-02" in both and "2024-05-01" not in both and "Trend over 2 runs" in both
    assert files(here) == ["a.json", "b.json", "both.html", "report.html"]


def test_the_same_results_give_the_same_bytes(here: Path, run: Run) -> None:
    run("a.json", "-o", "1.html")
    run("a.json", "-o", "2.html")
    assert (here / "1.html").read_bytes() == (here / "2.html").read_bytes()


def test_a_page_that_is_there_is_only_written_over_when_told(here: Path, run: Run) -> None:
    (here / "report.html").write_text("mine")
    found = run("a.json")
    assert found.code == 2 and "--force" in found.err and (here / "report.html").read_text() == "mine"
    assert run("a.json", "--force").code == 0
    assert "<!doctype html>" in (here / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "argv", [["a.json", "-o", "a.json", "--force"], ["a.json", "b.json", "-o", "./a.json", "--force"]]
)
def test_results_are_never_written_over(argv: list[str], here: Path, run: Run) -> None:
    before = (here / "a.json").read_bytes()
    assert run(*argv).code == 2 and (here / "a.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ([], 2, "RESULTS"),
        (["none.json"], 3, "none.json"),
        (["a.json", "none.json"], 3, "none.json"),
        (["."], 3, "not a results file"),
        (["bad.json"], 3, "bad.json"),
        (["profile.json"], 3, "edgeopt.profiling.results/1"),
        (["a.json", "-o", "none/report.html"], 2, "no folder"),
        (["a.json", "-o", "."], 2, "folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name_and_nothing_is_written(
    argv: list[str], code: int, says: str, here: Path, run: Run
) -> None:
    (here / "bad.json").write_text("{")
    (here / "profile.json").write_text('{"schema": "edgeopt.profiling.results/1"}')
    before = files(here)
    found = run(*argv)
    assert found.code == code and says in found.err and "Traceback" not in found.err and files(here) == before


def test_a_trend_is_of_one_project(run: Run, here: Path) -> None:
    other = (here / "b.json").read_text(encoding="utf-8")
    name = full().project
    (here / "b.json").write_text(other.replace(f'"project": "{name}"', '"project": "another"'), encoding="utf-8")
    ended = run("a.json", "b.json", "-o", "t.html")
    assert ended.code == 5 and f"a.json is of project '{name}', b.json of 'another'" in ended.err
    assert files(here) == ["a.json", "b.json"]
