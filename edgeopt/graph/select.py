"""Select nodes: by name, glob pattern or operator type, or because they decide lengths."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from edgeopt.errors import UsageError, suggestion
from edgeopt.graph.ops import LAYERS

# operator -> the positions of inputs whose values decide the shape of its output
_LENGTHS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
}
_OF_SHAPES = frozenset({"Shape", "Size"})


def select(models: Sequence[ir.Model], patterns: Sequence[str]) -> frozenset[str]:
    """Names of the nodes in any of `models` that `patterns` (names, globs or operator types) match.

    Raises:
        UsageError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = named(models, (pattern,))
        if not hits:
            known = {x for model in models for n in model.graph.all_nodes() for x in (str(n.name), n.op_type)}
            raise UsageError(f"no node, glob or operator type {pattern!r} in the model{suggestion(pattern, known)}")
        found |= hits
    return frozenset(found)


def named(models: Sequence[ir.Model], patterns: Sequence[str]) -> frozenset[str]:
    """What `select` finds, without the demand that every pattern matches."""
    nodes = ((str(n.name), n.op_type) for model in models for n in model.graph.all_nodes()) if patterns else ()
    return frozenset(
        name for name, op in nodes if any(p in (op, name) or fnmatch.fnmatchcase(name, p) for p in patterns)
    )


def deciding_lengths(model: ir.Model) -> frozenset[str]:
    """Names of the nodes of the main graph whose values decide the shape of others: durations in text to speech.

    What only reads shapes decides none. In such nodes the smallest error changes the length of an output. Empty if no
    layer is among them.
    """
    starts = [node.inputs[i] for node in model.graph for i in _LENGTHS.get(node.op_type, ()) if i < len(node.inputs)]
    pending = [v.producer() for v in starts if v is not None]
    found: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in found and node.op_type not in _OF_SHAPES:
            found.add(node)
            pending += [v.producer() for v in node.inputs if v is not None]
    return frozenset(str(n.name) for n in found) if any(n.op_type in LAYERS for n in found) else frozenset()
