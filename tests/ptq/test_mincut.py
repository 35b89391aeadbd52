"""The minimum cut against every labelling of small networks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.ptq.mincut import INFINITE, FlowNetwork

LAW = settings(max_examples=200, deadline=None, derandomize=True)
Edges = list[tuple[int, int, int]]
INNER = 5  # source and sink beside them: 2^5 labellings

edges = st.lists(
    st.tuples(st.integers(0, INNER + 1), st.integers(0, INNER + 1), st.integers(0, 20)).filter(lambda e: e[0] != e[1]),
    max_size=25,
)


def network(edges: Edges) -> FlowNetwork:
    made = FlowNetwork(INNER + 2)
    for start, end, capacity in edges:
        made.add_edge(start, end, capacity)
    return made


def cut(edges: Edges, side: tuple[bool, ...]) -> int:
    return sum(capacity for start, end, capacity in edges if side[start] and not side[end])


def labellings() -> list[tuple[bool, ...]]:
    return [(True, False, *rest) for rest in itertools.product((True, False), repeat=INNER)]


@LAW
@given(edges)
def test_the_cut_is_no_dearer_than_any_labelling(edges: Edges) -> None:
    side = network(edges).source_side(0, 1)
    assert side[0] and not side[1]
    assert cut(edges, tuple(side)) == min(cut(edges, x) for x in labellings())


@LAW
@given(edges)
def test_the_source_side_is_the_smallest_of_all_minimum_cuts(edges: Edges) -> None:
    side = network(edges).source_side(0, 1)
    least = min(cut(edges, x) for x in labellings())
    for x in labellings():
        if cut(edges, x) == least:
            assert all(there or not here for here, there in zip(side, x, strict=True))


@LAW
@given(edges, st.integers(2, INNER + 1))
def test_an_infinite_edge_is_never_cut(edges: Edges, node: int) -> None:
    made = network(edges)
    made.add_edge(0, node, INFINITE)
    assert made.source_side(0, 1)[node]


def test_flow_is_sent_back_along_a_used_edge() -> None:
    # a first path 0-2-3-1 uses 2-3 up; the second needs it undone
    side = network([(0, 2, 1), (0, 3, 1), (2, 3, 1), (2, 1, 1), (3, 1, 1)]).source_side(0, 1)
    assert side == [True, False, *[False] * INNER]


def test_without_a_way_to_the_sink_all_that_the_source_reaches_is_its_side() -> None:
    assert network([(0, 2, 5), (2, 3, 5)]).source_side(0, 1) == [True, False, True, True, False, False, False]


def test_a_node_added_later_takes_the_next_number() -> None:
    made = FlowNetwork(2)
    assert [made.add_node(), made.add_node()] == [2, 3]
    made.add_edge(0, 3, 4)
    made.add_edge(3, 2, 2)
    made.add_edge(2, 1, 3)
    assert made.source_side(0, 1) == [True, False, False, True]


@pytest.mark.parametrize("length", [3000])
def test_a_long_chain_needs_no_recursion(length: int) -> None:
    made = FlowNetwork(length + 2)
    for i in range(length - 1):
        made.add_edge(i + 2, i + 3, 7 if i != 1234 else 3)
    made.add_edge(0, 2, 9)
    made.add_edge(length + 1, 1, 9)
    assert sum(made.source_side(0, 1)) == 1 + 1235
