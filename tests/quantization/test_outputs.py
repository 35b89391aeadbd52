"""What an output is, seen in the graph, in names and in values; states are fed back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import DataError, UsageError, ValidityError
from edgeopt.numbers.kinds import Kind, figures
from edgeopt.numbers.scores import OutputReport, Outputs, compare
from edgeopt.quantization.outputs import changed, fed_back, kinds, levels, steps_on, with_changes
from edgeopt.runtime.session import Feed, open_session
from tests import tiny
from tests.models import normal


def seen(
    model: ir.Model, n: int = 8, given: Mapping[str, Kind] | None = None, **shapes: tuple[int, ...]
) -> dict[str, Kind]:
    feeds = tiny.feeds(n, **shapes)
    session = open_session(model)
    return kinds(model, feeds[0], [session.run(f) for f in feeds], given or {})


HALF = "k = Constant<value = float {30.0}>()  m = Mul(l, k)"
GRAPHS: list[tuple[str, tuple[int, ...], tuple[int, ...], Kind]] = [
    ("(float[N,8] x) => (float[N,4] y) { l = MatMul(x, w)  y = Softmax(l) }", (1, 8), (8, 4), "probabilities"),
    ("(float[N,8] x) => (float[N,4] logits) { logits = MatMul(x, w) }", (1, 8), (8, 4), "classes"),
    (f"(float[N,8] x) => (float[N,40] y) {{ l = MatMul(x, w)  {HALF}  y = Neg(m) }}", (1, 8), (8, 40), "classes"),
    ("(float[N,8] x) => (float[N,40] embedding) { embedding = MatMul(x, w) }", (1, 8), (8, 40), "embedding"),
    ("(float[N,8] x) => (float[N,40] y) { m = MatMul(x, w)  y = LpNormalization(m) }", (1, 8), (8, 40), "embedding"),
    ("(float[N,8] x) => (float[N,40] y) { m = MatMul(x, w)  y = Relu(m) }", (1, 8), (8, 40), "embedding"),
    ("(float[N,8] x) => (float[N,1] y) { y = MatMul(x, w) }", (1, 8), (8, 1), "regression"),
    ("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", (1, 8), (8, 3), "regression"),
    ("(float[N,T,8] x) => (float[N,T,5] y) { l = MatMul(x, w)  y = Softmax(l) }", (1, 6, 8), (8, 5), "tokens"),
    ("(float[N,T,8] x) => (float[N,T,5] logits) { logits = MatMul(x, w) }", (1, 6, 8), (8, 5), "tokens"),
    ("(float[N,T,8] x) => (float[N,T,5] y) { y = MatMul(x, w) }", (1, 6, 8), (8, 5), "signal"),
    ("(float[N,T,8] x) => (float[N,T,8] hidden) { hidden = MatMul(x, w) }", (1, 6, 8), (8, 8), "embedding"),
    (
        f"(float[N,3,16,16] x) => (float[N,1,16,16] y) {{ l = Conv(x, w)  {HALF}  y = Sigmoid(m) }}",
        (1, 3, 16, 16),
        (1, 3, 1, 1),
        "mask",
    ),
    ("(float[N,3,16,16] x) => (float[N,2,16,16] y) { y = Conv(x, w) }", (1, 3, 16, 16), (2, 3, 1, 1), "signal"),
    (
        f"(float[N,16,16,3] x) => (float[N,16,16,1] y) {{ l = MatMul(x, w)  {HALF}  y = Sigmoid(m) }}",
        (1, 16, 16, 3),
        (3, 1),
        "mask",
    ),
    (
        "(float[1,300,4] x) => (float[1,300,7] y) { m = MatMul(x, w)  y = Sigmoid(m) }",
        (1, 300, 4),
        (4, 7),
        "detections",
    ),
    (
        f"(float[1,120,30] x) => (float[1,120,10] y) {{ l = MatMul(x, w)  {HALF}  y = Sigmoid(m) }}",
        (1, 120, 30),
        (30, 10),
        "mask",
    ),
    (
        f"(float[N,8] x) => (float[N,40,1,1] y) {{ l = MatMul(x, w)  {HALF}  y = Unsqueeze(m, e) }}",
        (1, 8),
        (8, 40),
        "classes",
    ),
    (
        "(float[N,8] x) => (float y) { m = MatMul(x, w)  y = ReduceMean <keepdims = 0> (m) }",
        (1, 8),
        (8, 4),
        "regression",
    ),
    ("(float[N,T,8] x) => (float[N,T,1] probs) { m = MatMul(x, w)  probs = Sigmoid(m) }", (1, 90, 8), (8, 1), "signal"),
    ("(float[N,8] x) => (int64[N,1] y) { m = MatMul(x, w)  y = ArgMax <axis = 1> (m) }", (1, 8), (8, 4), "exact"),
]


@pytest.mark.parametrize(("text", "shape", "weights", "kind"), GRAPHS)
def test_an_output_is_seen_as_what_it_is(
    text: str, shape: tuple[int, ...], weights: tuple[int, ...], kind: Kind
) -> None:
    axes = {"e": np.int64([2, 3])} if "(m, e)" in text else {}
    assert list(seen(tiny.model(f"g {text}", w=normal(*weights), **axes), x=shape).values()) == [kind]


def test_outputs_of_as_many_rows_are_boxes_and_their_scores() -> None:
    text = "g (float[1,200,4] x) => (float[1,200,1] a, float[1,200,16] b) { a = MatMul(x, v)  b = MatMul(x, w) }"
    found = seen(tiny.model(text, v=normal(4, 1), w=normal(4, 16)), x=(1, 200, 4))
    assert found == {"a": "detections", "b": "detections"}


def test_columns_whose_number_is_free_are_steps_of_time() -> None:
    text = "g (float[N,T] x) => (float[N,T] y) { k = Constant<value = float {30.0}>()  m = Mul(x, k)  y = Neg(m) }"
    assert seen(tiny.model(text), x=(1, 40)) == {"y": "signal"}
    assert seen(tiny.model(text.replace("T]", "40]")), x=(1, 40)) == {"y": "classes"}
    assert seen(tiny.model(text.replace("T] x", "40] x")), x=(1, 40)) == {"y": "classes"}


def test_maps_of_as_many_rows_are_no_boxes() -> None:
    text = f"""g (float[1,200,4] x) => (float[1,200,88] notes, float[1,200,264] pitches) {{
        {HALF.replace("l,", "x,")}  a = MatMul(m, v)  notes = Sigmoid(a)  b = MatMul(m, w)  pitches = Sigmoid(b) }}"""
    found = seen(tiny.model(text, v=normal(4, 88), w=normal(4, 264)), x=(1, 200, 4))
    assert found == {"notes": "mask", "pitches": "mask"}


@pytest.mark.parametrize(("scale", "kind"), [(300.0, "detections"), (1.0, "signal")])
def test_boxes_whose_number_varies_are_known_by_scores_beside_pixels(scale: float, kind: Kind) -> None:
    text = f"""g (float[N,6,R] x) => (float[N,D,R] y)
        {{ a, b = Split<axis = 1>(x, s)  p = Sigmoid(a)  q = Sigmoid(b)  k = Constant<value = float {{{scale}}}>()
           c = Mul(p, k)  y = Concat<axis = 1>(c, q) }}"""
    assert seen(tiny.model(text, s=np.int64([4, 2])), x=(1, 6, 150)) == {"y": kind}


STEP = """g (float[1,4] x, float[1,6] h) => (float[1,4] y, float[1,6] next) {
    a = MatMul(x, v)
    b = Add(a, h)
    k = Constant<value = float {0.5}>()
    next = Mul(b, k)
    y = MatMul(next, w)
}"""


def test_a_state_is_fed_back_step_by_step() -> None:
    model = tiny.model(STEP, v=normal(4, 6), w=normal(6, 4, seed=1))
    (feed,) = tiny.feeds(1, x=(1, 4), h=(1, 6))
    session = open_session(model)
    assert fed_back(model, feed, session.run(feed)) == {1: "h"}
    h, a = feed["h"], feed["x"] @ tiny.weights_of(model)["v"]
    for _ in range(20):
        h = (a + h) / 2
    y, state = steps_on(session, feed, {1: "h"})
    np.testing.assert_allclose(state, h, rtol=1e-5)
    np.testing.assert_allclose(y, h @ tiny.weights_of(model)["w"], rtol=1e-4, atol=1e-5)
    assert seen(model, x=(1, 4), h=(1, 6)) == {"y": "regression", "next": "state"}


@pytest.mark.parametrize(
    ("rows", "given", "made", "fed"),
    [
        ("n", "rsasa", "logvar", {}),
        ("n", "h", "hn", {1: "h"}),
        ("n", "h0", "y2", {1: "h0"}),
        ("n", "atom_1", "atom_2", {1: "atom_1"}),
        ("1", "input_2", "Identity_1", {1: "input_2"}),
    ],
)
def test_a_row_for_each_item_is_a_state_only_if_the_names_say_so(
    rows: str, given: str, made: str, fed: dict[int, str]
) -> None:
    text = f"""g (float[{rows},8] x, float[{rows},6] {given}) => (float[{rows},4] y, float[{rows},6] {made}) {{
        c = Concat <axis = 1> (x, {given})  y = MatMul(c, v)  {made} = MatMul(c, w) }}"""
    model = tiny.model(text, v=normal(14, 4), w=normal(14, 6))
    feed = {"x": normal(1, 8), given: normal(1, 6)}
    assert fed_back(model, feed, open_session(model).run(feed)) == fed


def _rows(kind: str) -> np.ndarray:
    """[positions, 40 columns]: scores of classes, of which some are frequent; a spectrum in decibels; hidden values of
    which one column is far above the others."""
    rng = np.random.default_rng(0)
    if kind == "scores":
        often = rng.standard_normal(40) * 3 - 4
        return often + rng.standard_normal((400, 40)) + 12 * np.eye(40)[rng.integers(0, 12, 400)]
    if kind == "spectrum":
        noise = rng.standard_normal((400, 52))
        return 8 * np.stack([noise[:, i : i + 40] for i in range(12)]).mean(0) * np.sqrt(12)
    return rng.standard_normal((400, 40)) + 9 * (np.arange(40) == 5)


@pytest.mark.parametrize(("kind", "found"), [("scores", "tokens"), ("spectrum", "signal"), ("hidden", "signal")])
def test_scores_at_every_position_are_told_from_spectra_and_hidden_values_by_what_they_are(
    kind: str, found: str
) -> None:
    model = tiny.model("g (float[1,T,40] x) => (float[1,T,40] y) { y = MatMul(x, w) }", w=np.eye(40, dtype=np.float32))
    rows = _rows(kind).astype(np.float32)
    outs = [[rows[None, start : start + 80]] for start in range(0, 400, 80)]
    assert kinds(model, {"x": outs[0][0]}, outs, {}) == {"y": found}


@pytest.mark.parametrize(("given", "fed"), [("hidden_1", {1: "hidden_1"}), ("threshold", {})])
def test_a_state_may_be_a_vector_if_the_names_say_so(given: str, fed: dict[int, str]) -> None:
    text = f"""g (float[1,8] x, float[6] {given}) => (float[1,6] y, float[6] out) {{
        a = MatMul(x, v)  b = Add(a, {given})  y = Tanh(b)  out = Squeeze(y) }}"""
    model = tiny.model(text, v=normal(8, 6))
    feed = {"x": normal(1, 8), given: normal(6)}
    assert fed_back(model, feed, open_session(model).run(feed)) == fed


def test_places_of_landmarks_in_pixels_are_no_classes() -> None:
    model = tiny.model("g (float[N,8] x) => (float[N,30] y) { y = MatMul(x, w) }", w=normal(8, 30))
    (out,) = model.graph.outputs
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 64, 30)
    faces = [(mean + 2 * rng.standard_normal(30))[None].astype(np.float32) for _ in range(20)]
    scores = [np.float32(12 * np.eye(30)[i % 30][None] + rng.standard_normal((1, 30))) for i in range(20)]
    feed = {"x": normal(1, 8)}
    assert kinds(model, feed, [[y] for y in faces], {})[str(out.name)] == "embedding"
    assert kinds(model, feed, [[y] for y in scores], {})[str(out.name)] == "classes"


def test_the_report_says_what_each_output_is_and_what_comes_of_a_state() -> None:
    model = graph.proto_bytes(tiny.model(STEP, v=normal(4, 6), w=normal(6, 4, seed=1)))
    samples = tiny.feeds(24, x=(1, 4), h=(1, 6))
    found = edgeopt.quantize(model, samples, mode="static", include=("MatMul",), measure=False).report
    assert [o.kind for o in found.outputs] == ["regression", "state"] and [o.output for o in found.later] == ["y"]
    rows = dict(found.rows())
    assert rows["output y"].startswith("regression: SQNR ") and "after 20 steps" in rows["y, fed back"]


PAIR = "g (float[N,8] x) => (float[N,40] y) { m = MatMul(x, w)  y = Relu(m) }"


@pytest.mark.parametrize(
    ("given", "n", "error", "words"),
    [
        ({"z": "classes"}, 8, UsageError, "--kind z: no output of the model"),
        ({"y": "clases"}, 8, UsageError, "no kind; did you mean 'classes'"),
        ({"y": "embedding"}, 1, DataError, "1 held-out sample of shape"),
        ({"y": "regression"}, 3, DataError, "cannot be judged so"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(given: Any, n: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        seen(tiny.model(PAIR, w=normal(8, 40)), n, given, x=(1, 8))


def test_a_kind_of_the_user_goes_before() -> None:
    assert seen(tiny.model(PAIR, w=normal(8, 40)), given={"y": "classes"}, x=(1, 8)) == {"y": "classes"}


def test_an_output_that_draws_random_numbers_is_judged_by_how_much_float_itself_differs() -> None:
    text = """g (float[1,8] x) => (float[1,160] y) {
        m = MatMul(x, w)  r = RandomNormal <shape = [1, 160], scale = 3.0> ()  a = Relu(m)  y = Add(a, r) }"""
    model = graph.proto_bytes(tiny.model(text, w=normal(8, 160)))
    found = edgeopt.quantize(model, tiny.feeds(24, x=(1, 8)), mode="dynamic", measure=False).report
    assert any("differs between two runs of the float model" in n for n in found.notes)
    (figure,) = found.outputs[0].figures
    assert figure.name == "against another run of float" and abs(figure.value) < 1


def test_an_output_that_is_the_same_for_every_sample_is_told() -> None:
    text = """g (float[1,8] x) => (float[1,16] y, float[1,1] c) {
        y = MatMul(x, w)  s = ReduceSum(x)  z = Sub(s, s)  o = Reshape(z, r)  c = Cos(o) }"""
    model = graph.proto_bytes(tiny.model(text, w=normal(8, 16), r=np.int64([1, 1])))
    found = edgeopt.quantize(model, tiny.feeds(24, x=(1, 8)), mode="static", include=("MatMul",), measure=False).report
    assert any(n.startswith("output c is the same for every sample") for n in found.notes)


def kinds_of(outputs: list[np.ndarray]) -> str:
    """The kind of an output `y` with these values, made by a MatMul."""
    model = tiny.model("g (float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", w=normal(8, 4))
    return kinds(model, {"x": normal(1, 8)}, [[x] for x in outputs], {})["y"]


@pytest.mark.parametrize(
    "shapes", [[(3,), (5,), (0,)], [(1, 300), (1, 500)], [(0, 4), (0, 4)], [(0, 4), (3, 4)]], ids=str
)
def test_outputs_whose_size_varies_or_that_are_empty_have_a_kind_and_figures(shapes: list[tuple[int, ...]]) -> None:
    outputs = [normal(*shape) if 0 not in shape else np.zeros(shape, np.float32) for shape in shapes]
    kind: Any = kinds_of(outputs)
    assert kind in ("signal", "regression", "embedding")
    assert all(f.close for f in figures(kind, outputs, outputs))


def test_a_change_of_axes_does_not_hide_that_classes_changed() -> None:
    r = [np.eye(40, dtype=np.float32)[i].reshape(1, 40, 1, 1) * 9 for i in range(8)]
    (found,) = compare(["y"], [[x] for x in r], [[x[:, ::-1]] for x in r], {"y": "classes"})
    assert found.agreement == 0 and not found.figures[0].close


def test_an_output_that_only_looks_like_a_state_is_judged_by_itself_if_the_user_says_so() -> None:
    model = graph.proto_bytes(tiny.model(STEP, v=normal(4, 6), w=normal(6, 4, seed=1)))
    samples = tiny.feeds(24, x=(1, 4), h=(1, 6))
    choices = {"mode": "static", "include": ("MatMul",), "measure": False}
    plain = edgeopt.quantize(model, samples, **choices).report
    assert any(n.startswith("recurrent states, fed back for 20 steps: next") for n in plain.notes)
    found = edgeopt.quantize(model, samples, kinds={"next": "regression"}, **choices).report
    assert found.later == () and [o.kind for o in found.outputs] == ["regression", "regression"]


def test_states_of_which_float_makes_no_numbers_are_not_fed_back() -> None:
    body = STEP.removesuffix("}").replace("next", "raw").replace("[1,6] raw", "[1,6] next")
    text = f"{body} one = Constant<value = float {{1.0}}>()  s = Add(raw, one)  next = Log(s) }}"
    model = tiny.model(text, v=normal(4, 6), w=normal(6, 4, seed=1))
    samples = tiny.feeds(24, x=(1, 4), h=(1, 6))
    choices = {"mode": "static", "include": ("MatMul",), "measure": False}
    found = edgeopt.quantize(graph.proto_bytes(model), samples, **choices).report
    assert any(n.startswith("recurrent states, not fed back (") for n in found.notes)
    assert found.later == ()


def test_texts_are_compared_by_being_equal() -> None:
    a, b = np.array([["cat"]], object), np.array([["dog"]], object)
    same, other = (compare(["y"], [[a]], [[y]], {"y": "exact"})[0] for y in (a, b))
    assert same.figures[0].close and not other.figures[0].close


SPEECH = """g (float[1,8,T] x) => (float[1,1,L] wave) {
    e = Conv <pads = [1, 1]> (x, encoder)  d = Conv(e, durations)  r = Relu(d)
    s = ReduceSum <keepdims = 0> (r)  n = Cast <to = 7> (s)
    t = Range(zero, n, one)  f = Cast <to = 1> (t)  p = Sin(f)  q = Reshape(p, line)
    h = Conv <pads = [4, 4]> (q, vocoder)  a = Relu(h)  wave = Conv <pads = [4, 4]> (a, last) }"""


def test_what_decides_the_length_of_speech_stays_float_and_what_speaks_does_not() -> None:
    weights = {"encoder": normal(8, 8, 3), "durations": normal(1, 8, 1), "vocoder": normal(16, 1, 9)}
    scalars = {"zero": np.int64(0), "one": np.int64(1), "line": np.int64([1, 1, -1])}
    floats = tiny.model(SPEECH, **weights, last=normal(1, 16, 9), **scalars)
    vocoder = tuple(str(n.name) for n in floats.graph if n.op_type == "Conv")[2:]
    model = graph.proto_bytes(floats)
    samples = tiny.feeds(24, x=(1, 8, 40))
    made = edgeopt.quantize(model, samples, mode="static", include=vocoder, measure=False)
    assert any(n.startswith("2 layers decide how long an output is, and stay float") for n in made.report.notes)
    first, second = open_session(graph.load(model)), open_session(made.model)
    lengths = {first.run(f)[0].size for f in samples}
    assert len(lengths) > 4 and [first.run(f)[0].size for f in samples] == [second.run(f)[0].size for f in samples]
    with pytest.raises(ValidityError, match="shape"):
        edgeopt.quantize(model, samples, mode="static", include=("Conv",), measure=False)


def test_what_cannot_be_integer_says_what_it_can_give_when_it_is_included() -> None:
    text = """g (float[5,1,8] x) => (float[5,1,1,16] y) {
        y, h = GRU <hidden_size = 16> (x, w, r)  }"""
    model = tiny.model(text, w=normal(1, 48, 8), r=normal(1, 48, 16, seed=1))
    (node,) = [n for n in model.graph if n.op_type == "GRU"]
    options = {"mode": "weights", "include": ("GRU",), "measure": False}
    notes = edgeopt.quantize(graph.proto_bytes(model), tiny.feeds(24, x=(5, 1, 8)), **options).report.notes
    assert f"--include: GRU has no static integer kernel, so its weights are stored as int8: {node.name}" in notes


DENOISER = """g (float[1,4,16,16] x, float[1] noise) => (float[1,4,16,16] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  s = Mul(c, noise)  y = Conv <pads = [1, 1, 1, 1]> (s, v) }"""


def noisy_images(count: int) -> list[dict[str, np.ndarray]]:
    """Latents with levels of noise from .01 to 10."""
    found = [np.float32([10 ** (-2 + 3 * i / (count - 1))]) for i in range(count)]
    return [{"x": normal(1, 4, 16, 16, seed=i), "noise": level} for i, level in enumerate(found)]


def test_the_levels_of_the_noise_that_a_model_removes_are_thirds_in_their_order() -> None:
    feeds = noisy_images(9)[::-1]
    reference = [[f["x"]] for f in feeds]
    assert levels(feeds, reference, ["signal"]) == ((8, 7, 6), (5, 4, 3), (2, 1, 0))
    assert levels(feeds[:4], reference[:4], ["signal"]) == ((3, 2), (1, 0))
    assert levels(feeds, reference, ["mask"]) == () == levels(feeds[:3], reference[:3], ["signal"])
    assert levels([{**f, "noise": np.float32([1])} for f in feeds], reference, ["signal"]) == ()
    assert levels([{"x": f["x"]} for f in feeds], reference, ["signal"]) == ()


def test_a_model_that_removes_noise_is_judged_at_each_level() -> None:
    model = tiny.proto(DENOISER, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3, seed=1))
    report = edgeopt.quantize(model, noisy_images(48), mode="static", include=("Conv",), measure=False).report
    (y,) = report.outputs
    of_all, at_worst = [f for f in y.figures if f.name.startswith("SI-SNR")]
    assert of_all.close and at_worst.name == "SI-SNR at the worst level of noise" and not at_worst.close


def regions(scale: float) -> list[dict[str, np.ndarray]]:
    """Images in three regions each of one colour, and a little noise."""
    rng, found = np.random.default_rng(0), []
    for _ in range(6):
        x = np.zeros((1, 3, 24, 24), np.float32)
        for colour, rows in zip(rng.permutation(3), (slice(0, 8), slice(8, 16), slice(16, 24)), strict=True):
            x[0, colour, rows] = 1
        found.append({"x": scale * x + 0.02 * rng.standard_normal(x.shape).astype(np.float32)})
    return found


@pytest.mark.parametrize(
    ("scale", "side", "name", "kind"),
    [
        (8.0, 1, "y", "mask"),
        (8.0, 2, "y", "signal"),  # a map of features is smaller than the image
        (8.0, 2, "logits", "mask"),
        (0.01, 1, "y", "signal"),  # float is not sure of any class
    ],
)
def test_a_class_for_each_pixel_is_seen_by_its_probability_and_its_neighbours(
    scale: float, side: int, name: str, kind: Kind
) -> None:
    text = f"g (float[N,3,24,24] x) => (float[N,C,M,M] {name}) {{ {name} = Conv <strides = [{side}, {side}]> (x, w) }}"
    session, feeds = (model := tiny.model(text, w=np.eye(5, 3, dtype=np.float32)[:, :, None, None])), regions(scale)
    found = open_session(session)
    assert kinds(model, feeds[0], [found.run(f) for f in feeds], {}) == {name: kind}


@pytest.mark.parametrize(("classes", "kind"), [(3, "signal"), (2, "signal")])
def test_images_and_flows_are_no_classes_of_pixels_however_large_they_are(classes: int, kind: Kind) -> None:
    text = "g (float[N,3,24,24] x) => (float[N,C,24,24] y) { y = Conv(x, w) }"
    model = tiny.model(text, w=np.eye(classes, 3, dtype=np.float32)[:, :, None, None])
    session, feeds = open_session(model), regions(255.0)
    assert kinds(model, feeds[0], [session.run(f) for f in feeds], {}) == {"y": kind}


@pytest.mark.parametrize("last", [True, False])
def test_probabilities_of_pixels_are_classes_in_both_layouts(last: bool) -> None:
    turn = "l = Transpose <perm = [0, 2, 3, 1]> (x)" if last else "l = Identity(x)"
    text = f"g (float[N,3,24,24] x) => (float[N,A,B,C] y) {{ {turn}  y = Softmax <axis = {-1 if last else 1}> (l) }}"
    model = tiny.model(text)
    session, feeds = open_session(model), regions(8.0)
    assert kinds(model, feeds[0], [session.run(f) for f in feeds], {}) == {"y": "mask"}


def test_one_column_is_no_classes() -> None:
    text = "g (float[N,8] x) => (float[N,1] y) { m = MatMul(x, w)  y = Sigmoid(m) }"
    with pytest.raises(DataError, match="--kind y=probabilities"):
        seen(tiny.model(text, w=normal(8, 1)), given={"y": "probabilities"}, x=(1, 8))


def marked(samples: int = 8, size: float = 0.05) -> tuple[list[Feed], list[Outputs]]:
    """Inputs, and what a network that adds a faint mark to them gives."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(samples)]
    mark = [size * rng.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(samples)]
    return feeds, [[2 * f["x"] + m] for f, m in zip(feeds, mark, strict=True)]


def reported(outputs: list[Outputs], feeds: list[Feed], reference: list[Outputs]) -> OutputReport:
    of = changed(["y"], feeds, reference, {"y": "signal"})
    plain = compare(["y"], reference, outputs, {"y": "signal"})
    return with_changes(plain, ["y"], feeds, reference, outputs, of)[0]


def test_the_input_itself_is_not_near_to_what_a_residual_network_gives() -> None:
    feeds, reference = marked()
    found = reported([[2 * f["x"]] for f in feeds], feeds, reference)
    whole, change = found.figures[0], found.figures[-1]
    assert whole.close and change.name == "of what changes of the input" and change.value < 1 and not change.close


def test_what_changes_is_near_where_the_mark_is_and_exact_for_the_same_outputs() -> None:
    feeds, reference = marked()
    near = [[2 * f["x"] + 0.9 * (r[0] - 2 * f["x"])] for f, r in zip(feeds, reference, strict=True)]
    assert reported(near, feeds, reference).figures[-1].value == pytest.approx(20, abs=0.2)
    assert reported(reference, feeds, reference).figures[-1].value == math.inf


@pytest.mark.parametrize("case", ["another shape", "independent", "the opposite", "no signal"])
def test_an_output_that_is_no_input_with_little_more_has_no_such_figure(case: str) -> None:
    feeds, reference = marked()
    kinds: dict[str, Kind] = {"y": "mask" if case == "no signal" else "signal"}
    if case == "another shape":
        feeds = [{"x": f["x"][:, :2]} for f in feeds]
    if case == "independent":
        feeds = feeds[::-1]
    if case == "the opposite":
        reference = [[-r[0]] for r in reference]
    assert changed(["y"], feeds, reference, kinds) == {}
