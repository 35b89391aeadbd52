"""ONNX operators as plain torch functions: inputs in the specification's order (None for one that is left out), attributes
by the specification's names, at opset 13 or later (opset 18 and 20 forms included).

    https://onnx.ai/onnx/operators/       the operators' node tests are the oracle of tests/train/test_torch_ops.py

An `Unsupported` says which form of an operator is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64,
    16: torch.bfloat16,
}  # fmt: skip
Op = Callable[..., Any]


class Unsupported(Exception):
    """A form of an operator that the table does not cover."""


def _ints(x: Tensor | Sequence[int] | None) -> list[int] | None:
    if x is None:
        return None
    return [int(i) for i in (x.reshape(-1).tolist() if isinstance(x, Tensor) else x)]


def _fitted(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
) -> list[int]:
    """Pads [begin..., end...] of a convolution or pooling."""
    n = len(kernel)
    if auto_pad in ("NOTSET", ""):
        return list(pads or [0] * 2 * n)
    if auto_pad == "VALID":
        return [0] * 2 * n
    begin, end = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(small if auto_pad == "SAME_UPPER" else large)
        end.append(large if auto_pad == "SAME_UPPER" else small)
    return begin + end


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """(x, symmetric padding left to do): asymmetric pads are added here."""
    n = len(pads) // 2
    if list(pads[:n]) == list(pads[n:]):
        return x, list(pads[:n])
    flat = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    return F.pad(x, flat, value=value), [0] * n


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_T = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1, kernel_shape: Any = None,
         pads: Any = None, strides: Any = None) -> Tensor:  # fmt: skip
    """Conv."""
    n = w.ndim - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    x, padding = _padded(x, _fitted(x, w.shape[2:], strides, dilations, auto_pad, pads))
    return _CONV[n](x, w, b, strides, padding, dilations, group)


def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1,
                   kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None, pads: Any = None, strides: Any = None) -> Tensor:  # fmt: skip
    """ConvTranspose; the full output is cropped by the pads, so that they may be asymmetric."""
    n = w.ndim - 2
    strides, dilations, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
    pads = list(pads or [0] * 2 * n)
    full = [(x.shape[2 + i] - 1) * strides[i] + (w.shape[2 + i] - 1) * dilations[i] + 1 + extra[i] for i in range(n)]
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape) if output_shape else [x.shape[2 + i] * strides[i] for i in range(n)]
        totals = [max(0, f - o) for f, o in zip(full, wanted, strict=True)]
        small = [t // 2 for t in totals]
        large = [t - s for t, s in zip(totals, small, strict=True)]
        pads = small + large if auto_pad == "SAME_UPPER" or not auto_pad.startswith("SAME") else large + small
        if output_shape and auto_pad != "SAME_UPPER":
            pads = large + small
    # torch wants output_padding below the stride or dilation; what is beyond it is zeros and a bias
    y = _CONV_T[n](x, w, None, strides, 0, 0, group, dilations)
    if any(extra):
        y = F.pad(y, [p for i in reversed(range(n)) for p in (0, extra[i])])
    if output_shape and any(w > f for w, f in zip(output_shape, full, strict=True)):
        y = F.pad(y, [p for i in reversed(range(n)) for p in (0, max(0, output_shape[i] - full[i]))])
    for i in range(n):
        y = y.narrow(2 + i, pads[i], y.shape[2 + i] - pads[i] - pads[n + i])
    return y if b is None else y + b.reshape(1, -1, *[1] * n)


def _ceil_extra(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> list[int]:
    """What must be added at the end of each axis so that the rounded-up number of windows fits."""
    n, extra = len(kernel), []
    for i in range(n):
        span = x.shape[2 + i] + pads[i] + pads[n + i] - (dilations[i] * (kernel[i] - 1) + 1)
        out = math.ceil(span / strides[i]) + 1
        if (out - 1) * strides[i] >= x.shape[2 + i] + pads[i]:
            out -= 1  # a window must not begin in the end padding
        extra.append(max(0, (out - 1) * strides[i] - span))
    return extra


def max_pool(x: Tensor, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None, pads: Any = None, storage_order: int = 0,
             strides: Any = None) -> Tensor:  # fmt: skip
    """MaxPool, first output."""
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = _fitted(x, kernel_shape, strides, dilations, auto_pad, pads)
    if ceil_mode:
        pads = [
            *pads[:n],
            *(p + e for p, e in zip(pads[n:], _ceil_extra(x, kernel_shape, strides, dilations, pads), strict=True)),
        ]
    if any(2 * p > k for p, k in zip(pads, list(kernel_shape) * 2, strict=True)) or pads[:n] != pads[n:]:
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, pads = F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])], value=low), [0] * 2 * n
    if not x.is_floating_point():
        return _MAX[n](x.double(), kernel_shape, strides, pads[:n], dilations).to(x.dtype)
    return _MAX[n](x, kernel_shape, strides, pads[:n], dilations)


def average_pool(x: Tensor, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Any = None,
                 pads: Any = None, strides: Any = None) -> Tensor:  # fmt: skip
    """AveragePool, as a depthwise convolution with ones over the sum of what counts."""
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = _fitted(x, kernel_shape, strides, dilations, auto_pad, pads)
    extra = _ceil_extra(x, kernel_shape, strides, dilations, pads) if ceil_mode else [0] * n
    flat = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    tail = [p for i in reversed(range(n)) for p in (0, extra[i])]
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = F.pad(F.pad(counted, flat, value=float(count_include_pad)), tail)
    window = torch.ones((1, 1, *kernel_shape), dtype=x.dtype, device=x.device)
    y = F.pad(F.pad(x, flat), tail)
    total = _CONV[n](y.reshape(-1, 1, *y.shape[2:]), window, None, strides, 0, dilations)
    count = _CONV[n](counted, window, None, strides, 0, dilations)
    return (total / count).reshape(*x.shape[:2], *total.shape[2:])


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def batch_normalization(x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, momentum: float = 0.9,
                        training_mode: int = 0) -> Tensor:  # fmt: skip
    """BatchNormalization with its stored statistics."""
    if training_mode:
        raise Unsupported("training_mode=1: export the model for inference")
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)


def layer_normalization(
    x: Tensor, scale: Tensor, b: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """LayerNormalization, first output."""
    shape = x.shape[axis % x.ndim :]
    w = scale.expand(shape) if scale.shape != shape else scale
    return F.layer_norm(x, shape, w, None if b is None else b.expand(shape), epsilon)


def group_normalization(
    x: Tensor, scale: Tensor, b: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """GroupNormalization; at opset 18 one scale a group, later one a channel."""
    if scale.numel() == num_groups and num_groups != x.shape[1]:
        scale, b = (t.repeat_interleave(x.shape[1] // num_groups) for t in (scale, b))
    return F.group_norm(x, num_groups, scale, b, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """InstanceNormalization."""
    return F.instance_norm(x, None, None, scale, b, True, 0.0, epsilon)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm."""
    a = a.t() if transA else a
    if alpha == beta == 1.0 and transB and c is not None and c.ndim == 1:
        return F.linear(a, b, c)
    y = a @ (b.t() if transB else b)
    y = y if alpha == 1.0 else alpha * y
    return y if c is None else y + (c if beta == 1.0 else beta * c)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax."""
    return torch.softmax(x, axis)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gelu."""
    return F.gelu(x, approximate=approximate)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip."""
    bounds = [None if b is None else b.item() for b in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def div(a: Tensor, b: Tensor) -> Tensor:
    """Div; of integers towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Mod."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def power(a: Tensor, b: Tensor) -> Tensor:
    """Pow; the base's type is the result's."""
    if b.numel() == 1 and b.ndim == 0:
        return torch.pow(a, b.item()).to(a.dtype)
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b).to(a.dtype)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu."""
    return torch.where(x < 0, slope * x, x)


def _reduce(function: Callable[..., Tensor]) -> Op:
    def reduced(
        x: Tensor, axes: Tensor | Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        dims = _ints(axes)
        if not dims and noop_with_empty_axes:
            return x
        dims = sorted({d % x.ndim for d in dims} if dims else range(x.ndim))
        return function(x, dims, bool(keepdims)) if dims else function(x.reshape(1), [0], False)

    return reduced


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for d in reversed(dims):
        x = torch.prod(x, d, keepdim=keep)
    return x


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.mean(x, dims, keep) if x.is_floating_point() else torch.mean(x.double(), dims, keep).to(x.dtype)


def _argument(function: Callable[..., Tensor]) -> Op:
    def found(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if select_last_index:
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))
        return function(x, axis, keepdim=bool(keepdims))

    return found


def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumSum."""
    d = int(axis.item())
    y = x.flip(d) if reverse else x
    y = torch.cumsum(y, d) - y if exclusive else torch.cumsum(y, d)
    return (y.flip(d) if reverse else y).to(x.dtype)


def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """TopK."""
    y = torch.sort(x, dim=axis, descending=bool(largest), stable=True)  # torch.topk leaves ties to chance
    count = int(k.item())
    return y.values.narrow(axis, 0, count), y.indices.narrow(axis, 0, count)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Reshape."""
    wanted = _ints(shape) or []
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
    dims = _ints(axes)
    return x.squeeze() if dims is None else x.squeeze([d % x.ndim for d in dims])


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Unsqueeze."""
    dims = _ints(axes) or []
    rank = x.ndim + len(dims)
    for d in sorted(d % rank for d in dims):
        x = x.unsqueeze(d)
    return x


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 0
) -> tuple[Tensor, ...]:
    """Split; outputs: how many the node names."""
    if sizes is not None:
        return torch.split(x, _ints(sizes), axis)
    count = num_outputs or outputs
    return torch.split(x, math.ceil(x.shape[axis] / count), axis)


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Slice."""
    begin, end = _ints(starts) or [], _ints(ends) or []
    dims = _ints(axes) or list(range(len(begin)))
    for d, b, e, step in zip(dims, begin, end, _ints(steps) or [1] * len(dims), strict=True):
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


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Expand, both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(_ints(shape) or [])))


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    return x.repeat(_ints(repeats))


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    """Pad; crops where negative."""
    amounts = _ints(pads) or []
    dims = [d % x.ndim for d in _ints(axes) or range(x.ndim)]
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


def where(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Where."""
    return torch.where(c, a, b)


def dropout(
    x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Dropout of a model for inference: nothing is dropped."""
    if training_mode is not None and bool(training_mode):
        raise Unsupported("training_mode: export the model for inference")
    return x, torch.ones_like(x, dtype=torch.bool)


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Cast."""
    if to not in DTYPES:
        raise Unsupported(f"Cast to element type {to}")
    return x.to(DTYPES[to])


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape."""
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """ConstantOfShape."""
    fill = torch.zeros(()) if value is None else value
    return fill.reshape(()).expand(_ints(shape) or []).clone()


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


def resize(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *, antialias: int = 0, axes: Any = None,
           coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
           keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor") -> Tensor:  # fmt: skip
    """Resize, nearest and linear, axis by axis."""
    if mode not in ("nearest", "linear") or antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise Unsupported(f"mode {mode}, antialias, exclude_outside or a kept aspect ratio")
    if coordinate_transformation_mode not in _COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode {coordinate_transformation_mode}")
    dims = list(axes) if axes is not None else list(range(x.ndim))
    given = None if scales is None or not scales.numel() else [float(s) for s in scales.tolist()]
    for i, d in enumerate(dims):
        size = x.shape[d]
        out = math.floor(size * given[i]) if given is not None else int((_ints(sizes) or [])[i])
        scale = given[i] if given is not None else out / size
        if scale == 1.0 and out == size:
            continue
        at = _COORDINATES[coordinate_transformation_mode](torch.arange(out, dtype=torch.float64), scale, size, out)
        if mode == "nearest":
            x = x.index_select(d, _NEAREST[nearest_mode](at).clamp(0, size - 1).long().to(x.device))
            continue
        low = at.floor()
        weight = (at - low).to(x.dtype).to(x.device).reshape([-1 if j == d else 1 for j in range(x.ndim)])
        first, second = (x.index_select(d, i.clamp(0, size - 1).long().to(x.device)) for i in (low, low + 1))
        x = first * (1 - weight) + second * weight
    return x


_COORDINATES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": lambda i, s, n, m: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, s, n, m: (i + 0.5) / s - 0.5 if m > 1 else i * 0,
    "align_corners": lambda i, s, n, m: i * (n - 1) / (n * s - 1) if m > 1 else i * 0,
    "asymmetric": lambda i, s, n, m: i / s,
    "half_pixel_symmetric": lambda i, s, n, m: n / 2 * (1 - m / (n * s)) + (i + 0.5) / s - 0.5,
}
_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _gates(t: Tensor, order: Sequence[int], hidden: int) -> Tensor:
    """The blocks of `hidden` rows of t in another order."""
    blocks = t.split(hidden, 0)
    return torch.cat([blocks[i] for i in order])


def _recurrent(kind: str, gates: Sequence[int]) -> Op:
    """LSTM and GRU by torch's kernels; gates: ONNX's order in torch's."""

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None,
            p: Tensor | None = None, *, hidden_size: int, direction: str = "forward", layout: int = 0, linear_before_reset: int = 0,
            activations: Any = None, activation_alpha: Any = None, activation_beta: Any = None, clip: float | None = None,
            input_forget: int = 0) -> tuple[Tensor, ...]:  # fmt: skip
        usual = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}[kind]
        chosen = tuple(str(a).lower() for a in activations or ())
        if (
            p is not None
            or clip is not None
            or input_forget
            or (chosen and chosen != usual * (len(chosen) // len(usual)))
        ):
            raise Unsupported("peepholes, clip, input_forget or other activations")
        if kind == "GRU" and not linear_before_reset:
            raise Unsupported("linear_before_reset=0")
        x = x.transpose(0, 1) if layout else x
        if lengths is not None and any(n != x.shape[0] for n in _ints(lengths) or []):
            raise Unsupported("sequences of several lengths in a batch")
        directions = w.shape[0]
        weights = []
        for d in range(directions):
            weights += [_gates(w[d], gates, hidden_size), _gates(r[d], gates, hidden_size)]
            if b is not None:
                weights += [_gates(half, gates, hidden_size) for half in b[d].chunk(2)]
        zero = x.new_zeros(directions, x.shape[1], hidden_size)
        states = [zero if s is None else (s.transpose(0, 1) if layout else s).contiguous() for s in (h, c)]
        x = x.flip(0) if direction == "reverse" else x
        arguments = (b is not None, 1, 0.0, False, directions == 2, False)
        if kind == "LSTM":
            y, *last = torch.lstm(x, states, weights, *arguments)
        else:
            y, *last = torch.gru(x, states[0], weights, *arguments)
        y = y.flip(0) if direction == "reverse" else y
        y = y.reshape(x.shape[0], x.shape[1], directions, hidden_size).transpose(1, 2)
        if layout:
            return y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last)
        return y, *last

    return run


def along(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """A per-axis scale or zero point [n], shaped to meet x."""
    return t if t.numel() == 1 or t.ndim != 1 else t.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, saturate: int = 1, block_size: int = 0,
                    output_dtype: int = 0, precision: int = 0) -> Tensor:  # fmt: skip
    """QuantizeLinear: round half to even, saturated."""
    if block_size:
        raise Unsupported("blocks")
    kind = zero_point.dtype if zero_point is not None else DTYPES.get(output_dtype, torch.uint8)
    zero = 0 if zero_point is None else along(zero_point.to(torch.int32), x, axis)
    limits = torch.iinfo(kind)
    return (torch.round(x / along(scale, x, axis)) + zero).clamp(limits.min, limits.max).to(kind)


def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """DequantizeLinear."""
    if block_size:
        raise Unsupported("blocks")
    zero = 0 if zero_point is None else along(zero_point.to(torch.int32), x, axis)
    return (x.to(torch.int32) - zero).to(scale.dtype) * along(scale, x, axis)


def einsum(*x: Tensor, equation: str) -> Tensor:
    """Einsum."""
    return torch.einsum(equation, *x)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def folded(*x: Tensor) -> Tensor:
        y = x[0]
        for other in x[1:]:
            y = function(y, other)
        return y

    return folded


OPS: dict[str, Op] = {
    "Abs": torch.abs, "Acos": torch.acos, "Asin": torch.asin, "Atan": torch.atan, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Identity": lambda x: x, "Softsign": F.softsign,
    "Softplus": F.softplus, "Mish": F.mish, "HardSwish": F.hardswish,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": div, "Pow": power, "Mod": mod, "MatMul": torch.matmul, "PRelu": prelu,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Max": _fold(torch.maximum), "Min": _fold(torch.minimum), "Sum": _fold(torch.add),
    "Mean": lambda *x: sum(x[1:], x[0]) / len(x), "Where": where, "Clip": clip,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha), "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Celu": lambda x, alpha=1.0: F.celu(x, alpha),
    "Selu": lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: gamma * F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)), "Gelu": gelu,
    "Softmax": softmax, "LogSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "ReduceMean": _reduce(_mean), "ReduceSum": _reduce(torch.sum), "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product), "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(d, k)),
    "ReduceL2": _reduce(lambda x, d, k: x.square().sum(d, k).sqrt()), "ReduceSumSquare": _reduce(lambda x, d, k: x.square().sum(d, k)),
    "ReduceLogSumExp": _reduce(torch.logsumexp), "ReduceLogSum": _reduce(lambda x, d, k: x.sum(d, k).log()),
    "ArgMax": _argument(torch.argmax), "ArgMin": _argument(torch.argmin), "CumSum": cum_sum, "TopK": top_k,
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: x.mean(_spatial(x), True), "GlobalMaxPool": lambda x: x.amax(_spatial(x), True),
    "BatchNormalization": batch_normalization, "LayerNormalization": layer_normalization, "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization, "Gemm": gemm, "Einsum": einsum,
    "Reshape": reshape, "Flatten": flatten, "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Concat": lambda *x, axis: torch.cat(x, axis), "Split": split, "Slice": slice_, "Gather": gather, "GatherElements": gather_elements,
    "GatherND": gather_nd, "Expand": expand, "Tile": tile, "Pad": pad, "Dropout": dropout, "Cast": cast,
    "CastLike": lambda x, like, saturate=1: x.to(like.dtype), "Shape": shape, "Size": lambda x: torch.tensor(x.numel()),
    "ConstantOfShape": constant_of_shape, "Range": range_, "OneHot": one_hot, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
    "Trilu": trilu, "Resize": resize, "LSTM": _recurrent("LSTM", (0, 2, 3, 1)), "GRU": _recurrent("GRU", (1, 0, 2)),
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear,
}  # fmt: skip
