"""An ONNX graph as a torch module and back: initializers are parameters by name, and only they change.

The graph itself is kept. For each set of input shapes a *plan* is made by running the graph once: values that depend
only on shapes and constants are computed then and stored; the rest is straight-line code, one call of the operator
table a node. Values are dropped after their last use. A float16 model is trained in float32, and its weights are
rounded when they are written back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeopt import graph
from edgeopt.errors import ModelError, UsageError, suggestion
from edgeopt.hardware.target import Grid
from edgeopt.train.network import fake_quant, qdq
from edgeopt.train.network.choice import choose
from edgeopt.train.network.fusion import fused
from edgeopt.train.network.program import Instruction, run, with_drops
from edgeopt.train.network.torch_ops import OPS

OPSET = 18  # of the operator table; older models are converted to it in the copy that is run
_PLANS = 64  # most plans kept; one for each batch size and text length
_NORM_SHARE = 0.1  # of a batch's statistics in those of BatchNormalization
_SHAPES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class _Plan:
    steps: tuple[Instruction, ...]
    constants: Mapping[int, Tensor]


class OnnxModule(nn.Module):
    """The module of a model in canonical form; maps feeds by input name to outputs by name."""

    def __init__(
        self,
        model: ir.Model,
        freeze: Sequence[str] = (),
        train: Sequence[str] = (),
        *,
        quantized: bool = False,
        grid: Grid | None = None,
        update_norms: bool = False,
    ) -> None:
        """`quantized`: train through the Q/DQ of a quantized model, including its integer weights and scales; `grid`:
        what the target demands of them: powers of two, scales that are given, weights that do not saturate.
        `update_norms`: while training, BatchNormalization uses the statistics of the batch and updates its own.

        Raises:
            ModelError: an operator or form that cannot be trained, by node name.
        """
        super().__init__()
        raised = graph.raise_opset(model, OPSET).clone()
        self.half = _widen(raised)
        self.masters = qdq.masters(raised) if quantized else {}
        steps = set(qdq.step_names(raised, self.masters, grid)) if quantized else set[str]()
        self.choice = choose(raised, freeze, train, self.masters.keys() | steps)
        self.inputs = [str(v.name) for v in raised.graph.inputs]
        self.outputs = [str(v.name) for v in raised.graph.outputs]
        self._nodes = list(raised.graph)
        made = (v for n in self._nodes for v in n.outputs)
        values = dict.fromkeys((*raised.graph.inputs, *raised.graph.initializers.values(), *made))
        self._slots: dict[ir.Value, int] = {value: i for i, value in enumerate(values)}
        self.names: dict[str, int] = {str(value.name): i for value, i in self._slots.items()}
        replaced = fake_quant.calls(raised, self.masters, self._step, grid) if quantized else {}
        norms = [n for n in self._nodes if update_norms and n.op_type == "BatchNormalization"]
        replaced |= {n: partial(self._normalized, epsilon=n.attributes.get_float("epsilon", 1e-5)) for n in norms}
        self.statistics = list(dict.fromkeys(str(v.name) for n in norms for v in n.inputs[3:5] if v is not None))
        self._calls = [replaced.get(node) or _call(node) for node in self._nodes]
        self._keep = {self._slots[v] for v in raised.graph.outputs}
        self.weights = nn.ParameterList()
        self._parameter_slots: list[int] = []
        self._fixed: dict[int, Tensor] = {}
        self.steps = nn.ParameterList()  # log(scale / initial scale)
        self._octaves = grid is not None and grid.power_of_two
        self._steps_now: dict[str, Tensor] = {}
        names = [str(n) for n, v in raised.graph.initializers.items() if v.const_value is not None]
        scales = {n for m in self.masters.values() for n in (m.scale, m.zero_point, m.x_scale, m.w_scale)}
        self._values = {n: _array(raised, n) for n in names if n in scales}
        chosen = set(self.choice.trainable)
        self._ties = qdq.tied_steps(raised, chosen & steps)
        self._step_names = [n for n in names if n in (chosen & steps) - self._ties.keys()]
        self.trained = [n for n in names if n in chosen - steps or n in self.masters]
        for name in names:
            self._register(name, self._start(name, raised), name in chosen)
        self._planning = False
        self._plans: OrderedDict[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]], _Plan] = OrderedDict()

    def _register(self, name: str, tensor: Tensor, trained: bool) -> None:
        """Hold the initializer `name` as what it is: a weight, a scale, a statistic, or a constant."""
        if name in self.trained:
            self.weights.append(nn.Parameter(tensor, requires_grad=trained))
            self._parameter_slots.append(self.names[name])
        elif name in self._step_names:
            self.steps.append(nn.Parameter(torch.zeros_like(tensor)))
            self.register_buffer(f"step{len(self.steps) - 1}", tensor)
        elif name in self.statistics:
            self.register_buffer(f"statistic{self.statistics.index(name)}", tensor)
        else:
            self._fixed[self.names[name]] = tensor

    def _start(self, name: str, raised: ir.Model) -> Tensor:
        """The initial value of initializer `name`; for a master weight, its dequantized integers."""
        tensor = torch.from_numpy(np.array(_wide(_array(raised, name)), copy=True))
        if name not in self.masters:
            return tensor
        master = self.masters[name]
        zero = None if master.zero_point is None else torch.from_numpy(np.array(_wide(self._values[master.zero_point])))
        scale = torch.from_numpy(np.array(self._values[master.scale]))
        return fake_quant.dequantized(tensor, scale, zero, master)

    @property
    def bits(self) -> int:
        """Bits of the narrowest weights."""
        return min((m.kind.bitwidth for m in self.masters.values()), default=32)

    def forward(self, feed: Mapping[str, Tensor], taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs by name, and the intermediate values named in `taps`."""
        missing = [t for t in taps if t not in self.names]
        if missing:
            raise UsageError(f"no value is called {missing[0]!r}{suggestion(missing[0], self.names)}")
        if self.half:
            feed = {k: v.float() if v.dtype == torch.float16 else v for k, v in feed.items()}
        kept = self._keep | {self.names[t] for t in taps}
        key = tuple(tuple(feed[name].shape) for name in self.inputs), tuple(sorted(kept))
        plan = self._plans.get(key)
        if plan is None:
            self._planning = True
            plan = self._plan(feed, kept)
            self._planning = False
            self._plans[key] = plan
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        values: dict[int, Any] = dict(plan.constants)
        values.update(self._parameters_now())
        values.update((i, feed[name]) for i, name in enumerate(self.inputs))
        for step in plan.steps:
            run(step, values)
            for slot in step.dropped:
                del values[slot]
        return {name: values[self.names[name]] for name in (*self.outputs, *taps)}

    @torch.no_grad()
    def _plan(self, feed: Mapping[str, Tensor], kept: set[int]) -> _Plan:
        """Run every node once; values that depend on no input value and no parameter become constants of the plan."""
        device = next(iter(feed.values())).device
        values: dict[int, Any] = {slot: t.to(device) if t.is_floating_point() else t for slot, t in self._fixed.items()}
        now = self._parameters_now()
        values.update(now)
        values.update((i, feed[name]) for i, name in enumerate(self.inputs))
        moving = set(range(len(self.inputs))) | now.keys()
        steps: list[Instruction] = []
        shapes: dict[int, torch.Size] = {slot: t.shape for slot, t in values.items()}
        last = {self._slots[v]: i for i, n in enumerate(self._nodes) for v in (*n.outputs, *n.inputs) if v is not None}
        for i, (node, call) in enumerate(zip(self._nodes, self._calls, strict=True)):
            inputs = tuple(None if v is None else self._slots[v] for v in node.inputs)
            outputs = tuple(self._slots[v] for v in node.outputs)
            step = Instruction(node, call, inputs, outputs)
            run(step, values)
            shapes.update((slot, values[slot].shape) for slot in outputs if slot in values)
            if node.op_type not in _SHAPES and any(i in moving for i in inputs):
                moving.update(outputs)
                steps.append(step)
            for slot in {s for s in (*inputs, *outputs) if s in moving and last[s] == i} - kept:
                values.pop(slot, None)
        steps = fused(steps, {slot: t for slot, t in values.items() if slot not in moving}, shapes, kept)
        used = {i for s in steps for i in s.inputs if i is not None} | kept
        constants = {slot: t for slot, t in values.items() if slot in used and slot not in moving}
        return _Plan(with_drops(steps, kept | constants.keys()), constants)

    def _normalized(self, x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float) -> Tensor:
        """BatchNormalization; while training by the batch, whose statistics go into `mean` and `var`, in place."""
        training = self.training and not self._planning
        return nn.functional.batch_norm(x, mean, var, scale, b, training, _NORM_SHARE, epsilon)

    def _step(self, name: str) -> Tensor:
        """The current value of a scale."""
        return self._steps_now[name] if name in self._steps_now else self._fixed[self.names[name]]

    def _parameters_now(self) -> dict[int, Tensor]:
        """Current weights and scales by slot."""
        steps = (
            getattr(self, f"step{i}") * fake_quant.growth(p, octaves=self._octaves) for i, p in enumerate(self.steps)
        )
        self._steps_now = dict(zip(self._step_names, steps, strict=True))
        self._steps_now |= {name: self._steps_now[first] for name, first in self._ties.items()}
        now: dict[int, Tensor] = dict(zip(self._parameter_slots, self.weights, strict=True))
        now |= {self.names[name]: getattr(self, f"statistic{i}") for i, name in enumerate(self.statistics)}
        return now | {self.names[name]: s for name, s in self._steps_now.items()}

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """Trained arrays by initializer name: float weights, scales, and the integers of master weights."""
        weights = {name: w.cpu().numpy() for name, w in zip(self.trained, self.weights, strict=True)}
        self._parameters_now()
        found = {name: s.cpu().numpy() for name, s in self._steps_now.items()}
        found |= {name: getattr(self, f"statistic{i}").cpu().numpy() for i, name in enumerate(self.statistics)}
        for master in self.masters.values():
            if master.x_scale is not None and master.w_scale is not None:
                now = self._values | found
                product = now[master.x_scale] * now[master.w_scale]
                found[master.scale] = np.reshape(product, self._values[master.scale].shape)
        scales = self._values | found
        for name, w in weights.items():
            if name in self.masters:
                master = self.masters[name]
                zero = None if master.zero_point is None else self._values[master.zero_point]
                found[name] = fake_quant.integers(w, scales[master.scale], zero, master)
            else:
                found[name] = w
        return found


def _array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _wide(array: np.ndarray) -> np.ndarray:
    """4-bit integers, which torch has not, as int8 or uint8."""
    narrow = {"int4": np.int8, "uint4": np.uint8}.get(str(array.dtype))
    return array if narrow is None else array.astype(narrow)


def _widen(model: ir.Model) -> bool:
    """Convert float16 in `model` to float32; returns whether there was any."""
    narrow, found = ir.DataType.FLOAT16, False
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.BFLOAT16:
            raise ModelError(f"weight {name!r} is bfloat16, which no kernel here computes with: give a float32 model")
        if tensor is not None and tensor.dtype == narrow:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=name)
            value.dtype = ir.DataType.FLOAT
            found = True
    for node in model.graph:
        for name, a in node.attributes.items():
            if node.op_type == "Cast" and name == "to" and a.as_int() == narrow:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                found = True
            elif a.type == ir.AttributeType.TENSOR and a.as_tensor().dtype == narrow:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(a.as_tensor().numpy().astype(np.float32)))
    return found


_ELSEWHERE = frozenset({("com.microsoft", "Gelu")})  # of other domains, that are as those of ONNX


def _call(node: ir.Node) -> Callable[..., Any]:
    """The operator-table function of `node` with its attributes bound."""
    known = node.domain in ("", "ai.onnx") or (node.domain, node.op_type) in _ELSEWHERE
    if not known or node.op_type not in OPS:
        where = f"node {node.name!r} ({node.domain + '.' if node.domain else ''}{node.op_type})"
        raise ModelError(
            f"{where} cannot be trained: no torch form of it; cut the model before it, or export it without"
        )
    attributes = {name: _attribute(a) for name, a in node.attributes.items()}
    if node.op_type == "Split" and len(node.inputs) < 2 and "num_outputs" not in attributes:
        attributes["outputs"] = len(node.outputs)
    return partial(OPS[node.op_type], **attributes) if attributes else OPS[node.op_type]


def _attribute(a: ir.Attr) -> Any:
    value = a.value
    if isinstance(value, ir.TensorProtocol):
        return torch.from_numpy(np.array(value.numpy(), copy=True))
    return list(value) if isinstance(value, tuple) else value


def write_back(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    """A clone of `model` with the initializers in `arrays` replaced and nothing else changed."""
    copy = model.clone()
    for name, array in arrays.items():
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        kind = value.const_value.dtype
        value.const_value = ir.tensor(array.astype(kind.numpy()), kind, name=name)
    return copy


def restored(source: ir.Model, result: ir.Model, names: Sequence[str]) -> ir.Model:
    """`source`, the original file, with the weights `names` of `result`, its trained canonical form; all nodes, names
    and inputs are unchanged. Returns `result` if a weight has no unique place in `source`.
    """
    try:
        copy = source.clone()
    except (ValueError, RuntimeError):  # nodes out of order cannot be cloned
        return result
    homes: dict[str, list[ir.Value | ir.Node]] = {}
    for part in copy.graphs():
        for value in part.initializers.values():
            homes.setdefault(str(value.name), []).append(value)
        for node in part:
            if node.op_type == "Constant" and "value" in node.attributes:
                homes.setdefault(str(node.outputs[0].name), []).append(node)
    if any(len(homes.get(name, ())) != 1 for name in names):
        return result
    for name in names:
        tensor, home = result.graph.initializers[name].const_value, homes[name][0]
        assert tensor is not None
        if isinstance(home, ir.Value):
            home.const_value = ir.tensor(tensor.numpy(), name=name)
        else:
            old = home.attributes["value"].as_tensor().name
            home.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy(), name=old))
    return copy
