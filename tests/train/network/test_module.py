"""ONNX -> torch -> ONNX: the same numbers, gradients for every weight, and nothing but weights changes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgeopt import distill, graph
from edgeopt.errors import ModelError, UsageError
from edgeopt.runtime.session import open_session
from edgeopt.train.network.choice import choose
from edgeopt.train.network.module import OnnxModule, write_back
from tests import tiny
from tests.models import normal
from tests.train import toys

DIGITS = Path(__file__).parents[3] / "calibration_data" / "digits" / "digits.onnx"
SEPARABLE = """g (float[N,4,8,8] x) => (float[N,3] y) {
    a = Conv <pads = [1,1,1,1], group = 4> (x, dw)
    m = GlobalAveragePool(a)
    s = Conv(m, sq, sqb)
    t = Sigmoid(s)
    b = Mul(a, t)
    n = BatchNormalization(b, scale, shift, mean, var)
    r = Relu(n)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w, c)
}"""
ATTENTION = """g (float[N,S,8] x, float[N,S] mask) => (float[N,S,8] y) {
    one = Constant <value = float[1] {1.0}> ()
    far = Constant <value = float[1] {-10000.0}> ()
    axes = Constant <value = int64[1] {1}> ()
    inv = Sub(one, mask)
    add = Mul(inv, far)
    bias = Unsqueeze(add, axes)
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    kt = Transpose <perm = [0,2,1]> (k)
    z = MatMul(q, kt)
    m = Add(z, bias)
    p = Softmax <axis = -1> (m)
    v = MatMul(x, wv)
    h = MatMul(p, v)
    r = Add(x, h)
    n = LayerNormalization <axis = -1> (r, gamma, beta)
    y = Add(n, b)
}"""
RECURRENT = """g (float[T,N,5] x) => (float[T,N,6] y) {
    shape = Constant <value = int64[3] {0, 0, 6}> ()
    h, hn, cn = LSTM <hidden_size = 3, direction = "bidirectional"> (x, w, r, b)
    t = Transpose <perm = [0,2,1,3]> (h)
    y = Reshape(t, shape)
}"""


def separable() -> ir.Model:
    weights = {"dw": normal(4, 1, 3, 3), "sq": normal(4, 4, 1, 1), "sqb": normal(4), "w": normal(3, 4), "c": normal(3)}
    norm = {"scale": normal(4), "shift": normal(4), "mean": normal(4), "var": np.abs(normal(4)) + 0.5}
    return tiny.model(SEPARABLE, **weights, **norm)


def attention() -> ir.Model:
    weights = {name: normal(8, 8, seed=i) for i, name in enumerate(("wq", "wk", "wv"))}
    return tiny.model(ATTENTION, **weights, gamma=normal(8), beta=normal(8, seed=1), b=normal(8, seed=2))


def recurrent() -> ir.Model:
    return tiny.model(RECURRENT, w=normal(2, 12, 5), r=normal(2, 12, 3), b=normal(2, 24))


MODELS = {
    "separable": (separable, {"x": normal(2, 4, 8, 8)}),
    "attention": (attention, {"x": normal(2, 5, 8), "mask": np.float32([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}),
    "recurrent": (recurrent, {"x": normal(7, 2, 5)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_module_gives_what_onnx_runtime_gives_and_every_weight_has_a_gradient(name: str) -> None:
    build, feed = MODELS[name]
    model = build()
    module = OnnxModule(model)
    y = module({k: torch.from_numpy(v) for k, v in feed.items()})
    for output, want in zip(module.outputs, open_session(model).run(feed), strict=True):
        # both are float32 sums in another order
        np.testing.assert_allclose(y[output].detach().numpy(), want, rtol=1e-4, atol=1e-5)
    sum(v.square().sum() for v in y.values()).backward()
    assert len(module.weights) == len(module.choice.trainable) > 0
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in module.weights)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_made_for_one_shape_serves_others_by_a_plan_of_their_own(name: str) -> None:
    build, feed = MODELS[name]
    model = build()
    module, session = OnnxModule(model), open_session(model)
    for batch in (2, 1, 2):
        axis = 1 if name == "recurrent" else 0
        part = {k: v.take(range(batch), axis) for k, v in feed.items()}
        y = module({k: torch.from_numpy(v) for k, v in part.items()})
        np.testing.assert_allclose(y[module.outputs[0]].detach().numpy(), session.run(part)[0], rtol=1e-4, atol=1e-5)


def test_the_embedded_classifier_matches_to_float_rounding() -> None:
    model = graph.canonical(graph.load(DIGITS))
    x = normal(3, 1, 28, 28)
    y = OnnxModule(model)({"image": torch.from_numpy(x)})["logits"].detach().numpy()
    np.testing.assert_allclose(y, open_session(model).run({"image": x})[0], rtol=1e-4, atol=1e-5)


def test_masks_scalars_and_statistics_are_not_trained() -> None:
    assert set(choose(attention()).trainable) == {"wq", "wk", "wv", "gamma", "beta", "b"}
    assert set(choose(separable()).trainable) == {"dw", "sq", "sqb", "w", "c", "scale", "shift"}


def test_a_weight_that_is_moved_before_it_is_used_is_trained() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { t = Transpose(w)  s = Slice(t, zero, three, one)  y = MatMul(x, s) }"
    ints = {"zero": np.int64([0]), "three": np.int64([3]), "one": np.int64([1])}
    model = tiny.model(text, w=normal(5, 4), **ints)
    assert choose(model).trainable == ("w",)
    y = OnnxModule(model)({"x": torch.from_numpy(normal(2, 4))})["y"]
    y.sum().backward()


def test_freeze_and_train_decide_and_a_misspelt_name_is_suggested() -> None:
    assert "wq" not in choose(attention(), freeze=("w*",)).trainable
    low = tiny.model("g (float[N,4] x) => (float[N,4] y) { y = Add(x, mask) }", mask=np.float32([0, -100, 0, 0]))
    assert choose(low).trainable == () and choose(low, train=("mask",)).trainable == ("mask",)
    assert not {"mean", "var"} & set(choose(separable(), train=("*",)).trainable)  # counted, not trained
    with pytest.raises(UsageError, match="did you mean 'gamma'"):
        choose(attention(), freeze=("gama",))


@pytest.mark.parametrize("name", ["blocks[0].w", "a*b", "w?"])
def test_a_name_with_brackets_or_stars_is_a_name(name: str) -> None:
    model = tiny.model(
        "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w)  y = MatMul(a, v) }",
        w=normal(4, 4),
        v=normal(4, 4, seed=1),
    )
    model.graph.initializers["w"].name = name
    assert choose(model, freeze=(name,)).trainable == ("v",)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tie_that_an_exporter_broke_is_told(transposed: bool) -> None:
    table = normal(200, 8)
    text = "g (int64[N] x) => (float[N,200] y) { e = Gather(table, x)  y = MatMul(e, head) }"
    if not transposed:
        text = text.replace("y = MatMul(e, head)", "t = Transpose <perm = [1,0]> (head)  y = MatMul(e, t)")
    model = tiny.model(text, table=table, head=table.T.copy() if transposed else table.copy())
    assert choose(model).twins == (("table", "head"),)
    other = tiny.model(text, table=table, head=(table.T if transposed else table) + np.float32(1))
    assert choose(other).twins == ()


def test_bfloat16_is_refused_by_name() -> None:
    model = tiny.model(
        "g (float[N,4] x) => (float[N,4] y) { v = Cast <to = 1> (w)  y = MatMul(x, v) }", w=np.float16(normal(4, 4))
    )
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(normal(4, 4).astype(ml_dtypes.bfloat16), name="w")
    value.type = ir.TensorType(ir.DataType.BFLOAT16)
    with pytest.raises(ModelError, match="'w' is bfloat16"):
        OnnxModule(model)


def test_what_torch_itself_refuses_is_told_by_the_node() -> None:
    model = tiny.model("g (float[N,M] x) => (float[N,4] y) { [product] y = MatMul(x, w) }", w=normal(4, 4))
    with pytest.raises(ModelError, match="'product' fails in torch"):
        OnnxModule(model)({"x": torch.zeros(2, 3)})


def test_a_weight_that_two_nodes_read_is_told_to_be_tied() -> None:
    model = tiny.model("g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=normal(4, 4))
    assert choose(model).tied == ("w",)


def test_writing_back_changes_nothing_but_the_weights() -> None:
    model = separable()
    before = tiny.frozen(model)
    module = OnnxModule(model)
    with torch.no_grad():
        for w in module.weights:
            w.add_(1.0)
    written = write_back(model, module.arrays())
    assert tiny.frozen(model) == before  # the argument is left alone
    ours, theirs = (onnx.ModelProto.FromString(graph.proto_bytes(m)) for m in (written, model))
    assert [n.SerializeToString() for n in ours.graph.node] == [n.SerializeToString() for n in theirs.graph.node]
    assert [t.name for t in ours.graph.initializer] == [t.name for t in theirs.graph.initializer]
    changed = {a.name for a, b in zip(ours.graph.initializer, theirs.graph.initializer, strict=True) if a != b}
    assert changed == set(module.choice.trainable)


def test_an_operator_that_is_not_in_the_table_is_refused_by_node_name() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { [odd] y = Hardmax(x) }"
    with pytest.raises(ModelError, match=r"'odd'.*Hardmax"):
        OnnxModule(tiny.model(text))


def test_a_form_that_is_not_covered_is_refused_by_node_name() -> None:
    text = "g (float[T,N,3] x) => (float[T,D,N,4] y) { [odd] y = GRU <hidden_size = 4, clip = 1.0> (x, w, r) }"
    module = OnnxModule(tiny.model(text, w=normal(1, 12, 3), r=normal(1, 12, 4)))
    with pytest.raises(ModelError, match=r"'odd'.*clip"):
        module({"x": torch.from_numpy(normal(5, 1, 3))})


def test_an_inner_value_can_be_tapped_by_name() -> None:
    found = OnnxModule(attention())({k: torch.from_numpy(v) for k, v in MODELS["attention"][1].items()}, taps=("p",))
    assert found["p"].sum(-1).detach().numpy() == pytest.approx(np.ones((2, 5)), rel=1e-5)


HALF = """g (float[N,4] x) => (float[N,3] y) {
    [in] n = Cast <to = 10> (x)
    [one] h = MatMul(n, a)
    [act] r = Relu(h)
    [sum] s = Add(r, c)
    [two] z = MatMul(s, b)
    [out] y = Cast <to = 1> (z)
}"""


def half() -> onnx.ModelProto:
    return tiny.proto(
        HALF, a=normal(4, 8).astype(np.float16), b=normal(8, 3, seed=1).astype(np.float16), c=np.float16([0.5])
    )


def test_a_float16_student_is_run_in_float32_and_agrees_to_float16_rounding() -> None:
    model, x = graph.canonical(graph.load(half())), normal(5, 4)
    module = OnnxModule(model)
    y = module({"x": torch.from_numpy(x)})["y"]
    assert module.half and y.dtype == torch.float32
    want = open_session(model).run({"x": x})[0]
    # sums of up to eight products, each rounded to 11 bits
    np.testing.assert_allclose(y.detach().numpy(), want, atol=8 * 2**-11 * float(np.abs(want).max()))


def test_a_float16_student_of_probabilities_learns_from_a_float32_teacher_without_labels() -> None:
    sure = tiny.proto(
        HALF.replace("[out] y = Cast <to = 1> (z)", "p = Sigmoid(z)  [out] y = Cast <to = 10> (p)").replace(
            "(float[N,3] y)", "(float16[N,3] y)"
        ),
        a=normal(4, 8).astype(np.float16),
        b=normal(8, 3, seed=1).astype(np.float16),
        c=np.float16([0.5]),
    )
    teacher = tiny.proto(
        "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, a)  y = Sigmoid(h) }", a=toys.normal(3, 4, 3)
    )
    assert distill(sure, toys.samples(), teacher=teacher, **toys.QUICK).improved


def test_a_float16_student_learns_and_stays_float16_with_the_same_nodes() -> None:
    before = half()
    found = distill(before, toys.samples(), teacher=toys.perceptron(7), **toys.QUICK)
    assert found.improved
    after = onnx.ModelProto.FromString(graph.proto_bytes(found.model))
    canonical = ir.to_proto(graph.canonical(graph.load(before)))
    assert [n.SerializeToString() for n in after.graph.node] == [n.SerializeToString() for n in canonical.graph.node]
    for a, b in zip(after.graph.initializer, canonical.graph.initializer, strict=True):
        assert (a.name, a.data_type, list(a.dims)) == (b.name, b.data_type, list(b.dims))
        assert a.data_type == onnx.TensorProto.FLOAT16
        assert (onnx.numpy_helper.to_array(a) != onnx.numpy_helper.to_array(b)).any() == (a.name in {"a", "b"})


def test_plans_of_many_lengths_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.train.network.module._PLANS", 4)
    model = attention()
    module, session = OnnxModule(model), open_session(model)
    for length in (*range(1, 9), 1, 8):
        feed = {"x": normal(1, length, 8), "mask": np.ones((1, length), np.float32)}
        y = module({k: torch.from_numpy(v) for k, v in feed.items()})["y"]
        np.testing.assert_allclose(y.detach().numpy(), session.run(feed)[0], rtol=1e-4, atol=1e-5)
    assert len(module._plans) == 4


DETECTOR = """g (float[N,3,4,4] image) => (float[N,8,16] boxes) {
    centred = Sub(image, mean)
    scaled = Div(centred, std)
    moved = Transpose <perm = [0,1,3,2]> (scaled)
    bright = Mul(moved, gain)
    c = Conv(bright, w, b)
    r = Reshape(c, shape)
    on = Add(r, anchors)
    far = Mul(on, strides)
    boxes = Mul(far, learnt)
}"""


def test_anchors_strides_and_preprocessing_are_no_weights_and_what_is_learnt_beside_them_is() -> None:
    constants = {
        "mean": np.float32([0.485, 0.456, 0.406]).reshape(3, 1, 1), "std": np.float32([0.2, 0.3, 0.4]).reshape(3, 1, 1),
        "gain": normal(3, 1, 1), "anchors": (np.arange(16, dtype=np.float32) + 0.5).reshape(1, 1, 16),
        "strides": np.float32([8] * 8 + [16] * 8).reshape(1, 1, 16), "learnt": normal(8, 1),
    }  # fmt: skip
    model = tiny.model(DETECTOR, **constants, w=normal(8, 3, 1, 1), b=normal(8), shape=np.int64([0, 8, 16]))
    assert set(choose(model).trainable) == {"w", "b", "learnt"}
    assert "anchors" in choose(model, train=("anchors",)).trainable


@pytest.mark.parametrize("number", [0.0, 1.0, -2.5])
def test_weights_that_are_all_the_same_are_trained_as_biases_and_norms_begin_so(number: float) -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w)  y = Add(h, b) }"
    assert "b" in choose(tiny.model(text, w=normal(4, 3), b=np.full(3, number, np.float32))).trainable


def test_a_weight_that_is_cut_and_joined_for_one_node_is_not_tied() -> None:
    text = """g (float[N,4] x) => (float[N,3] y) {
        top = Slice(w, zero, two, zero)  rest = Slice(w, two, four, zero)  c = Concat <axis = 0> (rest, top)  y = MatMul(x, c)
    }"""  # noqa: E501
    ints = {"zero": np.int64([0]), "two": np.int64([2]), "four": np.int64([4])}
    found = choose(tiny.model(text, w=normal(4, 3), **ints))
    assert found.trainable == ("w",) and found.tied == ()


@pytest.mark.parametrize("name", MODELS)
def test_no_second_copy_of_a_float_model_s_weights_is_kept(name: str) -> None:
    module = OnnxModule(MODELS[name][0]())
    assert sum(a.nbytes for a in module._values.values()) == 0
    held = {t.data_ptr() for t in module._fixed.values() if t.numel() > 1}
    assert not held & {w.data_ptr() for w in module.weights}
    assert not set(module._fixed) & {module.names[n] for n in module.trained}


def test_statistics_of_batch_normalization_are_torch_s_and_written_back() -> None:
    text = """g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
        y = BatchNormalization (x, scale, bias, mean, var)
    }"""
    arrays = {"scale": np.float32([1, 2, 3]), "bias": np.float32([0, 1, 2])}
    model = tiny.model(text, **arrays, mean=np.zeros(3, np.float32), var=np.ones(3, np.float32))
    ours, theirs = OnnxModule(model, update_norms=True), torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(arrays["scale"]))
        theirs.bias.copy_(torch.from_numpy(arrays["bias"]))
    for seed in range(3):
        x = torch.from_numpy(5 + 2 * normal(8 + seed, 3, 4, 4))  # another shape each time: planning counts nothing
        assert torch.allclose(ours({"x": x})["y"], theirs(x), atol=1e-6)
    found = ours.arrays()
    assert np.allclose(found["mean"], theirs.running_mean) and np.allclose(found["var"], theirs.running_var)
    x = torch.from_numpy(normal(2, 3, 4, 4))
    written = open_session(write_back(model, found)).run({"x": x.numpy()})[0]
    assert np.allclose(written, ours.eval()({"x": x})["y"].detach(), atol=1e-5)
    assert np.array_equal(OnnxModule(model).arrays().get("mean", np.zeros(3)), np.zeros(3))  # frozen by default
