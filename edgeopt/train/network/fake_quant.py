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
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeopt.hardware.target import Grid
from edgeopt.ptq.guard import guards
from edgeopt.train.network.qdq import Master
from edgeopt.train.network.torch_ops import along


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
