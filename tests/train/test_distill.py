"""Distillation end to end on the embedded digits: better weights in the same graph, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeopt import distill, graph
from edgeopt.data import open_data, specs
from edgeopt.data.images import load_toml, resolve
from edgeopt.errors import DataError, EdgeoptError, UsageError
from edgeopt.listener import Listener
from edgeopt.options.reading import Reading
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.train import toys

ROOT = Path(__file__).parents[2] / "calibration_data" / "digits"
TEACHER = ROOT / "digits.onnx"
STUDENT = """g (float[N,1,28,28] image) => (float[N,10] logits) {
    a = Conv <strides = [2,2], pads = [1,1,1,1]> (image, w1, b1)
    r = Relu(a)
    c = Conv <strides = [2,2], pads = [1,1,1,1]> (r, w2, b2)
    s = Relu(c)
    f = Flatten(s)
    logits = Gemm <transB = 1> (f, w3, b3)
}"""
QUICK: dict[str, Any] = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 32}


def student(classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """A small network with random weights (He)."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (4, 1, 3, 3), "w2": (8, 4, 3, 3), "w3": (classes, 392)}
    weights = {k: (rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()}
    biases = {f"b{i}": np.zeros(n, np.float32) for i, n in ((1, 4), (2, 8), (3, classes))}
    return tiny.proto(STUDENT.replace("[N,10]", f"[N,{classes}]"), **weights, **biases)


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    """500 digits with their labels."""
    inputs = specs(graph.canonical(graph.load(TEACHER)))
    recipe = resolve(load_toml(ROOT / "preprocess.toml"), inputs[0])
    samples = open_data(ROOT / "test", inputs, Reading(preprocess=recipe)).samples
    return [{**read(), "label": np.array([int(Path(name).parent.name)])} for name, read in sorted(samples)]


def unlabelled(feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{"image": f["image"]} for f in feeds]


def test_a_student_learns_from_its_teacher_and_keeps_its_graph(
    feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    before = student()
    found = distill(before, feeds, teacher=TEACHER, output=tmp_path / "s.onnx", **QUICK)
    assert found.improved and found.path == tmp_path / "s.onnx"
    # chance is .1; 400 digits and six epochs bring this network to .8 and more
    assert found.before < 0.3 and found.after > 0.65 and found.teacher is not None and found.teacher > 0.9
    after = onnx.load(tmp_path / "s.onnx")
    assert toys.nodes(after) == toys.nodes(before)
    assert found.parity < 1e-4


def test_without_labels_the_held_out_distance_to_the_teacher_shrinks(feeds: list[dict[str, np.ndarray]]) -> None:
    found = distill(student(), unlabelled(feeds), teacher=TEACHER, **QUICK)
    assert found.metric == "held-out fidelity to the teacher"
    assert found.before < found.after < 0
    assert found.losses == {"logits": "kd"}


@pytest.mark.parametrize("kind", ["online", "self"])
def test_peers_and_generations_learn_too(kind: str, feeds: list[dict[str, np.ndarray]]) -> None:
    more: dict[str, Any] = {"teacher": student(seed=1)} if kind == "online" else {"generations": 2}
    found = distill(student(), feeds[:400], kind=kind, alpha=0.5, **QUICK, **more)
    assert found.before < 0.3 and found.after > 0.4  # far above chance (.1)


def test_the_first_generation_learns_from_the_labels_and_not_from_the_untrained_student(
    feeds: list[dict[str, np.ndarray]],
) -> None:
    # a student with random weights has nothing to tell: with its answers as nine tenths of the loss it stayed at .27
    assert distill(student(), feeds[:400], kind="self", generations=1, alpha=0.9, **QUICK).after > 0.5


def test_samples_without_labels_teach_and_are_not_measured_with(feeds: list[dict[str, np.ndarray]]) -> None:
    found = distill(student(), feeds[:100], teacher=TEACHER, unlabelled=unlabelled(feeds[100:]), **QUICK)
    assert found.samples == {"train": 480, "held_out": 20} and found.metric == "held-out accuracy"
    alone = distill(student(), feeds[:100], teacher=TEACHER, **QUICK)
    x, y = (np.concatenate([f[k] for f in feeds[100:]]) for k in ("image", "label"))
    right = [(open_session(m.model).run({"image": x})[0].argmax(1) == y).mean() for m in (found, alone)]
    assert right[0] > right[1] + 0.1


def test_of_two_teachers_the_mean_is_learned(feeds: list[dict[str, np.ndarray]]) -> None:
    some = feeds[:100]
    other = student(seed=5)  # knows nothing; its scores are small beside the teacher's
    both = distill(student(), some, teacher=[TEACHER, other], **QUICK)
    assert both.teacher == distill(student(), some, teacher=TEACHER, epochs=1).teacher  # their mean tells what it tells
    with pytest.raises(UsageError, match="--teacher"):
        distill(student(), some, teacher=[TEACHER, student(classes=7)], **QUICK)


def told(student: Any, feeds: list[dict[str, np.ndarray]], **choices: Any) -> str:
    notes: list[str] = []
    distill(student, feeds, listener=Listener(note=notes.append), **choices)
    return "\n".join(notes)


def test_early_signs_are_told_with_what_to_do(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    some, one = feeds[:100], {"epochs": 1, "learning_rate": 1e-6}
    assert "has little to teach" in told(TEACHER, some, teacher=TEACHER, **one)
    assert "classes in another order" in told(student(), some, teacher=student(seed=1), **one)
    assert "tells only" in told(student(), some, teacher=TEACHER, **one)  # it learned nothing
    onnx.save(onnx.load(TEACHER), tmp_path / "peer.onnx")
    assert "nothing left to teach each other" in told(
        TEACHER, some, kind="online", peers=(tmp_path / "peer.onnx",), **one
    )
    longer = {**QUICK, "epochs": 60}
    assert "held-out ones: more samples" in told(student(), feeds[::8], kind="self", generations=1, **longer)


def test_a_student_that_cannot_get_better_is_not_written(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    found = distill(TEACHER, unlabelled(feeds[:60]), teacher=TEACHER, output=tmp_path / "s.onnx", epochs=1)
    assert not found.improved and found.path is None
    assert not list(tmp_path.iterdir())
    y = open_session(found.model).run({"image": feeds[0]["image"]})[0]
    assert np.array_equal(y, open_session(graph.load(TEACHER)).run({"image": feeds[0]["image"]})[0])


def test_the_same_seed_gives_the_same_bytes(feeds: list[dict[str, np.ndarray]]) -> None:
    short = {**QUICK, "epochs": 2}
    made = [distill(student(), feeds[:100], teacher=TEACHER, augment=("crop",), **short).model for _ in range(2)]
    assert graph.proto_bytes(made[0]) == graph.proto_bytes(made[1])


def test_a_run_that_was_killed_and_resumed_ends_like_one_that_was_not(
    feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"ema": 0.5, **QUICK, "epochs": 4}
    whole = distill(student(), feeds[:100], teacher=TEACHER, **how)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 2:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path / "state.pt", "log": tmp_path / "log.csv", **how}
    with pytest.raises(KeyboardInterrupt):
        distill(student(), feeds[:100], teacher=TEACHER, listener=Listener(progress=stop), **kept)
    resumed = distill(student(), feeds[:100], teacher=TEACHER, resume=True, **kept)
    assert graph.proto_bytes(resumed.model) == graph.proto_bytes(whole.model)
    assert [e.epoch for e in resumed.log] == [1, 2, 3, 4]
    assert [(e.loss, e.score) for e in resumed.log] == [(e.loss, e.score) for e in whole.log]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(
    feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(EdgeoptError, match=r"not a number in epoch \d+, step \d+.*nothing was written"):
        distill(
            student(), feeds[:100], teacher=TEACHER, output=tmp_path / "s.onnx", epochs=5, learning_rate=1e30, clip=1e30
        )
    assert not list(tmp_path.iterdir())


def test_a_label_out_of_range_is_refused(feeds: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(DataError, match="label 12 is out of range: the model has 10 classes"):
        distill(student(), [*feeds[:50], {**feeds[0], "label": np.array([12])}], teacher=TEACHER)


def test_outputs_of_other_shapes_are_refused(feeds: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(UsageError, match=r"'logits'.*7.*10"):
        distill(student(classes=7), unlabelled(feeds[:50]), teacher=TEACHER, epochs=1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "needs --teacher"),
        ({"teacher": TEACHER, "kind": "self"}, "has no teacher"),
        ({"teacher": TEACHER, "kind": "online"}, "learns from labels"),
        ({"teacher": TEACHER, "loss": "kdd"}, "did you mean 'kd'"),
        ({"teacher": TEACHER, "kind": "ofline"}, "did you mean 'offline'"),
        ({"teacher": TEACHER, "match": {"logit": "logits"}}, "did you mean 'logits'"),
        ({"teacher": TEACHER, "epochs": 0}, "epochs 0: at least 1"),
        ({"teacher": TEACHER, "resume": True}, "resume needs checkpoint"),
        ({"teacher": TEACHER, "augment": ("flop",)}, "did you mean 'flip'"),
        ({"teacher": TEACHER, "freeze": ("*",)}, "no float weights"),
    ],
)
def test_a_wrong_choice_is_refused_in_words(
    choices: dict[str, Any], message: str, feeds: list[dict[str, np.ndarray]]
) -> None:
    with pytest.raises(EdgeoptError, match=message):
        distill(student(), unlabelled(feeds[:50]), **choices)


def test_a_checkpoint_of_another_student_is_refused(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"state\.pt: no checkpoint of this student"):
        distill(student(), unlabelled(feeds[:50]), teacher=TEACHER, checkpoint=tmp_path / "state.pt", resume=True)


def test_a_file_comes_back_as_it_was_but_for_its_weights(tmp_path: Path) -> None:
    """With a weight in a Constant node, one among the inputs, nodes without names, and an old domain."""
    made = toys.perceptron()
    for tensor in list(made.graph.initializer):
        if tensor.name == "a":
            made.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["a"], value=tensor))
            made.graph.initializer.remove(tensor)
    made.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [8, 3]))
    made.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    made.doc_string = "mine"
    onnx.save(made, tmp_path / "s.onnx")
    found = distill(
        tmp_path / "s.onnx", toys.samples(), teacher=toys.perceptron(7), output=tmp_path / "t.onnx", **toys.QUICK
    )
    assert found.improved
    before, after = (onnx.load(tmp_path / name) for name in ("s.onnx", "t.onnx"))
    old, new = (onnx.numpy_helper.to_array(m.graph.node[0].attribute[0].t) for m in (before, after))
    assert old.shape == new.shape and not np.array_equal(old, new)
    assert before.graph.node[0].output == after.graph.node[0].output == ["a"]
    assert toys.nodes(before)[1:] == toys.nodes(after)[1:]
    for part in ("input", "output"):
        old, new = ([v.SerializeToString() for v in getattr(m.graph, part)] for m in (before, after))
        assert old == new
    assert [i.name for i in before.graph.initializer] == [i.name for i in after.graph.initializer]
    assert {o.domain: o.version for o in before.opset_import} == {o.domain: o.version for o in after.opset_import}
    assert after.doc_string == "mine"
