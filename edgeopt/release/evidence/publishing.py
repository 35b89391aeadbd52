"""Atomic publishing into the output folder, by one run at a time.

Models and artefacts are written to a staging folder and measured there; at the end all are moved, the manifest last,
and files of an earlier run that this one did not make are removed. If the run did not pass, its artefacts are moved,
its models go to `failed`, and the last release stays.
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
_MARK = ".edgeopt"  # marks `failed` as made by a run, not by the user
_STAGE = ".next"


def check(folder: Path) -> None:
    """Refuse an output folder whose `failed` was not made by a run.

    Raises:
        UsageError: it was not.
    """
    if (folder / FAILED).exists() and not (folder / FAILED / _MARK).is_file():
        raise UsageError(
            f"{folder / FAILED}: is not of a run, which puts what fails there; remove it, or choose another folder"
        )


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """A staging folder inside `folder`, removed at the end even after an error."""
    found = folder / _STAGE
    shutil.rmtree(found, ignore_errors=True)  # left by a killed run
    with writing(folder):
        found.mkdir()
    try:
        yield found
    finally:
        shutil.rmtree(found, ignore_errors=True)


def place(variants: Sequence[VariantResult], next_folder: Path, folder: Path, *, convert: bool) -> list[VariantResult]:
    """`variants` with their files as `NAME.onnx` in `next_folder`, copied from the cache or linked from `folder` if
    identical; float stays where it is. With `convert`, the .ort files of an earlier run are linked too, in case they
    are still valid.
    """
    made = [v.name for v in variants if v.name != FLOAT and v.file is not None and v.error is None]
    with writing(folder):
        for name in (manifest.MANIFEST, *(f"{name}{suffix}" for name in made for suffix in manifest.ORT if convert)):
            _link(folder / name, next_folder / name)
        return [_placed(v, next_folder, folder) if v.name in made else v for v in variants]


def beside(model: Path, folder: Path, name: str) -> Path:
    """Copy an exported model from the cache to `folder`/exported/NAME.onnx, unless an identical one is there."""
    target = folder / "exported" / f"{name or 'model'}.onnx"
    if target.is_file() and fingerprint(target) == fingerprint(model):
        return target
    with writing(folder):
        target.parent.mkdir(exist_ok=True)
        with staged(target) as stage:
            _copy(model, stage / target.name)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy the model of a cache entry; its external data is renamed after the target."""
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
    """Hard-link (or copy) `source` to `target`, if `source` exists."""
    if not source.is_file():
        return
    try:
        os.link(source, target)
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, target)


def withdraw(v: VariantResult, next_folder: Path) -> VariantResult:
    """`v`, whose measurement failed, without its files in `next_folder`."""
    for suffix in (".onnx", ".onnx.data", *manifest.ORT):
        (next_folder / f"{v.name}{suffix}").unlink(missing_ok=True)
    return v.model_copy(update={"file": None, "sha256": None})


def publish(next_folder: Path, folder: Path, *, released: bool) -> None:
    """Move all of `next_folder` to `folder`, and remove files of an earlier run that this one did not make.

    `released`: False moves the models to `failed` instead.
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
        except KeyboardInterrupt:  # finish the renames: half of them would be neither the old release nor the new one
            _move(next_folder, folder, stale)
            raise


def _move(next_folder: Path, folder: Path, stale: set[str]) -> None:
    for file in sorted(next_folder.iterdir(), key=lambda f: f.name == manifest.MANIFEST):
        file.replace(folder / file.name)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
