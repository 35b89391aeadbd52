"""Blame falls on the node that was broken, in decibels that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeopt.hardware import target as targets
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.ptq.islands import blame
from tests import tiny
from tests.static import Static, static

AVX2 = targets.load("cpu-x86-avx2")
CHAIN = """g (float[1,8,6,6] x) => (float[1,8,6,6] y) {
    a = Conv <pads = [1,1,1,1]> (x, w1)
    r = Relu(a)
    b = Conv <pads = [1,1,1,1]> (r, w2)
    m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (b)
    y = Conv <pads = [1,1,1,1]> (m, w3)
}"""
FEEDS = tiny.feeds(4, x=(1, 8, 6, 6))


def chain() -> Static:
    rng = np.random.default_rng(1)
    ws = {f"w{i}": rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8 for i in (1, 2, 3)}
    return static(tiny.model(CHAIN, **ws), FEEDS, AVX2)


def node_of(s: Static, weight: str) -> str:
    return next(str(n.name) for n in s.model.graph if any(v is not None and v.name == weight for v in n.inputs))


def coarse(s: Static, name: str) -> Static:
    """`s` with steps of the grid of `name` forty times as wide."""
    p = s.params[name]
    params = {**s.params, name: replace(p, scale=np.asarray(p.scale * np.float32(40)))}
    return replace(s, params=params, result=fold_weights(insert_qdq(s.model, s.plan, params)))


@pytest.mark.parametrize("weight", ["w1", "w2", "w3"])
def test_a_broken_weight_is_blamed_first(weight: str) -> None:
    s = coarse(chain(), weight)
    lost = blame(s.model, s.result, s.plan, FEEDS)
    (worst, db), (_, second) = list(lost.items())[:2]
    assert worst == node_of(s, weight)
    assert db > second + 3  # of nodes that all lose some 20 dB to their grids


def test_every_integer_node_is_weighed_and_the_worst_comes_first() -> None:
    s = chain()
    before = tiny.frozen(s.model), tiny.frozen(s.result)
    lost = blame(s.model, s.result, s.plan, FEEDS)
    assert lost.keys() == s.plan.integer
    assert list(lost.values()) == sorted(lost.values(), reverse=True)
    assert (tiny.frozen(s.model), tiny.frozen(s.result)) == before


def test_moving_data_loses_next_to_nothing() -> None:
    s = chain()
    pool = next(str(n.name) for n in s.model.graph if n.op_type == "MaxPool")
    assert abs(blame(s.model, s.result, s.plan, FEEDS)[pool]) < 3  # the maximum picks among errors, it adds none


def test_the_loss_is_the_inputs_decibels_less_the_outputs() -> None:
    w = np.random.default_rng(2).standard_normal((8, 8, 1, 1)).astype(np.float32)
    model = tiny.model("g (float[1,8,6,6] x) => (float[1,8,6,6] y) { a = Conv(x, w)  y = Relu(a) }", w=w)
    s = static(model, FEEDS, AVX2)
    (db,) = blame(s.model, s.result, s.plan, FEEDS).values()
    pairs = [(tiny.run(s.model, f, level="all")[0], tiny.run(s.result, f, level="all")[0]) for f in FEEDS]
    # a graph input counts as clean, which is 60 dB; exact up to how the runtime fuses with more outputs
    assert db == pytest.approx(60 - np.mean([tiny.sqnr_db(r, y) for r, y in pairs]), abs=0.3)
