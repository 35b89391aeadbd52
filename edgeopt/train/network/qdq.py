"""What is learned of a QDQ graph: the integers that a DequantizeLinear reads, as float master weights, and the scales,
but for those that the target gives or that have to stay equal to others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeopt.graph.ops import rule
from edgeopt.hardware.target import Grid

_BIASED = {"Conv": 2, "Gemm": 2, "ConvTranspose": 2}
_LIMITS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    **{ir.DataType[n]: (np.iinfo(n.lower()).min, np.iinfo(n.lower()).max) for n in ("INT8", "UINT8", "INT32")},
}
_STORED = (ir.DataType.INT8, ir.DataType.UINT8)


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
