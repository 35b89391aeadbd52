"""The steps of a recipe: each is a frozen value that turns one `State` into a new one; the algorithms are in `ptq` and
`passes`.

equalize, smooth -> place -> observe -> grids -> clip -> round or refit -> write
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, PlainSerializer, SkipValidation

from edgeopt import graph
from edgeopt.data.foreign import foreign, named
from edgeopt.errors import ModelError, UsageError
from edgeopt.graph.plan import Form, Plan
from edgeopt.numbers.grid import INT8_WEIGHT, QParams
from edgeopt.options.declare import ChoiceTable, Options
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.passes.dynamic import dynamic
from edgeopt.passes.embedding import embeddings, quantize_embeddings
from edgeopt.passes.fp16 import fp16
from edgeopt.passes.narrow import own_pads, padded
from edgeopt.passes.qdq import fold_weights, insert_qdq, without_casts, zero_points
from edgeopt.passes.shield import shield
from edgeopt.passes.tie import of_tables, tied
from edgeopt.passes.weights import spread, storable, stored_grids, weight_only
from edgeopt.ptq.equalize import equalized
from edgeopt.ptq.grids import activation_params, dynamic_params, fixed_grids, quantization_params, untie
from edgeopt.ptq.place import place
from edgeopt.ptq.reconstruct import clipped, reconstructed
from edgeopt.ptq.refit import refitted
from edgeopt.ptq.smooth import smoothed
from edgeopt.ptq.widths import converted, without_identities
from edgeopt.quantization.costing import costed
from edgeopt.quantization.looking import layer_moments, layer_parts, observe, sources, widened
from edgeopt.quantization.state import State
from edgeopt.runtime.probe import Probe, probe
from edgeopt.runtime.session import types_of

SELECTION = 32  # the first calibration samples, on which a search compares models; weights are not fitted to them
_MOMENT_SAMPLES = 32
_FITTED = 256
_PEAKS = 32
_PEAK_SAMPLES = 4
_INT4_OPSET = 21
_WORTH_STORING = 0.001  # share of the model's bytes below which a node's weights stay float
DYNAMIC_REASON = "in integers whose scale is found at run time"
BLAMED_REASON = "integers lose most of the accuracy here"
Names = Annotated[frozenset[str], PlainSerializer(sorted, when_used="json")]
Rounding = Annotated[str, ChoiceTable("edgeopt.ptq.reconstruct:ROUNDERS")]


class Step(Options):
    """A frozen configuration that makes a new state of one."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of the state that an earlier step must have filled."""

    step: str

    def __call__(self, state: State) -> State:
        """The state after this step."""
        raise TypeError(f"{type(self).__name__} does nothing")


class Equalize(Step):
    """Cross-layer equalization."""

    step: Literal["equalize"] = "equalize"

    def __call__(self, state: State) -> State:
        key = (self, id(state.model))
        return state.of(state.resources.cache.model(key, lambda: equalized(state.model, state.samples[:_PEAKS])))


class Smooth(Step):
    """SmoothQuant: ranges of inputs go into weights."""

    step: Literal["smooth"] = "smooth"
    alpha: float = Field(default=0.5, ge=0, le=1, description="0: all ranges stay in the activations, 1: all go.")

    def __call__(self, state: State) -> State:
        key = (self, id(state.model))
        make = lambda: smoothed(state.model, state.samples[:_PEAKS], self.alpha)  # noqa: E731
        return state.of(state.resources.cache.model(key, make))


def probed(state: State) -> Mapping[str, Probe]:
    """Shapes and extremes of the values of the state's float model on the first sample."""
    cache = state.resources.cache
    if id(state.source) not in cache.probes:
        with cache.timed("probe"):
            cache.probes[id(state.source)] = probe(state.source, state.resources.feeds[0], state.resources.max_ram)
        cache.model(id(state.source), lambda: state.source)
    return cache.probes[id(state.source)]


class Place(Step):
    """A form for every node: the cheapest placement of integers, or one form wherever it can be."""

    step: Literal["place"] = "place"
    form: Form = Field(default="int8 static", description="The form that nodes get where they can have it and it pays.")
    exclude: Names = Field(default=frozenset(), description="Nodes that stay float.")
    include: Names = Field(default=frozenset(), description="Nodes that become integer even if it does not pay.")
    floats: Names = Field(default=frozenset(), description="Nodes that stay float for what integers lose there.")
    dynamics: Names = Field(default=frozenset(), description="Products whose inputs get their scale at run time.")
    measured: bool = Field(default=False, description="By measured times, not by the target's table.")

    def __call__(self, state: State) -> State:
        if self.form != "int8 static":
            seen = probed(state) if padded(state.source) else {}
            return replace(state, plan=self._whole(state.source), probes=seen)
        probes = probed(state)
        if self.measured:
            state.resources.cache.costs = costed(state, probes, self.exclude)
        plan = self.plan(state, probes)
        return replace(state, probes=probes, plan=plan, placed=(plan, self.plan))

    def plan(self, state: State, probes: Mapping[str, Probe]) -> Plan:
        """The placement of the state's float model, given `probes`."""
        out = self.floats | self.dynamics
        costs = state.resources.cache.costs if self.measured else None
        found = place(
            state.source, state.target, probes, exclude=self.exclude | out, include=self.include - out, costs=costs
        )
        words = dict.fromkeys(self.floats, BLAMED_REASON) | dict.fromkeys(self.dynamics, DYNAMIC_REASON)
        forms: dict[str, Form] = dict(found.forms)
        if forms:
            forms |= dict.fromkeys(self.dynamics, "int8 dynamic")
            least = _WORTH_STORING * graph.size_bytes(state.source)
            stored = storable(state.source, least) - forms.keys() - self.exclude
            if not state.target.demands.stored:
                stored = frozenset()
            forms |= dict.fromkeys(stored | (embeddings(state.source) - self.exclude), "int8 stored")
            reasons = {n: words.get(n, r) for n, r in found.kept_float.items() if n in stored}
            words |= {n: f"{r}; its weights are stored as int8" for n, r in reasons.items()}
        return replace(found, forms=forms, kept_float={n: words.get(n, r) for n, r in found.kept_float.items()})

    def _whole(self, model: ir.Model) -> Plan:
        """A plan with one form for every node that supports it."""
        nodes = frozenset(str(n.name) for n in model.graph.all_nodes())
        taken: dict[str, Form] = {}
        if self.form == "int8 dynamic":
            lstm = {str(n.name) for n in model.graph.all_nodes() if n.op_type == "LSTM"} & self.include
            found = dynamic_nodes(model, lstm=bool(lstm))
            taken = {str(n.name): self.form for n in found if n.op_type != "LSTM" or n.name in lstm}
        elif self.form in ("int8 stored", "int4 stored"):
            taken = dict.fromkeys(sorted(storable(model, 0)), self.form)
        elif self.form == "fp16":
            taken = dict.fromkeys(nodes, self.form)
        taken = {n: form for n, form in taken.items() if n not in self.exclude}
        if self.form != "fp16":
            taken |= dict.fromkeys(embeddings(model) - self.exclude, "int8 stored")
        return Plan(taken, {}, {}, {})


class Observe(Step):
    """Statistics of the values that decide grids, over the samples; nodes are placed again by what all samples
    showed.
    """

    step: Literal["observe"] = "observe"
    needs: ClassVar[tuple[str, ...]] = ("plan",)

    def __call__(self, state: State) -> State:
        assert state.plan is not None
        if not state.plan.integer:
            return state
        known = observe(state, sources([state.plan]))
        wide = {**state.probes, **{n: widened(state.probes[n], s) for n, s in known.items() if n in state.probes}}
        state.resources.cache.probes[id(state.source)] = wide
        plan = state.plan
        if state.placed is not None and state.placed[0] is plan:
            plan = state.placed[1](state, wide)
            known = observe(state, sources([plan]))
        return replace(state, probes=wide, plan=plan, statistics=dict(known))


class Grids(Step):
    """Grids of activations by a range rule, and those of weights and biases that go with them."""

    step: Literal["grids"] = "grids"
    needs: ClassVar[tuple[str, ...]] = ("plan", "statistics")
    rule: Annotated[str, ChoiceTable("edgeopt.numbers.ranges:RANGES")] = Field(
        default="mse", description="How ranges are chosen."
    )
    rules: Annotated[frozenset[tuple[str, str]], PlainSerializer(sorted, when_used="json")] = Field(
        default=frozenset(), description="(value, rule) where it is another one."
    )
    wide: Annotated[frozenset[str], PlainSerializer(sorted, when_used="json")] = Field(
        default=frozenset(), description="Values on a grid of the target's wider type."
    )

    def __call__(self, state: State) -> State:
        assert state.plan is not None
        plan, target, rules = state.plan, state.target, dict(self.rules)
        fixed = fixed_grids(state.source, plan, target, self.wide)
        found = activation_params(plan, state.statistics, target, self.rule, rules, fixed, self.wide)
        untied = untie(state.source, plan)
        model, activation = converted(untied, plan, found) if self.wide else (untied, found)
        return replace(state, model=model, params=quantization_params(model, state.plan, activation, state.target))


class Clip(Step):
    """Scales of weights by what layers give, not by the peak."""

    step: Literal["clip"] = "clip"
    needs: ClassVar[tuple[str, ...]] = ("plan", "params")
    samples: int = Field(default=_MOMENT_SAMPLES, ge=1, description="Samples whose moments are taken.")

    def __call__(self, state: State) -> State:
        params = dict(state.params)
        for part in layer_moments(state, self.samples):
            params = clipped(state.model, params, part, state.target)
        return replace(state, params=params)


class Round(Step):
    """Weights of layers that become integers rounded under what the layers read, biases too."""

    step: Literal["round"] = "round"
    needs: ClassVar[tuple[str, ...]] = ("plan", "params")
    how: Rounding = Field(default="gptq", description="How weights are rounded.")
    samples: int = Field(default=_MOMENT_SAMPLES, ge=1, description="Samples whose moments are taken.")

    def __call__(self, state: State) -> State:
        assert state.plan is not None
        stored, stored4 = (state.plan.having(form) for form in ("int8 stored", "int4 stored"))
        model = state.model if state.params else untie(state.source, state.plan)
        grids = stored_grids(model, stored, 8) | stored_grids(model, stored4, 4)
        state = replace(state, model=model, params={**state.params, **grids})
        alike = of_tables(model) if stored or not state.target.grid.saturates else frozenset[str]()
        for part in layer_moments(state, self.samples):
            own = {name: m for name, m in part.items() if name not in alike or not _as_table(state.params[name])}
            model = reconstructed(model, state.params, own, state.target, self.how, stored | stored4)
        return replace(state, model=model)


def _as_table(grid: QParams) -> bool:
    """Whether a weight is on the grid on which the rows of a table are stored."""
    return grid.block is None and grid.qtype == INT8_WEIGHT


class Refit(Step):
    """Weights fitted to what layers read in integers, one by one."""

    step: Literal["refit"] = "refit"
    needs: ClassVar[tuple[str, ...]] = ("plan", "params")
    how: Rounding = Field(default="gptq", description="How weights are rounded.")

    def __call__(self, state: State) -> State:
        assert state.plan is not None
        layers = [x for part in layer_parts(state) for x in part if x[0].name in state.plan.integer]
        samples = state.samples[min(SELECTION, len(state.samples) // 2) :][:_FITTED]

        def progress(done: int, total: int) -> None:
            state.resources.listener.progress("fitting layers to what they read in integers", done, total)

        model = refitted(state.model, layers, state.plan, state.params, samples, state.target, self.how, progress)
        return replace(state, model=model)


class Write(Step):
    """The plan and the grids put into the model: each node in its form."""

    step: Literal["write"] = "write"
    needs: ClassVar[tuple[str, ...]] = ("plan",)
    io_types: Literal["keep", "fp16"] = Field(default="keep", description="Inputs and outputs of half precision.")

    def __call__(self, state: State) -> State:
        assert state.plan is not None
        plan, model = state.plan, state.model
        if plan.having("fp16"):
            return replace(state, model=tied(self._half(state, plan)), written=True)
        if plan.integer:
            model = graph.raise_opset(model, state.target.demands.lowest_opset)
            model = without_identities(without_casts(fold_weights(insert_qdq(model, plan, state.params))))
            model = zero_points(model) if state.target.demands.zero_points else model
        dynamics = plan.having("int8 dynamic")
        if dynamics:
            nodes = [n for n in dynamic_nodes(model, lstm=True) if n.name in dynamics]
            model = dynamic(model, *dynamic_params(nodes, state.target))
        shapes = {name: p.shape for name, p in state.probes.items()}
        if plan.integer and state.target.demands.rewritten:
            model = shield(model, {name: len(s) for name, s in shapes.items()} if graph.fixed(model) else {})
        model = own_pads(model, shapes) if state.target.demands.rewritten else model
        stored, stored4 = (plan.having(form) for form in ("int8 stored", "int4 stored"))
        layers_stored = (stored | stored4) - embeddings(model)
        if layers_stored:
            raised = graph.raise_opset(model, _INT4_OPSET) if stored4 else model
            model = weight_only(raised, 4 if stored4 else 8, layers_stored, state.params)
        return replace(state, model=tied(spread(quantize_embeddings(model, stored | stored4))), written=True)

    def _half(self, state: State, plan: Plan) -> ir.Model:
        peaks: dict[str, float] = {}
        for feed in state.resources.feeds[:_PEAK_SAMPLES]:
            for name, p in probe(state.model, feed, state.resources.max_ram).items():
                peak = max(abs(p.lo), abs(p.hi))
                peaks[name] = max(peaks.get(name, 0.0), 0.0 if np.isnan(peak) or np.isinf(peak) else peak)
        names = frozenset(str(n.name) for n in state.model.graph.all_nodes())
        keep = names - plan.having("fp16")
        model = graph.typed(state.model)
        missing = [v for n in model.graph for v in n.outputs if v.dtype is None and v.name]
        types = types_of(model) if missing else {}  # behind operators of other domains
        for value in missing:
            if str(value.name) in types:
                value.type = ir.TensorType(types[str(value.name)])
        return fp16(model, keep=keep, io_keep=self.io_types == "keep", peaks=peaks)


class Own(Step):
    """A function of the user's, `State -> State`."""

    step: Literal["python"] = "python"
    call: Annotated[str | Callable[[State], State], SkipValidation] = Field(
        description="package.module:function, or in Python the function."
    )
    after: str = Field(default="round", description="The step that it follows.")

    @property
    def code(self) -> str:
        """Source code of the function, empty if it is not available."""
        try:
            return inspect.getsource(inspect.unwrap(self._function))
        except (OSError, TypeError):
            return ""

    @property
    def _function(self) -> Callable[[State], State]:
        found: Callable[[State], State] = named(self.call, "--step") if isinstance(self.call, str) else self.call
        return found

    def __call__(self, state: State) -> State:
        function = self._function
        name, place = self.call if isinstance(self.call, str) else called(function), _place(function)
        with foreign(f"step {name} ({place})"):
            found: Any = function(state)
        if not isinstance(found, State):
            raise UsageError(f"step {name} ({place}): gives {type(found).__name__}, and not the State after it")
        _check_interface(state.model, found.model, f"step {name} ({place})")
        return found


ORDER: tuple[type[Step], ...] = (Equalize, Smooth, Place, Observe, Grids, Clip, Round, Refit, Write)
_ALL: tuple[type[Step], ...] = (*ORDER, Own)
STEPS: Mapping[str, type[Step]] = {str(s.model_fields["step"].default): s for s in _ALL}


def called(function: Callable[..., Any]) -> str:
    """`module:function` of a function."""
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"


def _place(function: Callable[..., Any]) -> str:
    """File and line of the user's function."""
    try:
        target = inspect.unwrap(function)
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return "its file is not known"


def _check_interface(before: ir.Model, after: object, who: str) -> None:
    if not isinstance(after, ir.Model):
        raise UsageError(f"{who}: the state's model is a {type(after).__name__}, and not an onnx_ir.Model")
    for what in ("inputs", "outputs"):
        old, new = ([(v.name, v.dtype) for v in getattr(m.graph, what)] for m in (before, after))
        if old != new:
            raise ModelError(f"{who}: changes the model's {what} from {old} to {new}")
