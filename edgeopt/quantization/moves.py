"""The moves of a search, in the order in which they are tried: `State, Recipe -> (description, Recipe) ...`.

A move gets the best state so far, with its quantized model, and the recipe that produced it; it yields changed recipes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.data import Feed, readable
from edgeopt.graph.ops import activations
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.ptq.grids import untie
from edgeopt.ptq.islands import blame, result
from edgeopt.ptq.islands import levels as sqnr_levels
from edgeopt.quantization.looking import observe, sources
from edgeopt.quantization.recipe import Recipe
from edgeopt.quantization.state import State
from edgeopt.quantization.steps import Clip, Equalize, Grids, Place, Refit, Round, Smooth, Step

Moves = Iterator[tuple[str, Recipe]]
_SHARES = (0.05, 0.1, 0.25, 0.5)
_RANGE_SHARES = (0.1, 0.5)
_RULES = ("mse", "percentile", "minmax")
_BLAME_SAMPLES = 4
_AMPLIFY = frozenset({"Log", "Sqrt", "Reciprocal", "Div", "Pow"})
_AMPLIFIED_DB = 6.0  # lost at such a node, from which on its inputs are worth being float


@dataclass(frozen=True)
class Move:
    """One row of the table of moves."""

    name: str
    moves: Callable[[State, Recipe], Moves]
    faster: bool = False
    """Whether it aims at speed; then the result must only be close enough."""


def _changed(words: str, *steps: Step, instead_of: tuple[type[Step], ...] = ()) -> Callable[[State, Recipe], Moves]:
    """A move that sets fields of some steps and removes the steps of the kinds in `instead_of`."""

    def moves(state: State, recipe: Recipe) -> Moves:
        found = recipe.without(*instead_of)
        for step in steps:
            old = found.find(type(step))
            given = {n: getattr(step, n) for n in step.model_fields_set}
            found = found.having(step if old is None else old.model_copy(update=given))
        if found != recipe:
            yield words, found

    return moves


def placements(state: State, recipe: Recipe) -> Moves:
    """The recipe with nodes placed by measured times, if that gives another placement than the target's cost table."""
    place = recipe.find(Place)
    resources = state.resources
    if place is None or place.measured or state.plan is None or not resources.timed or resources.by_table:
        return
    changed = place.model_copy(update={"measured": True})
    float_state = state.of(state.source)
    old, new = (p(float_state).plan for p in (place, changed))
    if old is not None and new is not None and old.integer != new.integer and new.integer:
        more, less = len(new.integer - old.integer), len(old.integer - new.integer)
        yield f"placed by measured times ({more} nodes to integers, {less} to float)", recipe.having(changed)


def ranges(state: State, recipe: Recipe) -> Moves:
    """Recipes with another range rule for the inputs and outputs of the nodes that lose most accuracy."""
    grids = recipe.find(Grids)
    if grids is None or state.plan is None:
        return
    nodes = {str(n.name): n for n in state.source.graph}
    for what, worst in _worst(state, _RANGE_SHARES):
        around = [v for n in worst for v in (result(nodes[n], state.plan), *_read(nodes[n]))]
        sources = [state.plan.grids[v] for v in around if v in state.plan.grids]
        for rule in _RULES:
            own = {**dict(grids.rules), **dict.fromkeys(sources, rule)}
            rules = frozenset((v, r) for v, r in own.items() if r != grids.rule)
            if rules != grids.rules:
                yield f"ranges at {what} by {rule}", recipe.having(grids.model_copy(update={"rules": rules}))


def wider(state: State, recipe: Recipe) -> Moves:
    """Recipes with more and more of the nodes that lose most accuracy on the target's wider grid, and those that read
    them, which would make their values narrow again.
    """
    grids, plan = recipe.find(Grids), state.plan
    if grids is None or plan is None or state.target.wide_type is None:
        return
    nodes = {str(n.name): n for n in state.source.graph}
    readers = defaultdict[str, list[ir.Node]](list)
    for n in nodes.values():
        for value in _read(n) if n.name in plan.integer else ():
            readers[value].append(n)
    for _, worst in _worst(state, _SHARES):
        both = {*worst, *(str(r.name) for n in worst for r in readers[result(nodes[n], plan)])}
        wide = grids.wide | {plan.grids[v] for v in (result(nodes[n], plan) for n in both) if v in plan.grids}
        if wide != grids.wide:
            words = f"{len(wide)} of {len(plan.integer)} nodes in {state.target.grid.wide}"
            yield words, recipe.having(grids.model_copy(update={"wide": wide}))


def mixtures(state: State, recipe: Recipe) -> Moves:
    """Recipes with dynamic quantization of matrix products: first those that lose most accuracy, then all."""
    place = recipe.find(Place)
    if place is None or state.plan is None or not state.target.demands.dynamic:
        return
    products = frozenset(str(n.name) for n in dynamic_nodes(state.source) if n.name in state.plan.integer)
    if not products:
        return
    seen = set[frozenset[str]]()
    for _, worst in [*_worst(state, _SHARES), ("", products)]:
        some = worst & products
        if some and some not in seen:
            seen.add(some)
            what = "all products dynamic" if some == products else f"{len(some)} of the worst products dynamic"
            yield what, recipe.having(place.model_copy(update={"dynamics": place.dynamics | some}))


def islands(state: State, recipe: Recipe) -> Moves:
    """Recipes that keep more and more of the nodes that lose most accuracy in float."""
    place = recipe.find(Place)
    if place is None:
        return
    worst = dict(_worst(state, _SHARES))
    places = {what: place.model_copy(update={"floats": place.floats | nodes}) for what, nodes in worst.items()}
    float_state = state.of(state.source)
    observe(float_state, sources(p(float_state).plan for p in places.values()))
    for what, changed in places.items():
        yield f"{what} left in float", recipe.having(changed)


def fronts(state: State, recipe: Recipe) -> Moves:
    """The recipe without integers before the float node that makes most of their error larger: a logarithm, a root, or
    a division by what varies, of a front end in the graph.
    """
    place = recipe.find(Place)
    if place is None or state.plan is None or not state.written:
        return
    nodes = {str(n.name): n for n in state.source.graph if n.op_type in _AMPLIFY and n.name not in state.plan.integer}
    feeds = _seen(state) if nodes else []
    if not feeds:
        return
    levels = sqnr_levels(untie(state.source, state.plan), state.model, state.plan, feeds, frozenset(nodes))
    name = max(levels, key=lambda n: levels[n][0] - levels[n][1], default=None)
    if name is None or levels[name][0] - levels[name][1] < _AMPLIFIED_DB:
        return
    before = _ancestors(nodes[name]) & state.plan.integer
    if 0 < len(before) < len(state.plan.integer):
        what = f"{len(before)} nodes before a {nodes[name].op_type} left in float"
        yield what, recipe.having(place.model_copy(update={"floats": place.floats | before}))


def _ancestors(node: ir.Node) -> frozenset[str]:
    found, waiting = set[ir.Node](), [node]
    while waiting:
        makers = (v.producer() for v in waiting.pop().inputs if v is not None)
        new = {n for n in makers if n is not None and n not in found}
        found |= new
        waiting += new
    return frozenset(str(n.name) for n in found)


def _seen(state: State) -> list[Feed]:
    """Some calibration samples."""
    seen, _ = readable(state.samples[:_BLAME_SAMPLES], total=len(state.samples))
    return [feed for _, feed in seen] or list(state.resources.feeds[:_BLAME_SAMPLES])


def _worst(state: State, shares: tuple[float, ...]) -> Iterator[tuple[str, frozenset[str]]]:
    """Growing sets of the integer nodes that lose most accuracy, each with a description of its size."""
    if state.plan is None or not state.plan.integer or not state.written:
        return
    lost = blame(untie(state.source, state.plan), state.model, state.plan, _seen(state))
    worst = [name for name, db in lost.items() if db > 0]
    sizes = dict.fromkeys(min(len(worst), max(1, round(share * len(state.plan.integer)))) for share in shares)
    for size in sizes:
        if size:
            yield f"{size} node{'s' if size > 1 else ''}", frozenset(worst[:size])


def _read(node: ir.Node) -> list[str]:
    return [str(v.name) for _, v in activations(node)]


MOVES: tuple[Move, ...] = (
    Move("placements", placements, faster=True),
    Move("gptq", _changed("weights rounded by what layers read (GPTQ)", Round(how="gptq"), instead_of=(Refit,))),
    Move("percentile", _changed("ranges by percentile", Grids(rule="percentile"))),
    Move("minmax", _changed("ranges by minmax", Grids(rule="minmax"))),
    Move("clip", _changed("weights clipped", Clip())),
    Move("smooth", _changed("inputs of layers smoothed", Smooth(alpha=0.5))),
    Move("equalize", _changed("layers equalized", Equalize())),
    Move("ranges", ranges),
    Move("wider", wider),
    Move("mixtures", mixtures),
    Move("fronts", fronts),
    Move("islands", islands),
    Move("refit", _changed("weights fitted to what layers read in integers", Refit(), instead_of=(Round,))),
    Move(
        "best",
        _changed("weights rounded by GPTQ or AdaRound, output by output", Round(how="best"), instead_of=(Refit,)),
    ),
)
FASTER = tuple(m for m in MOVES if m.faster)
_FIRST = ("wider", "fronts", "islands")
NEARER = (
    *(m for m in MOVES if m.name == "minmax"),
    *sorted((m for m in MOVES if not m.faster), key=lambda m: (*_FIRST, m.name).index(m.name)),
)
"""Moves for a result far from float: ranges that clip nothing cost no speed; else usually a few nodes cause most of the
loss, so these are made wider, or kept in float.
"""
WIDER = tuple(m for m in MOVES if m.name == "wider")
