"""Arrays, tensor files and functions as samples; which of them calibrate and which are held out."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.data import InputSpec, open_data, readable, specs, split
from edgeopt.data.made_up import random_samples
from edgeopt.data.readers import Readers
from edgeopt.data.spec import Feed, Sample
from edgeopt.errors import DataError, UsageError
from edgeopt.options.quantize import Quantize
from edgeopt.options.reading import Reading
from tests import models, tiny
from tests.models import STATIC

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ROW = [InputSpec("x", F32, (None, 4))]
TWO = [InputSpec("left", F32, (None, 4)), InputSpec("right", I64, (None,))]
X = models.normal(10, 4)
HELD = 32  # samples held out at the most
LAW = settings(max_examples=300, deadline=None, derandomize=True)


def opened(source: str | Path, inputs: list[InputSpec] = ROW, **options: int) -> dict[str, Feed]:
    """Feeds by the samples' names."""
    return {name: read() for name, read in open_data(source, inputs, Reading(**options)).samples}


def same(feed: Feed, **expected: np.ndarray) -> bool:
    """Whether `feed` is `expected`, types, shapes and every bit."""
    return feed.keys() == expected.keys() and all(
        feed[k].dtype == x.dtype and feed[k].shape == x.shape and feed[k].tobytes() == x.tobytes()
        for k, x in expected.items()
    )


# sizes


def test_a_sample_that_unpacks_to_more_than_it_may_is_refused_before(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1 << 18, 4), np.float32))
    small = Quantize(max_ram=1 << 20)
    ((_, read),) = open_data(tmp_path, ROW, small).samples
    with pytest.raises(DataError, match=r"'x' takes 4 MB; a sample may take 1 MB"):
        read()
    np.save(tmp_path / "rows.npy", np.zeros((1 << 18, 4), np.float32))
    assert len(open_data(tmp_path / "rows.npy", ROW, small).samples) == 1 << 18  # a row is small


def test_an_entry_that_no_input_names_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X, other=np.zeros((1 << 18, 4), np.float32))
    ((_, read),) = open_data(tmp_path, ROW, Quantize(max_ram=1 << 20)).samples
    assert same(read(), x=X, other=np.empty(0, np.float32))


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w") as entry:
        head = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)}
        np.lib.format.write_array_header_1_0(entry, head)
    ((_, read),) = open_data(tmp_path, ROW, Reading()).samples
    with pytest.raises(DataError, match="a sample may take"):
        read()


# code of the user's


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise KeyError('z')", "KeyError: 'z' (mine.py, line 2)"),
        ("import sys; sys.exit(0)", "it called sys.exit(0) (mine.py, line 2)"),
        ("yield 1 / 0", "ZeroDivisionError: division by zero (mine.py, line 2)"),
    ],
)
def test_what_a_function_of_the_users_raises_is_an_error_with_its_line(
    body: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(f"def feeds():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(DataError) as raised:
        open_data("mine:feeds", ROW, Reading())
    assert told in str(raised.value)


def test_a_module_that_exits_is_an_error_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"quits:feeds: it called sys.exit\(0\) \(quits.py, line 2\)"):
        open_data("quits:feeds", ROW, Reading())


# arrays in files


def test_an_npz_is_a_feed_by_input_names(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", left=X[i : i + 1], right=np.array([i]))
    found = opened(tmp_path, TWO)
    assert len(found) == 3
    for i in range(3):
        assert same(found[str(tmp_path / f"{i}.npz")], left=X[i : i + 1], right=np.array([i]))


def test_a_compressed_npz_and_a_single_one_are_read_too(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X)
    assert same(opened(tmp_path / "a.npz")[str(tmp_path / "a.npz")], x=X)


@pytest.mark.parametrize("name", ["a.npy", "a.NPY"])
def test_an_npy_holds_samples_along_its_first_axis(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        np.save(file, X)
    found = opened(tmp_path / name)
    assert len(found) == 10
    for i in range(10):
        assert same(found[f"{tmp_path / name}[{i}]"], x=X[i : i + 1])


def test_an_npy_without_a_batch_axis_is_one_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X[0])
    (feed,) = opened(tmp_path / "a.npy").values()
    assert same(feed, x=X[:1])


def test_an_npy_is_cut_into_batches_of_the_fixed_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    found = opened(tmp_path / "a.npy", [InputSpec("x", F32, (4, 4))])
    assert len(found) == 2  # the last two rows fill no batch
    assert same(found[f"{tmp_path / 'a.npy'}[0]"], x=X[:4])
    assert same(found[f"{tmp_path / 'a.npy'}[4]"], x=X[4:8])


def test_an_npy_in_fortran_order_gives_the_same_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(X))
    found = opened(tmp_path / "a.npy")
    assert all(same(found[f"{tmp_path / 'a.npy'}[{i}]"], x=X[i : i + 1]) for i in range(10))


def test_samples_can_be_read_again_and_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    for _, read in open_data(tmp_path / "a.npy", ROW, Reading()).samples:
        first, second = read(), read()
        assert np.array_equal(first["x"], second["x"])


def test_an_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match=r"a\.npy.*left, right"):
        opened(tmp_path / "a.npy", TWO)


# ONNX test data


def test_test_data_sets_are_feeds_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        for j, x in enumerate((X[i : i + 1], np.array([i]))):
            (folder / f"input_{j}.pb").write_bytes(onnx.numpy_helper.from_array(x).SerializeToString())
        (folder / "output_0.pb").write_bytes(b"not read")
    (tmp_path / "model.onnx").write_bytes(models.dense())
    found = opened(tmp_path, TWO)
    assert len(found) == 3
    for i in range(3):
        assert same(found[str(tmp_path / f"test_data_set_{i}")], left=X[i : i + 1], right=np.array([i]))


def test_a_test_data_set_that_lacks_an_input_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(X).SerializeToString())
    with pytest.raises(DataError, match=r"input_1\.pb"):
        opened(tmp_path, TWO)


# functions and memory


def test_a_function_in_the_working_folder_gives_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_samples.py").write_text(
        "import numpy as np\ndef feeds():\n    for i in range(1000):\n        yield {'x': np.full((1, 4), i,"
        " np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)
    found = opened("own_samples:feeds", samples=20)
    monkeypatch.delitem(sys.modules, "own_samples")
    assert sys.path == before
    assert len(found) == 20 + HELD  # as many as can be used, of a generator that may never end
    assert same(found["own_samples:feeds[7]"], x=np.full((1, 4), 7, np.float32))


def test_feeds_arrays_and_generators_in_memory_are_samples() -> None:
    as_feeds = Readers(ROW).samples([{"x": X[i : i + 1]} for i in range(10)])
    as_arrays = Readers(ROW).samples(X[i : i + 1] for i in range(10))
    as_one = Readers(ROW).samples(X)
    for found in (as_feeds, as_arrays, as_one):
        assert sorted(name for name, _ in found) == [f"sample[{i}]" for i in range(10)]
        for name, read in found:
            i = int(name[7:-1])
            assert same(read(), x=X[i : i + 1])


def test_lists_of_numbers_become_arrays() -> None:
    ((_, read),) = Readers([InputSpec("x", I64, (None, 4))]).samples([{"x": [[1, 2, 3, 4]]}])
    assert same(read(), x=np.array([[1, 2, 3, 4]]))


def test_random_samples_fit_the_inputs_and_repeat() -> None:
    inputs = specs(
        tiny.model("g (float[N,3] a, int64[2] b, float16[1] c, bool[N] d) => (float[N,3] y) { y = Relu(a) }")
    )
    for (_, first), (_, second) in zip(random_samples(inputs, 3), random_samples(inputs, 3), strict=True):
        feed = first()
        assert {k: (x.dtype.name, x.shape) for k, x in feed.items()} == {
            "a": ("float32", (1, 3)),
            "b": ("int64", (2,)),
            "c": ("float16", (1,)),
            "d": ("bool", (1,)),
        }
        assert all(np.array_equal(feed[k], x) for k, x in second().items())
    assert not np.array_equal(random_samples(inputs, 2)[0][1]()["a"], random_samples(inputs, 2)[1][1]()["a"])


# order and split


def test_the_order_is_fixed_and_mixes_the_classes(tmp_path: Path) -> None:
    for label in ("a", "b", "c", "d"):
        (tmp_path / label).mkdir()
        for i in range(25):
            np.savez(tmp_path / label / f"{i:02}.npz", x=X[:1])
    first, second = ([name for name, _ in open_data(tmp_path, ROW, Reading()).samples] for _ in range(2))
    assert first == second
    assert len(set(first)) == 100
    assert {Path(name).parent.name for name in first[:20]} == {"a", "b", "c", "d"}


def numbered(count: int) -> list[Sample]:
    return [(str(i), dict) for i in range(count)]


@LAW
@given(st.integers(2, 500), st.integers(1, 300))
def test_calibration_and_held_out_are_disjoint_and_bounded(count: int, wanted: int) -> None:
    calibration, held = split(numbered(count), wanted)
    names = [name for name, _ in calibration], [name for name, _ in held]
    assert not set(names[0]) & set(names[1])
    assert 1 <= len(calibration) <= wanted
    assert 1 <= len(held) <= HELD
    assert (calibration, held) == split(numbered(count), wanted)


@pytest.mark.parametrize(
    ("count", "wanted", "sizes"),
    [
        (1000, 128, (128, HELD)),
        (200, 128, (128, HELD)),
        (150, 128, (120, 30)),
        (10, 128, (8, 2)),
        (2, 128, (1, 1)),
        (10, 3, (3, 7)),
    ],
)
def test_a_fifth_is_held_out_when_there_are_few(count: int, wanted: int, sizes: tuple[int, int]) -> None:
    calibration, held = split(numbered(count), wanted)
    assert (len(calibration), len(held)) == sizes


def test_a_single_sample_serves_as_both() -> None:
    calibration, held = split(numbered(1), 128)
    assert calibration == held != []


def test_more_than_five_percent_of_unreadable_samples_are_refused() -> None:
    def broken() -> Mapping[str, np.ndarray]:
        raise DataError("torn")

    feeds, problems = readable([*numbered(38), ("bad", broken), ("worse", broken)])
    assert len(feeds) == 38
    assert problems == {"bad": "torn", "worse": "torn"}
    with pytest.raises(DataError, match=r"2 of the 39 samples looked at cannot be read.*bad \(torn\)"):
        readable([*numbered(37), ("bad", broken), ("worse", broken)])


def test_the_report_says_how_many_samples_did_what() -> None:
    made = edgeopt.quantize(models.dense(), models.normal(300, 4), samples=50, **STATIC)
    assert made.report.samples == {"calibration": 50, "held_out": HELD}
