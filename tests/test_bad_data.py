"""Samples that cannot be read or do not fit the model: refused with the right error, or skipped with a note; each
names the file.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import edgeopt
from edgeopt.data import InputSpec, open_data
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.options.reading import Reading
from tests import models
from tests.models import STATIC, Ears

X = models.normal(30, 4)
ROW = [InputSpec("x", np.dtype(np.float32), (None, 4))]
PICTURE = [InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))]


def refused(data: Any, error: type[EdgeoptError] = DataError, model: bytes | None = None, **choices: Any) -> str:
    """The message of the error that `quantize` must raise."""
    with pytest.raises(error) as caught:
        edgeopt.quantize(model or models.dense(), data, **{"measure": False, **choices})
    return str(caught.value)


# folders


@pytest.mark.parametrize("files", [[], ["notes.md", "model.onnx"]], ids=["empty", "nothing known"])
def test_a_folder_without_samples_is_refused_by_name(files: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("nothing")
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "n" * 300, "nul\0"])
def test_samples_that_are_not_there_are_refused_by_name(name: str, tmp_path: Path) -> None:
    assert name in refused(tmp_path / name, UsageError)


@pytest.mark.parametrize("shape", ["N,5,8,8", "N,8,8,4", "N,4", "N,3,8,8,8", "3,8,8"])
def test_images_are_refused_by_an_input_that_holds_none(shape: str, tmp_path: Path) -> None:
    models.pictures(tmp_path, 3)
    text = f"g (float[{shape}] pixels) => (float[{shape}] y) {{ y = Relu(pixels) }}"
    made = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text)
    assert "pixels" in refused(tmp_path, model=made.SerializeToString())


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"color": "gray"}, "3 channels"),
        ({"color": "mauve"}, "mauve"),
        ({"layout": "NHWC"}, "NHWC"),
        ({"crop": (4, 4)}, "4x4"),
        ({"crop": "wide"}, "wide"),
        ({"resize": 0}, "resize"),
        ({"resize": -3}, "resize"),
        ({"resize": (0, 8)}, "resize"),
        ({"resize": 4}, "resize"),  # smaller than what the model takes: the rest would be black
        ({"mean": (1.0, 2.0)}, "mean"),
        ({"mean": (np.nan,)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"std": (-1.0,)}, "std"),
        ({"scale": np.inf}, "scale"),
        ({"sigma": 1.0}, "sigma"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused_with_its_field(
    choices: dict[str, Any], named: str, tmp_path: Path
) -> None:
    models.pictures(tmp_path, 3)
    assert named in refused(tmp_path, UsageError, models.convolution(), **choices)


@pytest.mark.parametrize("content", [b"mean = [", b"meen = [1.0]", b"\xff\xfe", b"mean = 'grey'", b"std = [0.0]"])
def test_a_preprocess_toml_that_cannot_be_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    models.pictures(tmp_path, 3)
    (tmp_path / "preprocess.toml").write_bytes(content)
    assert str(tmp_path / "preprocess.toml") in refused(tmp_path, UsageError, models.convolution())


# images


def garbled(file: Path) -> None:
    """No image at all."""
    file.write_bytes(b"this is no image")


def torn(file: Path) -> None:
    """A good header, and the pixels end in the middle."""
    file.write_bytes(file.read_bytes()[:60])


def exploding(file: Path) -> None:
    """A few bytes that claim 3600 million pixels."""
    models.bomb(file, 60_000, 60_000)


HARM = [garbled, torn, exploding]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("rank", [0, 9, 30])
def test_one_bad_image_of_forty_is_skipped_with_a_note(rank: int, harm: Callable[[Path], None], tmp_path: Path) -> None:
    # the sample of rank 0 is held out, the others calibrate
    models.pictures(tmp_path, 40)
    victim = Path(open_data(tmp_path, PICTURE, Reading()).samples[rank][0])
    harm(victim)
    ears = Ears()
    made = edgeopt.quantize(models.convolution(), tmp_path, preprocess="unit", listener=ears.listener, **STATIC)
    assert len(ears.told(str(victim))) == 1
    assert any(str(victim) in note for note in made.report.notes)


@pytest.mark.parametrize("harm", HARM)
def test_more_than_five_percent_of_bad_images_are_refused_by_name(harm: Callable[[Path], None], tmp_path: Path) -> None:
    files = models.pictures(tmp_path, 40)
    for file in files[:3]:
        harm(file)
    message = refused(tmp_path, model=models.convolution(), preprocess="unit", **STATIC)
    assert any(str(file) in message for file in files[:3])


@pytest.mark.parametrize("size", [(60_000, 60_000), (9_000, 8_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1)])
def test_a_decompression_bomb_is_refused_unread(size: tuple[int, int], tmp_path: Path) -> None:
    bomb = models.bomb(tmp_path / "bomb.png", *size)
    assert str(bomb) in refused(tmp_path, model=models.convolution())


def no_more_than(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def guarded(self: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        assert size[0] * size[1] <= pixels, f"asked for an image of {size}"
        return resize(self, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", guarded)


def test_a_thin_image_does_not_explode_when_its_shorter_side_is_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_more_than(64_000_000, monkeypatch)
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")  # 256 / 1 times as large: 15 million x 256
    made = models.convolution()
    try:
        edgeopt.quantize(made, tmp_path, resize=256, measure=False)
    except DataError as e:
        assert "line.png" in str(e)


def test_a_huge_resize_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_more_than(64_000_000, monkeypatch)
    models.pictures(tmp_path, 3)
    assert "1000000" in refused(tmp_path, UsageError, models.convolution(), resize=1_000_000)


# arrays


def header(shape: str) -> bytes:
    """The first bytes of an .npy that claims float32 of `shape`."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(file: Path, **members: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


def corrupted(file: Path) -> None:
    """A compressed archive with one wrong byte in the middle of its data."""
    np.savez_compressed(file, x=X)
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF
    file.write_bytes(bytes(content))


ARRAYS: dict[str, Callable[[Path], object]] = {
    "object.npy": lambda f: np.save(f, np.array([{"x": 1}], dtype=object), allow_pickle=True),
    "object.npz": lambda f: np.savez(f, x=np.array([{"x": 1}], dtype=object)),
    "pickle.npy": lambda f: f.write_bytes(pickle.dumps({"x": [1.0]})),
    "pickle.npz": lambda f: f.write_bytes(pickle.dumps({"x": [1.0]})),
    "empty.npy": lambda f: f.write_bytes(b""),
    "empty.npz": lambda f: f.write_bytes(b""),
    "scalar.npy": lambda f: np.save(f, np.float32(1)),
    "no_samples.npy": lambda f: np.save(f, X[:0]),
    "huge.npy": lambda f: f.write_bytes(header("(10000000000000, 4)")),
    "open_bracket.npy": lambda f: f.write_bytes(header("(3, 4")),
    "cut.npy": lambda f: f.write_bytes(header("(3, 4)") + bytes(8)),
    "huge.npz": lambda f: zipped(f, x_npy=header("(10000000000000, 4)")),
    "text.npz": lambda f: zipped(f, x_txt=b"1 2 3 4"),
    "corrupted.npz": corrupted,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_file_that_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    ARRAYS[name](tmp_path / name)
    assert str(tmp_path / name) in refused(tmp_path)
    assert str(tmp_path / name) in refused(tmp_path / name)


def test_unpickling_never_happens(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
            return Path.touch, (sprung,)

    pickle.loads(pickle.dumps(Trap()))
    assert sprung.exists()
    sprung.unlink()
    for name in ("raw.npy", "raw.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(tmp_path / name)
    np.save(tmp_path / "object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(tmp_path / "object.npy")
    assert not sprung.exists()


@pytest.mark.parametrize("kind", [0, 90, 127])
def test_a_tensor_file_of_an_unknown_type_is_refused_by_name(kind: int, tmp_path: Path) -> None:
    made = onnx.numpy_helper.from_array(X[:1])
    made.data_type = kind
    (tmp_path / "input_0.pb").write_bytes(made.SerializeToString())
    assert "input_0.pb" in refused(tmp_path)


@pytest.mark.parametrize("location", ["absolute", "secret.bin"])
def test_a_tensor_file_never_reads_another_file(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(X[:1].tobytes())
    made = onnx.TensorProto(dims=[1, 4], data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=str(tmp_path / "secret.bin") if location == "absolute" else location)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "input_0.pb").write_bytes(made.SerializeToString())
    assert "input_0.pb" in refused(tmp_path / "set")


# feeds


@pytest.mark.parametrize(
    ("feed", "named"),
    [
        ({"z": X[:1]}, "missing: x"),
        ({"x": X[:1], "z": X[:1]}, "not an input: z"),
        ({}, "missing: x"),
        ({"x": X[0]}, r"['?', 4]"),
        ({"x": X[None, :1]}, r"['?', 4]"),
        ({"x": X[:1, :3]}, r"[1, 3]"),
        ({"x": X[:1].astype(np.int32)}, "int32"),
        ({"x": np.array([["a", "b", "c", "d"]])}, "<U1"),
        ({"x": [[1.0, 2.0], [3.0]]}, "x"),
        ({"x": None}, "x"),
    ],
    ids=["wrong name", "one too many", "none", "rank 1", "rank 3", "width", "int32", "strings", "ragged", "None"],
)
def test_a_feed_that_does_not_fit_is_refused_by_sample_and_input(feed: Mapping[str, Any], named: str) -> None:
    message = refused([feed] * 4)
    assert any(f"sample[{i}]" in message for i in range(4))
    assert named in message


@pytest.mark.parametrize(
    "data", [5, None, 2.5, np.array(1.0, np.float32), [1, 2], ["x"], [], X[:0], X.astype(np.int32)], ids=repr
)
def test_data_that_are_no_samples_are_refused(data: Any) -> None:
    assert refused(data)


def test_one_array_for_two_inputs_is_refused_with_their_names() -> None:
    text = "g (float[N,4] left, float[N,4] right) => (float[N,4] y) { y = Add(left, right) }"
    made = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>' + text).SerializeToString()
    message = refused(X, model=made)
    assert "left" in message
    assert "right" in message


# functions


@pytest.mark.parametrize(
    "body",
    [
        "feeds = 5",
        "feeds = None",
        "def feeds(n): yield n",
        "def feeds(): return 5",
        "def other(): yield",
        "import no_such_module",
        "def feeds(:",
    ],
)
def test_a_function_that_gives_no_feeds_is_refused_by_name(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_samples.py").write_text(body + "\n")
    monkeypatch.delitem(sys.modules, "bad_samples", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises((UsageError, DataError), match="bad_samples:feeds"):
        edgeopt.quantize(models.dense(), "bad_samples:feeds", measure=False)


@pytest.mark.parametrize("source", ["no_such_module_at_all:feeds", "json:no_such_name", "json:", ":feeds"])
def test_a_function_that_is_not_there_is_refused_by_name(source: str) -> None:
    assert source in refused(source, UsageError)


# few, equal and constant samples


def test_few_samples_are_told() -> None:
    made = edgeopt.quantize(models.dense(), X[:10], **STATIC)
    assert [note for note in made.report.notes if note.startswith("only 8 samples")]


def test_enough_samples_are_not_told() -> None:
    made = edgeopt.quantize(models.dense(), X, **STATIC)
    assert not [note for note in made.report.notes if "samples to calibrate with" in note]


def test_a_single_sample_is_told_to_be_not_held_out() -> None:
    made = edgeopt.quantize(models.dense(), X[:1], **STATIC)
    assert made.report.samples == {"calibration": 1, "held_out": 1}
    assert [note for note in made.report.notes if "not held out" in note]


@pytest.mark.parametrize("where", [0, 150], ids=["held out", "calibration"])
def test_equal_samples_are_told_by_name(where: int) -> None:
    data = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    data[where + 1] = data[where]
    made = edgeopt.quantize(models.dense(), data, **STATIC)
    told = f"1 sample is the same as another: sample[{where + 1}] (as sample[{where}])"
    assert [note for note in made.report.notes if "same" in note] == [told]


def test_a_calibration_sample_that_is_held_out_as_well_is_told() -> None:
    data = X.copy()
    first, *_, last = np.random.default_rng(0).permutation(len(X))  # the first is held out
    data[last] = data[first]
    made = edgeopt.quantize(models.dense(), data, **STATIC)
    assert [note for note in made.report.notes if "same" in note] == [
        f"1 sample is the same as another: sample[{last}] (as sample[{first}])"
    ]


@pytest.mark.parametrize("where", [3, -1], ids=["held out", "calibration"])
def test_a_constant_sample_is_told_by_name(where: int) -> None:
    data = X.copy()
    data[where] = 0.5
    made = edgeopt.quantize(models.dense(), data, **STATIC)
    told = f"1 sample is constant: sample[{where % len(X)}]"
    assert [note for note in made.report.notes if "constant" in note] == [told]


def test_many_odd_samples_are_counted_and_three_are_named() -> None:
    made = edgeopt.quantize(models.dense(), np.ones((300, 4), np.float32), **STATIC)
    told = [note for note in made.report.notes if "same" in note or "constant" in note]
    assert [note.split(":")[0] for note in told] == [
        "32 samples are constant",
        "31 samples are the same as another",
        "128 samples are constant",
        "128 samples are the same as another",
    ]
    assert all(note.endswith(" ...") and note.count("sample[") <= 6 for note in told)


def test_random_data_are_told_to_mean_nothing() -> None:
    made = edgeopt.quantize(models.dense(), "random", **STATIC)
    assert made.report.notes[0].startswith("random data")
