"""`shrink`: a smaller network of the same interface, or a refusal and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph, shrink
from edgeopt.errors import DataError, EdgeoptError, UnchangedError, UsageError
from edgeopt.pruning import goal
from edgeopt.pruning.width import units_of
from edgeopt.runtime.costs import node_times
from edgeopt.runtime.probe import shapes
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


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"to": "30 bananas"}, "no share that stays"),
        ({"to": "130% macs"}, "no share that stays"),
        ({"to": "30% macs", "width": 0.5}, "one of them"),
        ({"width": 0.5, "steps": 3}, "go with to"),
        ({"to": "30% macs", "widths": "global"}, "needs importance first-order"),
        ({"to": "30% macs", "steps": 3}, "needs minutes"),
        ({"to": "30% macs", "minutes": 1.0}, "needs data"),
        ({"to": "30% macs", "curve": Path("c.svg")}, "needs minutes"),
    ],
)
def test_a_goal_that_cannot_be_is_refused_in_words(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shrink(DIGITS, **choices)


@pytest.mark.parametrize("of", ["macs", "parameters"])
def test_a_goal_is_reached_from_below_and_nearly(of: str) -> None:
    found = shrink(DIGITS, to=f"40% {of}")
    before, after = getattr(found, of)
    assert 0.25 * before < after <= 0.4 * before  # channels go in blocks of eight


def test_globally_the_layers_that_cost_much_for_what_they_tell_are_the_narrowest() -> None:
    feeds = [{"image": normal(1, 1, 28, 28, seed=i)} for i in range(8)]
    same, apart = (
        shrink(DIGITS, to="50% macs", data=feeds, importance="first-order", **more)
        for more in ({}, {"widths": "global"})
    )
    shares = [{after / before for before, after in f.widths.values()} for f in (same, apart)]
    assert max(shares[1]) - min(shares[1]) > max(shares[0]) - min(shares[0])
    assert apart.macs[1] <= 0.5 * apart.macs[0]


def test_a_goal_below_the_narrowest_network_is_refused_with_how_far_it_goes() -> None:
    with pytest.raises(UsageError, match=r"--to: no width reaches it: the narrowest network has .* asked for; --depth"):
        shrink(DIGITS, to="0.1% macs")


def test_steps_with_teaching_between_end_at_the_goal_with_a_curve(tmp_path: Path) -> None:
    feeds = [{"image": normal(1, 1, 28, 28, seed=i)} for i in range(40)]
    found = shrink(
        DIGITS, to="30% macs", steps=2, minutes=0.1, data=feeds, output=tmp_path / "s.onnx", curve=tmp_path / "c.svg"
    )
    first, last = found.curve
    assert found.macs[0] > first.macs > last.macs == found.macs[1] and found.macs[1] <= 0.3 * found.macs[0]
    assert last.after >= last.before and last.metric == "held-out fidelity to the teacher"
    assert (tmp_path / "c.svg").read_text().startswith("<svg") and (tmp_path / "s.onnx").is_file()


def test_blocks_that_go_leave_a_multiple_of_eight_and_the_least_important_go_first() -> None:
    model = graph.canonical(graph.load(DIGITS))
    units = units_of(model, shapes(model, {"image": normal(1, 1, 28, 28)}))
    scores = np.random.default_rng(0).random(len(units.parents))
    costs = goal.costs_of(model, units, {str(n.name): 1.0 for n in model.graph})
    order = goal.blocks(units, scores, costs)
    for members in units.free().values():
        mine = [part for _, _, part in order if set(part) <= set(members)]
        gone = [u for part in mine for u in part]
        assert gone == sorted(members, key=lambda u: (scores[u], u))[: len(gone)] and len(gone) < len(members)
        left = len(members)
        for part in mine:
            left -= len(part)
            assert left % 8 == 0 or len(members) < 16
    assert not goal.globally(units, scores, order, 1.0)[0] and len(goal.globally(units, scores, order, 0.0)[0]) == sum(
        len(p) for _, _, p in order
    )


def test_across_layers_every_layer_keeps_a_channel_and_biases_cost_nothing() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,32,8,8] y) {
        a = Conv (x, wa, ba)
        b = Conv (x, wb)
        ab = Concat <axis = 1> (a, b)
        c = Conv (x, wc)
        s = Add(ab, c)
        y = Conv (s, wy)
    }"""
    weights = {"wa": 1e-3 * normal(8, 3, 1, 1), "wb": normal(24, 3, 1, 1), "wc": normal(32, 3, 1, 1)}
    model = graph.canonical(tiny.model(text, **weights, wy=normal(32, 32, 1, 1), ba=normal(8)))
    feeds = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(4)]
    found = shrink(model, to="60% macs", data=feeds, importance="first-order", widths="global")
    assert all(0 not in v.const_value.shape.numpy() for v in found.model.graph.initializers.values() if v.const_value)
    units = units_of(model, shapes(model, feeds[0]))
    costs = goal.costs_of(model, units, dict.fromkeys((str(n.name) for n in model.graph if n.op_type == "Conv"), 32.0))
    of_a = units.members()["wa", 0]
    # a's own 32 over 8 channels, c's over 32, and y's over its 32 inputs
    assert costs[of_a] == pytest.approx(32 / 8 + 32 / 32 + 32 / 32)


def test_of_a_space_the_least_important_go_first_whatever_they_cost() -> None:
    model = graph.canonical(
        tiny.model(
            "g (float[N,4] x) => (float[N,2] y) { h = MatMul(x, a)  y = MatMul(h, b) }", a=normal(4, 3), b=normal(3, 2)
        )
    )
    units = units_of(model, shapes(model, {"x": normal(1, 4)}))
    (members,) = units.free().values()
    scores, costs = np.zeros(len(units.parents)), np.ones(len(units.parents))
    scores[members], costs[members] = [3, 2, 1], [1, 10, 0.1]
    assert [part for _, _, part in goal.blocks(units, scores, costs)] == [[members[2]], [members[1]]]


def test_measured_times_are_those_of_the_layers_with_weights() -> None:
    model = graph.canonical(graph.load(DIGITS))
    times = node_times(model, {"image": normal(1, 1, 28, 28)})
    layers = [str(n.name) for n in model.graph if n.op_type in ("Conv", "Gemm")]
    assert sum(times.get(name, 0.0) > 0 for name in layers) >= 0.7 * len(layers)


def test_samples_that_can_be_read_once_teach_in_every_step(tmp_path: Path) -> None:
    feeds = ({"image": normal(1, 1, 28, 28, seed=i)} for i in range(30))
    found = shrink(DIGITS, to="50% macs", steps=2, minutes=0.05, data=feeds)
    assert len(found.curve) == 2 and found.widths
    with pytest.raises(UsageError, match="is where the model goes"):
        shrink(DIGITS, to="50% macs", minutes=1.0, data="x", output=tmp_path / "a", curve=tmp_path / "a")


def test_a_goal_counts_from_the_whole_model_also_when_blocks_go_first() -> None:
    found = shrink(DIGITS, depth=0.5, to="50% macs")
    assert 0.35 * found.macs[0] < found.macs[1] <= 0.5 * found.macs[0]
