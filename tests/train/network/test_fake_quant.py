"""Quantization-aware training: the module computes what the integer kernels do, learns steps by LSQ's gradient, and
writes integers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import edgeopt
from edgeopt import graph
from edgeopt.errors import ModelError
from edgeopt.hardware.target import load
from edgeopt.ptq.guard import guarded
from edgeopt.runtime.session import open_session
from edgeopt.train import evaluation
from edgeopt.train.network import fake_quant, qdq
from edgeopt.train.network.module import OnnxModule, write_back
from tests import tiny
from tests.models import normal

TEACHER = Path(__file__).parents[3] / "calibration_data" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Values like those of the digits, float32 [200, 1, 28, 28]."""
    return np.clip(normal(200, 1, 28, 28), -0.42, 2.8)


@pytest.fixture(scope="module")
def quantized(images: np.ndarray) -> ir.Model:
    """The embedded classifier in static int8, every convolution with integers."""
    made = edgeopt.quantize(TEACHER, images, mode="static", measure=False, include=("Conv", "Gemm"))
    return graph.canonical(made.model)


def test_the_module_gives_what_the_integer_kernels_give(quantized: ir.Model, images: np.ndarray) -> None:
    module = OnnxModule(quantized, quantized=True)
    assert len(module.masters) >= 2 * 8  # weights and biases
    with torch.no_grad():
        ours = module({"image": torch.from_numpy(images[:32])})["logits"].numpy()
    theirs = open_session(quantized).run({"image": images[:32]})[0]
    assert np.array_equal(ours.argmax(1), theirs.argmax(1))
    # a value on the edge between two integers may fall to either side: a step or two of the output
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_without_training_not_a_bit_is_written_differently(quantized: ir.Model) -> None:
    written = write_back(quantized, OnnxModule(quantized, quantized=True).arrays())
    assert graph.proto_bytes(written) == graph.proto_bytes(quantized)


@pytest.mark.parametrize("name", ["ryzen-ai", "xnnpack", "tensorrt"])
def test_grids_of_other_targets_come_back_bit_for_bit_and_learn(name: str, images: np.ndarray) -> None:
    made = edgeopt.quantize(TEACHER, images, mode="static", measure=False, target=name, rounding="nearest").model
    model = graph.canonical(made)
    assert graph.proto_bytes(write_back(model, OnnxModule(model, quantized=True).arrays())) == graph.proto_bytes(model)
    feeds = [{"image": x[None]} for x in images[:64]]
    found = edgeopt.distill(
        model, feeds, teacher=TEACHER, quantized=True, labels=False, temperature=1.0, epochs=3, target=name
    )
    assert len(found.log) == 3 and found.after >= found.before
    assert name != "ryzen-ai" or octaves(found.model)


def octaves(model: ir.Model) -> bool:
    """Whether all scales of `model` are powers of two."""
    scales = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith("scale")]
    return len(scales) > 8 and all(np.array_equal(np.log2(s), np.rint(np.log2(s))) for s in scales)


def test_a_scale_of_powers_of_two_grows_by_octaves_with_the_gradient_of_any_other() -> None:
    p = torch.tensor([-1.1, -0.3, 0.0, 0.36, 1.5], requires_grad=True)
    y = fake_quant.growth(p, octaves=True)
    assert y.tolist() == pytest.approx([0.25, 1, 1, 2, 4])
    (found,) = torch.autograd.grad(y.sum(), p)
    assert torch.allclose(found, y)  # of e^p, d/dp = e^p


def test_scales_before_and_behind_a_move_stay_equal(images: np.ndarray) -> None:
    model = tiny.model(
        "g (float[N,3,8,8] x) => (float[N,4] y) { c = Conv(x, w)  m = MaxPool <kernel_shape = [2, 2]> (c)"
        "  f = Flatten(m)  y = Gemm <transB = 1> (f, v) }",
        w=normal(4, 3, 3, 3),
        v=normal(4, 100),
    )
    feeds = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(32)]
    made = graph.canonical(edgeopt.quantize(model, feeds, mode="static", measure=False, include=("Conv", "Gemm")).model)
    names = qdq.step_names(made, qdq.masters(made))
    ties = qdq.tied_steps(made, names)
    moves = [n for n in made.graph if n.op_type in ("MaxPool", "Flatten")]
    assert len(moves) == 2 and ties
    module = OnnxModule(made, quantized=True)
    module({"x": torch.from_numpy(feeds[0]["x"])})["y"].square().sum().backward()
    torch.optim.SGD(module.steps, lr=1.0).step()
    found, old = module.arrays(), OnnxModule(made, quantized=True).arrays()
    assert all(found[a] == found[b] != old[b] == old[a] for a, b in ties.items())


GRID = load("qnn-htp:a16").grid


def test_scales_that_the_target_gives_stay() -> None:
    model = tiny.model("g (float[N,8] x) => (float[N,8] y) { m = MatMul(x, a)  y = Sigmoid(m) }", a=normal(8, 8))
    feeds = [{"x": normal(1, 8, seed=i)} for i in range(32)]
    plain, made = (
        graph.canonical(edgeopt.quantize(model, feeds, mode="static", measure=False, target=t).model)
        for t in ("qnn-htp", "qnn-htp:a16")
    )
    assert len({len(qdq.step_names(plain, qdq.masters(plain), g)) for g in (None, GRID)}) == 1
    free, kept = (qdq.step_names(made, qdq.masters(made), of) for of in (None, GRID))
    (demanded,) = set(free) - set(kept)
    (reader,) = [n for n in made.graph if n.op_type == "QuantizeLinear" and n.inputs[1].name == demanded]
    assert reader.inputs[0].producer().op_type == "Sigmoid"


def test_every_master_and_every_step_has_a_gradient(quantized: ir.Model, images: np.ndarray) -> None:
    module = OnnxModule(quantized, quantized=True)
    module({"image": torch.from_numpy(images[:4])})["logits"].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in module.steps) == len(module.steps) > 8


def test_the_gradient_of_a_step_is_lsq_s() -> None:
    x = torch.tensor([-9.0, -1.26, 0.3, 1.01, 40.0], dtype=torch.float64)
    s, z = torch.tensor(0.1, dtype=torch.float64, requires_grad=True), torch.tensor(100, dtype=torch.uint8)
    y = (fake_quant.quantize(x, s, z) - 100) * s
    for i in range(len(x)):
        (found,) = torch.autograd.grad(y[i], s, retain_graph=True)
        exact = float(x[i] / s.detach())
        q = round(exact)
        # Esser et al. 2020, equation 3: r(x/s) - x/s inside the grid, the clipped value outside
        want = -100 if q < -100 else 155 if q > 155 else q - exact
        assert float(found) == pytest.approx(want, abs=1e-9)


def test_the_gradient_of_a_value_is_one_inside_the_grid_and_none_outside() -> None:
    x = torch.tensor([-20.0, 0.33, 50.0], requires_grad=True)
    y = (fake_quant.quantize(x, torch.tensor(0.1), torch.tensor(100, dtype=torch.uint8)) - 100) * 0.1
    (found,) = torch.autograd.grad(y.sum(), x)
    assert found.tolist() == pytest.approx([0, 1, 0])


def test_a_spoilt_quantized_student_recovers_and_its_bias_steps_stay_products(
    quantized: ir.Model, images: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    found = qdq.masters(quantized)
    spoilt = write_back(
        quantized,
        {
            name: (
                np.clip(v.const_value.numpy() + rng.integers(-20, 21, v.const_value.shape.numpy()), -127, 127).astype(
                    np.int8
                )
            )
            for name, v in quantized.graph.initializers.items()
            if name in found and v.const_value is not None and found[name].kind == ir.DataType.INT8
        },
    )
    feeds = [{"image": x[None]} for x in images]
    made = edgeopt.distill(
        spoilt, feeds, teacher=TEACHER, quantized=True, temperature=1.0, epochs=4, learning_rate=1e-3
    )
    assert made.before < made.after / 2 < 0  # minus the divergence: at least halved
    values = {n: v.const_value.numpy() for n, v in made.model.graph.initializers.items() if v.const_value is not None}
    for master in qdq.masters(made.model).values():
        if master.x_scale is not None and master.w_scale is not None:
            assert np.array_equal(values[master.scale], values[master.x_scale] * values[master.w_scale])
    assert {values[n].dtype for n in found} == {np.dtype(np.int8), np.dtype(np.int32)}


def test_weights_that_saturate_are_trained_as_they_are_written(quantized: ir.Model, images: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    weights = {n: m for n, m in qdq.masters(quantized).items() if m.kind == ir.DataType.INT8}
    wild = write_back(
        quantized,
        {n: rng.integers(-127, 128, quantized.graph.initializers[n].shape.numpy(), np.int8) for n in weights},
    )
    x = {"image": torch.from_numpy(images[:8])}
    module = OnnxModule(wild, quantized=True, grid=load("cpu-x86-avx2").grid)
    free, kept = OnnxModule(wild, quantized=True)(x)["logits"], OnnxModule(guarded(wild), quantized=True)(x)["logits"]
    ours = module(x)["logits"]
    assert torch.equal(ours, kept) and not torch.allclose(ours, free, rtol=0.1)
    ours.square().sum().backward()
    slopes = [w.grad for w in module.weights if w.ndim > 1]
    assert all(g is not None and (g != 0).float().mean() > 0.5 for g in slopes)  # what is cut can come back


def test_a_quantized_student_needs_the_option_and_a_float_one_refuses_it(
    quantized: ir.Model, images: np.ndarray
) -> None:
    feeds = [{"image": x[None]} for x in images[:10]]
    with pytest.raises(ModelError, match="--qat"):
        edgeopt.distill(quantized, feeds, teacher=TEACHER)
    with pytest.raises(ModelError, match="edgeopt quantize"):
        edgeopt.distill(TEACHER, feeds, teacher=TEACHER, quantized=True)


BLOCKS = "g (float[N,64] x) => (float[N,48] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"


@pytest.fixture(scope="module")
def blocked() -> ir.Model:
    """Two products whose weights are stored in 4 bits, in blocks of 32 inputs."""
    model = tiny.model(BLOCKS, a=normal(64, 64), b=normal(64, 48))
    feeds = [{"x": normal(1, 64, seed=i)} for i in range(16)]
    return graph.canonical(edgeopt.quantize(model, feeds, mode="weights", bits=4, measure=False).model)


def test_weights_of_four_bits_in_blocks_are_those_of_onnx_runtime_and_come_back_bit_for_bit(blocked: ir.Model) -> None:
    module, x = OnnxModule(blocked, quantized=True), normal(5, 64)
    assert {m.kind for m in module.masters.values()} <= {ir.DataType.INT4, ir.DataType.UINT4}
    assert {m.block for m in module.masters.values()} == {32} and len(module.masters) == 2
    ours = module({"x": torch.from_numpy(x)})["y"].detach().numpy()
    theirs = open_session(blocked).run({"x": x})[0]
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()  # its kernel computes with 8-bit activations
    written = write_back(blocked, module.arrays())
    assert graph.proto_bytes(written) == graph.proto_bytes(blocked)


def test_weights_of_four_bits_learn_what_their_rounding_lost(blocked: ir.Model) -> None:
    teacher = tiny.model(BLOCKS, a=normal(64, 64), b=normal(64, 48))
    feeds = [{"x": normal(1, 64, seed=i)} for i in range(300)]
    found = edgeopt.distill(
        blocked, feeds, teacher=teacher, quantized=True, labels=False, loss="mse", learning_rate=1e-2, epochs=20
    )
    assert found.after > 0.8 * found.before > found.before  # both below 0: a fifth of the error is gone


def test_the_rate_follows_the_bits_of_the_weights(quantized: ir.Model, blocked: ir.Model, images: np.ndarray) -> None:
    how = {"quantized": True, "labels": False, "epochs": 1, "warm_up": 1.0, "batch_size": 8}
    teacher = tiny.model(BLOCKS, a=normal(64, 64), b=normal(64, 48))
    eight = edgeopt.distill(quantized, [{"image": x[None]} for x in images[:32]], teacher=TEACHER, **how)
    four = edgeopt.distill(blocked, [{"x": normal(1, 64, seed=i)} for i in range(32)], teacher=teacher, **how)
    assert (eight.log[-1].learning_rate, four.log[-1].learning_rate) == (2e-5, 1e-4)


STORED = """g (int64[N] i) => (float[N,48] y) {
    h = Gather(table, i)
    m = MatMul(h, a)
    r = Relu(m)
    y = Gemm <transB = 1> (r, b, c)
}"""


def test_scales_that_a_mul_applies_learn_in_proportion() -> None:
    model = tiny.model(STORED, table=normal(4096, 64), a=normal(64, 64), b=normal(48, 64), c=normal(48))
    feeds = [{"i": np.array([i])} for i in range(400)]
    stored = graph.canonical(edgeopt.quantize(model, feeds, mode="weights", bits=4, measure=False).model)
    scales = {str(n) for n in stored.graph.initializers if "scale" in str(n)}
    assert [n.op_type for n in stored.graph].count("Mul") == 2 and len(scales) == 3
    assert set(qdq.step_names(stored, qdq.masters(stored))) == scales
    rate, steps = 1e-3, 2
    found = edgeopt.distill(
        stored, feeds, teacher=model, quantized=True, loss="mse", epochs=steps, batch_size=400, learning_rate=rate,
        warm_up=0.0, weight_decay=0.0,
    )  # fmt: skip
    for name in scales:  # of an absolute rate, scales of 1/100 would have moved by a tenth of themselves a step
        before, after = (m.graph.initializers[name].const_value.numpy() for m in (stored, found.model))
        assert 0 < np.abs(np.log(after / before)).max() <= 1.01 * rate * steps


def test_a_quantized_student_may_be_as_far_from_torch_as_onnx_runtime_is_from_itself(
    quantized: ir.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = [{"image": x[None]} for x in images[:40]]
    how = {"teacher": TEACHER, "quantized": True, "labels": False, "epochs": 1, "learning_rate": 1e-9}
    monkeypatch.setattr(evaluation, "QUANTIZED_PARITY", 0.0)  # a value on an edge always is beyond it
    monkeypatch.setattr(evaluation, "_OWN", 1e9)
    assert edgeopt.distill(quantized, feeds, **how).parity > 0
    monkeypatch.setattr(evaluation, "_OWN", 0.0)
    with pytest.raises(ModelError, match="cannot be trained faithfully"):
        edgeopt.distill(quantized, feeds, **how)
