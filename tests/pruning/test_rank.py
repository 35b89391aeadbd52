"""Low rank: what has a low rank already stays exactly, the rest is as near as singular values say it can be."""

from __future__ import annotations

import numpy as np
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.errors import ModelError, UsageError
from edgeopt.runtime.session import open_session
from tests import tiny
from tests.models import normal

LAYERS = {
    "MatMul": ("float[N,3,48] x", "y = MatMul(x, w)", (48, 64)),
    "Gemm": ("float[N,48] x", "y = Gemm <transB = 1, alpha = 0.5> (x, w, b)", (64, 48)),
    "Gemm, not transposed": ("float[N,48] x", "y = Gemm (x, w, b)", (48, 64)),
    "Conv 1x1": ("float[N,48,5,5] x", "y = Conv <strides = [2, 2]> (x, w, b)", (64, 48, 1, 1)),
    "Conv": ("float[N,16,7,7] x", "y = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w, b)", (64, 16, 3, 3)),
    "Conv, one axis": ("float[N,16,9] x", 'y = Conv <auto_pad = "SAME_UPPER"> (x, w, b)', (64, 16, 3)),
}


def low(shape: tuple[int, ...], rank: int) -> np.ndarray:
    """A weight of that rank as a matrix of its first axis and the others."""
    rest = int(np.prod(shape[1:]))
    return (normal(shape[0], rank) @ normal(rank, rest, seed=1) / rank).reshape(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_low_rank_becomes_an_equal_product(name: str) -> None:
    head, body, shape = LAYERS[name]
    y = {"Conv": "float[N,64,4,7] y", "Conv 1x1": "float[N,64,3,3] y", "Conv, one axis": "float[N,64,9] y"}.get(
        name, "float[N,3,64] y" if name == "MatMul" else "float[N,64] y"
    )
    model = tiny.model(f"g ({head}) => ({y}) {{ {body} }}", w=low(shape, 8), b=normal(64))
    made = edgeopt.shrink(model, rank=0.3)
    (ranks,) = made.ranks.values()
    assert ranks[1] == 8 and made.parameters[1] < 0.3 * (made.parameters[0] - 64) + 64
    x = {"x": normal(2, *(int(n) for n in head.split("[")[1].split("]")[0].split(",")[1:]), seed=3)}
    before, after = (open_session(m).run(x)[0] for m in (model, made.model))
    assert np.allclose(before, after, atol=1e-4 * np.abs(before).max())


def test_the_error_is_what_the_singular_values_leave() -> None:
    w = normal(64, 80)
    model = tiny.model("g (float[N,64] x) => (float[N,80] y) { y = MatMul(x, w) }", w=w)
    made = edgeopt.shrink(model, rank=0.5)
    (rank,) = {r for _, r in made.ranks.values()}
    assert rank == 16  # 16 (64 + 80) < 0.5 64 80 < 24 (64 + 80)
    x = np.eye(64, dtype=np.float32)
    error = np.square(open_session(model).run({"x": x})[0] - open_session(made.model).run({"x": x})[0]).sum()
    assert error == pytest.approx(np.square(np.linalg.svd(w, compute_uv=False)[rank:]).sum(), rel=1e-3)


def test_samples_say_which_directions_count() -> None:
    model = tiny.model("g (float[N,64] x) => (float[N,80] y) { y = MatMul(x, w) }", w=normal(64, 80))
    spread = np.linspace(0.01, 3, 64, dtype=np.float32) ** 2
    feeds = [{"x": normal(4, 64, seed=i) * spread} for i in range(64)]
    runs = [open_session(m) for m in (model, edgeopt.shrink(model, rank=0.5).model)]
    runs.append(open_session(edgeopt.shrink(model, rank=0.5, data=feeds[:48]).model))
    y, plain, white = (np.concatenate([s.run(f)[0] for f in feeds[48:]]) for s in runs)
    assert np.square(white - y).sum() < 0.5 * np.square(plain - y).sum()


def test_few_samples_do_not_make_it_worse_than_none() -> None:
    model = tiny.model("g (float[N,256] x) => (float[N,200] y) { y = MatMul(x, w) }", w=normal(256, 200))
    feeds = [{"x": normal(1, 256, seed=i)} for i in range(96)]
    y, plain, few = (
        np.concatenate([open_session(m).run(f)[0] for f in feeds[32:]])
        for m in (model, edgeopt.shrink(model, rank=0.5).model, edgeopt.shrink(model, rank=0.5, data=feeds[:32]).model)
    )
    assert np.square(few - y).sum() < 1.05 * np.square(plain - y).sum()


def test_what_tells_nothing_or_is_no_float_does_no_harm() -> None:
    body = "g (float[N,64] x, int32[2,2] i) => (float[N,80] y, int32[2,2] j) { y = MatMul(x, w)  j = MatMul(i, k) }"
    model = tiny.model(body, w=normal(64, 80), k=np.ones((2, 2), np.int32))
    zeros = [{"x": np.zeros((1, 64), np.float32), "i": np.ones((2, 2), np.int32)}]
    made = edgeopt.shrink(model, rank=0.5, data=zeros)
    largest = [np.abs(v.const_value.numpy()).max() for v in made.model.graph.initializers.values()]
    assert len(made.ranks) == 1 and max(largest) < 100


def test_ranks_go_where_they_tell_least() -> None:
    model = tiny.model(
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }",
        a=low((64, 64), 8) + 0.01 * normal(64, 64, seed=5),
        b=normal(64, 64, seed=2),
    )
    made = edgeopt.shrink(model, rank=0.65)
    first, second = (
        made.ranks.get(str(n.name)) for n in graph.canonical(graph.load(model)).graph if n.op_type == "MatMul"
    )
    assert first is not None and first[1] == 8
    assert second is None or second[1] > 8
    assert made.parameters[1] <= 0.65 * made.parameters[0]


def test_what_cannot_be_a_product_is_told() -> None:
    small = tiny.model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=normal(4, 4))
    with pytest.raises(ModelError, match="product of two smaller"):
        edgeopt.shrink(small, rank=0.5)
    model = tiny.model("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    with pytest.raises(UsageError, match=r"the least is 0\.25"):
        edgeopt.shrink(model, rank=0.1)
    name = next(str(n.name) for n in graph.canonical(graph.load(model)).graph)
    with pytest.raises(ModelError, match="product of two smaller"):
        edgeopt.shrink(model, rank=0.5, keep=[name])
