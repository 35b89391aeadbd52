"""`edgeopt data`: what is told of images, arrays, sound and text is what a model is then given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeopt
from edgeopt.cli import main
from tests import models, tiny

X = models.normal(10, 4)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dense.onnx").write_bytes(models.dense())
    (tmp_path / "pictures.onnx").write_bytes(models.convolution())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", *argv])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_the_figures_are_those_of_the_arrays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "d").mkdir()
    for i, row in enumerate(X):
        np.savez(here / "d" / f"{i}.npz", x=row[None] if i else np.full((1, 4), 9, np.float32))
    np.savez(here / "d" / "bad.npz", x=np.zeros((1, 5), np.float32))
    code, out, _ = run(capsys, "d", "--model", "dense.onnx", "--format", "json")
    found = json.loads(out)
    assert (code, found["kind"], found["count"], found["read"]) == (0, "arrays", 11, 10)
    (reason,) = found["skipped"].values()
    assert "wants shape" in reason
    seen, facts = np.concatenate([np.full((1, 4), 9), X[1:]]), found["inputs"]["x"]
    assert facts["mean"] == pytest.approx(seen.mean()) and facts["std"] == pytest.approx(seen.std())
    assert (facts["low"], facts["high"]) == (pytest.approx(seen.min()), 9) and facts["ends"] == 5 / 40
    assert facts["constant"] == 1 and facts["shapes"] == [[1, 4]]


def test_the_sheet_shows_the_pictures_as_they_were(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.pictures(here / "d", 5)
    colour = (250, 120, 10)
    Image.new("RGB", (8, 8), colour).save(here / "d" / "plain.png")
    for order in ("rgb", "bgr"):
        code, out, err = run(
            capsys,
            "d",
            "--model",
            "pictures.onnx",
            "--preprocess",
            "imagenet",
            "--color",
            order,
            "--sheet",
            "s.png",
            "--force",
        )
        assert (code, "wrote s.png" in err) == (0, True) and "images: " in out
        pixels = np.asarray(Image.open(here / "s.png")).reshape(-1, 3).astype(int)
        assert (np.abs(pixels - colour).max(1) <= 1).sum() >= 128**2  # enlarged


def test_what_is_written_is_read_again_as_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.pictures(here / "d", 4)
    code, _, _ = run(capsys, "d", "--model", "pictures.onnx", "--preprocess", "signed", "--write", "feeds")
    assert code == 0 and len(list((here / "feeds").iterdir())) == 4
    options = {"mode": "static", "include": ("Gemm",), "measure": False}
    first = edgeopt.quantize(here / "pictures.onnx", here / "d", preprocess="signed", **options)
    second = edgeopt.preview(here / "pictures.onnx", here / "feeds")
    assert second.kind == "arrays" and second.read == 4 and first.report.outputs
    code, _, err = run(capsys, "d", "--model", "pictures.onnx", "--write", "feeds")
    assert code == 2 and "exists" in err


def test_text_is_told_by_column_and_tokens(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(here / "t.json"))
    (here / "a.csv").write_text("id,sentence\n1,cat dog\n2,cow cat\n")
    text = "g (int64[1,L] input_ids) => (float[1,L,4] y) { y = Gather(e, input_ids) }"

    (here / "t.onnx").write_bytes(tiny.proto(text, e=models.normal(3, 4)).SerializeToString())
    code, out, _ = run(capsys, "a.csv", "--model", "t.onnx", "--tokenizer", "t.json")
    assert code == 0 and "column 'sentence' of a.csv" in out
    assert "cat dog" in out and "[UNK] cat" in out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("x.npy", "--model", "dense.onnx", "--sheet", "s.png"), "no images"),
        (("nowhere", "--model", "dense.onnx"), "no such"),
    ],
)
def test_what_cannot_be_shown_is_2(
    argv: tuple[str, ...], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(here / "x.npy", X)
    code, _, err = run(capsys, *argv)
    assert (code, told in err) == (2, True)
    assert not (here / "s.png").exists()
