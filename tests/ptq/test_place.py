"""Placement against every placement of tiny models under the same cost, and the rules that keep nodes in float."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.graph.ops import OPS, activations, cost_class, macs_of
from edgeopt.graph.plan import Plan
from edgeopt.graph.select import select
from edgeopt.hardware import target as targets
from edgeopt.hardware.target import OpCost, Target
from edgeopt.ptq.place import place, refusal
from edgeopt.runtime.probe import Probe, probe, shapes
from tests import tiny

AVX2 = targets.load("cpu-x86-avx2")
RNG = np.random.default_rng(0)
SIDE = 4
SHAPE = (1, 8, SIDE, SIDE)
W3 = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8
W1 = RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
DW = RNG.standard_normal((8, 1, 3, 3)).astype(np.float32)


def probes_of(model: ir.Model, shape: tuple[int, ...] = SHAPE) -> dict[str, Probe]:
    """Every value of `shape`, within -1 ... 1."""
    values = [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]
    return {str(v.name): Probe(shape, -1.0, 1.0) for v in values}


def pricey(**cost: tuple[tuple[float, float], tuple[float, float]]) -> Target:
    """A target with the rows `cost` of (float, int) over those of AVX2, without margin."""
    rows = {name.replace("_", "."): OpCost(**{"float": f, "int": i}) for name, (f, i) in cost.items()}
    place = AVX2.place.model_copy(update={"margin": 0.0})
    return AVX2.model_copy(update={"cost": {**AVX2.cost, **rows}, "place": place})


FREE = pricey(Conv=((100, 100), (0, 0)), Add=((0, 9000), (0, 0)))  # integers always pay


# Every placement


def clamp_of(node: ir.Node) -> ir.Node | None:
    """The Relu that the output grid of `node` takes over when `node` is integer."""
    uses = tuple(node.outputs[0].uses())
    alone = len(uses) == 1 and uses[0].node.op_type == "Relu" and not node.outputs[0].is_graph_output()
    return uses[0].node if alone and not OPS[node.op_type].moves else None


def candidates(model: ir.Model, target: Target, probes: Mapping[str, Probe]) -> dict[str, ir.Node]:
    return {str(n.name): n for n in model.graph if refusal(n, probes) is None and cost_class(n) in target.cost}


def cost(model: ir.Model, target: Target, probes: Mapping[str, Probe], integer: frozenset[str]) -> int:
    """Picoseconds of `model` with the nodes called `integer` in integers, by the words of `place`'s docstring."""
    total = 0
    taken = {}  # value -> the integer node that gives it
    for name, node in candidates(model, target, probes).items():
        row, work = target.cost[cost_class(node)], macs_of(node, {k: p.shape for k, p in probes.items()})
        size = sum(probes[str(v.name)].size for v in node.outputs)
        if name in integer:
            total += round((row.int_ps[0] * work + row.int_ps[1] * size) * (1 + target.place.margin))
            clamp = clamp_of(node)
            taken |= {str(v.name): node for v in (clamp or node).outputs}
        else:
            total += round(row.float_ps[0] * work + row.float_ps[1] * size)
    for value in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]:
        uses, size = tuple(value.uses()), probes[str(value.name)].size
        around = [value.producer(), *(u.node for u in uses)]
        layout = target.layout_ps * any(n is not None and n.op_type == "Conv" for n in around)
        reads_integers = [u.node.name in integer and u.idx in {i for i, _ in activations(u.node)} for u in uses]
        maker = taken.get(str(value.name))
        if maker is None and any(reads_integers):
            total += round((target.quantize_ps + layout) * size)
        float_reader = not all(reads_integers) or value.is_graph_output()
        if maker is not None and float_reader and not OPS[maker.op_type].float_output:
            total += round((target.dequantize_ps + layout) * size)
    return total


def cheapest(model: ir.Model, target: Target, probes: Mapping[str, Probe], must: frozenset[str] = frozenset()) -> int:
    names = list(candidates(model, target, probes))
    sides = (frozenset(itertools.compress(names, bits)) for bits in itertools.product((0, 1), repeat=len(names)))
    return min(cost(model, target, probes, side) for side in sides if must & set(names) <= side)


STEPS = {
    "Conv3": "{0} = Conv <pads = [1,1,1,1]> ({1}, w3)",
    "Conv1": "{0} = Conv ({1}, w1)",
    "Depthwise": "{0} = Conv <pads = [1,1,1,1], group = 8> ({1}, dw)",
    "Relu": "{0} = Relu({1})",
    "MaxPool": "{0} = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> ({1})",
    "Transpose": "{0} = Transpose <perm = [0,1,3,2]> ({1})",
    "Add": "{0} = Add({1}, {2})",
    "Sigmoid": "{0} = Sigmoid({1})",
    "ConvRelu": "{0}t = Conv <pads = [1,1,1,1]> ({1}, w3)  {0} = Relu({0}t)",
    "AddRelu": "{0}t = Add({1}, {2})  {0} = Relu({0}t)",
}
MOST = 8


def network(rng: np.random.Generator) -> ir.Model:
    """A random graph of four to eight candidates over values of one shape; the last value and one more are outputs."""
    values, lines, count = ["x"], [], 0
    most = rng.integers(4, MOST + 1)
    while count < most:
        kind = str(rng.choice(list(STEPS)))
        count += kind not in ("Relu", "Sigmoid")
        recent = rng.choice(values[-3:], 2) if rng.random() < 0.6 else [values[-1], values[-1]]
        name = f"v{len(lines)}"
        lines.append(STEPS[kind].format(name, *recent))
        values.append(name)
    outputs = sorted({values[-1], str(rng.choice(values[1:]))})
    declared = ", ".join(f"float[1,8,{SIDE},{SIDE}] {name}" for name in outputs)
    text = f"g (float[1,8,{SIDE},{SIDE}] x) => ({declared}) {{ {' '.join(lines)} }}"
    return tiny.model(text, w3=W3, w1=W1, dw=DW)


def random_target(rng: np.random.Generator) -> Target:
    rows = {
        name: ((0, int(rng.integers(200, 900))), (0, int(rng.integers(0, 700))))
        for name in ("Conv", "Conv_depthwise", "MaxPool", "Transpose", "Add")
    }
    crossing = {"quantize_ps": float(rng.integers(0, 500)), "dequantize_ps": float(rng.integers(0, 500))}
    return pricey(**rows).model_copy(update=crossing)


def cases(count: int) -> list[tuple[ir.Model, Target]]:
    rng = np.random.default_rng(5)
    return [(network(rng), random_target(rng)) for _ in range(count)]


def test_no_placement_is_cheaper() -> None:
    mixed = 0
    for model, target in cases(120):
        probes = probes_of(model)
        plan = place(model, target, probes)
        assert cost(model, target, probes, plan.integer) == cheapest(model, target, probes)
        mixed += 0 < len(plan.integer) < len(candidates(model, target, probes))
    assert mixed >= 30  # the cases are worth something: neither side takes all


def test_no_placement_with_the_included_nodes_is_cheaper() -> None:
    rng = np.random.default_rng(6)
    for model, target in cases(40):
        probes = probes_of(model)
        must = frozenset(rng.choice(list(candidates(model, target, probes)), 2).tolist())
        plan = place(model, target, probes, include=must)
        assert must <= plan.integer
        assert cost(model, target, probes, plan.integer) == cheapest(model, target, probes, must)


@pytest.mark.parametrize("name", targets.names()[1:])
def test_no_placement_is_cheaper_on_a_real_target(name: str) -> None:
    target = targets.load(name)
    for model, _ in cases(15):
        probes = probes_of(model, (1, 8, 56, 56))
        assert cost(model, target, probes, place(model, target, probes).integer) == cheapest(model, target, probes)


def test_a_plan_is_whole() -> None:
    clamps = 0
    for model, target in cases(60):
        before = tiny.frozen(model)
        plan = place(model, target, probes_of(model))
        nodes = {str(n.name): n for n in model.graph}
        assert plan.integer | plan.clamps.keys() | plan.kept_float.keys() == nodes.keys()  # every node, once
        assert not plan.integer & plan.kept_float.keys() and not plan.clamps.keys() & plan.kept_float.keys()
        for name in plan.integer:
            assert all(str(v.name) in plan.grids for _, v in activations(nodes[name]))
        for clamp, producer in plan.clamps.items():
            assert producer in plan.integer and nodes[clamp].op_type == "Relu"
            assert str(nodes[clamp].outputs[0].name) in plan.grids
            assert str(nodes[producer].outputs[0].name) not in plan.grids
        assert all(plan.grids[source] == source for source in plan.grids.values())  # a source decides for itself
        assert tiny.frozen(model) == before
        clamps += len(plan.clamps)
    assert clamps >= 10


# A classifier head, where a Gemm may give floats


HEAD = """g (float[1,8,4,4] x) => (float[1,16] y) {
    c = Conv <pads = [1,1,1,1]> (x, w3)
    f = Flatten(c)
    h = Gemm(f, d1)
    r = Relu(h)
    y = Gemm(r, d2)
}"""


def head() -> ir.Model:
    d1, d2 = RNG.standard_normal((128, 64)), RNG.standard_normal((64, 16))
    return tiny.model(HEAD, w3=W3, d1=d1.astype(np.float32), d2=d2.astype(np.float32))


def head_probes() -> dict[str, Probe]:
    shapes = {"x": SHAPE, "c": SHAPE, "f": (1, 128), "h": (1, 64), "r": (1, 64), "y": (1, 16)}
    return {name: Probe(shape, -1, 1) for name, shape in shapes.items()}


def test_the_last_product_gives_floats_without_a_grid() -> None:
    plan = place(head(), AVX2, head_probes())
    assert len(plan.integer) == 4
    assert set(plan.grids) == {"x", "c", "f", "r"} and len(plan.clamps) == 1


def test_a_classifier_head_is_placed_like_the_cheapest() -> None:
    for quantize_ps in (0.0, 400.0, 9000.0, 90_000.0):
        target = AVX2.model_copy(update={"quantize_ps": quantize_ps})
        found = place(head(), target, head_probes())
        assert cost(head(), target, head_probes(), found.integer) == cheapest(head(), target, head_probes())


def test_a_product_whose_clamp_is_taken_over_pays_for_its_dequantization() -> None:
    text = "g (float[1,64] x) => (float[1,64] y) { h = Gemm(x, d)  r = Relu(h)  y = Exp(r) }"
    model = tiny.model(text, d=np.ones((64, 64), np.float32))
    dear = AVX2.model_copy(update={"quantize_ps": 0.0, "dequantize_ps": 1e9})
    plan = place(model, dear, probes_of(model, (1, 64)))
    # either the product is float, or it gives floats and its Relu stays
    assert not plan.clamps and "r" not in plan.grids


# What stays float


def placed(
    text: str, *, target: Target = FREE, shape: tuple[int, ...] = SHAPE, **weights: np.ndarray
) -> tuple[ir.Model, Plan]:
    model = tiny.model(text, **weights)
    return model, place(model, target, probes_of(model, shape))


def op_of(model: ir.Model, name: str) -> str:
    return next(n.op_type for n in model.graph if n.name == name)


def integer_ops(model: ir.Model, plan: Plan) -> list[str]:
    return sorted(op_of(model, name) for name in plan.integer)


def test_a_thin_first_convolution_stays_float_on_avx2() -> None:
    text = """g (float[1,3,16,16] x) => (float[1,8,16,16] y) {
        a = Conv <pads = [1,1,1,1]> (x, thin)
        b = Conv <pads = [1,1,1,1]> (a, w3)
        c = Conv <pads = [1,1,1,1]> (b, w3)
        y = Conv <pads = [1,1,1,1]> (c, w3)
    }"""
    model = tiny.model(text, thin=np.ones((8, 3, 3, 3), np.float32), w3=W3)
    plan = place(model, AVX2, probe(model, {"x": np.ones((1, 3, 16, 16), np.float32)}))
    first = next(n for n in model.graph)
    assert first.name not in plan.integer and "Conv.thin" in plan.kept_float[str(first.name)]
    assert len(plan.integer) == 3


@pytest.mark.parametrize("value", [-10_000.0, -65_504.0, -3.4e38, -np.inf])
def test_an_attention_mask_never_sets_a_range(value: float) -> None:
    text = """g (float[1,8,4,4] s, float[1,8,4,4] m) => (float[1,8,4,4] y) {
        a = Add(s, m)
        b = Transpose <perm = [0,1,3,2]> (a)
        y = Softmax(b)
    }"""
    model = tiny.model(text)
    mask = np.zeros(SHAPE, np.float32)
    mask[..., 2:] = value
    everywhere = frozenset(str(n.name) for n in model.graph)
    plan = place(model, FREE, probe(model, {"s": np.ones(SHAPE, np.float32), "m": mask}), include=everywhere)
    assert not plan.integer and not plan.grids


def test_a_mask_in_a_constant_never_sets_a_range() -> None:
    text = "g (float[1,8,4,4] s) => (float[1,8,4,4] y) { a = Add(s, m)  y = Softmax(a) }"
    for value in (-10_000.0, -np.inf):
        model = tiny.model(text, m=np.where(np.eye(4) > 0, value, 0).astype(np.float32))
        probes = probe(model, {"s": np.ones(SHAPE, np.float32)})
        assert not place(model, FREE, probes, include=frozenset(str(n.name) for n in model.graph)).grids


def test_a_mask_that_only_later_samples_hold_never_sets_a_range() -> None:
    text = """g (float[1,8,8,8] x, float[1,1,8,8] m) => (float[1,8,8,8] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        s = Add(a, m)
        y = Softmax <axis = -1> (s)
    }"""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 1, 1, 8, 8), np.float32)
    masks[1, ..., 5:] = -10_000
    data = [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32), "m": masks[min(i % 3, 1)]} for i in range(24)]
    result = edgeopt.quantize(tiny.proto(text, w3=W3), data, mode="static", include=("Add", "Conv"), measure=False)
    assert result.report.worst_sqnr_db >= 20  # a grid from -10000 to 3 leaves nothing of the scores


def test_excluded_nodes_stay_float_and_included_ones_do_not() -> None:
    text = """g (float[1,8,4,4] x) => (float[1,8,4,4] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        y = Conv <pads = [1,1,1,1]> (a, w3)
    }"""
    model = tiny.model(text, w3=W3)
    first, second = (str(n.name) for n in model.graph)
    dear = AVX2.model_copy(update={"quantize_ps": 1e6})
    probes = probes_of(model)
    assert place(model, dear, probes).integer == frozenset()
    assert place(model, dear, probes, include=frozenset({second})).integer >= {second}
    assert place(model, FREE, probes).integer == {first, second}
    plan = place(model, FREE, probes, exclude=frozenset({first}))
    assert plan.integer == {second} and plan.kept_float == {first: "chosen to stay float"}


def test_an_excluded_clamp_is_not_taken_over() -> None:
    model = tiny.model(
        "g (float[1,8,4,4] x) => (float[1,8,4,4] y) { a = Conv <pads = [1,1,1,1]> (x, w3)  y = Relu(a) }", w3=W3
    )
    conv, relu = (str(n.name) for n in model.graph)
    plan = place(model, FREE, probes_of(model), exclude=frozenset({relu}))
    assert plan.integer == {conv} and not plan.clamps and set(plan.grids) == {"x", "a"}


REFUSED = {
    "a weight computed at run time": ("y = Conv <pads = [1,1,1,1]> (x, s)", "s = Mul(w3, x0)"),
    "a bias computed at run time": ("y = Conv <pads = [1,1,1,1]> (x, w3, s)", "s = Mul(b, x1)"),
    "weights that are not finite": ("y = Conv <pads = [1,1,1,1]> (x, nan)", ""),
    "an operator without a kernel": ("y = Sin(x)", ""),
    "a constant that is not finite": ("y = Add(x, inf)", ""),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_no_integer_kernel_computes_stays_float(why: str) -> None:
    last, first = REFUSED[why]
    text = f"g (float[1,8,4,4] x, float[8,8,3,3] x0, float[8] x1) => (float[1,8,4,4] y) {{ {first} {last} }}"
    inf = np.full((8, 1, 1), np.inf, np.float32)
    model = tiny.model(text, w3=W3, b=np.ones(8, np.float32), nan=W3 * np.float32(np.nan), inf=inf)
    probes = {**probes_of(model), "x0": Probe((8, 8, 3, 3), -1, 1), "x1": Probe((8,), -1, 1)}
    plan = place(model, FREE, probes, include=frozenset(str(n.name) for n in model.graph))
    node = next(n for n in model.graph if n.outputs[0].name == "y")
    assert node.name not in plan.integer and plan.kept_float[str(node.name)]


@pytest.mark.parametrize(("times", "integer"), [(8, True), (400, False)])
def test_operands_of_a_concat_share_no_grid_that_leaves_one_of_them_no_levels(times: int, integer: bool) -> None:
    text = "g (float[1,8,4,4] x, float[1,8,4,4] z) => (float[1,16,4,4] y) { y = Concat <axis = 1> (x, z) }"
    model = tiny.model(text)
    probes = {**probes_of(model), "x": Probe(SHAPE, 0.0, float(times)), "z": Probe(SHAPE, 0.0, 1.0)}
    probes["y"] = Probe((1, 16, 4, 4), 0.0, float(times))
    plan = place(model, FREE, probes, include=frozenset(str(n.name) for n in model.graph))
    assert bool(plan.integer) == integer
    assert integer or "ranges differ 400 times" in next(iter(plan.kept_float.values()))


def test_a_gemm_with_alpha_stays_float() -> None:
    text = "g (float[2,64] x) => (float[2,64] y) { y = Gemm <alpha = 0.5> (x, w) }"
    _, plan = placed(text, target=AVX2, shape=(2, 64), w=np.ones((64, 64), np.float32))
    assert not plan.integer


def test_integers_and_empty_tensors_stay_float() -> None:
    text = "g (int64[4] i, float[0,8,4,4] x) => (int64[4] j, float[0,8,4,4] y) { j = Add(i, i)  y = Add(x, x) }"
    model = tiny.model(text)
    probes = probe(model, {"i": np.ones(4, np.int64), "x": np.zeros((0, 8, 4, 4), np.float32)})
    assert not place(model, FREE, probes, include=frozenset(str(n.name) for n in model.graph)).integer


# Clamps


CLIP = "g (float[1,8,4,4] x) => (float[1,8,4,4] y) { a = Conv <pads = [1,1,1,1]> (x, w3)  y = Clip(a, lo, hi) }"


@pytest.mark.parametrize(
    ("lo", "hi", "taken"), [(0, 6, True), (-1, 1, True), (1, 5, False), (-5, -1, False), (0, 0, True)]
)
def test_a_clip_is_taken_over_when_zero_is_inside_its_bounds(lo: float, hi: float, taken: bool) -> None:
    model, plan = placed(CLIP, w3=W3, lo=np.float32(lo), hi=np.float32(hi))
    conv, clip = (str(n.name) for n in model.graph)
    assert plan.integer == {conv}
    assert plan.clamps == ({clip: conv} if taken else {})
    assert set(plan.grids) == {"x", "y" if taken else "a"}


@pytest.mark.parametrize("inputs", ["a", "a, lo", "a, , hi"])
def test_a_clip_without_a_bound_is_taken_over(inputs: str) -> None:
    text = CLIP.replace("a, lo, hi", inputs)
    _, plan = placed(text, w3=W3, lo=np.float32(-1), hi=np.float32(1))
    assert len(plan.clamps) == 1


def test_a_clip_with_bounds_made_at_run_time_is_not_taken_over() -> None:
    text = CLIP.replace("(float[1,8,4,4] x)", "(float[1,8,4,4] x, float lo, float hi)")
    model = tiny.model(text, w3=W3)
    plan = place(model, FREE, {**probes_of(model), "lo": Probe((), 0, 0), "hi": Probe((), 6, 6)})
    assert len(plan.integer) == 1 and not plan.clamps


@pytest.mark.parametrize(
    "rest",
    ["y = Relu(a)  z = Exp(a)", "y = Relu(a)  z = Identity(a)", "r = Relu(a)  y = Add(r, a)  z = Exp(y)"],
    ids=["another reader", "a copy", "a later reader"],
)
def test_a_clamp_that_is_not_the_only_reader_is_not_taken_over(rest: str) -> None:
    text = (
        "g (float[1,8,4,4] x) => (float[1,8,4,4] y, float[1,8,4,4] z) { a = Conv <pads = [1,1,1,1]> (x, w3) "
        f" {rest} }}"
    )
    _, plan = placed(text, w3=W3)
    assert not plan.clamps and "a" in plan.grids


def test_a_clamp_behind_a_graph_output_is_not_taken_over() -> None:
    text = (
        "g (float[1,8,4,4] x) => (float[1,8,4,4] a, float[1,8,4,4] y) { a = Conv <pads = [1,1,1,1]> (x, w3)  y ="
        " Relu(a) }"
    )
    _, plan = placed(text, w3=W3)
    assert not plan.clamps and "a" in plan.grids


# Grids


def test_data_that_only_moves_keeps_the_grid_of_its_source() -> None:
    text = """g (float[1,8,4,4] x) => (float[1,8,16] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        b = Relu(a)
        c = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (b)
        d = Transpose <perm = [0,1,3,2]> (c)
        e = Conv <pads = [1,1,1,1]> (d, w3)
        y = Reshape(e, s)
    }"""
    model = tiny.model(text, w3=W3, s=np.array([1, 8, 16]))
    probes = {**probes_of(model), "y": Probe((1, 8, 16), -1, 1)}
    plan = place(model, FREE, probes, include=frozenset(str(n.name) for n in model.graph))
    assert integer_ops(model, plan) == ["Conv", "Conv", "MaxPool", "Reshape", "Transpose"]
    assert plan.grids == {"x": "x", "b": "b", "c": "b", "d": "b", "e": "e", "y": "e"}


def test_all_parts_of_a_split_keep_the_grid_of_the_whole() -> None:
    text = """g (float[1,8,4,4] x) => (float[1,8,4,4] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        p, q = Split <axis = 2> (a, half)
        y = Concat <axis = 2> (q, p)
    }"""
    model = tiny.model(text, w3=W3, half=np.array([2, 2]))
    plan = place(model, FREE, probes_of(model), include=frozenset(str(n.name) for n in model.graph))
    assert plan.grids == {"x": "x", "a": "a", "p": "a", "q": "a", "y": "y"}


# Patterns


def test_patterns_select_by_name_glob_and_type() -> None:
    model = head()
    names = [str(n.name) for n in model.graph]
    assert (
        select([model], ["Gemm"]) == {n for n in names if op_of(model, n) == "Gemm"}
        and len(select([model], ["Gemm"])) == 2
    )
    assert select([model], [names[0]]) == {names[0]}
    assert select([model], ["*"]) == set(names)
    assert select([model], []) == set()


def test_a_pattern_without_a_match_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"'Gem'.*did you mean 'Gemm'"):
        select([head()], ["Gemm", "Gem"])


# The multiply-accumulates that the costs count


@pytest.mark.parametrize(
    ("text", "weights", "expected"),
    [
        ("g (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Conv <pads = [1,1,1,1]> (x, w) }", W3, 128 * 72),
        ("g (float[1,8,4,4] x) => (float[1,8,2,2] y) { y = Conv <strides = [2,2]> (x, w) }", W1, 32 * 8),
        ("g (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Conv <pads = [1,1,1,1], group = 8> (x, w) }", DW, 128 * 9),
        ("g (float[3,5] x) => (float[3,7] y) { y = Gemm (x, w) }", np.ones((5, 7), np.float32), 3 * 7 * 5),
        ("g (float[5,3] x) => (float[3,7] y) { y = Gemm <transA = 1> (x, w) }", np.ones((5, 7), np.float32), 3 * 7 * 5),
        ("g (float[2,3,5] x) => (float[2,3,7] y) { y = MatMul (x, w) }", np.ones((5, 7), np.float32), 6 * 7 * 5),
        ("g (float[2,3] x) => (float[2,3] y) { y = Add (x, w) }", np.ones(3, np.float32), 0),
    ],
    ids=["conv", "strided", "depthwise", "gemm", "transposed", "matmul", "add"],
)
def test_multiply_accumulates_are_counted(text: str, weights: np.ndarray, expected: int) -> None:
    model = tiny.model(text, w=weights)
    shape = tuple(model.graph.inputs[0].shape)
    (node,) = model.graph
    assert macs_of(node, shapes(model, {"x": np.ones(shape, np.float32)})) == expected


def test_bodies_of_if_stay_float() -> None:
    text = """g (bool c, float[1,8,4,4] x) => (float[1,8,4,4] y) {
        a = Conv <pads = [1,1,1,1]> (x, w3)
        y = If (c) <
            then_branch = t () => (float[1,8,4,4] p) { p = Conv <pads = [1,1,1,1]> (a, w3) },
            else_branch = e () => (float[1,8,4,4] q) { q = Relu(a) }
        >
    }"""
    model = tiny.model(text, w3=W3)
    plan = place(model, FREE, probes_of(model))
    assert integer_ops(model, plan) == ["Conv"] and not plan.clamps
