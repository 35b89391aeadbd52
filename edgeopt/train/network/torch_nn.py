"""ONNX layers as torch functions: convolution, pooling, normalization, products, resizing; see `torch_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.train.network.torch_data import Unsupported, ints


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
    """(x, remaining symmetric padding): asymmetric pads are applied here."""
    n = len(pads) // 2
    if list(pads[:n]) == list(pads[n:]):
        return x, list(pads[:n])
    flat = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    return F.pad(x, flat, value=value), [0] * n


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_T = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Tensor:
    """Conv."""
    n = w.ndim - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    x, padding = _padded(x, _fitted(x, w.shape[2:], strides, dilations, auto_pad, pads))
    return _CONV[n](x, w, b, strides, padding, dilations, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    output_padding: Any = None,
    output_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Tensor:
    """ConvTranspose; the full output is cropped by the pads, which may be asymmetric."""
    n = w.ndim - 2
    strides, dilations, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
    pads = list(pads or [0] * 2 * n)
    full = [(x.shape[2 + i] - 1) * strides[i] + (w.shape[2 + i] - 1) * dilations[i] + 1 + extra[i] for i in range(n)]
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape) if output_shape else [x.shape[2 + i] * strides[i] for i in range(n)]
        totals = [max(0, f - o) for f, o in zip(full, wanted, strict=True)]
        small = [t // 2 for t in totals]
        large = [t - s for t, s in zip(totals, small, strict=True)]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
        extra = [e + max(0, o - f) for e, o, f in zip(extra, wanted, full, strict=True)]
    # torch limits output_padding to the stride or dilation; beyond it are zeros plus the bias
    y = _CONV_T[n](x, w, None, strides, 0, 0, group, dilations)
    if any(extra):
        y = F.pad(y, [p for i in reversed(range(n)) for p in (0, extra[i])])
    for i in range(n):
        y = y.narrow(2 + i, pads[i], y.shape[2 + i] - pads[i] - pads[n + i])
    return y if b is None else y + b.reshape(1, -1, *[1] * n)


def _ceil_extra(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> list[int]:
    """Padding to add at the end of each axis so that the rounded-up number of windows fits."""
    n, extra = len(kernel), []
    for i in range(n):
        span = x.shape[2 + i] + pads[i] + pads[n + i] - (dilations[i] * (kernel[i] - 1) + 1)
        out = math.ceil(span / strides[i]) + 1
        if (out - 1) * strides[i] >= x.shape[2 + i] + pads[i]:
            out -= 1  # a window must not begin in the end padding
        extra.append(max(0, (out - 1) * strides[i] - span))
    return extra


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Any,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Any = None,
    pads: Any = None,
    storage_order: int = 0,
    strides: Any = None,
) -> Tensor:
    """MaxPool, first output."""
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = _fitted(x, kernel_shape, strides, dilations, auto_pad, pads)
    if ceil_mode:
        extra = _ceil_extra(x, kernel_shape, strides, dilations, pads)
        pads = [p + e for p, e in zip(pads, [0] * n + extra, strict=True)]
    if any(2 * p > k for p, k in zip(pads, list(kernel_shape) * 2, strict=True)) or pads[:n] != pads[n:]:
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, pads = F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])], value=low), [0] * 2 * n
    if not x.is_floating_point():
        return _MAX[n](x.double(), kernel_shape, strides, pads[:n], dilations).to(x.dtype)
    return _MAX[n](x, kernel_shape, strides, pads[:n], dilations)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Any,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Tensor:
    """AveragePool, as a depthwise convolution with ones, divided by the number of counted elements."""
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


def spatial(x: Tensor) -> list[int]:
    """The axes after batch and channels."""
    return list(range(2, x.ndim))


def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
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
    """GroupNormalization; in opset 18 one scale a group, later one a channel."""
    if scale.numel() == num_groups and num_groups != x.shape[1]:
        scale, b = (t.repeat_interleave(x.shape[1] // num_groups) for t in (scale, b))
    return F.group_norm(x, num_groups, scale, b, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """InstanceNormalization."""
    return F.instance_norm(x, None, None, scale, b, True, 0.0, epsilon)


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """MeanVarianceNormalization."""
    centred = x - x.mean(list(axes), True)
    return centred / (centred.square().mean(list(axes), True).sqrt() + 1e-9)


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """LRN."""
    if size % 2 == 0:
        raise Unsupported("an even size")  # torch's window is off by one there
    return F.local_response_norm(x, size, alpha, beta, bias)


_GRID = {"linear": "bilinear", "cubic": "bicubic"}  # opset 20 names -> torch's, which were also ONNX's before


def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """GridSample."""
    return F.grid_sample(x, grid, _GRID.get(mode, mode), padding_mode, bool(align_corners))


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


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Any = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resize, axis by axis."""
    if antialias or keep_aspect_ratio_policy != "stretch":
        raise Unsupported("antialias or a kept aspect ratio")
    if coordinate_transformation_mode not in _COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode {coordinate_transformation_mode}")
    dims = [d % x.ndim for d in axes or range(x.ndim)]
    given = None if scales is None or not scales.numel() else [float(s) for s in scales.tolist()]
    for i, d in enumerate(dims):
        size = x.shape[d]
        out = math.floor(size * given[i]) if given is not None else int((ints(sizes) or [])[i])
        scale = given[i] if given is not None else out / size
        if scale == 1.0 and out == size:
            continue
        at = _COORDINATES[coordinate_transformation_mode](torch.arange(out, dtype=torch.float64), scale, size, out)
        if mode == "nearest":
            x = x.index_select(d, _NEAREST[nearest_mode](at).clamp(0, size - 1).long().to(x.device))
            continue
        places, weights = _neighbours(at, size, cubic_coeff_a if mode == "cubic" else None, bool(exclude_outside))
        shape = [-1 if j == d else 1 for j in range(x.ndim)]
        parts = [
            x.index_select(d, i.to(x.device)) * w.to(x.dtype).to(x.device).reshape(shape)
            for i, w in zip(places, weights, strict=True)
        ]
        x = torch.stack(parts).sum(0)
    return x


def _neighbours(at: Tensor, size: int, a: float | None, inside: bool) -> tuple[list[Tensor], list[Tensor]]:
    """(indices, weights) of the two neighbours of each place `at`, or of four with the cubic coefficient `a` (Keys
    1981); `inside`: those outside have no weight.
    """
    low = at.floor()
    t = at - low
    weights = [1 - t, t]
    if a is not None:
        near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
        far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
        weights = [far[0], *near, far[1]]
    places = [low + i for i in range(1 - len(weights) // 2, 1 + len(weights) // 2)]
    if inside:
        weights = [w * ((i >= 0) & (i < size)) for i, w in zip(places, weights, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [w / total for w in weights]
    return [i.clamp(0, size - 1).long() for i in places], weights


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
