"""Propagates the labels of every axis of every value through one graph; see `units`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

import onnx_ir as ir

from edgeopt.graph.ops import inside
from edgeopt.passes.static_sizes import Known
from edgeopt.pruning.units import Labels, Shapes, Units

Axes = list[Labels]


class Tracker:
    """Labels of every axis of every value of one graph."""

    def __init__(
        self, model: ir.Model, shapes: Shapes, rules: Mapping[str, Rule], readers: Set[Rule], known: Known
    ) -> None:
        """`shapes`: of every value of `model` for one feed; `readers`: rules that label the weights they read; `known`:
        elements of computed sizes that are the same for every feed.
        """
        self.units, self.known = Units(), known
        self.axes: dict[ir.Value, Axes] = {}
        self.shapes = dict(shapes)
        self.constants = {v for v in model.graph.initializers.values() if v.const_value is not None}
        for v in self.constants:
            assert v.const_value is not None
            self.shapes[str(v.name)] = tuple(v.const_value.shape.numpy())
        for node in model.graph:
            rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            shaped = all(str(v.name) in self.shapes for v in (*node.inputs, *node.outputs) if v is not None and v.name)
            first = node.inputs[0] if node.inputs else None
            if rule is None or first is None or not shaped:
                self.stop(node)
                continue
            try:
                rule(self, node, first)
            except Untracked:
                self.stop(node)
            if rule not in readers:
                self.hold(v for v in node.inputs if v in self.constants)
        self.hold(model.graph.outputs)

    def hold(self, values: Iterable[ir.Value | None]) -> None:
        """Freeze the channels of `values`."""
        for v in values:
            if v is not None:
                self.units.freeze(*self.of(v))
                self.units.unlabelled(v)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of `value`."""
        return self.shapes[str(value.name)]

    def of(self, value: ir.Value) -> Axes:
        """The labels of each axis of `value`; a weight has none until a rule labels it."""
        return self.axes.get(value) or [None] * len(self.shapes.get(str(value.name), ()))

    def stop(self, node: ir.Node) -> None:
        """Freeze all inputs of `node`; its outputs are not tracked."""
        self.hold([*node.inputs, *(v for n in inside(node) for v in n.inputs)])

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """The elements of an integer constant, or None if `value` is not constant."""
        if value is None or value not in self.constants or value.const_value is None:
            return None
        return [int(i) for i in value.const_value.numpy().reshape(-1)]


Rule = Callable[[Tracker, ir.Node, ir.Value], None]


class Untracked(Exception):
    """A form of an operator whose channels are not followed: its inputs are frozen."""


def input_of(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if len(node.inputs) > i else None
