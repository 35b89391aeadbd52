"""ONNX's transformer operators (from opset 23) as torch functions; see `torch_ops`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """Attention: q [batch, heads, n, d] or [batch, n, heads d]; returns (y, keys, values), those from before first."""
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            t.unflatten(-1, (n, -1)).transpose(1, 2)
            for t, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
        )
    before: int | Tensor = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    window = left_window_size, 0 if is_causal else right_window_size
    if lengths is not None:  # keys beyond are padding; the last queries are those of the last keys
        before = (lengths - q.shape[2]).reshape(-1, 1, 1, 1)
    seen = _mask(q, k, mask, window, before)
    if lengths is not None:
        there = (torch.arange(k.shape[2], device=q.device) < lengths.reshape(-1, 1)).reshape(len(q), 1, 1, -1)
        seen = _both(seen, there)
    if softcap:
        y = _capped(q, k, v, seen, softcap, scale)
    else:
        y = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
    return (y.transpose(1, 2).flatten(2) if flat else y), k, v


def _capped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, cap: float, scale: float | None) -> Tensor:
    """Attention with scores within +-`cap`, by tanh."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if seen is None:
        return scores.softmax(-1) @ v
    there = seen if seen.dtype == torch.bool else seen > -math.inf
    scores = scores if seen.dtype == torch.bool else scores + seen
    weights = scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~there, 0) @ v  # 0 where a query sees nothing


def _both(mask: Tensor | None, seen: Tensor) -> Tensor:
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)


def _mask(q: Tensor, k: Tensor, mask: Tensor | None, window: tuple[int, int], before: int | Tensor) -> Tensor | None:
    """`mask` combined with the attention `window`: positions to the left and right, -1 for all; `before`: the number of
    keys before the first query's own.
    """
    n, m = q.shape[-2], k.shape[-2]
    if mask is not None and mask.shape[-1] < m:  # positions beyond the mask are masked
        mask = F.pad(mask, (0, m - mask.shape[-1]), value=False if mask.dtype == torch.bool else -math.inf)
    if max(window) < 0:
        return mask
    left, right = (m + n if size < 0 else size for size in window)
    ahead = torch.arange(m, device=q.device) - torch.arange(n, device=q.device).unsqueeze(-1) - before
    seen = (ahead <= right) & (ahead >= -left)
    return _both(mask, seen)


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
