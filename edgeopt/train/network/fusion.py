"""Fuses ONNX nodes into single torch calls, which need less memory for the backward pass and less time: exporters
decompose what torch computes as a whole. Attention stores no score matrix, GELU one value instead of five, and a
layer's bias needs no separate addition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.train.network.program import Instruction

# (operator, inputs): equal names are the same value, a number is a constant with one element.
_Pattern: TypeAlias = "tuple[str | float | _Pattern, ...]"
_Part: TypeAlias = "str | float | _Pattern"
_COMMUTATIVE = frozenset({"Add", "Mul"})
# Attributes as (default, required value); an axis may also be counted from the front.
_ATTRIBUTES = {
    "Softmax": {"axis": (-1, -1)},
    "Flatten": {"axis": (1, -1)},
    "ReduceMean": {"keepdims": (1, 1), "noop_with_empty_axes": (0, 0)},
}


@dataclass(frozen=True)
class _Match:
    """A pattern found in the steps."""

    slots: Mapping[str, int] = field(default_factory=dict)
    """Slot of each name in the pattern."""
    steps: Set[int] = frozenset()
    """Indices of the matched steps."""


@dataclass(frozen=True)
class _Code:
    """The steps, and what is known about their values."""

    steps: Sequence[Instruction]
    constants: Mapping[int, Tensor]
    shapes: Mapping[int, torch.Size]
    """Shapes by slot, for the inputs of this plan."""
    kept: Set[int]
    """Slots that are requested as results."""
    producers: Mapping[int, int]
    """Slot -> index of the step that computes it."""
    readers: Mapping[int, Set[int]]
    """Slot -> indices of the steps that read it."""

    def match(self, pattern: _Pattern, last: int) -> _Match | None:
        """The match of `pattern` that ends in step `last`, if no other step reads a value in between."""
        found = self._found(pattern, self.steps[last].outputs[0], _Match())
        if found is None:
            return None
        inner = {slot for i in found.steps - {last} for slot in self.steps[i].outputs}
        hidden = not inner & self.kept and all(self.readers.get(slot, set()) <= found.steps for slot in inner)
        return found if hidden else None

    def number(self, slot: int) -> float:
        """The value of a one-element constant at `slot`, else NaN."""
        constant = self.constants.get(slot)
        return float(constant) if constant is not None and constant.numel() == 1 else math.nan

    def _found(self, part: _Part, slot: int | None, so_far: _Match) -> _Match | None:
        if slot is None:
            return None
        if isinstance(part, str):
            same = so_far.slots.get(part, slot) == slot
            return _Match({**so_far.slots, part: slot}, so_far.steps) if same else None
        if not isinstance(part, tuple):
            return so_far if math.isclose(self.number(slot), part, rel_tol=1e-5) else None
        i = self.producers.get(slot)
        if i is None or not self._is(self.steps[i], part):
            return None
        inputs = self.steps[i].inputs
        for order in (inputs, inputs[::-1]) if part[0] in _COMMUTATIVE else (inputs,):
            found: _Match | None = _Match(so_far.slots, so_far.steps | {i})
            for p, source in zip(part[1:], order, strict=True):
                found = None if found is None else self._found(p, source, found)
            if found is not None:
                return found
        return None

    def _is(self, step: Instruction, pattern: _Pattern) -> bool:
        node, first = step.node, step.inputs[0]
        if node.op_type != pattern[0] or node.domain or len(step.inputs) != len(pattern) - 1 or first is None:
            return False
        rank = len(self.shapes[first])
        return all(
            node.attributes.get_int(name, default) in (need, need + rank if name == "axis" else need)
            for name, (default, need) in _ATTRIBUTES.get(node.op_type, {}).items()
        )


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x w + b: x [..., in], w [in, out], b [out]."""
    return torch.addmm(b, x.reshape(-1, w.shape[0]), w).reshape(*x.shape[:-1], w.shape[1])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float) -> Tensor:
    """softmax(scale q k + mask) v: q [..., n, d], k [..., d, m], v [..., m, e]."""
    if q.ndim == 3:  # torch's kernel has four axes
        mask = mask[None] if mask is not None and mask.ndim == 3 else mask
        return attention(q[None], k[None], v[None], mask, scale=scale)[0]
    return F.scaled_dot_product_attention(q, k.transpose(-1, -2), v, attn_mask=mask, scale=scale)


def layer_norm(x: Tensor, w: Tensor, b: Tensor, *, eps: float) -> Tensor:
    """Over the last axis: x [..., n], w, b [n]."""
    return F.layer_norm(x, w.shape, w, b, eps)


def _linear(code: _Code, at: Mapping[str, int]) -> Callable[..., Tensor] | None:
    w, b = (code.shapes[at[name]] for name in "wb")
    return linear if len(w) == 2 and b == w[1:] else None


def _attention(code: _Code, at: Mapping[str, int]) -> Callable[..., Tensor] | None:
    """Fused attention, with the constants that multiply or divide queries, keys or scores as one scale."""
    scale = math.prod(code.number(at[name]) for name in ("left", "right", "scale") if name in at)
    scale = scale / (code.number(at["divisor"]) or math.nan) if "divisor" in at else scale
    q, k, v = (code.shapes[at[name]] for name in "qkv")
    scores = (*q[:-1], k[-1])
    plain = len(q) > 2 and q[:-2] == k[:-2] == v[:-2]
    plain = plain and ("mask" not in at or torch.broadcast_shapes(code.shapes[at["mask"]], scores) == scores)
    if "shape" in at:
        target = code.constants.get(at["shape"])
        plain = plain and target is not None and target.tolist() == list(scores)
    return partial(attention, scale=scale) if plain and math.isfinite(scale) else None


def _layer_norm(code: _Code, at: Mapping[str, int]) -> Callable[..., Tensor] | None:
    eps = code.number(at["eps"])
    plain = code.shapes[at["w"]] == code.shapes[at["b"]] == code.shapes[at["x"]][-1:]
    return partial(layer_norm, eps=eps) if plain and math.isfinite(eps) else None


def _always(function: Callable[..., Tensor]) -> Callable[[_Code, Mapping[str, int]], Callable[..., Tensor]]:
    return lambda code, at: function


_ERFS: tuple[_Pattern, ...] = (("Erf", ("Div", "x", math.sqrt(2))), ("Erf", ("Mul", "x", math.sqrt(0.5))))
_TANH: _Pattern = ("Tanh", ("Mul", ("Add", "x", ("Mul", ("Pow", "x", 3.0), 0.044715)), math.sqrt(2 / math.pi)))
_HALVES: tuple[Callable[[_Part], _Pattern], ...] = (  # halves of x (1 + y)
    lambda y: ("Mul", ("Mul", "x", ("Add", y, 1.0)), 0.5),
    lambda y: ("Mul", ("Mul", "x", 0.5), ("Add", y, 1.0)),
    lambda y: ("Mul", "x", ("Mul", ("Add", y, 1.0), 0.5)),
)
_GATE: _Pattern = ("Clip", ("Add", "x", 3.0), 0.0, 6.0)
_PRODUCT: _Pattern = ("MatMul", "q", "k")
_SCORES: tuple[_Pattern, ...] = (
    ("MatMul", ("Mul", "q", "left"), ("Mul", "k", "right")),
    ("MatMul", ("Mul", "q", "left"), "k"),
    ("Mul", _PRODUCT, "scale"),
    ("Div", _PRODUCT, "divisor"),
    _PRODUCT,
)
_SOFTMAXES: tuple[Callable[[_Part], _Pattern], ...] = (
    lambda s: ("Softmax", s),
    # the form that ONNX's version converter makes of opset 12
    lambda s: ("Reshape", ("Softmax", ("Flatten", s)), "shape"),
)
_CENTRED: _Pattern = ("Sub", "x", ("ReduceMean", "x", -1.0))
_VARIANCE: _Pattern = ("ReduceMean", ("Pow", _CENTRED, 2.0), -1.0)
_NORMED: _Pattern = ("Div", _CENTRED, ("Sqrt", ("Add", _VARIANCE, "eps")))
# (pattern, a function that returns the call or None, the inputs of the call)
_FUSIONS: tuple[tuple[_Pattern, Callable[[_Code, Mapping[str, int]], Callable[..., Tensor] | None], str], ...] = (
    *((half(erf), _always(F.gelu), "x") for half, erf in itertools.product(_HALVES, _ERFS)),
    *((half(_TANH), _always(partial(F.gelu, approximate="tanh")), "x") for half in _HALVES),
    (("Mul", "x", ("Sigmoid", "x")), _always(F.silu), "x"),
    (("Mul", "x", ("Sigmoid", ("Mul", "x", 1.0))), _always(F.silu), "x"),
    (("Mul", "x", ("Tanh", ("Softplus", "x"))), _always(F.mish), "x"),
    (("Div", ("Mul", "x", _GATE), 6.0), _always(F.hardswish), "x"),
    (("Mul", ("Mul", "x", _GATE), 1 / 6), _always(F.hardswish), "x"),
    (("Mul", "x", ("Div", _GATE, 6.0)), _always(F.hardswish), "x"),
    (("Mul", "x", ("Mul", _GATE, 1 / 6)), _always(F.hardswish), "x"),
    (("Add", ("Mul", _NORMED, "w"), "b"), _layer_norm, "x w b"),
    *((("MatMul", p(("Add", s, "mask")), "v"), _attention, "q k v mask") for p in _SOFTMAXES for s in _SCORES),
    *((("MatMul", p(s), "v"), _attention, "q k v") for p in _SOFTMAXES for s in _SCORES),
    (("Add", ("MatMul", "x", "w"), "b"), _linear, "x w b"),
)


def fused(
    steps: Sequence[Instruction], constants: Mapping[int, Tensor], shapes: Mapping[int, torch.Size], kept: Set[int]
) -> list[Instruction]:
    """`steps` with fewer calls and the same results; slots in `kept` are still computed."""
    producers = {slot: i for i, s in enumerate(steps) for slot in s.outputs}
    readers: dict[int, set[int]] = {}
    for slot, i in ((slot, i) for i, s in enumerate(steps) for slot in s.inputs if slot is not None):
        readers.setdefault(slot, set()).add(i)
    code = _Code(steps, constants, shapes, kept, producers, readers)
    found: list[Instruction] = []
    gone: set[int] = set()
    for last in reversed(range(len(steps))):
        if last in gone:
            continue
        step, matched = _fusion(code, last)
        found.append(step)
        gone |= matched
    return found[::-1]


def _fusion(code: _Code, last: int) -> tuple[Instruction, Set[int]]:
    """The step `last` fused with steps before it if a pattern matches, and the indices of the fused steps."""
    step = code.steps[last]
    for pattern, call, inputs in _FUSIONS:
        if step.node.op_type != pattern[0]:
            continue
        match = code.match(pattern, last)
        function = call(code, match.slots) if match is not None else None
        if match is not None and function is not None:
            return (
                Instruction(step.node, function, tuple(match.slots[n] for n in inputs.split()), step.outputs),
                match.steps,
            )
    return step, set()
