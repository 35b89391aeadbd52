"""Select nodes by name, glob pattern or operator type."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from edgeopt.errors import UsageError, suggestion


def select(models: Sequence[ir.Model], patterns: Sequence[str]) -> frozenset[str]:
    """Names of the nodes in any of `models` that `patterns` (names, globs or operator types) match.

    Raises:
        UsageError: a pattern matches nothing.
    """
    nodes = [(str(n.name), n.op_type) for model in models for n in model.graph.all_nodes()]
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, op in nodes if op == pattern or name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            known = {x for node in nodes for x in node}
            raise UsageError(f"no node, glob or operator type {pattern!r} in the model{suggestion(pattern, known)}")
        found |= hits
    return frozenset(found)
