"""Activations of two widths in one network: the wide ones are wide, and what reads the other width converts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.graph.plan import Plan
from edgeopt.hardware import target
from edgeopt.numbers.grid import UINT8, QType, choose
from edgeopt.ptq.widths import converted, without_identities
from edgeopt.quantization.on_target import broken_rules
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.steps import Grids, Observe, Place, Round, Write
from tests import tiny
from tests.models import normal

WIDE = QType("uint16", 0, 65535, symmetric=False)
CHAIN = "g (float[1,4] x) => (float[1,4] z) { [a] u = Relu(x)  [b] v = Neg(u)  [c] w = Abs(v)  [d] z = Add(u, w) }"


def test_a_node_that_reads_the_other_width_reads_it_through_an_identity() -> None:
    model = tiny.model(CHAIN)
    plan = Plan(dict.fromkeys("abcd", "int8 static"), {}, {n: n for n in "xuvwz"}, {})
    activation = {n: choose(-1.0, 3.0, WIDE if n == "v" else UINT8) for n in "xuvwz"}
    copy, grids = converted(model, plan, activation)
    assert [n.op_type for n in model.graph] == ["Relu", "Neg", "Abs", "Add"]  # its argument is left alone
    by_name = {str(n.name): n for n in copy.graph}
    assert by_name["b"].inputs[0].producer().op_type == "Identity"  # type: ignore[union-attr]
    assert by_name["c"].inputs[0].producer().op_type == "Identity"  # type: ignore[union-attr]
    assert str(by_name["d"].inputs[0].name) == "u"  # of the same width
    assert {grids[n].qtype.dtype for n in grids if n not in activation} == {"uint8", "uint16"}
    for name in grids.keys() - activation.keys():  # over the same range
        np.testing.assert_allclose(grids[name].range, activation[name.split("_")[0]].range, atol=0.02)
    x = {"x": normal(1, 4)}
    assert np.array_equal(tiny.run(copy, x)[0], tiny.run(model, x)[0])


def test_identities_between_grids_go_and_others_stay() -> None:
    text = """g (float[1,4] x) => (float[1,4] y, float[1,4] z) { d = Relu(x)  i = Identity(d)
      q = QuantizeLinear(i, s, o)  y = DequantizeLinear(q, s, o)  z = Identity(d) }"""
    model = tiny.model(text, s=np.float32(0.1), o=np.uint8(3))
    after = without_identities(model)
    assert [n.op_type for n in after.graph] == ["Relu", "QuantizeLinear", "DequantizeLinear", "Identity"]
    x = {"x": normal(1, 4)}
    assert all(map(np.array_equal, tiny.run(after, x), tiny.run(model, x)))


def network() -> tuple[bytes, list[dict[str, np.ndarray]]]:
    """Three convolutions, of which the first gives few large values and many small ones."""
    text = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
      [one] h = Conv <pads = [1,1,1,1]> (x, v, a)  [two] k = Conv <pads = [1,1,1,1]> (h, w, b)
      [three] y = Conv <pads = [1,1,1,1]> (k, u, b) }"""
    v = normal(4, 4, 3, 3)
    v[0] *= 200
    w = normal(4, 4, 3, 3, seed=1)
    w[:, 0] /= 400
    model = tiny.proto(text, v=v, w=w, u=normal(4, 4, 3, 3, seed=2), a=normal(4), b=normal(4)).SerializeToString()
    return model, [{"x": normal(1, 4, 8, 8, seed=i)} for i in range(40)]


def types(model: ir.Model) -> set[str]:
    grids = [n.inputs[2] for n in model.graph if n.op_type == "QuantizeLinear"]
    return {v.dtype.name for v in grids if v is not None and v.dtype is not None}


def test_a_recipe_names_the_values_on_the_wider_grid_and_it_is_nearer() -> None:
    model, feeds = network()
    near = []
    for wide in (frozenset[str](), frozenset({"h", "k"})):
        recipe = Recipe((Place(), Observe(), Grids(rule="minmax", wide=wide), Round(how="nearest"), Write()))
        found = edgeopt.quantize(model, feeds, target="qnn-htp", recipe=recipe, measure=False)
        near.append(found.report.worst_sqnr_db)
        assert types(graph.load(found.proto)) == ({"UINT8", "UINT16"} if wide else {"UINT8"})
        assert found.proto.opset_import[0].version == 21 or not wide
        assert not [n for n in found.proto.graph.node if n.op_type == "Identity"]
        assert list(broken_rules(graph.canonical(graph.load(found.proto)), target.load("qnn-htp"))) == []
    assert near[1] > near[0] + 10, near


def test_what_is_far_from_float_is_made_wider_by_itself_only_where_the_target_can() -> None:
    model, feeds = network()
    wide = edgeopt.quantize(model, feeds, target="qnn-htp", mode="static", rounding="nearest", measure=False)
    assert "UINT16" in types(graph.load(wide.proto)) and "in uint16" in wide.report.mode
    other = edgeopt.quantize(model, feeds, target="nnapi", mode="static", rounding="nearest", measure=False)
    assert types(graph.load(other.proto)) == {"UINT8"} and "in float" in other.report.mode


@pytest.mark.parametrize(("name", "wide"), [("qnn-htp", "uint16"), ("qnn-htp:a16", None), ("nnapi", None)])
def test_which_targets_have_a_wider_type(name: str, wide: str | None) -> None:
    kind = target.load(name).wide_type
    assert (None if kind is None else kind.dtype) == wide
