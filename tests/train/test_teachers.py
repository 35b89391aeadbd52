"""A fixed teacher is asked once for a view, and what is kept is what it said."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import distill
from edgeopt.errors import DataError, UsageError
from edgeopt.listener import Listener
from edgeopt.runtime.session import open_session
from edgeopt.train.batches import Batch, Examples, batches, shuffled
from edgeopt.train.teachers import Panel, fixed, kept, outputs
from tests import tiny
from tests.train import toys

# per sample; over time; both
Y = "g (float[N,S,4] x) => (float[N,S] y) { y = ReduceSum <keepdims = 0> (x, last) }"
TIME_MAJOR = "g (float[N,S,4] x) => (float[S,N,4] y) { y = Transpose <perm = [1,0,2]> (x) }"
BOTH = """g (float[N,S,4] x) => (float[N,S] y, float[S,N,4] z) {
    y = ReduceSum <keepdims = 0> (x, last)
    z = Transpose <perm = [1,0,2]> (x)
}"""


@dataclass
class Counted:
    """A session that counts how often it is asked."""

    text: str
    asked: int = 0
    outputs: Sequence[str] = ()
    raw: Any = None
    inner: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        weights = {"last": np.int64([2])} if "last" in self.text else {}
        self.inner = open_session(tiny.model(self.text, **weights))
        self.outputs, self.raw = self.inner.outputs, self.inner.raw

    def run(self, feed: Any) -> list[Any]:
        self.asked += 1
        return self.inner.run(feed)


def examples(*lengths: int) -> Examples:
    """One sample [1, S, 4] for each length S."""
    return Examples(tuple({"x": toys.normal(i, 1, s, 4)} for i, s in enumerate(lengths)), None)


def right(answers: dict[str, torch.Tensor], batch: Batch) -> bool:
    x = batch.feed["x"].numpy()
    want = {"y": x.sum(2), "z": x.transpose(1, 0, 2)}
    if set(answers) == {"y"} and answers["y"].ndim == 3:
        want = {"y": want["z"]}
    return all(np.allclose(y.numpy(), want[name], rtol=1e-5, atol=1e-6) for name, y in answers.items())


def test_a_second_epoch_asks_the_teacher_nothing_and_gets_the_same_answers() -> None:
    data, session, bare = examples(*[3] * 20), Counted(Y), Counted(Y)
    with kept(None, b"", data.feeds, 0) as store:
        teach, anew = fixed(Panel([session]), store, "cpu"), fixed(Panel([bare]), None, "cpu")
        for epoch in range(3):
            for batch in shuffled(data, 6, (0, epoch)):
                assert torch.equal(teach(batch)["y"], anew(batch)["y"])  # sums of four numbers, in one order
            if not epoch:
                first = session.asked
    assert session.asked == first < bare.asked


def test_samples_of_other_shapes_are_kept_apart() -> None:
    data, session = examples(*[2, 3, 5, 3, 2] * 4), Counted(Y)
    with kept(None, b"", data.feeds, 0) as store:
        teach = fixed(Panel([session]), store, "cpu")
        for epoch in range(3):
            assert all(right(teach(b), b) for b in shuffled(data, 4, (0, epoch)))
            if not epoch:
                first = session.asked
    assert session.asked == first


@pytest.mark.parametrize("length", [3, 4, 6])  # 4: as many as a batch has samples
@pytest.mark.parametrize("text", [TIME_MAJOR, BOTH])
def test_answers_whose_first_axis_is_not_the_batch_are_never_kept(text: str, length: int) -> None:
    data, session = examples(*[length] * 8), Counted(text)
    with kept(None, b"", data.feeds, 0) as store:
        teach = fixed(Panel([session]), store, "cpu")
        asked = []
        for epoch in range(3):
            assert all(right(teach(b), b) for b in shuffled(data, 4, (0, epoch)))
            asked.append(session.asked)
    assert asked[2] - asked[1] == asked[1] - asked[0] == 2  # two batches an epoch


def test_a_batch_is_answered_from_samples_that_other_batches_brought() -> None:
    data, session = examples(*[3] * 12), Counted(Y)
    with kept(None, b"", data.feeds, 0) as store:
        teach = fixed(Panel([session]), store, "cpu")
        for batch in batches(data, 4):
            teach(batch)
        before = session.asked
        other = next(shuffled(data, 7, (1, 1)))  # of another size and order
        assert right(teach(other), other) and session.asked == before


def test_a_cache_outlives_the_run(tmp_path: Path) -> None:
    data = examples(*[3] * 12)
    for session in (Counted(Y), Counted(Y)):
        with kept(tmp_path / "cache", b"teacher", data.feeds, 0) as store:
            teach = fixed(Panel([session]), store, "cpu")
            assert all(right(teach(b), b) for b in batches(data, 2))
        last = session.asked
    assert last <= 2  # the first batch tells the shape and whether its first axis counts samples


def test_a_cache_is_not_shared_between_teachers_samples_or_ranks(tmp_path: Path) -> None:
    one, other = examples(3, 3), examples(3, 3, 3)
    moved = Examples((one.feeds[1], one.feeds[0]), None)
    renamed = Examples(tuple({"z": f["x"]} for f in one.feeds), None)
    wider = Examples(tuple({"x": f["x"].reshape(1, 2, 6)} for f in one.feeds), None)
    folders = set()
    for teacher, data, rank in (
        (b"a", one, 0),
        (b"b", one, 0),
        (b"a", other, 0),
        (b"a", moved, 0),
        (b"a", renamed, 0),
        (b"a", wider, 0),
        (b"a", one, 1),
    ):
        with kept(tmp_path, teacher, data.feeds, rank) as store:
            folders.add(store.folder)
    assert len(folders) == 7
    with kept(tmp_path, b"a", one.feeds, 0) as store:
        assert store.folder in folders


@pytest.mark.parametrize("harm", ["cut", "nonsense", "other shape", "gone"])
@pytest.mark.parametrize("which", ["*.there.npy", "*.values.npy", "*.npy"])
def test_a_broken_cache_file_is_made_anew(which: str, harm: str, tmp_path: Path) -> None:
    data = examples(*[3] * 8)
    for _ in range(2):
        with kept(tmp_path, b"", data.feeds, 0) as store:
            teach = fixed(Panel([Counted(Y)]), store, "cpu")
            assert all(right(teach(b), b) for b in batches(data, 2))
        for file in tmp_path.rglob(which):
            content = file.read_bytes()
            if harm == "gone":
                file.unlink()
            elif harm == "other shape":
                np.save(file, np.ones((3, 2)))
            else:
                file.write_bytes(content[:-3] if harm == "cut" else b"nonsense")


def test_a_cache_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DataError, match=r"--cache .*file: cannot be used"),
        kept(tmp_path / "file", b"", examples(3).feeds, 0),
    ):
        pass


def test_inputs_of_other_names_are_matched_by_position_and_another_number_is_refused() -> None:
    batch = next(batches(Examples(({"image": toys.normal(0, 1, 3, 4)},), None), 1))
    session = Counted(Y)
    assert np.allclose(outputs(session, batch)["y"], batch.feed["image"].numpy().sum(2), rtol=1e-5, atol=1e-6)
    session.raw = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name=n) for n in ("x", "mask")])
    with pytest.raises(DataError, match="inputs are x, mask, the samples have image"):
        outputs(session, batch)


def test_a_student_is_the_same_with_a_cache_that_is_empty_full_or_not_there(tmp_path: Path) -> None:
    made = [
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(7), cache=cache, **toys.QUICK)
        for cache in (None, tmp_path / "cache", tmp_path / "cache")
    ]
    assert made[0].improved and list((tmp_path / "cache").iterdir())
    # rows of a product are the same in every batch of full vectors: nothing but the place they come from differs
    assert all(toys.same_bytes(made[0].model, m.model) for m in made[1:])


class Watched(ThreadPoolExecutor):
    """Counts its tasks."""

    tasks = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks += 1
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ({"teacher": toys.perceptron(7)}, 3),  # 64 samples in batches of 16, of which the first is asked here
        ({"teacher": [toys.perceptron(7), toys.perceptron(9)]}, 3),
        ({"kind": "self", "generations": 3}, 6),
    ],
)
def test_a_student_is_the_same_whoever_asks_its_teachers(how: dict[str, Any], asked: int, workers: int) -> None:
    executor, seen = Watched(workers), list[tuple[str, int]]()
    listener = Listener(progress=lambda stage, done, total: seen.append((stage, done)))
    alone = distill(toys.perceptron(), toys.samples(labels=True), **how, **toys.QUICK)
    made = distill(
        toys.perceptron(), toys.samples(labels=True), executor=executor, listener=listener, **how, **toys.QUICK
    )
    assert executor.tasks == asked and ("asking the teacher", 48) in seen
    assert alone.improved and toys.same_bytes(alone.model, made.model)


def test_what_is_in_the_cache_is_not_asked_for_again(tmp_path: Path) -> None:
    how: dict[str, Any] = {"teacher": toys.perceptron(7), "cache": tmp_path / "cache", **toys.QUICK}
    executors = [Watched(2), Watched(2)]
    made = [distill(toys.perceptron(), toys.samples(), executor=e, **how) for e in executors]
    assert [e.tasks for e in executors] == [3, 0] and toys.same_bytes(made[0].model, made[1].model)


def test_answers_to_views_cannot_be_asked_for_before() -> None:
    with pytest.raises(UsageError, match="jobs asks a teacher for its answers to fixed views: not with augment"):
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(7), jobs=2, augment=("noise",))


def test_several_teachers_answer_with_their_mean_and_what_only_the_first_has_is_its_own() -> None:
    data = examples(*[3] * 4)
    double = "g (float[N,S,4] x) => (float[N,S] two) { z = ReduceSum <keepdims = 0> (x, last)  two = Add(z, z) }"
    panel = Panel([Counted(BOTH), Counted(double)], [{"y": "two"}])
    (batch,) = shuffled(data, 4, (0, 0))
    alone = outputs(Counted(BOTH), batch)
    assert np.allclose(panel(batch)["y"], 1.5 * alone["y"]) and np.array_equal(panel(batch)["z"], alone["z"])
    assert panel(batch)["y"].dtype == np.float32
