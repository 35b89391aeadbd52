"""Whatever bytes come in, reading a model ends in a model or in an `EdgeoptError`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeopt import graph
from edgeopt.errors import EdgeoptError
from tests import tiny

LAW = settings(max_examples=400, deadline=None, derandomize=True)
TEXT = """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
g (float[N,3,4,4] x, bool c) => (float[N,2] y) {
    k = Constant <value = float[1] {0.5}> ()
    h = Conv <pads = [0, 0, 0, 0]> (x, w)
    s = Mul(h, k)
    t = own.twice(s)
    z = If (c) <
        then_branch = t () => (float[N,2,4,4] a) { a = Relu(t) },
        else_branch = e () => (float[N,2,4,4] b) { two = Constant <value_float = 2.0> ()  b = Mul(t, two) }
    >
    p = GlobalAveragePool(z)
    y = Flatten(p)
}
<domain: "own", opset_import: ["" : 17]>
twice (v) => (u) { two = Constant <value = float {2}> ()  u = Mul(v, two) }"""
WHOLE = tiny.proto(TEXT, w=np.ones((2, 3, 1, 1), np.float32)).SerializeToString()

places = st.integers(0, len(WHOLE) - 1)
changes = st.one_of(
    st.tuples(st.just("set"), places, st.integers(0, 255)),
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("delete"), places, st.integers(1, 8)),
    st.tuples(st.just("insert"), places, st.integers(0, 255)),
    st.tuples(st.just("cut"), places, st.just(0)),
)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """onnx-ir logs what it finds odd; a fuzzed model is odd."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def damaged(whole: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """`whole` after `edits`: (what, where, by how much)."""
    content = bytearray(whole)
    for kind, place, amount in edits:
        i = min(place, len(content) - 1)
        if i < 0:
            break
        if kind == "set":
            content[i] = amount
        elif kind == "flip":
            content[i] ^= 1 << amount
        elif kind == "delete":
            del content[i : i + amount]
        elif kind == "insert":
            content.insert(i, amount)
        else:
            del content[i:]
    return bytes(content)


def read(content: bytes) -> None:
    """Read a model; only an `EdgeoptError` may stop it."""
    try:
        model = graph.canonical(graph.load(content))
        graph.proto_bytes(model)
    except EdgeoptError as e:
        assert str(e)


def test_the_undamaged_model_is_read() -> None:
    made = graph.canonical(graph.load(WHOLE))
    assert "Conv" in tiny.operators(made)
    assert "If" in tiny.operators(made)


@LAW
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read(content)


@LAW
@given(st.lists(changes, min_size=1, max_size=6))
@example([("set", WHOLE.index(b"Conv"), 0xFF)])
@example([("set", WHOLE.index(b"Relu"), 0xA7)])
def test_a_damaged_model_is_read_or_refused(edits: list[tuple[str, int, int]]) -> None:
    read(damaged(WHOLE, edits))


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
def test_every_byte_may_be_wrong(byte: int) -> None:
    for i in range(len(WHOLE)):
        read(WHOLE[:i] + bytes([byte]) + WHOLE[i + 1 :])


def test_a_model_may_end_anywhere() -> None:
    for i in range(len(WHOLE)):
        read(WHOLE[:i])
