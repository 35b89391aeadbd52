"""What a run needs, checked before it trains: peers that fit, a device that is there, samples for every network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import edgeopt
from edgeopt import distill
from edgeopt.errors import DataError, ModelError, UsageError
from edgeopt.train import batches
from tests import tiny
from tests.models import Ears
from tests.train import toys

ONE = {"epochs": 1, "batch_size": 16}


def on_disk(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "peer.onnx")
    return folder / "peer.onnx"


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (toys.perceptron(3, classes=5), r"'y': the student gives \[1, 3\], the teacher \[1, 5\]"),
        (
            tiny.proto(
                toys.BRANCHED.replace("y", "p").replace("z", "q").replace("[N,2]", "[N,3]"),
                a=toys.normal(0, 4, 8),
                b=toys.normal(1, 8, 3),
                c=toys.normal(2, 8, 3),
            ),
            "outputs y and p, q",
        ),
    ],
    ids=["other classes", "other outputs"],
)
def test_a_further_peer_that_does_not_fit_is_refused(peer: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    data, peers = toys.samples(40, labels=True), (on_disk(tmp_path, peer),)
    with pytest.raises(UsageError, match=message):
        distill(toys.perceptron(), data, teacher=toys.perceptron(7), kind="online", peers=peers, **ONE)


def test_a_further_peer_that_lacks_one_of_the_outputs_is_refused(tmp_path: Path) -> None:
    data, peers = toys.samples(40, labels=True), (on_disk(tmp_path, toys.perceptron(3)),)
    with pytest.raises(UsageError, match="--peer: one has no output that goes with 'z'"):
        distill(toys.branched(), data, teacher=toys.branched(7), kind="online", peers=peers, **ONE)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: "):
        distill(toys.perceptron(), toys.samples(20), teacher=toys.perceptron(7), device=device, **ONE)


TYPED = (
    "g (float[N,4] x, float[N,3] types) => (float[N,3] y) { h = MatMul(x, a)  r = Relu(h)  s = MatMul(r, b)  y = Add(s,"
    " types) }"
)


def typed() -> onnx.ModelProto:
    """The perceptron of seed 7, whose answers are moved by a second input."""
    return tiny.proto(TYPED, a=toys.normal(7, 4, 8), b=toys.normal(8, 8, 3))


def test_an_input_that_only_the_teacher_takes_comes_from_the_samples() -> None:
    feeds = toys.samples()
    still, moved = ([{**f, "types": np.float32([[t, 0, 0]])} for f in feeds] for t in (0, 5))
    plain = distill(toys.perceptron(), feeds, teacher=toys.perceptron(7), **toys.QUICK)
    zero, other = (distill(toys.perceptron(), d, teacher=typed(), **toys.QUICK) for d in (still, moved))
    assert plain.improved and toys.same_bytes(zero.model, plain.model)  # x + 0 is x
    assert other.improved and other.before < plain.before  # the answers are others


def test_an_input_that_only_the_teacher_takes_and_no_sample_has_is_named() -> None:
    with pytest.raises(DataError, match="types"):
        distill(toys.perceptron(), toys.samples(20), teacher=typed(), **ONE)


# labels that folders only seem to give


@pytest.mark.parametrize(("classes", "labelled"), [(2, True), (3, False)])
def test_folders_are_classes_only_where_there_are_as_many(classes: int, labelled: bool, tmp_path: Path) -> None:
    for i, feed in enumerate(toys.samples(40)):
        folder = tmp_path / ("front" if i % 2 else "back")
        folder.mkdir(exist_ok=True)
        np.savez(folder / f"{i}.npz", **feed)
    ears = Ears()
    found = distill(
        toys.perceptron(classes=classes),
        str(tmp_path),
        teacher=toys.perceptron(7, classes=classes),
        listener=ears.listener,
        **ONE,
    )
    assert (found.metric == "held-out accuracy") == labelled
    assert bool(ears.told("are no labels for 3 classes")) == (not labelled)


# samples that do not go side by side


def test_sequences_whose_first_axis_is_time_are_trained_one_at_a_time() -> None:
    text = """g (float[T,N,5] x) => (float[T,N,3] y) {
        h, hn, cn = LSTM <hidden_size = 3> (x, w, r, b)
        one = Constant <value = int64[1] {1}> ()
        y = Squeeze(h, one)
    }"""

    def network(seed: int) -> onnx.ModelProto:
        shapes = {"w": (1, 12, 5), "r": (1, 12, 3), "b": (1, 24)}
        return tiny.proto(text, **{k: toys.normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())})

    feeds = [{"x": toys.normal(i, 1, 1, 5)} for i in range(20)]  # one step each, or an array of steps would tell
    ears = Ears()
    found = distill(network(0), feeds, teacher=network(9), listener=ears.listener, epochs=2, batch_size=8)
    assert ears.told("do not go together along their first axis") and found.improved


def test_samples_that_go_together_are_not_told_apart() -> None:
    ears = Ears()
    distill(toys.perceptron(), toys.samples(20), teacher=toys.perceptron(7), listener=ears.listener, **ONE)
    assert not ears.told("one at a time")


# numbers that are none, and forms that cannot be trained


def test_a_student_or_teacher_that_says_nan_is_named() -> None:
    broken = tiny.proto(
        toys.PERCEPTRON.format(classes=3), a=np.full((4, 8), np.nan, np.float32), b=toys.normal(1, 8, 3)
    )
    for student, teacher, who in ((broken, toys.perceptron(7), "student"), (toys.perceptron(), broken, "teacher")):
        with pytest.raises(ModelError, match=f"'y' of the {who} holds NaN"):
            distill(student, toys.samples(20), teacher=teacher, **ONE)


def test_a_sample_that_is_no_number_is_passed_over_by_name() -> None:
    feeds = toys.samples(20)
    feeds[4] = {"x": np.full((1, 4), np.nan, np.float32)}
    ears = Ears()
    found = distill(toys.perceptron(), feeds, teacher=toys.perceptron(7), listener=ears.listener, **ONE)
    assert ears.told("sample[4]: holds NaN") and sum(found.samples.values()) == 19


def test_a_dynamic_int8_student_is_called_quantized() -> None:
    made = edgeopt.quantize(
        toys.perceptron(wide=64).SerializeToString(), toys.samples(20), mode="dynamic", measure=False
    )
    with pytest.raises(ModelError, match=r"the student is quantized \(node .* is a DynamicQuantizeLinear"):
        distill(made.model, toys.samples(20), teacher=toys.perceptron(7), **ONE)


def test_networks_of_other_fixed_sizes_are_named_with_their_inputs() -> None:
    wide = tiny.proto("g (float[N,6] x) => (float[N,3] y) { y = MatMul(x, w) }", w=toys.normal(0, 6, 3))
    with pytest.raises(DataError, match=r"the teacher cannot take the samples \(its inputs: x \['N', 6\]\)"):
        distill(toys.perceptron(), toys.samples(20), teacher=wide, **ONE)


def test_a_batch_that_a_model_fixes_is_told() -> None:
    ears = Ears()
    fixed = tiny.proto(
        toys.PERCEPTRON.format(classes=3).replace("float[N,4]", "float[1,4]"),
        a=toys.normal(7, 4, 8),
        b=toys.normal(8, 8, 3),
    )
    distill(toys.perceptron(), toys.samples(20), teacher=fixed, listener=ears.listener, **ONE)
    assert ears.told("batches of 1, which a model fixes (not 16)")


@pytest.mark.parametrize("choices", [{"kind": "online"}, {"kind": "self"}, {"kind": "self", "by": "heads"}])
def test_mixed_pictures_have_no_labels_for_those_who_learn_from_them(choices: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="mixup has no labels that fit"):
        distill(toys.perceptron(), toys.samples(20, labels=True), augment=("mixup",), **choices, **ONE)


def test_decoupled_distillation_of_a_second_output_does_without_labels() -> None:
    feeds = toys.samples(60, labels=True)
    found = distill(toys.branched(), feeds, teacher=toys.branched(7), loss="dkd", epochs=1, batch_size=16)
    assert found.losses == {"y": "dkd", "z": "dkd"}


# what a checkpoint belongs to


@pytest.mark.parametrize("change", ["teacher", "samples", "rate"])
def test_a_checkpoint_of_another_job_is_refused(change: str, tmp_path: Path) -> None:
    keep = {"checkpoint": tmp_path / "state.pt", "epochs": 2, "batch_size": 16}
    distill(toys.perceptron(), toys.samples(40), teacher=toys.perceptron(7), **keep)
    teacher = toys.perceptron(9) if change == "teacher" else toys.perceptron(7)
    feeds = toys.samples(41) if change == "samples" else toys.samples(40)
    more = {"learning_rate": 0.5} if change == "rate" else {}
    with pytest.raises(DataError, match="another teacher, other samples or other options"):
        distill(toys.perceptron(), feeds, teacher=teacher, resume=True, **keep, **more)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    ears = Ears()
    distill(
        toys.perceptron(),
        toys.samples(20),
        teacher=toys.perceptron(7),
        checkpoint=tmp_path / "s.pt",
        resume=True,
        listener=ears.listener,
        **ONE,
    )
    assert ears.told("is not there; from the beginning")


# several teachers, samples without labels


def test_outputs_of_a_second_teacher_are_those_that_match_says() -> None:
    text = """g (float[N,4] x) => (float[N,2] p, float[N,3] q) {
        h = MatMul(x, a)  r = Relu(h)  q = MatMul(r, b)  p = MatMul(r, c)
    }"""
    teacher = tiny.proto(text, a=toys.normal(0, 4, 8), b=toys.normal(1, 8, 3), c=toys.normal(2, 8, 2))
    match, feeds = {"y": "q", "z": "p"}, toys.samples(40)
    one, two = (
        distill(toys.branched(), feeds, teacher=t, match=match, loss="mse", **ONE) for t in (teacher, [teacher] * 2)
    )
    assert one.before == pytest.approx(two.before, rel=1e-5) and one.after == pytest.approx(two.after, rel=1e-4)


def test_a_second_teacher_is_looked_at_like_the_first() -> None:
    feeds, first = toys.samples(40), toys.perceptron(7)
    broken = toys.perceptron(9)
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((4, 8), np.nan, np.float32), "a"))
    with pytest.raises(ModelError, match="of the teacher 2 holds NaN"):
        distill(toys.perceptron(), feeds, teacher=[first, broken], **ONE)
    sure = tiny.proto(
        "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, a)  r = Relu(h)  s = MatMul(r, b)  y = Softmax(s) }",
        a=toys.normal(7, 4, 8), b=toys.normal(8, 8, 3),
    )  # fmt: skip
    with pytest.raises(UsageError, match="probabilities and another scores"):
        distill(toys.perceptron(), feeds, teacher=[first, sure], **ONE)
    moved = [{**f, "types": np.float32([[0, 0, 9]])} for f in feeds]
    found = distill(toys.perceptron(), moved, teacher=[first, typed()], **ONE)
    assert found.after != distill(toys.perceptron(), feeds, teacher=first, **ONE).after


def test_samples_without_labels_are_checked_and_prepared_like_the_others(tmp_path: Path) -> None:
    student, teacher, feeds = toys.perceptron(), toys.perceptron(7), toys.samples(30)
    for wrong in ([{"z": toys.normal(1, 1, 4)}], [{"x": toys.normal(1, 1, 5)}]):
        with pytest.raises(DataError, match="an --unlabelled sample"):
            distill(student, feeds, teacher=teacher, unlabelled=wrong, **ONE)
    found = distill(student, feeds, teacher=teacher, unlabelled=toys.samples(50)[30:], **ONE)
    assert found.samples == {"train": 44, "held_out": 6}  # a fifth of the first 30 only
    bad = [{"x": np.full((1, 4), np.nan, np.float32)}]
    with pytest.raises(DataError, match="no sample can be read"):
        distill(student, bad, teacher=teacher, unlabelled=feeds, **ONE)
    with pytest.raises(UsageError, match="nobody tells anything"):
        distill(student, toys.samples(20, labels=True), kind="self", generations=1, unlabelled=feeds, **ONE)


def test_pictures_without_labels_are_prepared_by_the_recipe_of_those_with_labels(tmp_path: Path) -> None:
    model = tiny.proto(
        "g (float[N,3,8,8] x) => (float[N,3] y) { m = GlobalAveragePool(x)  f = Flatten(m)  y = MatMul(f, a) }",
        a=toys.normal(1, 3, 3),
    )
    rng = np.random.default_rng(0)
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "with" / "preprocess.toml").write_text("scale = 0.1\nmean = [100.0]\nstd = [1.0]\n")
    seen: list[np.ndarray] = []

    def looked(examples: object, *more: object, **named: object) -> object:
        seen.extend(f["x"] for f in examples.feeds)  # type: ignore[attr-defined]
        return data_of_divide(examples, *more, **named)  # type: ignore[arg-type]

    data_of_divide = batches.divide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "divide", looked)
        distill(model, tmp_path / "with", teacher=model, unlabelled=tmp_path / "without", labels=False, **ONE)
    assert len(seen) == 24 and all(x.max() <= 25.5 - 100 + 0.01 for x in seen)  # 255 / 10 - 100


def test_a_good_teacher_of_two_classes_is_not_taken_for_one_of_other_classes() -> None:
    ears = Ears()
    feeds = [{"x": toys.normal(i, 1, 4), "label": np.array([int(toys.normal(i, 1, 4)[0, 0] > 0)])} for i in range(60)]
    teacher = tiny.proto(
        "g (float[N,4] x) => (float[N,2] y) { y = MatMul(x, a) }", a=np.float32([[-1, 1], [0.5, 0], [0, 0], [0, 0]])
    )
    found = distill(toys.perceptron(classes=2), feeds, teacher=teacher, listener=ears.listener, **ONE)
    assert found.teacher is not None and 0.75 < found.teacher < 1
    assert not ears.told("classes in another order")


def test_peers_with_matched_outputs_end_what_they_began(tmp_path: Path) -> None:
    teacher = tiny.proto(
        "g (float[N,4] x) => (float[N,3] p, float[N,8] q) { q = MatMul(x, a)  r = Relu(q)  p = MatMul(r, b) }",
        a=toys.normal(3, 4, 8), b=toys.normal(4, 8, 3),
    )  # fmt: skip
    found = distill(
        toys.perceptron(), toys.samples(40, labels=True), teacher=teacher, kind="online", match={"y": "p"}, **ONE
    )
    assert found.log


def test_a_checkpoint_of_peers_with_other_weights_is_refused(tmp_path: Path) -> None:
    keep = {"checkpoint": tmp_path / "state.pt", "epochs": 2, "batch_size": 16, "kind": "online"}
    feeds = toys.samples(40, labels=True)
    distill(toys.perceptron(), feeds, peers=(on_disk(tmp_path, toys.perceptron(3)),), **keep)
    with pytest.raises(DataError, match="another teacher, other samples"):
        distill(toys.perceptron(), feeds, peers=(on_disk(tmp_path, toys.perceptron(4)),), resume=True, **keep)


def test_generations_share_the_minutes() -> None:
    start = time.monotonic()
    distill(toys.perceptron(), toys.samples(40, labels=True), kind="self", generations=3, epochs=10**6, minutes=0.05)
    assert time.monotonic() - start < 9  # three of three seconds each, and reading


@pytest.mark.parametrize("how", [{"kind": "self"}, {"teacher": toys.perceptron(7)}])
def test_labels_of_one_class_are_refused_with_the_way_out(how: dict[str, Any]) -> None:
    feeds = [{**f, "label": np.array([2])} for f in toys.samples(40)]
    with pytest.raises(DataError, match=r"every entry 'label' is 2: one class teaches nothing\. --no-labels"):
        distill(toys.perceptron(), feeds, epochs=1, **how)
    if "teacher" in how:
        assert "fidelity" in distill(toys.perceptron(), feeds, epochs=1, labels=False, **how).metric


def test_a_limit_of_time_and_few_samples_ask_for_small_batches_and_a_run_goes_on_with_its_own(tmp_path: Path) -> None:
    choices = ({}, {"minutes": 1.0}, {"batch_size": 64}, {"minutes": 1.0, "batch_size": 64})
    assert [edgeopt.Distill(**x).batch(n) for n in (999, 1000) for x in choices] == [8, 8, 64, 64, 32, 8, 64, 64]
    how = {"teacher": toys.perceptron(7), "checkpoint": tmp_path / "state.pt"}
    distill(toys.perceptron(), toys.samples(1250), epochs=1, **how)
    with pytest.raises(DataError, match="other options"):
        distill(toys.perceptron(), toys.samples(1250), epochs=1, minutes=1.0, resume=True, **how)
