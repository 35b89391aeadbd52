"""Fake quantization: the nodes of a QDQ graph with gradients, for quantization-aware training.

    q = clip(r(x / s) + z),  y = (q - z) s          r rounds forward and is the identity backward

so that dy/dx = 1 inside the grid and 0 outside, and dy/ds = r(x/s) - x/s inside and the clipped value outside: the
gradient of learned step sizes (Esser et al. 2020, LSQ, arXiv:1902.08153). A scale is learned as s_0 e^p, so that it
stays positive and optimizer steps are relative, which replaces LSQ's gradient scale; where scales are powers of two,
e^p is rounded to one forward (Jain et al. 2020, TQT, arXiv:1903.08066). Integer weights become float master weights
that are quantized in every forward pass; an int32 bias is rounded on the grid s_x s_w, as in the integer kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeopt.graph.ops import rule
from edgeopt.hardware.target import Grid
from edgeopt.ptq.guard import guards
from edgeopt.train.network.torch_ops import along

_BIASED = {"Conv": 2, "Gemm": 2, "ConvTranspose": 2}
_LIMITS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    **{ir.DataType[n]: (np.iinfo(n.lower()).min, np.iinfo(n.lower()).max) for n in ("INT8", "UINT8", "INT32")},
}
_STORED = (ir.DataType.INT8, ir.DataType.UINT8)


def rounded(x: Tensor) -> Tensor:
    """round(x), with the gradient of x."""
    return x + (torch.round(x) - x).detach()


def growth(p: Tensor, *, octaves: bool) -> Tensor:
    """e^p, by which a scale has grown; `octaves`: the nearest power of two forward."""
    return torch.exp2(rounded(p / math.log(2))) if octaves else torch.exp(p)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, **_: Any) -> Tensor:
    """QuantizeLinear with gradients; its integers are floats."""
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    limits = torch.iinfo(kind)
    z = 0 if zero_point is None else along(zero_point.to(x.dtype), x, axis)
    return torch.clamp(rounded(x / along(scale, x, axis)) + z, limits.min, limits.max)


def constant(
    w: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block: int = 0,
    limits: tuple[int, int],
    guard: Callable[[Any], Any] | None = None,
) -> Tensor:
    """A float master weight, quantized within `limits` and dequantized; `block`: elements of `axis` with one scale;
    `guard`: changes the integers so that sums cannot saturate, and is the identity backward.
    """
    z = 0 if zero_point is None else _over(zero_point.to(w.dtype), w, axis, block)
    s = _over(scale, w, axis, block)
    q = torch.clamp(rounded(w / s) + z, *limits)
    if guard is not None:
        kept = guard(q.detach().cpu().numpy().astype(np.int8))
        q = q + (torch.from_numpy(kept).to(q) - q).detach()
    return (q - z) * s


def dequantized(q: Tensor, scale: Tensor, zero_point: Tensor | None, master: Master) -> Tensor:
    """The values of the integers `q`: where a master weight begins."""
    z = 0 if zero_point is None else _over(zero_point.to(scale.dtype), q, master.axis, master.block)
    return (q.to(scale.dtype) - z) * _over(scale, q, master.axis, master.block)


def _over(t: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points of an axis, or of blocks of it, for every element of x."""
    if not block:
        return along(t, x, axis)
    return t.repeat_interleave(block, axis % x.ndim).narrow(axis % x.ndim, 0, x.shape[axis])


def bias(
    scale_of: Callable[[str], Tensor], x: str, w: str, b: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """A float bias rounded on the accumulator's grid, the product of the scales called `x` and `w`; the `scale` in the
    file is ignored.
    """
    s = (scale_of(x) * scale_of(w)).detach().reshape(-1)
    return rounded(b / s) * s


@dataclass(frozen=True)
class Master:
    """The float master weight of an integer initializer."""

    node: ir.Node
    kind: ir.DataType
    """Its integer type."""
    scale: str
    """Name of the initializer, as for `zero_point`, `x_scale` and `w_scale`."""
    zero_point: str | None
    axis: int
    """Axis of the scales."""
    block: int = 0
    """Elements along the axis that share a scale; 0: one scale an index of the axis."""
    x_scale: str | None = None
    """Of a bias: the scales whose product is its scale."""
    w_scale: str | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return _LIMITS[self.kind]


def masters(model: ir.Model) -> dict[str, Master]:
    """Integer initializers of `model` that a DequantizeLinear reads, by name."""
    found = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        tensor = value.const_value if value is not None else None
        if value is None or tensor is None or tensor.dtype not in _LIMITS:
            continue
        scale, zero = (str(v.name) if v is not None else None for v in [*node.inputs[1:3], None][:2])
        places = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
        made = Master(node, tensor.dtype, str(scale), zero, *places)
        found[str(value.name)] = _with_scales(made) if tensor.dtype == ir.DataType.INT32 else made
    return found


def _with_scales(master: Master) -> Master:
    """A bias with the names of the scales whose product is its own."""
    for reader, position in master.node.outputs[0].uses():
        if _BIASED.get(reader.op_type) == position:
            scales = [_scale_of(v) for v in reader.inputs[:2]]
            if None not in scales:
                return replace(master, x_scale=scales[0], w_scale=scales[1])
    return master


def _scale_of(value: ir.Value | None) -> str | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[1] is None:
        return None
    return str(node.inputs[1].name)


def calls(
    model: ir.Model,
    found: dict[str, Master],
    scale_of: Callable[[str], Tensor],
    grid: Grid | None = None,
) -> dict[ir.Node, Callable[..., Any]]:
    """The function of each Q/DQ node of `model` that replaces that of the operator table; `grid`: of the target."""
    limits = guards(model) if grid is not None and grid.saturates else {}
    replaced: dict[ir.Node, Callable[..., Any]] = {
        n: partial(quantize, axis=n.attributes.get_int("axis", 1)) for n in model.graph if n.op_type == "QuantizeLinear"
    }
    for name, master in found.items():
        if master.x_scale is not None and master.w_scale is not None:
            replaced[master.node] = partial(bias, scale_of, master.x_scale, master.w_scale)
        else:
            replaced[master.node] = partial(
                constant, axis=master.axis, block=master.block, limits=master.limits, guard=limits.get(name)
            )
    return replaced


def integers(w: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, master: Master) -> np.ndarray:
    """The integers of a float master weight, for writing back."""
    s, z = (
        None
        if t is None
        else _over(torch.from_numpy(np.asarray(t, np.float32)), torch.from_numpy(w), master.axis, master.block)
        for t in (scale, zero_point)
    )
    assert s is not None
    q = np.rint(w / s.numpy()) + (0 if z is None else z.numpy())
    return np.clip(q, *master.limits).astype(master.kind.numpy())


def step_names(model: ir.Model, found: dict[str, Master], grid: Grid | None = None) -> list[str]:
    """Scales that can be learned: of activations and weights, but not of biases, whose scale is a product, nor those
    that the target gives the outputs of some operators in its `grid`.
    """
    fixed = grid.fixed if grid is not None else {}
    quantizers = [(n, str(n.inputs[1].name)) for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[1]]
    names = {scale: None for _, scale in quantizers}
    names |= {m.scale: None for m in found.values() if m.x_scale is None}
    names |= dict.fromkeys(_multipliers(model))
    demanded = {scale for n, scale in quantizers if _type(n) in fixed.get(_maker(n), {})}
    known = [n for n in names if n in model.graph.initializers]
    leader = tied_steps(model, known)
    demanded |= {leader[n] for n in demanded & leader.keys()}
    return [n for n in known if leader.get(n, n) not in demanded]


def tied_steps(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Scales among `names` that have to stay equal to another, by name: of the values before and behind nodes that only
    move data, where integer kernels need one grid.
    """
    leader: dict[str, str] = {}
    for node in model.graph:
        scale = _scale_of(node.inputs[0]) if rule(node).moves and node.inputs else None
        for reader, _ in node.outputs[0].uses() if scale is not None else ():
            step = str(reader.inputs[1].name) if reader.op_type == "QuantizeLinear" and reader.inputs[1] else None
            first = leader.get(str(scale), str(scale))
            if step in names and first in names and step != first and step not in leader and _equal(model, step, first):
                leader[str(step)] = first
    return leader


def _equal(model: ir.Model, *names: str | None) -> bool:
    tensors = [model.graph.initializers[str(n)].const_value for n in names]
    return len({t.numpy().tobytes() for t in tensors if t is not None}) == 1


def _maker(quantizer: ir.Node) -> str:
    """The operator whose output is quantized."""
    maker = quantizer.inputs[0].producer() if quantizer.inputs[0] is not None else None
    return maker.op_type if maker is not None else ""


def _type(quantizer: ir.Node) -> str:
    """The type of the integers, as in `Grid.fixed`."""
    kind = quantizer.outputs[0].dtype
    zero = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    kind = zero.const_value.dtype if zero is not None and zero.const_value is not None else kind
    return "uint8" if kind is None else kind.name.lower()


def _multipliers(model: ir.Model) -> Iterator[str]:
    """Scales of integer constants that a Cast and a Mul dequantize, whole or the rows that a Gather reads."""
    for cast in model.graph:
        source = _origin(cast.inputs[0]) if cast.op_type == "Cast" else None
        tensor = source.const_value if source is not None else None
        if tensor is None or tensor.dtype not in _STORED:
            continue
        for mul, i in cast.outputs[0].uses():
            scale = _origin(mul.inputs[1 - i]) if mul.op_type == "Mul" else None
            if scale is not None and scale.const_value is not None and scale.const_value.dtype.is_floating_point():
                yield str(scale.name)


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value whose elements `value` has, before data was moved."""
    while value is not None and (node := value.producer()) is not None and rule(node).moves:
        value = node.inputs[0]
    return value
