"""Stages: nothing half done is seen, and what a killed process left behind is swept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt import files
from edgeopt.errors import UsageError
from edgeopt.files import staged


def names(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()}


def test_what_a_stage_holds_is_moved_at_the_end_and_not_before(tmp_path: Path) -> None:
    with staged(tmp_path / "m.onnx") as stage:
        (stage / "m.onnx").write_bytes(b"whole")
        (stage / "m.data").write_bytes(b"beside")
        assert names(tmp_path) == {stage.name}
    assert names(tmp_path) == {"m.onnx", "m.data"}


def test_an_empty_stage_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"before")
    with staged(tmp_path / "m.onnx"):
        pass
    assert (tmp_path / "m.onnx").read_bytes() == b"before" and names(tmp_path) == {"m.onnx"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halfway"), staged(tmp_path / "m.onnx") as stage:
        (stage / "m.onnx").write_bytes(b"half")
        raise ValueError("halfway")
    assert names(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeopt.files import staged
with staged(Path(sys.argv[1])) as stage:
    (stage / "m.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_sweeps_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m.onnx")], check=False)
    (left,) = names(tmp_path)
    assert left.startswith(".m.onnx.")
    os.utime(tmp_path / left, (0, 0))  # it may have been made just now, and not be held yet
    others = {".m.onnx.backup", ".other.onnx.x-1.abc", left.replace(".m.onnx", ".n.onnx")}
    for name in others:
        (tmp_path / name).mkdir()
    with staged(tmp_path / "m.onnx") as mine, staged(tmp_path / "m.onnx") as another:
        assert names(tmp_path) == {mine.name, another.name, *others}
    assert names(tmp_path) == others


# text


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_file_is_neither_replaced_nor_read(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    with pytest.raises(UsageError, match="a device, a pipe or a socket"):
        files.check_place(place, force=True)
    with pytest.raises(OSError, match="not a file"):
        files.text_of(place)


def test_text_is_read_up_to_a_bound_and_without_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("\ufeffcat", encoding="utf-8")
    assert files.text_of(tmp_path / "a") == "cat"
    monkeypatch.setattr(files, "_MOST_TEXT", 2)
    with pytest.raises(ValueError, match="MB of text"):
        files.text_of(tmp_path / "a")


@pytest.mark.parametrize(("parse", "text"), [(files.json_of, "[" * 100_000), (files.toml_of, "a = " + "[" * 50_000)])
def test_a_document_nested_too_deeply_is_an_error_of_its_own(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(text)


def test_what_a_killed_process_left_in_the_temporary_folder_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal; from edgeopt.files import temporary_folder\n"
        "with temporary_folder() as folder:\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    (left,) = tmp_path.iterdir()
    (tmp_path / "other.x").mkdir()
    again = code.partition("\n")[0] + "\nwith temporary_folder(): pass"
    subprocess.run([sys.executable, "-c", again], env=environment, check=True)
    assert left.exists()  # too young to be sure
    os.utime(left, (0, 0))
    with files._held(left):  # of a process that lives
        subprocess.run([sys.executable, "-c", again], env=environment, check=True)
    assert left.exists()
    subprocess.run([sys.executable, "-c", again], env=environment, check=True)
    assert names(tmp_path) == {"other.x"}


def test_a_folder_of_the_users_is_never_swept(tmp_path: Path) -> None:
    for name in ("edgeopt.results", "edgeopt.tmp-results-of-mine"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    code = "from edgeopt.files import temporary_folder\nwith temporary_folder(): pass"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)
    assert names(tmp_path) == {"edgeopt.results", "edgeopt.tmp-results-of-mine"}


def test_without_locks_folders_are_made_and_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refused)
    with files.temporary_folder() as folder:
        assert folder.is_dir()
    assert not folder.exists()
