"""ONNX operators that move, select and create data, as torch functions; see `torch_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor
from torch.nn import functional as F

Op = Callable[..., Any]


class Unsupported(Exception):
    """A form of an operator that the operator table does not support."""


def ints(x: Tensor | Sequence[int] | None) -> list[int] | None:
    """The integers of a tensor or an attribute."""
    if x is None:
        return None
    return [int(i) for i in (x.reshape(-1).tolist() if isinstance(x, Tensor) else x)]


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Reshape."""
    wanted = ints(shape) or []
    return x.reshape([x.shape[i] if d == 0 and not allowzero else d for i, d in enumerate(wanted)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(x: Tensor, *, perm: Any = None) -> Tensor:
    """Transpose."""
    return x.permute(perm if perm is not None else list(reversed(range(x.ndim))))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze."""
    dims = ints(axes)
    return x.squeeze() if dims is None else x.squeeze([d % x.ndim for d in dims])


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Unsqueeze."""
    dims = ints(axes) or []
    rank = x.ndim + len(dims)
    for d in sorted(d % rank for d in dims):
        x = x.unsqueeze(d)
    return x


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 0
) -> tuple[Tensor, ...]:
    """Split; `outputs`: number of the node's outputs."""
    if sizes is not None:
        return torch.split(x, ints(sizes), axis)
    count = num_outputs or outputs
    return torch.split(x, math.ceil(x.shape[axis] / count), axis)


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Slice."""
    begin, end = ints(starts) or [], ints(ends) or []
    dims = ints(axes) or list(range(len(begin)))
    for d, b, e, step in zip(dims, begin, end, ints(steps) or [1] * len(dims), strict=True):
        d %= x.ndim
        chosen = range(x.shape[d])[slice(b, e, step)] if step > 0 else _backwards(x.shape[d], b, e, step)
        x = (
            x[(slice(None),) * d + (slice(chosen.start, chosen.stop, step),)]
            if step > 0
            else x.index_select(d, torch.tensor(list(chosen), device=x.device))
        )
    return x


def _backwards(size: int, begin: int, end: int, step: int) -> range:
    """Indices of a slice with a negative step; an end below -size is before the first element."""
    begin = min(begin + size if begin < 0 else begin, size - 1)
    end = max(end + size if end < 0 else end, -1)
    return range(begin, end, step)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather."""
    d = axis % x.ndim
    if d == 0 and x.ndim == 2 and x.is_floating_point() and indices.ndim:
        return F.embedding(torch.where(indices < 0, indices + x.shape[0], indices), x)
    flat = torch.where(indices < 0, indices + x.shape[d], indices).reshape(-1)
    return x.index_select(d, flat).reshape((*x.shape[:d], *indices.shape, *x.shape[d + 1 :]))


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """GatherElements."""
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """GatherND without batch dimensions."""
    if batch_dims:
        raise Unsupported("batch_dims above 0")
    return x[tuple(indices.unbind(-1))]


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """ScatterElements."""
    i = indices.long() % x.shape[axis]
    if reduction == "none":
        return x.scatter(axis, i, updates)
    return x.scatter_reduce(axis, i, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """ScatterND."""
    if reduction not in ("none", "add"):
        raise Unsupported(f"reduction {reduction}")
    return x.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=reduction == "add")


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """IsInf."""
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Expand, with broadcasting in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape) or [])))


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    """Pad; crops where negative."""
    amounts = ints(pads) or []
    dims = [d % x.ndim for d in ints(axes) or range(x.ndim)]
    n = len(dims)
    full = [[0, 0] for _ in range(x.ndim)]
    for i, d in enumerate(dims):
        full[d] = [amounts[i], amounts[n + i]]
    flat = [p for pair in reversed(full) for p in pair]
    if mode == "constant":
        return F.pad(x, flat, value=0 if value is None else value.item())
    for d, (before, after) in enumerate(full):
        x = x.index_select(d, _reflected(x.shape[d], before, after, mode).to(x.device))
    return x


def _reflected(size: int, before: int, after: int, mode: str) -> Tensor:
    i = torch.arange(-before, size + after)
    if mode == "edge":
        return i.clamp(0, size - 1)
    if mode == "wrap":
        return i % size
    period = max(1, 2 * (size - 1))
    i = i % period
    return torch.where(i >= size, period - i, i)


def dropout(
    x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Dropout in inference: the identity."""
    if training_mode is not None and bool(training_mode):
        raise Unsupported("training_mode: export the model for inference")
    return x, torch.ones_like(x, dtype=torch.bool)


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Cast."""
    return x.to(to_torch_dtype(ir.DataType(to)))


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape."""
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """ConstantOfShape."""
    fill = torch.zeros(()) if value is None else value
    return fill.reshape(()).expand(ints(shape) or []).clone()


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """OneHot."""
    d = int(depth.item())
    hot = F.one_hot(indices.long() % d, d) * ((indices >= -d) & (indices < d)).unsqueeze(-1)
    y = torch.where(hot.bool(), values[1], values[0])
    return y.movedim(-1, axis)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """DepthToSpace."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """SpaceToDepth."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Trilu."""
    offset = 0 if k is None else int(k.item())
    return torch.triu(x, offset) if upper else torch.tril(x, offset)
