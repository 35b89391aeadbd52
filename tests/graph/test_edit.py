"""Edits that passes share: a new name is never one that the model has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import graph
from edgeopt.graph.edit import Names, drop_unused, initializer, node, take_over
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.fp16 import fp16
from edgeopt.passes.weights import weight_only
from edgeopt.quantization.quantize import quantize
from tests import tiny
from tests.models import normal

TEXT = """g (float[N,32] x) => (float[N,32] y) {
    [one] a = MatMul(x, w)
    [two] b = MatMul(a, v)
    c = Mul(b, other)
    y = Tanh(c)
}"""


def model(name: str, value: object) -> ir.Model:
    text = TEXT.replace("other", name)
    return tiny.model(text, w=normal(32, 32), v=normal(32, 32, seed=1), **{name: np.asarray(value, np.float32)})


@given(st.lists(st.sampled_from(["a", "a_1", "b", "w", "y"]), max_size=20))
def test_names_that_are_given_out_are_all_different_and_none_is_taken(wanted: list[str]) -> None:
    names = Names(tiny.model(TEXT, w=normal(32, 32), v=normal(32, 32), other=np.float32(2)))
    found = [names.value(w) for w in wanted]
    assert len(set(found)) == len(found)
    assert not set(found) & {"x", "y", "w", "v", "other", "c"}


def test_a_constant_of_the_same_content_is_shared_and_of_another_is_not() -> None:
    m = model("other", 2.0)
    names = Names(m)
    first, again = (initializer(m, names, "k", np.float32([1, 2])) for _ in range(2))
    assert first is again
    assert initializer(m, names, "k", np.float32([1, 3])).name == "k_1"
    assert initializer(m, names, "other", np.float32(2)) is m.graph.initializers["other"]


def test_a_node_takes_over_name_type_and_readers() -> None:
    m = model("other", 2.0)
    old = next(n for n in m.graph if n.op_type == "Mul")
    made = node(Names(m), "Add", list(old.inputs), "sum")
    m.graph.insert_before(old, made)
    take_over(m.graph, old, made.outputs[0])
    drop_unused(m)
    assert made.outputs[0].name == "c" and [n.op_type for n in m.graph] == ["MatMul", "MatMul", "Add", "Tanh"]


NAMES = (
    "w_scale",
    "a_scale",
    "a_zero_point",
    "w_quantized",
    "w_float16",
    "w_1_scale",
    "w_1_quantized",
    "w_n_int8",
    "one_bias",
)
FORMS: dict[str, Callable[[ir.Model], ir.Model]] = {
    "fp16": lambda m: fp16(graph.typed(m), keep=frozenset(), io_keep=True, peaks={}),
    "weights": lambda m: weight_only(m, 8),
    "embedding": quantize_embeddings,
    "static": lambda m: quantize(m, tiny.feeds(8, x=(2, 32)), mode="static", include=("MatMul",), measure=False).model,
    "dynamic": lambda m: quantize(m, tiny.feeds(8, x=(2, 32)), mode="dynamic", measure=False).model,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_names_like_ours_gives_what_it_gives_with_others(form: str, name: str) -> None:
    feed = tiny.feeds(1, x=(4, 32))[0]
    value = np.linspace(0.5, 2, 32)
    ours, plain = (FORMS[form](model(n, value)) for n in (name, "plain"))
    assert np.array_equal(tiny.run(ours, feed)[0], tiny.run(plain, feed)[0])
