"""Depth pruning: residual blocks whose output is closest to their input are removed.

A block is y = x + f(x) with layers inside f; its influence is 1 - cos(x, y), averaged over samples (block influence,
Men et al. 2024, ShortGPT, arXiv:2403.03853). Without the block y is x, and nodes that only f needs are removed too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeopt.graph.ops import LAYERS
from edgeopt.pruning.units import Shapes
from edgeopt.runtime.session import Feed, open_session, with_outputs


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block y = x + f(x)."""

    node: str
    """Name of its Add."""
    side: int
    """Which input of the Add is x: 0 or 1."""
    x: str
    """Name of the value, as for `y`."""
    y: str
    layers: int
    """Number of layers in f."""


def blocks(model: ir.Model, shapes: Shapes) -> tuple[ResidualBlock, ...]:
    """The residual blocks of `model` (simplified), in graph order."""
    found = []
    for node in model.graph:
        if node.op_type != "Add" or len(node.inputs) != 2:
            continue
        a, b = node.inputs
        if a is None or b is None or a.const_value is not None or b.const_value is not None:
            continue
        y = str(node.outputs[0].name)
        for side, (x, inner) in enumerate(((a, b), (b, a))):
            if shapes.get(str(x.name)) == shapes.get(str(inner.name)) == shapes.get(y) and (own := _own(x, inner)):
                found.append(ResidualBlock(str(node.name), side, str(x.name), y, own))
                break
    return tuple(found)


def _own(x: ir.Value, inner: ir.Value) -> int:
    """Number of layers between `x` and `inner`; 0 if `inner` does not depend on `x`."""
    reached: dict[ir.Node, bool] = {}

    def comes(value: ir.Value) -> bool:
        if value is x:
            return True
        node = value.producer()
        if node is None:
            return False
        if node not in reached:
            reached[node] = False
            ways = [comes(v) for v in node.inputs if v is not None]  # no short circuit: layers on all paths are counted
            reached[node] = True in ways
        return reached[node]

    if inner is x or not comes(inner):
        return 0
    return sum(inside and node.op_type in LAYERS for node, inside in reached.items())


def influences(model: ir.Model, found: Sequence[ResidualBlock], feeds: Sequence[Feed]) -> dict[str, float]:
    """1 - cos(x, y) of each block by the name of its Add, averaged over `feeds`."""
    names = list(dict.fromkeys([*(b.x for b in found), *(b.y for b in found)]))
    inputs = {str(v.name) for v in model.graph.inputs}
    session = open_session(with_outputs(model, [n for n in names if n not in inputs]), threads=2)
    sums = dict.fromkeys((b.node for b in found), 0.0)
    for feed in feeds:
        values = {**feed, **dict(zip(session.outputs, session.run(feed), strict=True))}
        for b in found:
            x, y = (np.asarray(values[n], np.float64).reshape(-1) for n in (b.x, b.y))
            sums[b.node] += 1 - float(x @ y) / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30)
    return {node: s / len(feeds) for node, s in sums.items()}


def least(influence: Mapping[str, float], depth: float) -> tuple[str, ...]:
    """The blocks to remove so that a share `depth` of them stays: those with the least influence."""
    keep = round(depth * len(influence))
    return tuple(sorted(influence, key=lambda n: (influence[n], n))[: len(influence) - keep])


def without_blocks(model: ir.Model, found: Sequence[ResidualBlock], gone: Sequence[str]) -> ir.Model:
    """A clone of `model` in which y is replaced by x for the blocks `gone`."""
    copy = model.clone()
    nodes = {str(n.name): n for n in copy.graph}
    for block in found:
        if block.node not in gone:
            continue
        node = nodes[block.node]
        x = node.inputs[block.side]  # its current value, after earlier blocks were removed
        assert x is not None
        if node.outputs[0].is_graph_output():
            node.op_type = "Identity"
            node.replace_input_with(0, x)
            node.resize_inputs(1)
        else:
            ir.convenience.replace_all_uses_with(node.outputs[0], x)
    return RemoveUnusedNodesPass()(copy).model
