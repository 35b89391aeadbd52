"""Which outputs are compared, in whose order of classes, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgeopt import distill
from edgeopt.errors import DataError, UsageError
from edgeopt.listener import Listener
from edgeopt.options.distill import Distill
from edgeopt.train.losses import LOSSES
from edgeopt.train.pairs import Pair, class_order, matched, paired
from tests import tiny
from tests.train import toys

OURS = ("cat", "tabby cat", "dog")


def files(folder: Path, student: str, teacher: str) -> dict[str, Path]:
    (folder / "s.txt").write_text(student, encoding="utf-8")
    (folder / "t.txt").write_text(teacher, encoding="utf-8")
    return {"student_classes": folder / "s.txt", "teacher_classes": folder / "t.txt"}


def wired(*outputs: str) -> ir.Model:
    """A model with outputs of these names."""
    body = " ".join(f"{o} = Relu(x)" for o in outputs)
    return tiny.model(f"g (float[N,3] x) => ({', '.join(f'float[N,3] {o}' for o in outputs)}) {{ {body} }}")


@pytest.mark.parametrize("seed", range(5))
def test_values_in_order_are_found_under_their_names(seed: int, tmp_path: Path) -> None:
    theirs = np.random.default_rng(seed).permutation(["dog", "bird", "tabby cat", "cat", "cow"]).tolist()
    found = files(tmp_path, "\n".join(OURS), "\n".join(theirs) + "\n\n")
    order = class_order(found["student_classes"], found["teacher_classes"])
    values = torch.from_numpy(toys.normal(seed, 4, 5))
    ordered = Pair("y", "y", "kd", order).theirs(values)
    assert ordered.shape == (4, 3)
    for i, name in enumerate(OURS):
        assert torch.equal(ordered[:, i], values[:, theirs.index(name)])


def test_without_files_the_order_is_the_teacher_s() -> None:
    values = torch.from_numpy(toys.normal(0, 4, 5))
    assert class_order(None, None) is None
    assert torch.equal(Pair("y", "y", "kd").theirs(values), values)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("cat\ndog", "dog\ncats", r"t\.txt: no class 'cat'; did you mean 'cats'\? It is in .*s\.txt"),
        ("cat\ndog\ncat", "dog\ncat", r"s\.txt: a class name is there twice"),
        ("cat\ndog", "dog\ncat\ndog", r"t\.txt: a class name is there twice"),
        ("\n \n", "dog", r"s\.txt: no class name"),
        ("dog", "", r"t\.txt: no class name"),
    ],
)
def test_names_that_give_no_order_are_refused(student: str, teacher: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        class_order(*files(tmp_path, student, teacher).values())


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    found = files(tmp_path, "cat", "cat")
    found["teacher_classes"].write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"t\.txt: cannot be read as class names"):
        class_order(*found.values())
    with pytest.raises(DataError, match="gone: cannot be read as class names"):
        class_order(tmp_path / "gone", found["student_classes"])
    with pytest.raises(UsageError, match="student_classes and teacher_classes go together"):
        Distill(student_classes=found["student_classes"])


def reordered(order: list[int], extra: int = 0) -> onnx.ModelProto:
    """The teacher of seed 7 whose class i is class order[i] of the plain one, and `extra` classes behind."""
    b = toys.normal(8, 8, 3)[:, order]
    text = toys.PERCEPTRON.format(classes=3 + extra)
    return tiny.proto(text, a=toys.normal(7, 4, 8), b=np.hstack([b, toys.normal(9, 8, extra)]))


def test_a_teacher_whose_classes_are_in_another_order_teaches_by_their_names(tmp_path: Path) -> None:
    found = files(tmp_path, "a\nb\nc", "c\na\nb\n")
    plain, moved = (
        distill(toys.perceptron(), toys.samples(labels=True), teacher=teacher, **toys.QUICK, **names)
        for teacher, names in ((toys.perceptron(7), {}), (reordered([2, 0, 1]), found))
    )
    assert plain.teacher == moved.teacher == 1.0
    for a, b in zip(plain.log, moved.log, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)  # float32 sums of three in another order
        assert b.score == a.score


def test_a_teacher_with_more_classes_teaches_those_that_the_student_has(tmp_path: Path) -> None:
    found = files(tmp_path, "a\nb\nc", "a\nb\nc\nd\ne\n")
    few, many = (
        distill(toys.perceptron(), toys.samples(), teacher=teacher, **toys.QUICK, **names)
        for teacher, names in ((toys.perceptron(7), {}), (reordered([0, 1, 2], extra=2), found))
    )
    assert few.improved and many.after == pytest.approx(few.after, rel=1e-4)


def test_a_teacher_with_other_classes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[.*3\].*\[.*5\].*--loss similarity.*--student-classes.*--match"):
        distill(toys.perceptron(), toys.samples(), teacher=reordered([0, 1, 2], extra=2))
    more = files(tmp_path, "a\nb\nc", "e\nd\nc\nb\na")
    with pytest.raises(UsageError, match="--teacher-classes names more classes than the teacher's output 'y' has: 3"):
        distill(toys.perceptron(), toys.samples(), teacher=toys.perceptron(7), **more)


def test_outputs_are_matched_as_asked_or_by_name_or_by_position() -> None:
    assert matched(wired("p", "q"), wired("q", "p"), {}) == {"p": "p", "q": "q"}
    assert matched(wired("p", "q"), wired("q", "z"), {}) == {"q": "q"}
    assert matched(wired("p", "q"), wired("r", "s"), {}) == {"p": "r", "q": "s"}
    assert matched(wired("p", "q"), wired("q", "p"), {"p": "q"}) == {"p": "q"}


def shaped(**outputs: str) -> ir.Model:
    """A model with outputs of these names and declared shapes."""
    body = " ".join(f"{o} = Identity({o}_in)" for o in outputs)
    given = ", ".join(f"{kind} {o}_in" for o, kind in outputs.items())
    return tiny.model(f"g ({given}) => ({given.replace('_in', '')}) {{ {body} }}")


def test_an_output_goes_with_the_only_one_of_its_shape() -> None:
    embedder = shaped(feature="float[N,512]", logits="float[N,10]")
    assert matched(shaped(scores="float[N,10]"), embedder, {}) == {"scores": "logits"}
    swapped = shaped(a="float[N,10]", b="float[N,512]")
    assert matched(swapped, embedder, {}) == {"a": "logits", "b": "feature"}
    assert matched(shaped(a="float[N,10]", b="float[N,10]"), shaped(c="float[N,10]", d="float[M,10]"), {}) == {
        "a": "c",
        "b": "d",
    }


def test_outputs_of_other_sizes_pair_by_position_for_losses_and_class_files_that_take_them() -> None:
    assert matched(shaped(logits="float[N,10]"), shaped(output="float[N,99]"), {}) == {"logits": "output"}
    found = matched(shaped(a="float[N,10]", b="float[N,7]"), shaped(p="float[N,10]", q="float[N,99]"), {})
    assert found == {"a": "p", "b": "q"}


def test_outputs_of_which_several_fit_are_not_guessed() -> None:
    with pytest.raises(UsageError, match="say which belong together"):
        matched(shaped(y="float[N,10]"), shaped(p="float[N,10]", q="float[N,10]"), {})
    with pytest.raises(UsageError, match="say which belong together"):
        matched(shaped(a="float[N,10]", b="float[N,10]"), shaped(p="float[N,10]", q="float[N,3]", r="float[N]"), {})
    with pytest.raises(UsageError, match="say which belong together"):
        matched(shaped(y="float[N,10]"), shaped(classes="int64[N,10]", boxes="float[N,4]"), {})


def test_outputs_that_nothing_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"outputs p, q and r: .*--match STUDENT=TEACHER"):
        matched(wired("p", "q"), wired("r"), {})
    with pytest.raises(UsageError, match="--match p=logitz: no output 'logitz'; did you mean 'logits'"):
        matched(wired("p"), wired("logits"), {"p": "logitz"})


def test_only_a_relative_loss_compares_other_sizes_and_only_of_as_many_samples() -> None:
    ours, theirs = {"y": [torch.zeros(4, 5)]}, {"y": [torch.zeros(4, 8)]}
    assert paired({"y": "y"}, ours, theirs, Distill(loss="similarity"))[0].loss == "similarity"
    for loss in ("kd", "cosine", "mse"):
        with pytest.raises(UsageError, match="cannot be compared"):
            paired({"y": "y"}, ours, theirs, Distill(loss=loss))


def test_embeddings_of_another_size_come_closer_in_what_they_find_alike() -> None:
    data = toys.samples(120)
    found = distill(
        toys.perceptron(classes=5), data, teacher=toys.perceptron(7, classes=9), loss="similarity", **toys.QUICK
    )
    assert found.losses == {"y": "similarity"} and found.metric == "held-out fidelity to the teacher"
    assert found.before < found.after < 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 7, 5), (4, 5, 2, 3)])
def test_the_classes_of_a_picture_are_put_in_order_along_its_channels(shape: tuple[int, ...]) -> None:
    values, order = torch.from_numpy(toys.normal(0, *shape)), (4, 0, 2)
    ordered = Pair("y", "y", "kd", order).theirs(values)
    axis = 1 if len(shape) == 4 else len(shape) - 1
    assert ordered.shape == (*(n for i, n in enumerate(shape) if i != axis), 3)  # last, where the losses look for them
    for i, j in enumerate(order):
        assert torch.equal(ordered[..., i], values.select(axis, j))


def test_the_axis_of_the_classes_is_as_told_and_makes_them_classes() -> None:
    theirs = {"y": [torch.from_numpy(toys.normal(i, 4, 5, 9)) for i in range(2)]}
    (plain,) = paired({"y": "y"}, theirs, theirs, Distill())
    (told,) = paired({"y": "y"}, theirs, theirs, Distill(class_axes={"y": 1}))
    assert (plain.loss, told.loss) == ("mse", "kd")
    y = theirs["y"][0]
    assert torch.equal(told.ours(y), y.movedim(1, -1)) and torch.equal(plain.ours(y), y)
    one = torch.nn.functional.kl_div(y.log_softmax(1), y.flip(0).log_softmax(1), reduction="sum", log_target=True)
    assert LOSSES["kd"](told.ours(y), told.theirs(y.flip(0)), 1.0, None) == pytest.approx(
        float(one) / (4 * 9), rel=1e-5
    )


@pytest.mark.parametrize("axis", [0, 3, -3, -4, 7])
def test_an_axis_that_cannot_hold_classes_is_refused(axis: int) -> None:
    theirs = {"y": [torch.zeros(4, 5, 9)]}
    with pytest.raises(UsageError, match=rf"--class-axis y={axis}: the output is \[4, 5, 9\]; from 1"):
        paired({"y": "y"}, theirs, theirs, Distill(class_axes={"y": axis}))
    with pytest.raises(UsageError, match="--class-axis: no output 'z' is compared"):
        paired({"y": "y"}, theirs, theirs, Distill(class_axes={"z": 1}))


def test_a_teacher_of_more_classes_gives_probabilities_though_those_of_the_student_are_not_all(tmp_path: Path) -> None:
    found = files(tmp_path, "a\nb\nc", "a\nb\nc\nd\ne\n")
    theirs = {"y": [torch.softmax(torch.from_numpy(toys.normal(i, 4, 5)), -1) for i in range(3)]}
    (pair,) = paired({"y": "y"}, {"y": [torch.zeros(4, 3)]}, theirs, Distill(**found))
    assert pair.loss == "probabilities"


def test_outputs_that_hold_whole_numbers_are_not_compared_and_refused_where_they_are_asked_for() -> None:
    values = {"y": [torch.zeros(4, 3)], "ids": [torch.zeros(4, dtype=torch.int64)]}
    same_names = {"y": "y", "ids": "ids"}
    assert [p.student for p in paired(same_names, values, values, Distill(loss="mse"))] == ["y"]
    with pytest.raises(UsageError, match=r"--match ids=ids: .*no numbers to learn"):
        paired({"ids": "ids"}, values, values, Distill(match={"ids": "ids"}))
    with pytest.raises(UsageError, match="no output holds numbers"):
        paired({"ids": "ids"}, values, values, Distill())


def test_a_student_that_also_gives_the_index_of_its_class_learns_its_scores() -> None:
    text = toys.PERCEPTRON.format(classes=3).replace("float[N,3] y)", "float[N,3] y, int64[N] ids)")
    text = text.replace("}", "ids = ArgMax <axis = 1, keepdims = 0> (y) }")
    student, teacher = (tiny.proto(text, a=toys.normal(i, 4, 8), b=toys.normal(i + 1, 8, 3)) for i in (0, 7))
    found = distill(student, toys.samples(), teacher=teacher, **toys.QUICK)
    assert found.improved and found.losses == {"y": "kd"}


def test_labels_teach_the_first_output_and_not_another_that_has_fewer_classes() -> None:
    # z has two classes and there are three labels: a cross-entropy of z would fail
    found = distill(toys.branched(), toys.samples(labels=True), teacher=toys.branched(7), alpha=0.5, **toys.QUICK)
    assert found.improved and found.losses == {"y": "kd", "z": "kd"} and found.metric == "held-out accuracy"


def test_labels_of_an_output_that_tells_no_classes_are_not_used_and_that_is_said() -> None:
    made, notes = [], list[str]()
    for labels in (True, False):
        more = {"listener": Listener(note=notes.append)} if labels else {}
        data = toys.samples(labels=labels)
        made.append(distill(toys.perceptron(), data, teacher=toys.perceptron(7), loss="mse", **more, **toys.QUICK))
    assert any("labels are not used: output 'y' tells no classes (--loss mse)" in n for n in notes)
    assert made[0].metric == "held-out fidelity to the teacher" and toys.same_bytes(made[0].model, made[1].model)


def test_scores_of_which_none_stands_out_are_classes_where_there_are_labels() -> None:
    body = "g (float[N,8] x) => (float[N,80] y) { y = MatMul(x, w) }"
    model = tiny.model(body, w=0.1 * toys.normal(0, 8, 80))
    feeds = [{"x": toys.normal(i, 1, 8), "label": np.array([i % 80])} for i in range(160)]
    for labels, loss in ((None, "kd"), (False, "cosine")):
        notes: list[str] = []
        distill(model, feeds, teacher=model, epochs=1, labels=labels, listener=Listener(note=notes.append))
        assert any(n.startswith(f"--loss auto: {loss} for y") for n in notes)
        assert not any("labels are not used" in n for n in notes)
