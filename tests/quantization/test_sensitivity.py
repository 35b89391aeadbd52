"""Which nodes lose the accuracy: found where it was put."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from edgeopt import sensitivity
from edgeopt.errors import EdgeoptError
from edgeopt.quantization.sensitivity import picture
from tests import tiny
from tests.models import normal

CHAIN = """g (float[N,16] x) => (float[N,8] y) {
    [first] a = Gemm <transB = 1> (x, w1, b1)
    r = Relu(a)
    [second] b = Gemm <transB = 1> (r, w2, b2)
    s = Relu(b)
    [third] y = Gemm <transB = 1> (s, w3, b3)
}"""
FEEDS = [{"x": normal(1, 16, seed=i)} for i in range(60)]


def chain(**changed: np.ndarray) -> bytes:
    weights = {"w1": normal(32, 16), "w2": normal(32, 32, seed=1), "w3": normal(8, 32, seed=2)}
    biases = {"b1": normal(32, seed=3), "b2": normal(32, seed=4), "b3": normal(8, seed=5)}
    return tiny.proto(CHAIN, **(weights | biases | changed)).SerializeToString()


def test_the_node_whose_weights_cannot_be_rounded_well_is_named_with_its_weights() -> None:
    w = normal(32, 32, seed=1)
    w[:, 0] *= 300  # the input of channel 0 is dead below, so this column costs every row its grid and gives nothing
    w1, b1 = normal(32, 16), normal(32, seed=3)
    w1[0], b1[0] = 0, -1
    found = sensitivity(chain(w1=w1, b1=b1, w2=w), FEEDS, include=("Gemm",))
    worst = found.nodes[0]
    assert worst.name == "second" and worst.share > 0.8
    assert worst.weights is not None and worst.weights > 0.9
    assert worst.won_db is not None and worst.won_db > 5
    assert "second (Gemm)" in worst.describe() and "mostly its weights" in worst.describe()


def test_shares_are_of_one_whole_and_the_worst_come_first() -> None:
    found = sensitivity(chain(), FEEDS, include=("Gemm",))
    assert {n.name for n in found.nodes} == {"first", "second", "third"}
    assert sum(n.share for n in found.nodes) == pytest.approx(1)
    assert [n.share for n in found.nodes] == sorted((n.share for n in found.nodes), reverse=True)
    for node in found.nodes:
        assert node.weights is not None and node.activations is not None
        assert node.weights + node.activations == pytest.approx(1)
        assert node.sqnr_db > found.sqnr_db - 1  # one alone is not worse than all


def test_without_a_budget_the_figures_that_are_left_out_are_none() -> None:
    found = sensitivity(chain(), FEEDS, include=("Gemm",), budget_s=0)
    assert not found.complete and all(n.weights is None and n.won_db is None for n in found.nodes)
    assert sum(n.share for n in found.nodes) == pytest.approx(1)


def test_a_model_without_integer_nodes_is_refused() -> None:
    with pytest.raises(EdgeoptError, match="no node becomes integer"):
        sensitivity(tiny.proto("g (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }"), [{"x": normal(1, 4)}] * 40)


def test_the_picture_is_xml_with_a_bar_for_each_node() -> None:
    found = sensitivity(chain(), FEEDS, include=("Gemm",))
    root = ET.fromstring(picture(found))
    bars = [e for e in root if e.tag.endswith("rect")]
    assert len(bars) == 2 * len(found.nodes)
    ends = [float(e.attrib["x"]) + float(e.attrib["width"]) for e in bars if e.attrib["class"] == "bar light"]
    assert ends == sorted(ends, reverse=True) and ends[0] == pytest.approx(320 + 330, abs=0.2)


def test_what_a_node_adds_is_told_where_there_is_no_time_for_a_run_of_each() -> None:
    n = 12  # more than are tried before the time of all is forecast
    text = "\n".join(f"[n{i}] v{i + 1} = Gemm <transB = 1> (v{i}, w{i}, b{i})" for i in range(n))
    w = {f"w{i}": normal(16, 16, seed=i) for i in range(n)} | {f"b{i}": normal(16, seed=90 + i) for i in range(n)}
    w["w4"][0], w["b4"][0] = 0, 0  # a dead channel
    w["w5"][:, 0] *= 300  # so this costs every row its grid and gives nothing
    model = tiny.proto(f"g (float[N,16] v0) => (float[N,16] v{n}) {{\n{text}\n}}", **w).SerializeToString()
    feeds = [{"v0": normal(1, 16, seed=i)} for i in range(60)]
    rough, exact = (sensitivity(model, feeds, include=("Gemm",), budget_s=s) for s in (1e-3, 60.0))
    assert exact.exact and not rough.exact and not rough.complete
    assert sum(x.share for x in rough.nodes) == pytest.approx(1)
    assert exact.nodes[0].name == rough.nodes[0].name == "n5"


def test_masked_scores_are_left_out_and_every_figure_is_a_number() -> None:
    text = CHAIN.replace("[third] y = ", "[third] z = ").replace("s, w3, b3)", "s, w3, b3)\n    y = Where(m, z, low)")
    weights = {"w1": normal(32, 16), "w2": normal(32, 32, seed=1), "w3": normal(8, 32, seed=2)}
    biases = {"b1": normal(32, seed=3), "b2": normal(32, seed=4), "b3": normal(8, seed=5)}
    mask = {"m": np.arange(8) != 2, "low": np.float32(-np.inf)}
    found = sensitivity(tiny.proto(text, **weights, **biases, **mask).SerializeToString(), FEEDS, include=("Gemm",))
    assert all(np.isfinite([n.share, n.sqnr_db, n.kl]).all() for n in found.nodes)


def test_without_a_float_output_it_says_what_to_do() -> None:
    text = CHAIN.replace("(float[N,8] y)", "(int64[N] k)").replace(
        "b3)", "b3)\n    k = ArgMax <axis = 1, keepdims = 0> (y)"
    )
    weights = {"w1": normal(32, 16), "w2": normal(32, 32, seed=1), "w3": normal(8, 32, seed=2)}
    biases = {"b1": normal(32, seed=3), "b2": normal(32, seed=4), "b3": normal(8, seed=5)}
    with pytest.raises(EdgeoptError, match="before ArgMax"):
        sensitivity(tiny.proto(text, **weights, **biases).SerializeToString(), FEEDS, include=("Gemm",))


@pytest.mark.parametrize("choices", [{"samples": 0}, {"samples": -3}, {"budget_s": -1.0}, {"budget_s": float("nan")}])
def test_choices_that_cannot_be_are_refused(choices: dict[str, float]) -> None:
    with pytest.raises(EdgeoptError, match="at least"):
        sensitivity(chain(), FEEDS, include=("Gemm",), **choices)  # type: ignore[arg-type]


def test_a_node_that_loses_more_diverges_more() -> None:
    found = sensitivity(chain(), FEEDS, include=("Gemm",))
    divergences = [n.kl for n in found.nodes]
    assert all(k is not None and k > 0 for k in divergences)
    assert "KL" in found.nodes[0].describe()
