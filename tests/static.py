"""Static int8 of tiny models, step by step and with everything in hand: what the tests of plans and grids share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.graph.plan import Plan
from edgeopt.hardware.target import Target
from edgeopt.numbers.grid import QParams
from edgeopt.numbers.observers import Statistics
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.ptq.grids import activation_params, quantization_params, untie
from edgeopt.ptq.place import place
from edgeopt.runtime.kernels import Kernels, kernels
from edgeopt.runtime.probe import probe
from edgeopt.runtime.session import Feed, open_session, with_outputs


@dataclass(frozen=True)
class Static:
    """model: the float model, untied; result: the same with Q/DQ and integer weights."""

    plan: Plan
    model: ir.Model
    params: Mapping[str, QParams]
    result: ir.Model


def values(model: ir.Model, names: Sequence[str], feed: Feed) -> dict[str, np.ndarray]:
    """The values called `names` (inputs too) of the float `model` on `feed`."""
    inner = [n for n in names if n not in feed]
    found = open_session(with_outputs(model, inner), level="none").run(feed) if inner else []
    return {**{n: feed[n] for n in names if n in feed}, **dict(zip(inner, found, strict=True))}


def observed(model: ir.Model, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Statistics]:
    """Statistics of every element of the values called `names`."""
    found = {name: Statistics() for name in names}
    for feed in feeds:
        for name, x in values(model, names, feed).items():
            found[name] = found[name].update(x, max(1, x.size))
    return found


def static(
    model: ir.Model,
    feeds: Sequence[Feed],
    target: Target,
    *,
    exclude: frozenset[str] = frozenset(),
    rule: str = "minmax",
) -> Static:
    """`model` with every node in integers that can be, ranges from `feeds`."""
    everywhere = frozenset(str(n.name) for n in model.graph) - exclude
    plan = place(model, target, probe(model, feeds[0]), exclude=exclude, include=everywhere)
    activation = activation_params(plan, observed(model, sorted(set(plan.grids.values())), feeds), target, rule)
    untied = untie(model, plan)
    params = quantization_params(untied, plan, activation, target)
    return Static(plan, untied, params, fold_weights(insert_qdq(untied, plan, params)))


def kernels_of(model: ir.Model, folder: Path) -> Kernels:
    """What ONNX Runtime makes of `model`."""
    open_session(model, optimized=folder / "optimized.onnx")
    return kernels(folder / "optimized.onnx")
