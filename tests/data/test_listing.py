"""Which files of a folder are samples: kinds side by side, links, hidden files, folders that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgeopt.data import InputSpec, open_data
from edgeopt.data.listing import files_of
from edgeopt.errors import DataError, UsageError
from edgeopt.options.reading import Reading
from tests import models

F32 = np.dtype(np.float32)
PICTURE = [InputSpec("x", F32, (None, 3, 8, 8))]


def arrays(folder: Path, n: int, name: str = "x") -> None:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        np.savez(folder / f"{i}.npz", **{name: models.normal(1, 3, 8, 8, seed=i)})


def test_a_stray_picture_does_not_hide_arrays_that_fit(tmp_path: Path) -> None:
    arrays(tmp_path, 12)
    models.pictures(tmp_path, 1)
    found = open_data(tmp_path, PICTURE, Reading())
    assert found.kind == "arrays" and len(found.samples) == 12
    assert any("not read: 1 of images" in note for note in found.notes)


def test_a_stray_array_that_does_not_fit_does_not_hide_pictures(tmp_path: Path) -> None:
    models.pictures(tmp_path, 6)
    np.savez(tmp_path / "means.npz", mean=np.zeros(3))
    found = open_data(tmp_path, PICTURE, Reading())
    assert found.kind == "images" and len(found.samples) == 6
    assert any("not read: 1 of arrays (means.npz ...)" in note for note in found.notes)


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    models.pictures(tmp_path, 4)
    (tmp_path / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    for folder in ("__MACOSX", ".git"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"no picture")
    assert len(open_data(tmp_path, PICTURE, Reading()).samples) == 4


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    arrays(tmp_path / "far", 3)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "near" / "again").symlink_to(tmp_path / "near", target_is_directory=True)
    assert len(open_data(tmp_path / "near", PICTURE, Reading()).samples) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    arrays(tmp_path / "open", 2)
    arrays(tmp_path / "closed", 2)
    (tmp_path / "closed").chmod(0)
    try:
        files, notes = files_of(tmp_path, "--calib")
        assert len(files) == 2 and "closed: cannot be read" in notes[0]
        with pytest.raises(DataError, match="closed"):
            files_of(tmp_path / "closed", "--calib")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"--data .*pipe: neither a file nor a folder"):
        open_data(tmp_path / "pipe", PICTURE, Reading())
    arrays(tmp_path, 2)
    os.mkfifo(tmp_path / "more.npz")
    assert len(open_data(tmp_path, PICTURE, Reading()).samples) == 2


def test_a_misspelt_path_is_answered_with_the_nearest(tmp_path: Path) -> None:
    arrays(tmp_path / "images", 1)
    with pytest.raises(UsageError, match="images"):
        open_data(tmp_path / "imagse", PICTURE, Reading())


def test_a_license_beside_texts_is_no_text(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "README.txt", "a.txt"):
        (tmp_path / name).write_text("cat")
    with pytest.raises(UsageError, match="--tokenizer"):
        open_data(tmp_path, [InputSpec("input_ids", np.dtype(np.int64), (1, None))], Reading())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="no images"):
        open_data(tmp_path, [InputSpec("input_ids", np.dtype(np.int64), (1, None))], Reading())


def test_labels_beside_pictures_do_not_hide_them(tmp_path: Path) -> None:
    models.pictures(tmp_path, 6)
    np.save(tmp_path / "labels.npy", np.arange(6))
    assert open_data(tmp_path, PICTURE, Reading()).kind == "images"
    np.save(tmp_path / "rows.npy", models.normal(6, 3, 8, 8))
    (tmp_path / "labels.npy").unlink()
    assert open_data(tmp_path, PICTURE, Reading()).kind == "arrays"
