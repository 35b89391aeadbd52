"""`shrink`: a smaller network of the same interface, or a refusal and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph, shrink
from edgeopt.errors import DataError, EdgeoptError, UnchangedError
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal
from tests.pruning.test_depth import model as blocks
from tests.pruning.test_width import attention, excited, residual

DIGITS = Path(__file__).parents[2] / "calibration_data" / "digits" / "digits.onnx"


def test_the_embedded_classifier_at_half_its_width_has_its_interface_and_a_third_of_its_work(tmp_path: Path) -> None:
    found = shrink(DIGITS, width=0.5, output=tmp_path / "small.onnx")
    assert found.path is not None and found.macs[1] < 0.35 * found.macs[0]
    before, after = (onnx.load(p).graph for p in (DIGITS, found.path))
    for theirs, ours in ((before.input, after.input), (before.output, after.output)):
        assert [(v.name, v.type) for v in theirs] == [(v.name, v.type) for v in ours]
    y = open_session(found.path).run({"image": normal(3, 1, 28, 28)})[0]
    assert y.shape == (3, 10) and np.isfinite(y).all()
    assert list(tmp_path.iterdir()) == [found.path]


def test_the_same_model_gives_the_same_bytes() -> None:
    made = [shrink(DIGITS, width=0.5, depth=0.5).model for _ in range(2)]
    assert graph.proto_bytes(made[0]) == graph.proto_bytes(made[1])


def test_by_first_order_what_the_outputs_do_not_see_goes_first() -> None:
    model = excited()
    # the norm of the third and fourth squeezed channels is large, but nobody listens to them
    deaf = {"w3": np.float32([1, 1, 0, 0]).reshape(1, 4, 1, 1), "w2": np.float32([0.1, 0.1, 9, 9]).reshape(4, 1, 1, 1)}
    for name, factor in deaf.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * factor, name=name)
    model.graph.initializers["b2"].const_value = ir.tensor(np.full(4, 2, np.float32), name="b2")  # none is dead
    feeds = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(4)]
    found = shrink(model, width=0.5, data=feeds, importance="first-order", keep=("Gemm",))
    w = found.model.graph.initializers["w2"].const_value
    assert w is not None
    before = model.graph.initializers["w2"].const_value
    assert before is not None
    squeezed = w.numpy().shape[0]
    assert squeezed == 2 and np.abs(w.numpy()).max() <= np.abs(before.numpy()[:2]).max()


@pytest.mark.parametrize("build", [attention, residual, excited])
def test_transformers_and_networks_with_norms_and_gates_shrink(build: Any) -> None:
    found = shrink(build(), width=0.5, dims={"S": 5} if build is attention else {})
    assert found.parameters[1] < 0.8 * found.parameters[0] and found.widths


def test_labels_of_samples_are_no_input_and_no_samples_are_told() -> None:
    feeds = [{"x": normal(1, 2, 6, seed=i)} for i in range(3)]
    labelled = [{**feed, "label": np.array([1])} for feed in feeds]
    plain, seen = (shrink(blocks(second=1e-3), depth=2 / 3, data=data) for data in (feeds, labelled))
    assert plain.influence == seen.influence
    with pytest.raises(DataError, match="no sample"):
        shrink(blocks(second=1e-3), depth=2 / 3, data=[])


def test_blocks_are_chosen_by_data() -> None:
    found = shrink(blocks(second=1e-3), depth=2 / 3, data=[{"x": normal(1, 2, 6, seed=i)} for i in range(3)])
    assert found.removed == ("second",) and set(found.influence) == {"first", "second", "third"}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "say what shall go"),
        ({"width": 0.0}, "width 0: above 0"),
        ({"width": 1.5}, "at most 1"),
        ({"depth": -1.0}, "depth -1"),
        ({"width": float("nan")}, "width nan"),
        ({"width": 0.5, "importance": "first-order"}, "needs data"),
        ({"width": 0.5, "importance": "second"}, "Known: norm, first-order"),
        ({"width": 0.5, "keep": ("Convv",)}, "did you mean"),
        ({"width": 0.5, "keep": ("*",)}, "no layer is free"),
        ({"depth": 0.5, "keep": ("*",)}, "no residual block"),
    ],
)
def test_a_wrong_choice_is_refused_in_words(choices: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeoptError, match=message):
        shrink(DIGITS, output=tmp_path / "s.onnx", **choices)
    assert not list(tmp_path.iterdir())


def test_a_share_that_keeps_all_blocks_is_nothing_to_shrink(tmp_path: Path) -> None:
    with pytest.raises(UnchangedError, match=r"nothing to shrink: at --depth 0\.9 all 3 blocks stay"):
        shrink(blocks(second=1e-3), depth=0.9, output=tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_a_mask_of_minus_infinity_is_no_broken_weight() -> None:
    text = """g (float[N,8,16] x) => (float[N,8,16] y) { h = MatMul(x, w)  r = Relu(h)  z = MatMul(r, v)
        t = Transpose<perm = [0, 2, 1]>(z)  s = MatMul(x, t)  m = Add(s, mask)  a = Softmax(m)  y = MatMul(a, x) }"""
    mask = np.where(np.tri(8), 0, -np.inf).astype(np.float32)
    weights = {"w": normal(16, 32), "v": normal(32, 16, seed=1)}
    found = shrink(tiny.model(text, mask=mask, **weights), width=0.5)
    assert found.widths and np.array_equal(tiny.weights_of(found.model)["mask"], mask)
    broken = weights | {"w": np.where(np.eye(16, 32) > 0, np.inf, weights["w"]).astype(np.float32)}
    with pytest.raises(EdgeoptError, match="weight 'w' holds NaN or infinity"):
        shrink(tiny.model(text, mask=mask, **broken), width=0.5)


def test_a_model_of_one_layer_cannot_be_narrower() -> None:
    with pytest.raises(EdgeoptError, match="no layer is free"):
        shrink(tiny.model("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=normal(4, 3)), width=0.5)
