"""Residual blocks: found, ranked by their influence, and taken out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.pruning import depth
from edgeopt.runtime.probe import shapes
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

BLOCKS = """g (float[N,2,6] x) => (float[N,2,6] y) {
    a = MatMul(x, w1)
    [first] b = Add(a, x)
    c = MatMul(b, w2)
    r = Relu(c)
    d = MatMul(r, w3)
    [second] e = Add(b, d)
    m = Mul(e, gate)
    [none] n = Add(m, e)
    f = MatMul(n, w4)
    [third] y = Add(f, n)
}"""
FEED = {"x": normal(4, 2, 6)}


def model(second: float = 1.0) -> ir.Model:
    weights = {f"w{i}": normal(6, 6, seed=i) for i in range(1, 5)}
    weights["w3"] = (weights["w3"] * second).astype(np.float32)
    return tiny.model(BLOCKS, **weights, gate=normal(6))


def test_blocks_are_adds_of_a_value_and_what_layers_make_of_it() -> None:
    found = depth.blocks(model(), shapes(model(), FEED))
    assert [(b.node, b.side, b.x, b.layers) for b in found] == [
        ("first", 1, "x", 1), ("second", 0, "b", 2), ("third", 1, "n", 1),
    ]  # fmt: skip


def test_a_block_that_adds_next_to_nothing_has_next_to_no_influence() -> None:
    made = model(second=1e-4)
    found = depth.blocks(made, shapes(made, FEED))
    influence = depth.influences(made, found, [FEED])
    assert influence["second"] < 1e-6 < min(influence["first"], influence["third"])
    assert depth.least(influence, 2 / 3) == ("second",)


@pytest.mark.parametrize(
    "gone", [("first",), ("second",), ("third",), ("first", "second"), ("first", "second", "third")]
)
def test_without_a_block_its_output_is_its_input(gone: tuple[str, ...]) -> None:
    made = model()
    before = tiny.frozen(made)
    small = depth.without_blocks(made, depth.blocks(made, shapes(made, FEED)), gone)
    assert tiny.frozen(made) == before
    x = FEED["x"]
    w = {n: v.const_value.numpy() for n, v in made.graph.initializers.items() if v.const_value is not None}
    b = x if "first" in gone else x @ w["w1"] + x
    e = b if "second" in gone else b + np.maximum(b @ w["w2"], 0) @ w["w3"]
    n = e * w["gate"] + e
    y = n if "third" in gone else n @ w["w4"] + n
    np.testing.assert_allclose(open_session(small).run(FEED)[0], y, rtol=1e-4, atol=1e-5)
    layers = sum(node.op_type == "MatMul" for node in small.graph)
    assert layers == 4 - len(set(gone)) - ("second" in gone)
