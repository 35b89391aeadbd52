"""Widths that reach a goal, such as 30 % of the MACs: one share for all layers, or what costs much and tells little.

Global: a block of units u is worth sum I_u / sum c_u, with its importance I (comparable across layers if it is of first
order) and its cost c: of each layer with weights of the unit, the MACs or the measured time, divided by the units of
that axis. The cheapest worth goes first, as in Molchanov et al. 2019 (arXiv:1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UsageError
from edgeopt.graph.ops import rule
from edgeopt.pruning.units import Units
from edgeopt.pruning.width import MULTIPLE, WIDE, Wide, spared, without

Sizes = dict[str, tuple[int, int]]  # units before and after, by layer
_CLOSE = 0.01  # relative, of what is asked
_TRIES = 12
_LEAST = 8  # a layer keeps an eighth of its units at least


def costs_of(model: ir.Model, units: Units, of_node: Mapping[str, float]) -> Wide:
    """The cost of each unit, from the cost of each node by name; biases and scales come with a layer's weights."""
    total = np.zeros(len(units.parents))
    for (name, _), members in units.members().items():
        readers = {node for node, i in model.graph.initializers[name].uses() if i in rule(node).weights}
        np.add.at(total, members, sum(of_node.get(str(n.name), 0.0) for n in readers) / max(1, len(members)))
    return total


def blocks(units: Units, scores: Wide, costs: Wide) -> list[tuple[float, float, list[int]]]:
    """(worth, cost, units) of what can go, in the order in which it goes: of each space the least important first, in
    blocks that leave a multiple of `MULTIPLE`, and never the last eighth.
    """
    found: list[tuple[float, int, int, float, list[int]]] = []
    for space, members in units.free().items():
        count = len(members)
        size = MULTIPLE if count >= WIDE else 1
        ranked = sorted(members, key=lambda u: (scores[u], u))
        first = count % size or size
        least, worth, at, take = max(size, count // _LEAST), 0.0, 0, first
        while count - (at + take) >= least:
            part = ranked[at : at + take]
            cost = float(costs[part].sum())
            worth = max(
                worth, float(scores[part].sum()) / max(cost, 1e-12)
            )  # nothing goes before what is less important
            found.append((worth, space, at, cost, part))
            at, take = at + take, size
    return [(worth, cost, part) for worth, _, _, cost, part in sorted(found, key=lambda x: x[:3])]


def globally(
    units: Units, scores: Wide, order: list[tuple[float, float, list[int]]], share: float
) -> tuple[set[int], Sizes]:
    """(the units that go so that about `share` of the cost of all blocks stays, units before and after by layer)."""
    gone, left, total = set[int](), sum(c for _, c, _ in order), sum(c for _, c, _ in order)
    for _, cost, part in order:
        if left <= share * total:
            break
        gone.update(part)
        left -= cost
    spared(units, scores, gone)
    sizes = {units.names[s]: (len(m), sum(u not in gone for u in m)) for s, m in units.free().items()}
    return gone, sizes


def reached(
    model: ir.Model,
    units: Units,
    pick: Callable[[float], tuple[set[int], Sizes]],
    measure: Callable[[ir.Model], int],
    most: float,
) -> tuple[ir.Model, Sizes]:
    """The model nearest below `most` by `measure` of those that `pick` gives for shares from 0 to 1.

    Raises:
        UsageError: none is small enough.
    """

    def made(share: float) -> tuple[int, ir.Model, Sizes]:
        gone, sizes = pick(share)
        found = without(model, units, gone)
        return measure(found), found, sizes

    best, low, high = made(0.0), 0.0, 1.0
    if best[0] > most:
        raise UsageError(
            f"--to: no width reaches it: the narrowest network has {best[0] / 1e6:.5g} M, and"
            f" {most / 1e6:.5g} M are asked for; --depth takes out whole blocks"
        )
    for _ in range(_TRIES):
        share = (low + high) / 2
        found = made(share)
        if found[0] > most:
            high = share
        else:
            best, low = max(best, found, key=lambda x: x[0]), share
        if best[0] >= (1 - _CLOSE) * most:
            break
    return best[1:]
