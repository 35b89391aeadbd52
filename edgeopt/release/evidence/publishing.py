"""The output folder: one run at a time, and all that a run leaves there comes at its end.

Models are put in a folder beside and measured there; the evidence is written beside them; then all of it is moved, the
manifest last, and what an earlier run left and this one did not make is removed. Of a run that did not pass, the
evidence is moved and the models go to `failed`: the last good release stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeopt import graph
from edgeopt.errors import UsageError
from edgeopt.files import staged, writing
from edgeopt.release.build.sources import fingerprint
from edgeopt.release.document import VariantResult
from edgeopt.release.evidence import artefacts, manifest
from edgeopt.release.project.file import FLOAT

FAILED = "failed"
_MARK = ".edgeopt"  # in `failed`, which is then a run's and not the user's
_STAGE = ".next"


def check(folder: Path) -> None:
    """Refuse an output folder in which `failed` is the user's own.

    Raises:
        UsageError: it is.
    """
    if (folder / FAILED).exists() and not (folder / FAILED / _MARK).is_file():
        raise UsageError(
            f"{folder / FAILED}: is not of a run, which puts what fails there; remove it, or choose another folder"
        )


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """A folder in `folder` for what is to be published; gone at the end, whatever happens."""
    found = folder / _STAGE
    shutil.rmtree(found, ignore_errors=True)  # of a run that was killed
    with writing(folder):
        found.mkdir()
    try:
        yield found
    finally:
        shutil.rmtree(found, ignore_errors=True)


def place(variants: Sequence[VariantResult], next_folder: Path, folder: Path, *, convert: bool) -> list[VariantResult]:
    """`variants` with their files `NAME.onnx` in `next_folder`, made of those in the cache; float stays where it is.
    What is in `folder` already is taken from there; with `convert`, the .ort files of an earlier run too, in case they
    still hold.
    """
    made = [v.name for v in variants if v.name != FLOAT and v.file is not None and v.error is None]
    with writing(folder):
        for name in (manifest.MANIFEST, *(f"{name}{suffix}" for name in made for suffix in manifest.ORT if convert)):
            _link(folder / name, next_folder / name)
        return [_placed(v, next_folder, folder) if v.name in made else v for v in variants]


def beside(model: Path, folder: Path, name: str) -> Path:
    """A copy of an exported model of the cache in `folder`/exported, under its name; one that is the same is left
    alone.
    """
    target = folder / "exported" / f"{name or 'model'}.onnx"
    if target.is_file() and fingerprint(target) == fingerprint(model):
        return target
    with writing(folder):
        target.parent.mkdir(exist_ok=True)
        with staged(target) as stage:
            _copy(model, stage / target.name)
    return target


def _copy(source: Path, target: Path) -> None:
    """The model of an entry of the cache; data files beside it get the name of the target."""
    if len(list(source.parent.iterdir())) > 2:  # more than the model and its entry
        graph.write(graph.load(source), target)
    else:
        shutil.copyfile(source, target)


def _placed(v: VariantResult, next_folder: Path, folder: Path) -> VariantResult:
    source, target, known = Path(v.file or ""), next_folder / f"{v.name}.onnx", folder / f"{v.name}.onnx"
    if known.is_file() and fingerprint(known) == fingerprint(source):
        _link(known, target)
    else:
        _copy(source, target)
    return v.model_copy(update={"file": str(target), "sha256": fingerprint(target)})


def _link(source: Path, target: Path) -> None:
    """`source`, if it is there, as `target` too."""
    if not source.is_file():
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without
        shutil.copyfile(source, target)


def withdraw(v: VariantResult, next_folder: Path) -> VariantResult:
    """`v`, which could not be measured, without its files in `next_folder`."""
    for suffix in (".onnx", ".onnx.data", *manifest.ORT):
        (next_folder / f"{v.name}{suffix}").unlink(missing_ok=True)
    return v.model_copy(update={"file": None, "sha256": None})


def publish(next_folder: Path, folder: Path, *, released: bool) -> None:
    """Move all of `next_folder` to `folder`, and remove what an earlier run published there and this one does not.

    released: False moves only the evidence, and the models to `failed`.
    """
    with writing(folder):
        shutil.rmtree(folder / FAILED, ignore_errors=True)
        evidence = artefacts.FILES
        if not released:
            evidence = evidence - artefacts.OF_RELEASE
            (folder / FAILED).mkdir()
            (folder / FAILED / _MARK).touch()
            for file in [f for f in next_folder.iterdir() if f.name not in artefacts.FILES]:
                file.replace(folder / FAILED / file.name)
            (next_folder / manifest.SUMS).replace(folder / FAILED / manifest.SUMS)
            for name in artefacts.OF_RELEASE:
                (next_folder / name).unlink(missing_ok=True)
        made = {f.name for f in next_folder.iterdir()}
        stale = ((manifest.files(folder) if released else set()) | evidence) - made
        try:
            _move(next_folder, folder, stale)
        except (
            KeyboardInterrupt
        ):  # a few renames are left: half of them would be neither the old release nor the new one
            _move(next_folder, folder, stale)
            raise


def _move(next_folder: Path, folder: Path, stale: set[str]) -> None:
    for file in sorted(next_folder.iterdir(), key=lambda f: f.name == manifest.MANIFEST):
        file.replace(folder / file.name)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
