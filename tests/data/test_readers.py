"""Samples as people have them in Python: each form gives the feeds that the plain one gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeopt import quantize
from edgeopt.data import InputSpec, Sample
from edgeopt.data.readers import Readers
from edgeopt.errors import DataError
from tests.models import normal
from tests.quantization.test_sensitivity import chain

F32 = np.dtype(np.float32)
ROW = [InputSpec("x", F32, (None, 4))]
ONE = [InputSpec("x", F32, (1, 4))]
TWO = [InputSpec("a", F32, (None, 4)), InputSpec("b", np.dtype(np.int64), (None, 2))]
X = normal(10, 4)
B = np.arange(20).reshape(10, 2)


class Rows:
    """A dataset by index: no iteration, and nothing is read before it is asked for."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.rows[index]


class CalibrationReader:
    """As onnxruntime's: `get_next`, None at the end."""

    def __init__(self, feeds: list[Any]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def feeds(samples: list[Sample]) -> dict[str, dict[str, Any]]:
    return {name: {k: v.tolist() for k, v in read().items()} for name, read in samples}


WANT = {f"sample[{i}]": {"x": X[i : i + 1].tolist()} for i in range(10)}


@pytest.mark.parametrize(
    "data",
    [
        X,
        [X[i : i + 1] for i in range(10)],
        [{"x": X[i : i + 1]} for i in range(10)],
        [(X[i : i + 1], i) for i in range(10)],
        Rows([X[i] for i in range(10)]),
        Rows([(X[i], i) for i in range(10)]),
        Rows([{"x": X[i]} for i in range(10)]),
        Rows([{"x": X[i].tolist(), "text": "a word"} for i in range(10)]),
        CalibrationReader([{"x": X[i : i + 1]} for i in range(10)]),
    ],
    ids=["array", "arrays", "feeds", "pairs", "dataset of x", "of (x, y)", "of mappings", "of columns", "reader"],
)
def test_every_form_gives_the_same_feeds(data: Any) -> None:
    assert feeds(Readers(ROW).samples(data)) == WANT


def test_a_batch_is_taken_apart_where_the_models_is_fixed_and_stays_whole_where_it_is_free() -> None:
    batches = [(X[:4], [0] * 4), (X[4:8], [0] * 4)]
    apart = feeds(Readers(ONE).samples(batches))
    assert apart == {f"sample[{i // 4}][{i % 4}]": {"x": X[i : i + 1].tolist()} for i in range(8)}
    whole = feeds(Readers(ROW).samples(batches))
    assert whole == {"sample[0]": {"x": X[:4].tolist()}, "sample[1]": {"x": X[4:8].tolist()}}


@pytest.mark.parametrize("data", [np.repeat(X, 10, 0), [x[None] for x in np.repeat(X, 10, 0)]], ids=["array", "list"])
def test_what_is_sorted_in_memory_is_not_read_in_its_order(data: Any) -> None:
    first, again, other = ([n for n, _ in Readers(ROW, seed=s).samples(data)] for s in (0, 0, 1))
    assert first == again != other and sorted(first) == sorted(other) and len({*first}) == 100
    classes = [int(name[7:-1]) // 10 for name in first]
    assert len(set(classes[:32])) > 7  # of ten: these are held out


def test_arrays_are_in_the_order_of_the_inputs_and_what_is_beyond_is_a_label() -> None:
    for more in ((), (3,), (np.zeros(1),)):
        found = feeds(Readers(TWO).samples([(X[:1], B[:1], *more)]))
        assert found == {"sample[0]": {"a": X[:1].tolist(), "b": B[:1].tolist()}}


def test_a_dataset_is_read_when_it_is_asked_for_in_one_mixed_order() -> None:
    rows = Rows([np.full(4, i, np.float32) for i in range(100)])
    samples = Readers(ROW, seed=1).samples(rows)
    assert rows.read == [0]  # the first, to see whether it fits
    names = [name for name, _ in samples]
    assert names == [name for name, _ in Readers(ROW, seed=1).samples(rows)] and names != sorted(names)
    assert names != [name for name, _ in Readers(ROW, seed=2).samples(rows)]
    samples[7][1]()
    assert f"sample[{rows.read[-1]}]" == names[7]


def test_of_an_iterator_no_more_is_taken_than_can_be_used() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield X[:1]

    assert len(Readers(ROW, count=7).samples(endless())) == 7
    assert len(Readers(ROW, count=7).samples([X[:1]] * 9)) == 9  # a list is there already


@pytest.mark.parametrize("data", [X.astype(np.float64), [X[:1].astype(np.float64)], [{"x": X[:1].tolist()}]])
def test_float64_becomes_the_inputs_type_and_is_told_once(data: Any) -> None:
    readers = Readers(ROW)
    assert all(read()["x"].dtype == np.float32 for _, read in readers.samples(data))
    assert readers.notes == ["input 'x': float64 samples become float32"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "samples are a path, an array, or something that yields feeds, not 5"),
        ({"x": X}, "samples are a path"),
        (Rows([]), "a Rows without samples"),
        ([("a", "b", "c")], r"sample\[0\]: a sample is .*\(x\), got tuple of str, str, str"),
        ([3], r"sample\[0\]: a sample is .* got int"),
        (Rows([object()]), r"sample\[0\]: a sample is .* got object"),
        ([{"x": [[1, 2], [3]]}], r"sample\[0\]: input 'x' is no array"),
    ],
)
def test_what_is_no_sample_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Readers(ROW).samples(data)


def test_a_picture_in_a_column_is_told_what_to_do_with_it() -> None:
    from PIL import Image

    with pytest.raises(DataError, match="give a folder of images"):
        Readers(ROW).samples(Rows([{"x": Image.new("RGB", (2, 2))}]))


def test_torch_datasets_and_loaders_calibrate_as_arrays_do() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    rows = normal(64, 16)
    data = TensorDataset(torch.from_numpy(rows).requires_grad_(), torch.arange(64))
    for given in (data, DataLoader(data, batch_size=4)):
        report = quantize(chain(), given, mode="static", include=("Gemm",), measure=False).report
        assert report.worst_sqnr_db > 20


def test_float64_is_told_in_the_report() -> None:
    found = quantize(chain(), normal(64, 16).astype(np.float64), mode="static", include=("Gemm",), measure=False)
    assert "input 'x': float64 samples become float32" in found.report.notes
