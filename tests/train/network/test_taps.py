"""Inner values that everything passes through: without one of them no path with weights leads to an output."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgeopt.errors import ModelError
from edgeopt.train.network.taps import inner_values
from tests import tiny
from tests.train import toys
from tests.train.network.test_module import ATTENTION, attention

CHAIN = """g (float[N,4] x) => (float[N,4] y) {
    a = MatMul(x, w0)  b = Relu(a)  c = MatMul(b, w1)  d = Relu(c)  e = MatMul(d, w2)  f = Relu(e)  y = MatMul(f, w3)
}"""
RESIDUAL = """g (float[N,4] x) => (float[N,4] y) {
    s = MatMul(x, w0)
    a = MatMul(s, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Add(s, c)
    e = MatMul(d, w3)  f = Relu(e)  h = MatMul(f, w4)  i = Add(d, h)
    y = MatMul(i, w5)
}"""
DENSE = """g (float[N,4] x) => (float[N,4] y) {
    a = MatMul(x, w0)  b = MatMul(a, w1)  c = Add(a, b)  d = MatMul(c, w2)  e = Add(a, d)  f = MatMul(e, w3)  y = Add(a, f)
}"""  # noqa: E501
BLOCK = """
    q{n} = MatMul(s{n}, q)  k{n} = MatMul(s{n}, k)  t{n} = Transpose <perm = [0,2,1]> (k{n})  z{n} = MatMul(q{n}, t{n})
    m{n} = Add(z{n}, bias)  p{n} = Softmax <axis = -1> (m{n})  v{n} = MatMul(s{n}, v)  o{n} = MatMul(p{n}, v{n})
    r{n} = Add(s{n}, o{n})  u{n} = MatMul(r{n}, w)  s{next} = Add(r{n}, u{n})
"""
MASKED = (
    """g (float[N,S,4] x, float[N,S] mask) => (float[N,S,4] y) {
    one = Constant <value = float[1] {1.0}> ()  far = Constant <value = float[1] {-10000.0}> ()
    axes = Constant <value = int64[1] {1}> ()
    inv = Sub(one, mask)  add = Mul(inv, far)  bias = Unsqueeze(add, axes)
    s0 = MatMul(x, w)
"""
    + "".join(BLOCK.format(n=n, next=n + 1) for n in range(3))
    + "y = MatMul(s3, w) }"
)
TEXTS = {
    "chain": (CHAIN, [f"w{i}" for i in range(4)]),
    "residual": (RESIDUAL, [f"w{i}" for i in range(6)]),
    "masked": (MASKED, ["q", "k", "v", "w"]),
}


def model(text: str, weights: list[str]) -> ir.Model:
    return tiny.model(text, **{name: toys.normal(i, 4, 4) for i, name in enumerate(weights)})


def connected(m: ir.Model, without: str) -> bool:
    """Whether a path with a weighted node on it leads from input x to an output and avoids the value. A mask, the other
    input, comes in everywhere and carries nothing.
    """
    reached = {("x", False)}
    for node in m.graph:
        weighs = any(v is not None and v.const_value is not None and len(v.const_value.shape) > 1 for v in node.inputs)
        states = {seen or weighs for v in node.inputs if v is not None for n, seen in reached if n == v.name}
        reached |= {(str(out.name), s) for out in node.outputs if out.name != without for s in states}
    return any((str(v.name), True) in reached for v in m.graph.outputs)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", TEXTS)
def test_without_a_chosen_value_no_weighted_path_is_left(name: str, count: int) -> None:
    m = model(*TEXTS[name])
    found = inner_values(m, count)
    assert len(found) == len(set(found)) == count
    assert connected(m, "")
    assert not any(connected(m, v) for v in found)


def test_values_split_the_layers_evenly_and_come_after_activation_and_sum() -> None:
    assert inner_values(model(*TEXTS["chain"])) == ("b", "d", "f")
    assert inner_values(model(*TEXTS["residual"]), 2) == ("d", "i")
    assert inner_values(model(*TEXTS["masked"]), 3) == ("r0", "r1", "r2")


def test_a_network_around_which_a_layer_leads_says_to_name_values() -> None:
    m = model(DENSE, [f"w{i}" for i in range(4)])
    assert not connected(m, "a")  # the first is the only way, but nothing after it is
    assert inner_values(m) == ("a",)
    single = tiny.model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=toys.normal(0, 4, 4))
    with pytest.raises(ModelError, match=r"--heads auto: .*name some with --heads"):
        inner_values(single)


def test_an_attention_whose_input_is_added_again_has_no_value_that_all_passes_through_between_its_layers() -> None:
    with pytest.raises(ModelError, match="no inner value is the only way"):
        inner_values(attention())
    # with a layer before and one behind it, the values beside the block are, and none inside
    text = ATTENTION.replace("(float[N,S,8] x,", "(float[N,S,8] x0,").replace("{", "{ x = MatMul(x0, first)", 1)
    weights = {name: toys.normal(i, 8, 8) for i, name in enumerate(("first", "wq", "wk", "wv", "last"))}
    norm = {name: toys.normal(9, 8) for name in ("gamma", "beta", "b")}
    m = tiny.model(text.replace("y = Add(n, b)", "e = Add(n, b)  y = MatMul(e, last)"), **weights, **norm)
    found = inner_values(m)
    assert found and set(found) <= {"x", "r", "n", "e"}
