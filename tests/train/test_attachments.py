"""Hints and inner classifiers: what they measure, what they refuse, and that nothing of them stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from edgeopt import distill, graph
from edgeopt.errors import UsageError
from edgeopt.runtime.session import open_session, with_outputs
from edgeopt.train import losses
from edgeopt.train.attachments import Heads, Hints, check_heads
from edgeopt.train.network.taps import channels_first
from edgeopt.train.pairs import Pair
from tests import tiny
from tests.train import toys

SHAPES = {"row": (4, 6), "sequence": (4, 5, 6), "picture": (4, 6, 8, 8)}


def value(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(toys.normal(seed, *shape))


def hints(s: torch.Tensor, t: torch.Tensor) -> Hints:
    torch.manual_seed(0)
    return Hints({"s": "t"}, {"s": s}, {"t": t})


@pytest.mark.parametrize("name", SHAPES)
def test_a_hint_is_zero_for_equals_of_any_length_and_four_for_opposites(name: str) -> None:
    s = value(0, *SHAPES[name])
    module = hints(s, s)
    assert not list(module.parameters())
    # |u - v|^2 of unit vectors; float32 rounding of 1
    assert float(module({"s": 3 * s}, {"t": s})) == pytest.approx(0, abs=1e-6)
    assert float(module({"s": s}, {"t": -s})) == pytest.approx(4, rel=1e-6)


def test_a_picture_of_another_size_is_compared_on_the_coarser_grid() -> None:
    t = value(0, 2, 3, 4, 6)
    fine = t.repeat_interleave(2, 2).repeat_interleave(3, 3)  # every pixel as 2 x 3 equal ones: pooling gives it back
    assert float(hints(fine, t)({"s": fine}, {"t": t})) == pytest.approx(0, abs=1e-6)
    assert float(hints(t, fine)({"s": t}, {"t": fine})) == pytest.approx(0, abs=1e-6)
    other = value(1, *fine.shape)
    assert float(hints(other, t)({"s": other}, {"t": t})) > 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_other_channels_are_projected_linearly_and_the_projection_learns(name: str) -> None:
    shape = SHAPES[name]
    s = value(0, *shape)
    wider = (shape[0], 9, *shape[2:]) if name == "picture" else (*shape[:-1], 9)
    t = value(1, *wider)
    module = hints(s, t)
    (w,) = module.parameters()
    assert w.shape == (9, 6)
    last = [x.movedim(1, -1) if name == "picture" else x for x in (s, t)]
    u, v = (x / x.norm(dim=-1, keepdim=True) for x in (last[0] @ w.t(), last[1]))
    found = module({"s": s}, {"t": t})
    assert found.item() == pytest.approx((u - v).square().sum(-1).mean().item(), rel=1e-5)
    found.backward()
    assert w.grad is not None and float(w.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 6), (4, 5, 6)), ((4, 5, 6), (4, 7, 6)), ((3, 6), (4, 6)), ((4, 6, 2, 2), (4, 6))]
)
def test_a_hint_between_values_of_another_form_is_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"--hint s=t: \[.*\] and \[.*\] cannot be compared"):
        hints(value(0, *student), value(1, *teacher))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_head_learns_from_the_output_and_the_labels_by_alpha(name: str, alpha: float) -> None:
    f, output, labels = value(0, *SHAPES[name]), value(1, 4, 3).requires_grad_(), torch.tensor([0, 2, 1, 1])
    torch.manual_seed(0)
    module = Heads({"f": f}, 3)
    pooled = f if f.ndim == 2 else f.mean(1) if f.ndim == 3 else f.mean((2, 3))
    logits = pooled @ module.linear[0].weight.t() + module.linear[0].bias
    taught, told = losses.kd(logits, output, 2.0), F.cross_entropy(logits, labels)
    want = alpha * taught + (1 - alpha) * told
    found = module({"f": f}, output, labels, 2.0, alpha)
    assert found.item() == pytest.approx(want.item(), rel=1e-5)
    assert module({"f": f}, output, None, 2.0, alpha).item() == pytest.approx(taught.item(), rel=1e-5)
    found.backward()
    assert output.grad is None  # the output teaches and does not move towards its heads


@pytest.mark.parametrize("bad", [value(0, 4), torch.zeros(4, 3, dtype=torch.int64)])
def test_a_head_on_what_has_no_float_channels_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"--heads f: .*no channels"):
        Heads({"f": bad}, 3)


@pytest.mark.parametrize(("shape", "loss"), [((4, 3, 8, 8), "kd"), ((4, 3), "mse"), ((4, 3), "cosine"), ((4,), "kd")])
def test_heads_go_with_class_scores_only(shape: tuple[int, ...], loss: str) -> None:
    with pytest.raises(UsageError, match="no row of class scores"):
        check_heads([Pair("y", "y", loss)], value(0, *shape))
    check_heads([Pair("y", "y", "kd")], value(0, 4, 3))


def test_what_hangs_on_the_student_leaves_nothing_in_the_file(tmp_path: Path) -> None:
    before = toys.perceptron()
    found = distill(
        before, toys.samples(labels=True), teacher=toys.perceptron(7, wide=12), output=tmp_path / "s.onnx",
        hints={"h": "h"}, heads=("r",), **toys.QUICK,
    )  # fmt: skip
    assert found.improved
    after = onnx.load(tmp_path / "s.onnx")
    assert toys.nodes(after) == toys.nodes(before)
    assert [(t.name, list(t.dims)) for t in after.graph.initializer] == [
        (t.name, list(t.dims)) for t in before.graph.initializer
    ]
    assert [v.name for v in after.graph.output] == ["y"]


@pytest.mark.parametrize("kind", ["offline", "online"])
def test_a_hint_brings_inner_values_together(kind: str) -> None:
    data = toys.samples(labels=True)
    apart = []
    for weight in (1e-6, 10.0):
        found = distill(
            toys.perceptron(),
            data,
            kind=kind,
            teacher=toys.perceptron(7),
            hints={"h": "h"},
            hint_weight=weight,
            epochs=8,
            learning_rate=3e-2,
        )
        ours = open_session(with_outputs(found.model, ["h"]))
        theirs = open_session(with_outputs(graph.canonical(graph.load(toys.perceptron(7))), ["h"]))
        s, t = (np.concatenate([m.run({"x": f["x"]})[0] for f in data]) for m in (ours, theirs))
        u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
        apart.append(float(np.square(u - v).sum(1).mean()))
    assert apart[1] < apart[0]


@pytest.mark.parametrize(
    ("s", "t"),
    [
        (torch.zeros(4, 6, dtype=torch.int64), value(0, 4, 6)),
        (value(0, 4, 6), torch.zeros(4, 6, dtype=torch.int64)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (value(0, 4), value(1, 4)),
    ],
    ids=["whole numbers", "the teacher's", "scalars", "no channels"],
)
def test_a_hint_needs_numbers_that_have_channels(s: torch.Tensor, t: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"--hint s=t: .* cannot be compared"):
        hints(s, t)


def test_a_head_on_a_value_without_a_row_for_each_sample_is_refused() -> None:
    text = toys.PERCEPTRON.format(classes=3).replace("r = Relu(h)", "t = Transpose(h)  u = Relu(t)  r = Transpose(u)")
    turned = tiny.proto(text, a=toys.normal(0, 4, 8), b=toys.normal(1, 8, 3))
    with pytest.raises(UsageError, match=r"--heads u: \[8, 16\] has no row for each of 16 samples"):
        distill(turned, toys.samples(labels=True), teacher=toys.perceptron(7), heads=("u",), **toys.QUICK)


def test_a_hint_to_a_value_that_the_teacher_has_not_is_refused_with_the_nearest() -> None:
    teacher = tiny.proto(
        toys.PERCEPTRON.format(classes=3).replace("h)", "hidden)").replace("h =", "hidden ="),
        a=toys.normal(7, 4, 8), b=toys.normal(8, 8, 3),
    )  # fmt: skip
    with pytest.raises(UsageError, match="--hint: the teacher has no value 'hiden'; did you mean 'hidden'"):
        distill(toys.perceptron(), toys.samples(), teacher=teacher, hints={"h": "hiden"})


SPOKEN = """g (float[N,T,6] x) => (float[N,3] y) {
    t = Transpose <perm = [0, 2, 1]> (x)
    c = Conv <pads = [1, 1]> (t, w)
    r = Relu(c)
    d = Conv <pads = [1, 1]> (r, v)
    m = GlobalMaxPool(d)
    f = Flatten(m)
    y = Gemm <transB = 1> (f, k)
}"""


def test_classifiers_behind_convolutions_over_time_read_channels_and_not_places() -> None:
    student = tiny.proto(SPOKEN, w=toys.normal(0, 8, 6, 3), v=toys.normal(1, 8, 8, 3), k=toys.normal(2, 3, 8))
    feeds = [{"x": toys.normal(i, 1, 5 + i % 4, 6), "label": np.array([i % 3])} for i in range(60)]
    found = distill(student, feeds, kind="self", by="heads", epochs=2, batch_size=8)
    assert len(found.log) == 2  # lengths differ from batch to batch
    model = graph.canonical(graph.load(student))
    assert [channels_first(model, name) for name in ("t", "c", "r", "d")] == [False, True, True, True]
