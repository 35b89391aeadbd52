"""ONNX's transformer operators (from opset 23) as torch functions; see `torch_ops`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.train.network.torch_data import Unsupported


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
    softmax_precision: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention: q [batch, heads, n, d] or [batch, n, heads d]; returns (y, keys, values)."""
    if past_key is not None or lengths is not None or softcap:
        raise Unsupported("keys from before, lengths or a softcap")
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            t.unflatten(-1, (n, -1)).transpose(1, 2)
            for t, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
        )
    window = left_window_size, 0 if is_causal else right_window_size
    y = F.scaled_dot_product_attention(q, k, v, _mask(q, k, mask, window), scale=scale, enable_gqa=True)
    return (y.transpose(1, 2).flatten(2) if flat else y), k, v


def _mask(q: Tensor, k: Tensor, mask: Tensor | None, window: tuple[int, int]) -> Tensor | None:
    """`mask` combined with the attention `window`: positions to the left and right, -1 for all."""
    n, m = q.shape[-2], k.shape[-2]
    if mask is not None and mask.shape[-1] < m:  # positions beyond the mask are masked
        mask = F.pad(mask, (0, m - mask.shape[-1]), value=False if mask.dtype == torch.bool else -math.inf)
    left, right = (m + n if size < 0 else size for size in window)
    if left >= n and right >= m:
        return mask
    ahead = torch.arange(m, device=q.device) - torch.arange(n, device=q.device).unsqueeze(-1)
    seen = (ahead <= right) & (ahead >= -left)
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """RotaryEmbedding: x [batch, heads, n, d] or [batch, n, heads d]; cos, sin [batch, n, d/2], or tables by
    position.
    """
    flat = x.ndim == 3
    h = x.unflatten(-1, (num_heads, -1)) if flat else x.transpose(1, 2)
    size = rotary_embedding_dim or h.shape[-1]
    turned, rest = h[..., :size], h[..., size:]
    c, s = (t if positions is None else t[positions.long()] for t in (cos, sin))
    c, s = c.unsqueeze(2), s.unsqueeze(2)
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = [c * a - s * b, s * a + c * b]
    y = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    y = torch.cat([y, rest], -1)
    return y.flatten(2) if flat else y.transpose(1, 2)


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """RMSNormalization."""
    return F.rms_norm(x, x.shape[axis % x.ndim :], None, epsilon) * scale
