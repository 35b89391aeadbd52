"""Labels from where they are written, and batches that hold every sample once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.data import InputSpec, Sample
from edgeopt.errors import DataError
from edgeopt.train.batches import Batch, Examples, batch_limit, batches, divide, groups, read, shuffled
from edgeopt.train.losses import NO_LABEL
from tests.train import toys


def named(*names: str) -> list[Sample]:
    """Samples that are called so."""
    return [(n, partial(dict, x=toys.normal(i, 1, 4))) for i, n in enumerate(names)]


def listed(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def images(count: int, *sides: int) -> Examples:
    """Pictures [1, 2, side, side] of the sides in turn, whose label is their index."""
    feeds = tuple({"x": toys.normal(i, 1, 2, sides[i % len(sides)], sides[i % len(sides)])} for i in range(count))
    return Examples(feeds, np.arange(count))


def same(a: Batch, b: Batch) -> bool:
    assert a.labels is not None and b.labels is not None
    feeds = all(torch.equal(a.feed[k], b.feed[k]) for k in a.feed)
    return feeds and np.array_equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)


def test_labels_of_a_table_belong_to_samples_by_the_end_of_their_path(tmp_path: Path) -> None:
    table = listed(tmp_path, "file,label\nb.npz,2\nin/a.npz,0\nout/a.npz,1\n\nnobody.npz,7\n")
    examples, problems = read(named("/d/in/a.npz", "/d/b.npz", "/d/out/a.npz"), table)
    assert examples.labels is not None and examples.labels.tolist() == [0, 2, 1] and not problems


def test_quotes_commas_and_spaces_in_a_table_are_those_of_csv(tmp_path: Path) -> None:
    table = listed(tmp_path, '"a, b.npz",big cat\n"say ""c"".npz","dog, small"\n  d.npz , big cat \n')
    examples, _ = read(named("a, b.npz", 'say "c".npz', "d.npz"), table)
    assert examples.classes == ("big cat", "dog, small")
    assert examples.labels is not None and examples.labels.tolist() == [0, 1, 0]


def test_names_in_a_table_have_the_place_that_the_classes_give_them(tmp_path: Path) -> None:
    table = listed(tmp_path, "a,cat\nb,dog\nc,cat\n")
    examples, _ = read(named("a", "b", "c"), table, ("bird", "dog", "cat"))
    assert examples.labels is not None and examples.labels.tolist() == [2, 1, 2]
    assert examples.classes == ("bird", "dog", "cat")


def test_numbers_that_are_no_class_names_are_places(tmp_path: Path) -> None:
    table = listed(tmp_path, "a,2\nb,0\nc,10\n")
    examples, _ = read(named("a", "b", "c"), table, ("bird", "dog", "cat"))
    assert examples.labels is not None and examples.labels.tolist() == [2, 0, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,0\nb,1,2\nc,0\n", r"labels\.csv: line 2 has not two columns"),
        ("a,0\nb\n", r"labels\.csv: line 2 has not two columns"),
        ("", r"labels\.csv: line 1 has not two columns"),
        ('"a,0\nb,1\n', r"labels\.csv: line 1 has not two columns"),  # a quote that nothing ends
        ("a,0\nb,1\n", "c: no line of --labels names it"),
        ("a,0\nb,0\nc,0\n", r"labels\.csv: one label for all samples"),
    ],
)
def test_a_table_that_does_not_label_every_sample_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(named("a", "b", "c"), listed(tmp_path, text))


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00,1\n")
    for path in (tmp_path / "gone.csv", tmp_path, tmp_path / "binary.csv"):
        with pytest.raises(DataError, match=rf"--labels {path}: cannot be read"):
            read(named("a"), path)


def test_a_table_wins_over_the_entry_in_a_sample_which_is_no_input(tmp_path: Path) -> None:
    samples = [(n, partial(dict, x=toys.normal(0, 1, 4), label=np.array([5 + i]))) for i, n in enumerate("ab")]
    entries, _ = read(samples, None)
    table, _ = read(samples, listed(tmp_path, "a,0\nb,1\n"))
    none, _ = read(samples, False)
    assert entries.labels is not None and entries.labels.tolist() == [5, 6]
    assert table.labels is not None and table.labels.tolist() == [0, 1]
    assert none.labels is None
    assert all(set(f) == {"x"} for e in (entries, table, none) for f in e.feeds)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 99),
    kinds=st.integers(1, 3),
)
def test_every_sample_is_in_one_batch_of_one_share(count: int, size: int, ranks: int, seed: int, kinds: int) -> None:
    examples = images(count, *(4, 6, 8)[:kinds])
    found = [b for i in range(ranks) for b in shuffled(examples, size, (seed, 0), (), (i, ranks))]
    assert sorted(i for b in found for i in b.indices.tolist()) == list(range(count))
    for b in found:
        assert 0 < len(b.indices) <= size and b.labels is not None
        assert b.labels.tolist() == b.indices.tolist()
        for row, i in zip(b.feed["x"], b.indices, strict=True):
            assert np.array_equal(row[None].numpy(), examples.feeds[i]["x"])


@pytest.mark.parametrize("augment", [(), ("flip", "crop"), ("flip", "crop", "mixup")])
def test_a_batch_is_the_same_whoever_makes_it(augment: tuple[str, ...]) -> None:
    examples = images(23, 8, 16)
    alone = list(shuffled(examples, 4, (0, 3), augment))
    for count in (2, 3):
        for i in range(count):
            mine = list(shuffled(examples, 4, (0, 3), augment, (i, count)))
            assert len(mine) == len(alone[i::count])
            assert all(same(a, b) for a, b in zip(mine, alone[i::count], strict=True))


def test_another_seed_shuffles_otherwise() -> None:
    first, second, again = (
        [b.indices.tolist() for b in shuffled(images(20, 4), 4, seed)] for seed in ((0, 0), (0, 1), (0, 0))
    )
    assert first == again != second


def test_augmented_views_leave_the_samples_alone_and_keep_their_pixels() -> None:
    examples = images(12, 16)
    before = [f["x"].copy() for f in examples.feeds]
    (flipped,) = shuffled(examples, 12, (0, 0), ("flip",))
    turned = 0
    for x, i in zip(flipped.feed["x"].numpy(), flipped.indices, strict=True):
        assert any(np.array_equal(x, y) for y in (before[i][0], before[i][0][..., ::-1]))
        turned += not np.array_equal(x, before[i][0])
    assert 0 < turned < 12
    (moved,) = shuffled(examples, 12, (0, 0), ("crop",))
    for x, i in zip(moved.feed["x"].numpy(), moved.indices, strict=True):
        # by up to an eighth of the side: what lies further in is there, shifted
        shifts = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
        inner = [before[i][0][:, 2 - a : 14 - a, 2 - b : 14 - b] for a, b in shifts]
        assert any(np.array_equal(x[:, 2:14, 2:14], y) for y in inner)
    assert all(np.array_equal(f["x"], y) for f, y in zip(examples.feeds, before, strict=True))


def test_batches_are_of_one_shape_and_as_few_as_can_be() -> None:
    examples = images(25, 4, 6)  # 13 and 12 of them
    found = list(batches(examples, 5))
    assert sorted(len(b.indices) for b in found) == [2, 3, 5, 5, 5, 5]
    assert len(list(groups(examples, 5, np.random.default_rng(1).permutation(25)))) == 6  # in any order


def test_nothing_is_trained_with_that_is_measured_with() -> None:
    for count in (2, 3, 10, 7000):
        train, held = divide(Examples(({},) * count, None), 0)
        assert sorted([*train, *held]) == list(range(count))
        assert len(held) == min(1000, max(1, count // 5))
    assert divide(Examples(({},), None), 0) == ([0], [0])  # with one there is no other way


def test_samples_without_labels_are_trained_with_and_never_held_out(tmp_path: Path) -> None:
    table = listed(tmp_path, "\n".join(f"{i},{i % 2}" for i in range(10)))
    examples, problems = read(named(*map(str, range(10))), table, (), named("more/a", "more/b", "more/c"))
    assert not problems and examples.labels is not None
    assert examples.labels.tolist() == [*([0, 1] * 5), NO_LABEL, NO_LABEL, NO_LABEL]
    train, held = divide(examples, 0)
    assert sorted([*train, *held]) == list(range(13)) and set(train) >= {10, 11, 12} and len(held) == 2


def test_a_fixed_batch_limits_and_a_free_one_does_not() -> None:
    fixed, free = InputSpec("x", np.dtype("float32"), (1, 4)), InputSpec("y", np.dtype("float32"), (None, 4))
    assert batch_limit([fixed]) == 1
    assert batch_limit([free]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,-1\nb,0\n", "label -1 is no index of a class"),
        ("a,1.0\nb,0\n", r"label 1\.0 is no index of a class"),
        ("a,0\nb,1e0\n", "label 1e0 is no index of a class"),
        ("a,\nb,0\n", "'a' has no label"),
        ("a,0\nb,1\na,1\n", "'a' has two labels"),
    ],
)
def test_a_label_that_is_no_class_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(named("a", "b"), listed(tmp_path, text))


def test_a_line_may_be_there_twice_if_it_says_the_same_and_a_mark_of_the_encoding_is_no_name(tmp_path: Path) -> None:
    examples, _ = read(named("a", "b"), listed(tmp_path, "\ufeffa,0\nb,1\na,0\n"))
    assert examples.labels is not None and examples.labels.tolist() == [0, 1]


def test_a_label_that_is_no_name_of_a_class_is_refused_with_the_nearest(tmp_path: Path) -> None:
    table = listed(tmp_path, "a,cat\nb,dogg\n")
    with pytest.raises(DataError, match=r"label 'dogg' is not in --student-classes; did you mean 'dog'"):
        read(named("a", "b"), table, ("bird", "dog", "cat"))


@pytest.mark.parametrize(
    "label", [np.array(1.5), np.array(np.nan), np.array([0, 1, 0]), np.array([], np.int64), np.array(1j)]
)
def test_an_entry_that_is_not_the_index_of_one_class_is_refused(label: np.ndarray) -> None:
    samples: list[Sample] = [(n, partial(dict, x=toys.normal(0, 1, 4), label=label)) for n in "ab"]
    with pytest.raises(DataError, match=r"a: entry 'label' .* is not the index of one class"):
        read(samples, None)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_an_entry_may_be_a_whole_number_of_any_type(kind: type, shape: tuple[int, ...]) -> None:
    samples: list[Sample] = [
        (str(i), partial(dict, x=toys.normal(0, 1, 4), label=np.full(shape, i, kind))) for i in range(3)
    ]
    examples, _ = read(samples, None)
    assert examples.labels is not None and examples.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_pictures_with_their_channels_last_are_augmented_as_those_with_theirs_first(colours: int) -> None:
    last = Examples(tuple({"x": toys.normal(i, 1, 16, 16, colours)} for i in range(12)), None)
    first = Examples(tuple({"x": np.ascontiguousarray(np.moveaxis(f["x"], -1, 1))} for f in last.feeds), None)
    for augment in (("flip",), ("crop",), ("flip", "crop", "mixup")):
        (a,), (b,) = (shuffled(e, 12, (0, 0), augment) for e in (last, first))
        assert torch.equal(a.feed["x"].movedim(-1, 1), b.feed["x"])
        assert not torch.equal(a.feed["x"], torch.cat([torch.from_numpy(last.feeds[i]["x"]) for i in a.indices]))


def test_samples_of_several_rows_fill_a_batch_with_as_many_rows() -> None:
    examples = Examples(tuple({"x": toys.normal(i, 4, 3)} for i in range(10)), None)
    assert examples.rows == 4
    found = list(batches(examples, 8))
    assert [b.feed["x"].shape[0] for b in found] == [8] * 5
    rows = torch.cat([b.feed["x"] for b in found]).numpy()
    assert np.array_equal(rows, np.concatenate([f["x"] for f in examples.feeds]))
    assert [len(b.indices) for b in batches(examples, 3)] == [1] * 10  # less than a sample there is not
