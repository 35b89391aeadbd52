"""Channels that go together: a model in which some units are zero everywhere and the model without them are the
same.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt import graph
from edgeopt.passes.simplifying import simplify
from edgeopt.pruning import width
from edgeopt.pruning.units import Units
from edgeopt.runtime.probe import shapes
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

RESIDUAL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu(a)
    c = Conv <pads = [1,1,1,1]> (r, w2)
    n = BatchNormalization(c, scale, shift, mean, var)
    s = Add(n, r)
    d = Conv <pads = [1,1,1,1], group = 16> (s, w3)
    k = Concat <axis = 1> (d, r)
    p = GlobalAveragePool(k)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w4, b4)
}"""
EXCITED = """g (float[N,3,8,8] x) => (float[N,4] y) {
    a = Conv(x, w1, b1)
    m = GlobalAveragePool(a)
    q = Conv(m, w2, b2)
    r = Relu(q)
    e = Conv(r, w3, b3)
    g = Sigmoid(e)
    b = Mul(a, g)
    f = Flatten(b)
    y = Gemm <transB = 1> (f, w4)
}"""
GROUPED = """g (float[N,3,6,6] x) => (float[N,4] y) {
    a = Conv(x, w1)
    b = Conv <group = 4> (a, w2)
    left, right = Split <axis = 1> (b, sizes)
    z = Add(left, right)
    u = Slice(z, starts, ends, axes)
    p = ReduceMean <keepdims = 0, axes = [2,3]> (u)
    y = MatMul(p, w3)
}"""
ATTENTION = """g (float[N,S,8] x) => (float[N,S,8] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    qb = Add(q, bq)
    qs = Reshape(qb, heads)
    ks = Reshape(k, heads)
    vs = Reshape(v, heads)
    qt = Transpose <perm = [0,2,1,3]> (qs)
    kt = Transpose <perm = [0,2,3,1]> (ks)
    vt = Transpose <perm = [0,2,1,3]> (vs)
    z = MatMul(qt, kt)
    p = Softmax <axis = -1> (z)
    h = MatMul(p, vt)
    t = Transpose <perm = [0,2,1,3]> (h)
    c = Reshape(t, flat)
    o = MatMul(c, wo)
    r = Add(o, x)
    f = MatMul(r, w1)
    g = Relu(f)
    e = MatMul(g, w2)
    y = Add(e, r)
}"""


FUSED = """g (float[N,S,8] x) => (float[N,S,8] y) {
    all = MatMul(x, wqkv)
    b = Add(all, bqkv)
    parts = Reshape(b, five)
    t = Transpose <perm = [2,0,3,1,4]> (parts)
    q = Gather <axis = 0> (t, i0)
    k = Gather <axis = 0> (t, i1)
    v = Gather <axis = 0> (t, i2)
    kt = Transpose <perm = [0,1,3,2]> (k)
    z = MatMul(q, kt)
    p = Softmax <axis = -1> (z)
    h = MatMul(p, v)
    u = Transpose <perm = [0,2,1,3]> (h)
    c = Reshape(u, flat)
    y = MatMul(c, wo)
}"""
TOKEN = """g (float[N,3,4,4] x) => (float[N,5] y) {
    c = Conv <kernel_shape = [2,2], strides = [2,2]> (x, w1)
    r = Reshape(c, three)
    t = Transpose <perm = [0,2,1]> (r)
    n = Shape <start = 0, end = 1> (x)
    sizes = Concat <axis = 0> (n, ones)
    e = Expand(token, sizes)
    k = Concat <axis = 1> (e, t)
    a = Add(k, positions)
    m = MatMul(a, w2)
    f = Relu(m)
    y = ReduceMean <axes = [1], keepdims = 0> (f)
}"""


def fused() -> ir.Model:
    ints = {"five": [0, 0, 3, 4, 2], "flat": [0, 0, 8], "i0": 0, "i1": 1, "i2": 2}
    weights = {"wqkv": normal(8, 24), "bqkv": normal(24), "wo": normal(8, 8, seed=1)}
    return tiny.model(FUSED, **weights, **{k: np.int64(v) for k, v in ints.items()})


def token() -> ir.Model:
    weights = {"w1": normal(8, 3, 2, 2), "token": normal(1, 1, 8), "positions": normal(1, 5, 8), "w2": normal(8, 5)}
    return tiny.model(TOKEN, **weights, three=np.int64([0, 8, -1]), ones=np.int64([1, 8]))


def residual() -> ir.Model:
    norm = {"scale": normal(16), "shift": normal(16), "mean": normal(16), "var": np.abs(normal(16)) + 0.5}
    weights = {"w1": normal(16, 3, 3, 3), "b1": normal(16), "w2": normal(16, 16, 3, 3), "w3": normal(16, 1, 3, 3)}
    return tiny.model(RESIDUAL, **weights, **norm, w4=normal(5, 32), b4=normal(5))


def excited() -> ir.Model:
    weights = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(4, 8, 1, 1), "b2": normal(4)}
    return tiny.model(EXCITED, **weights, w3=normal(8, 4, 1, 1), b3=normal(8), w4=normal(4, 8 * 36))


def grouped() -> ir.Model:
    ints = {"sizes": [8, 8], "starts": [2], "ends": [8], "axes": [1]}
    weights = {"w1": normal(16, 3, 3, 3), "w2": normal(16, 4, 1, 1), "w3": normal(6, 4)}
    return tiny.model(GROUPED, **weights, **{k: np.int64(v) for k, v in ints.items()})


def attention() -> ir.Model:
    weights = {n: normal(8, 8, seed=i) for i, n in enumerate(("wq", "wk", "wv", "wo"))}
    ints = {"heads": np.int64([0, 0, 4, 2]), "flat": np.int64([0, 0, 8])}
    return tiny.model(ATTENTION, **weights, **ints, bq=normal(8), w1=normal(8, 32), w2=normal(32, 8))


MODELS = {
    "residual": (residual, {"x": normal(2, 3, 8, 8)}),
    "excited": (excited, {"x": normal(2, 3, 8, 8)}),
    "grouped": (grouped, {"x": normal(2, 3, 6, 6)}),
    "attention": (attention, {"x": normal(2, 5, 8)}),
    "fused": (fused, {"x": normal(2, 5, 8)}),
    "token": (token, {"x": normal(2, 3, 4, 4)}),
}


def zeroed(model: ir.Model, units: Units, gone: set[int]) -> ir.Model:
    """`model` with zeros wherever a weight belongs to a unit that goes."""
    copy = model.clone()
    for (name, axis), members in units.members().items():
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        w = np.moveaxis(value.const_value.numpy().copy(), axis, 0)
        w[np.isin(members, list(gone))] = 0
        value.const_value = ir.tensor(np.ascontiguousarray(np.moveaxis(w, 0, axis)), name=name)
    return copy


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_units_gives_what_it_gives_when_their_weights_are_zero(name: str, share: float) -> None:
    build, feed = MODELS[name]
    model = build()
    units = width.units_of(model, shapes(model, feed))
    scores = {u: float(s) for u, s in enumerate(np.random.default_rng(1).random(len(units.parents)))}
    gone, sizes = width.chosen(units, scores, share)
    assert gone and all(after <= before for before, after in sizes.values())
    small = width.without(model, units, gone)
    assert graph.size_bytes(small) < graph.size_bytes(model)
    want = open_session(zeroed(model, units, gone)).run(feed)[0]
    np.testing.assert_allclose(open_session(small).run(feed)[0], want, rtol=1e-4, atol=1e-5)


def test_pruning_leaves_its_argument_alone() -> None:
    model = residual()
    before = tiny.frozen(model)
    units = width.units_of(model, shapes(model, MODELS["residual"][1]))
    gone, _ = width.chosen(units, width.by_norm(model, units), 0.5)
    width.without(model, units, gone)
    assert tiny.frozen(model) == before


def test_a_residual_add_a_depthwise_convolution_and_a_norm_tie_their_channels() -> None:
    model = residual()
    members = width.units_of(model, shapes(model, MODELS["residual"][1])).members()
    stream = members["w1", 0]
    for key in [("b1", 0), ("w2", 0), ("w2", 1), ("scale", 0), ("var", 0), ("w3", 0)]:
        assert np.array_equal(members[key], stream), key
    assert np.array_equal(members["w4", 1], np.concatenate([stream, stream]))  # both halves of the Concat


def test_the_channels_of_a_head_go_together_and_with_their_queries_keys_and_values() -> None:
    model = attention()
    members = width.units_of(model, shapes(model, MODELS["attention"][1])).members()
    heads = members["wq", 1]
    assert len(set(heads.tolist())) == 4 and np.array_equal(heads, np.repeat(heads[::2], 2))
    for key in [("wk", 1), ("wv", 1), ("wo", 0), ("bq", 0)]:
        assert np.array_equal(members[key], heads), key


def test_outputs_and_what_is_named_keep_their_channels() -> None:
    model, feed = residual(), MODELS["residual"][1]
    kept = [n for n in model.graph if n.op_type == "Conv"][:1]
    units = width.units_of(model, shapes(model, feed), kept)
    gone, _ = width.chosen(units, width.by_norm(model, units), 0.5)
    assert not gone  # all channels are tied to those of the first convolution
    assert ("w4", 0) not in units.weights or not set(units.members()["w4", 0].tolist()) & gone


def test_the_units_of_least_norm_go() -> None:
    model, feed = excited(), MODELS["excited"][1]
    w = model.graph.initializers["w2"]
    assert w.const_value is not None
    small = w.const_value.numpy() * np.float32([1, 1e-3, 1, 1e-3]).reshape(4, 1, 1, 1)
    w.const_value = ir.tensor(small, name="w2")
    for other, axis in (("b2", 0), ("w3", 1)):
        value = model.graph.initializers[other]
        assert value.const_value is not None
        shape = [4 if i == axis else 1 for i in range(len(value.const_value.shape))]
        value.const_value = ir.tensor(
            value.const_value.numpy() * np.float32([1, 1e-3, 1, 1e-3]).reshape(shape), name=other
        )
    units = width.units_of(model, shapes(model, feed))
    gone, _ = width.chosen(units, width.by_norm(model, units), 0.5)
    squeeze = units.members()["w2", 0]
    assert set(squeeze.tolist()) & gone == {int(squeeze[1]), int(squeeze[3])}


def test_many_channels_stay_a_multiple_of_eight() -> None:
    model, feed = residual(), MODELS["residual"][1]
    units = width.units_of(model, shapes(model, feed))
    _, sizes = width.chosen(units, np.zeros(len(units.parents)), 0.6)
    assert (16, 8) in sizes.values()  # .6 of 16 is 9.6


def test_an_operator_that_is_not_known_keeps_the_channels_that_enter_it() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,8,4,4] y) {
        a = Conv <pads = [1,1,1,1]> (x, w1)
        s = SpaceToDepth <blocksize = 2> (a)
        y = Conv(s, w2)
    }"""
    model = tiny.model(text, w1=normal(8, 3, 3, 3), w2=normal(8, 32, 1, 1))
    units = width.units_of(model, shapes(model, {"x": normal(1, 3, 8, 8)}))
    assert not units.free()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_sizes_are_what_was_asked_for(share: float) -> None:
    model, feed = attention(), MODELS["attention"][1]
    units = width.units_of(simplify(model), shapes(simplify(model), feed))
    _, sizes = width.chosen(units, np.zeros(len(units.parents)), share)
    for before, after in sizes.values():
        wanted = share * before
        assert after == (max(1, round(wanted)) if before < 16 else min(before, max(8, 8 * round(wanted / 8))))
    assert math.prod(after for _, after in sizes.values()) > 0
