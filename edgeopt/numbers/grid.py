"""Quantization grids: integers and their real values, x ~ scale * (q - zero_point), as defined by ONNX's QuantizeLinear
and DequantizeLinear.

    q = clip(round(x / scale) + zero_point, qmin, qmax)         round half to even
    x = scale * (q - zero_point)

A `QType` is the set of integers (7-bit weights are int8 with a smaller range). `QParams` map it to real values: per
tensor, per channel along one axis, or in blocks along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

STORAGE = {
    "int32": (-(2**31), 2**31 - 1),
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int4": (-8, 7),
    "uint4": (0, 15),
}


@dataclass(frozen=True)
class QType:
    """Integers qmin..qmax stored as `dtype`; symmetric: zero point 0 (or mid-range when unsigned)."""

    dtype: str
    qmin: int
    qmax: int
    symmetric: bool
    power_of_two: bool = False
    """Whether scales are powers of two."""

    def __post_init__(self) -> None:
        low, high = STORAGE[self.dtype]
        if not low <= self.qmin < self.qmax <= high:
            raise ValueError(f"{self.dtype} cannot hold {self.qmin}..{self.qmax}")

    @property
    def levels(self) -> int:
        """Number of steps from qmin to qmax."""
        return self.qmax - self.qmin

    @property
    def numpy_dtype(self) -> np.dtype[np.integer]:
        """The NumPy type of q; 4-bit values are held in 8 bits."""
        return np.dtype({"int4": "int8", "uint4": "uint8"}.get(self.dtype, self.dtype))


_EXACT = 1 << 24  # float32 represents every integer up to this exactly
UINT8 = QType("uint8", 0, 255, symmetric=False)
INT8 = QType("int8", -128, 127, symmetric=False)
INT8_WEIGHT = QType("int8", -127, 127, symmetric=True)
INT4_WEIGHT = QType("int4", -8, 7, symmetric=True)
BIAS = QType("int32", -(2**31) + 1, 2**31 - 1, symmetric=True)


@dataclass(frozen=True)
class QParams:
    """Scale and zero point that map the integers of a `QType` to real values.

    scale: float32, scalar, [n] along `axis`, or with `block` the tensor's shape with `axis` divided by `block`.
    zero_point: same shape, `qtype`'s type.
    """

    scale: Array
    zero_point: NDArray[np.integer]
    qtype: QType
    axis: int | None = None
    block: int | None = None

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real value on the grid (per tensor)."""
        low, high = self.qtype.qmin - int(self.zero_point), self.qtype.qmax - int(self.zero_point)
        return float(self.scale) * low, float(self.scale) * high

    def _expand(self, a: NDArray[Any], ndim: int) -> NDArray[Any]:
        if self.axis is None:
            return a
        if self.block is not None:
            return np.repeat(a, self.block, axis=self.axis)
        return a.reshape([-1 if i == self.axis % ndim else 1 for i in range(ndim)])


def choose(
    lo: NDArray[np.floating] | float, hi: NDArray[np.floating] | float, qtype: QType, axis: int | None = None
) -> QParams:
    """The grid that covers [lo, hi] and represents 0 exactly; an empty range (a channel of zeros) gets scale 1.

    lo, hi: scalars, or [n] along `axis`.
    """
    low = np.minimum(np.asarray(lo, np.float64), 0.0)
    high = np.maximum(np.asarray(hi, np.float64), 0.0)
    if qtype.symmetric:
        middle = (qtype.qmin + qtype.qmax + 1) // 2 if qtype.qmin >= 0 else 0
        scale = np.maximum(high / (qtype.qmax - middle), -low / (middle - qtype.qmin))
    else:
        scale = (high - low) / qtype.levels
    scale = scale.astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    if qtype.power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32)
    if qtype.symmetric:
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax)
    return QParams(scale, zero_point.astype(qtype.numpy_dtype), qtype, axis)


def weight_params(w: Array, axis: int, qtype: QType, floor: Array | float = 0.0, per_channel: bool = True) -> QParams:
    """Symmetric grid of `w` with a scale for each channel along `axis`, or one for all; no scale is below `floor`
    [channels].

    Channels with only zeros get scale 1, or `floor` if that is larger than 0.
    """
    if not per_channel:
        widest = max(np.abs(w).max(initial=0.0), np.max(floor, initial=0.0) * qtype.qmax)
        return choose(0.0, widest, qtype)
    peak = np.abs(w).max(axis=tuple(i for i in range(w.ndim) if i != axis), initial=0.0)
    return choose(0.0, np.maximum(peak, np.asarray(floor, np.float64) * qtype.qmax), qtype, axis)


def largest_pair(rows: Array) -> Array:
    """The largest |a + b| over the neighbours (0, 1), (2, 3) ... of equal sign in each row, [channels]; a single last
    element is paired with 0.
    """
    odd = rows.shape[1] % 2
    pairs = np.pad(rows, ((0, 0), (0, odd))).reshape(rows.shape[0], -1, 2)
    positive = np.maximum(pairs, 0).sum(-1).max(-1)
    return np.asarray(np.maximum(positive, np.maximum(-pairs, 0).sum(-1).max(-1)), dtype=np.float32)


def quantize(x: Array, params: QParams) -> NDArray[np.integer]:
    """Integers of `x`: q = clip(round(x / scale) + zero_point), `params.qtype`'s type, the shape of `x`."""
    wide = x.astype(np.float64) if params.qtype.qmax > _EXACT else x
    q = np.asarray(np.rint(wide / params._expand(params.scale, x.ndim)))
    q = np.clip(q + params._expand(params.zero_point, x.ndim), params.qtype.qmin, params.qtype.qmax)
    return np.asarray(q, params.qtype.numpy_dtype)


def dequantize(q: NDArray[np.integer], params: QParams) -> Array:
    """Real values of `q`: x = scale * (q - zero_point), float32, the shape of `q`."""
    x = q.astype(np.float32) - params._expand(params.zero_point, q.ndim).astype(np.float32)
    x *= params._expand(params.scale, q.ndim)
    return x


def fake_quantize(x: Array, params: QParams) -> Array:
    """`x` rounded to the nearest point of the grid, as float32."""
    return dequantize(quantize(x, params), params)
