"""Where the result goes: an error, a full disk or Ctrl-C leaves nothing behind, and no name of a file breaks
anything.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import CalibrationError, ModelError, UsageError, ValidityError
from edgeopt.files import staged
from edgeopt.quantization import check
from edgeopt.quantization import quantize as command
from edgeopt.runtime.calibrate import observe
from edgeopt.runtime.probe import probe
from tests import models, tiny
from tests.models import STATIC

X = models.normal(30, 4)


def names(folder: Path) -> list[str]:
    """Every name in `folder`, hidden ones too."""
    return sorted(f.name for f in folder.iterdir())


# places


def test_an_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "q.onnx").write_text("mine")
    with pytest.raises(UsageError, match=r"q\.onnx exists; .*--force"):
        edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", **STATIC)
    assert (tmp_path / "q.onnx").read_text() == "mine"


def test_force_overwrites_the_output(tmp_path: Path) -> None:
    (tmp_path / "q.onnx").write_text("mine")
    edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", force=True, **STATIC)
    assert graph.load(tmp_path / "q.onnx").graph.outputs[0].name == "y"
    assert names(tmp_path) == ["q.onnx"]


def test_force_may_overwrite_the_input_itself(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(models.dense())
    made = edgeopt.quantize(file, X, output=file, force=True, **STATIC)
    assert (
        file.read_bytes()
        == graph.proto_bytes(made.model, lean=True)
        == made.proto.SerializeToString(deterministic=True)
    )
    assert made.report.input_bytes == len(models.dense())


@pytest.mark.parametrize(
    "place", ["nowhere/q.onnx", "file/q.onnx", "file/deeper/q.onnx", "folder", "n" * 300 + ".onnx", "nul\0.onnx"]
)
def test_a_place_that_cannot_be_written_is_refused_by_name(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as caught:
        edgeopt.quantize(models.dense(), X, output=tmp_path / place, force=True, **STATIC)
    assert place.split("/")[0] in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: Any) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    with pytest.raises(UsageError, match="Read-only file system") as caught, staged(tmp_path / "q.onnx"):
        pytest.fail("a stage was opened")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("mode", ["static", "dynamic", "auto"])
@pytest.mark.parametrize(
    "name", ["optimized.onnx", "model[1].onnx", "0.onnx", "no_suffix", ".onnx", "a b.onnx", "%s*?.onnx", "größe.onnx"]
)
def test_any_name_will_do(name: str, mode: str, tmp_path: Path) -> None:
    choices = {**STATIC, "mode": mode}
    made = edgeopt.quantize(models.dense(), X, output=tmp_path / name, **choices)
    assert names(tmp_path) == [name]
    assert made.report.output_bytes == (tmp_path / name).stat().st_size > 0
    assert made.report.download_bytes > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx"))
    odd.write_bytes(models.dense())
    with pytest.raises(UsageError, match=r"no UTF-8 text.*choose another name with -o"):
        edgeopt.quantize(odd, X, output=odd.with_suffix(".int8.onnx"), **STATIC)
    with pytest.raises(ModelError, match=r"no UTF-8 text.*rename it"):
        edgeopt.profile([odd], seconds=0.1)
    assert edgeopt.quantize(odd, X, output=tmp_path / "q.onnx", **STATIC).path == tmp_path / "q.onnx"
    assert names(tmp_path) == sorted([odd.name, "q.onnx"])


def test_neighbours_with_the_same_first_letters_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    (tmp_path / "q.onnx.backup").write_bytes(bytes(10_000))
    (tmp_path / "optimized.onnx").write_text("mine")
    made = edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", **STATIC)
    assert made.report.output_bytes == (tmp_path / "q.onnx").stat().st_size
    assert names(tmp_path) == ["optimized.onnx", "q.onnx", "q.onnx.backup"]
    assert (tmp_path / "optimized.onnx").read_text() == "mine"


# a candidate that fails a check


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [(check, "run_all", ModelError), (check, "kernels", ModelError), (check, "compare", ValidityError)],
    ids=["run_all", "kernels", "compare"],
)
def test_a_refused_candidate_leaves_no_file(
    module: Any, name: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(module, name), []

    def fails_once(*args: Any, **more: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise error("made to fail")
        return real(*args, **more)

    monkeypatch.setattr(module, name, fails_once)
    made = edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", include=("Gemm",), measure=False)
    assert any("made to fail" in c.verdict for c in made.report.candidates)
    assert names(tmp_path) == ["q.onnx"]


def test_a_result_that_fails_a_check_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise ValidityError("made to fail")

    monkeypatch.setattr(check, "compare", refuse)
    with pytest.raises(ValidityError, match="made to fail"):
        edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", **STATIC)
    assert names(tmp_path) == []


# a full disk


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill(name: str, where: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Path.name` fail for a full disk on the paths of `where`, half-way if it writes."""
    real = getattr(Path, name)

    def limited(self: Path, *args: Any) -> Any:
        if not where(self):
            return real(self, *args)
        if name == "write_bytes":
            real(self, args[0][:10])
        return full()

    monkeypatch.setattr(Path, name, limited)


@pytest.mark.parametrize("name", ["write_bytes", "replace"])
def test_a_full_disk_leaves_nothing_and_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(name, lambda path: tmp_path in path.parents, monkeypatch)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", **STATIC)
    assert str(tmp_path / "q.onnx") in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["write_bytes", "replace"])
def test_a_full_disk_keeps_the_file_that_was_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.onnx").write_text("mine")
    fill(name, lambda path: tmp_path in path.parents, monkeypatch)
    with pytest.raises(UsageError, match="No space left on device"):
        edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", force=True, **STATIC)
    assert (tmp_path / "q.onnx").read_text() == "mine"
    assert names(tmp_path) == ["q.onnx"]


def test_a_full_disk_for_temporary_files_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill("write_bytes", lambda path: tmp_path not in path.parents, monkeypatch)
    with pytest.raises(edgeopt.EdgeoptError, match="No space left on device"):
        edgeopt.quantize(models.dense(), X, output=tmp_path / "q.onnx", **STATIC)
    assert names(tmp_path) == []


def test_no_folder_for_temporary_files_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", full)  # one module for all that import it
    with pytest.raises(edgeopt.EdgeoptError, match="No space left on device"):
        edgeopt.quantize(models.dense(), X, **STATIC)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_of_two_files_none_stays_when_the_second_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "q.onnx":
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises((UsageError, KeyboardInterrupt)), staged(tmp_path / "q.onnx") as stage:
        (stage / "q.onnx").write_text("a model above 2 GB")
        (stage / "q.onnx.data").write_text("its weights")
    assert names(tmp_path) == []


# Ctrl-C


def interrupt(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "prepare": lambda patch: patch.setattr(command, "prepare", interrupt),
    "calibrate": lambda patch: patch.setattr("edgeopt.runtime.calibrate.observe", interrupt),
    "write": lambda patch: patch.setattr(Path, "write_bytes", interrupt),
    "check": lambda patch: patch.setattr("onnx.checker.check_model", interrupt),
    "compare": lambda patch: patch.setattr(check, "compare", interrupt),
    "move": lambda patch: patch.setattr(Path, "replace", interrupt),
}


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_leaves_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, target = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    target.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    PLACES[place](monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        edgeopt.quantize(models.dense(), X, output=target / "q.onnx", **STATIC)
    assert names(target) == []
    assert names(temporary) == []


def ctrl_c() -> None:
    """What the terminal sends."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def watched(
    event: Callable[[], object], broken: bool
) -> tuple[list[tuple[str, Callable[[], dict[str, np.ndarray]]]], list[int]]:
    """400 samples of 2 ms and the numbers of those that were read; `event` happens in the 20th, which is NaN if
    `broken`.
    """
    seen: list[int] = []

    def read(i: int) -> dict[str, np.ndarray]:
        seen.append(i)
        if i == 20:
            event()
        time.sleep(0.002)
        return {"x": np.full((1, 4), np.nan if broken and i == 20 else 1, np.float32)}

    return [(str(i), lambda i=i: read(i)) for i in range(400)], seen


@pytest.mark.parametrize(
    ("event", "error"),
    [(ctrl_c, KeyboardInterrupt), (lambda: None, CalibrationError)],
    ids=["Ctrl-C", "NaN"],
)
def test_a_calibration_ends_soon_after(event: Callable[[], object], error: type[BaseException]) -> None:
    made = tiny.model(models.DENSE, w=models.normal(4, 4), b=models.normal(4))
    samples, seen = watched(event, error is CalibrationError)
    with pytest.raises(error):
        observe(made, ["x"], samples, probes=probe(made, {"x": X[:1]}), room=10**9)
    assert len(seen) < 100  # about 22 by then, and a few more until every thread has seen it
