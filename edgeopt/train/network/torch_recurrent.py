"""ONNX's recurrent layers (LSTM, GRU, RNN) as torch functions; see `torch_ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeopt.train.network.torch_data import Op, Unsupported, ints


def _gates(t: Tensor, order: Sequence[int], hidden: int) -> Tensor:
    """The blocks of `hidden` rows of t, reordered."""
    blocks = t.split(hidden, 0)
    return torch.cat([blocks[i] for i in order])


def _by_direction(w: Tensor, r: Tensor, b: Tensor | None, gates: Sequence[int], hidden_size: int) -> list[Tensor]:
    """Weights and biases in the order of torch's kernels: one direction after the other."""
    found = []
    for d in range(w.shape[0]):
        found += [_gates(w[d], gates, hidden_size), _gates(r[d], gates, hidden_size)]
        if b is not None:
            found += [_gates(half, gates, hidden_size) for half in b[d].chunk(2)]
    return found


def _gru(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
    """GRU whose reset gate is applied before the product, in ONNX's order of gates (z, r, h), which torch has not:

        n = tanh(x W_n + (r * h) R_n + b),  h' = (1 - z) n + z h

    x [time, batch, inputs]; returns (y [time, batch, directions * hidden], last states).
    """
    outputs, last = [], []
    for d in range(w.shape[0]):
        sequence = x.flip(0) if d else x
        bias = 0 if b is None else b[d].reshape(2, -1).sum(0)
        z_in, r_in, n_in = (sequence @ w[d].t() + bias).chunk(3, -1)
        z_of, r_of, n_of = r[d].chunk(3, 0)
        h, seen = start[d], []
        for i in range(len(x)):
            z, reset = torch.sigmoid(z_in[i] + h @ z_of.t()), torch.sigmoid(r_in[i] + h @ r_of.t())
            h = (1 - z) * torch.tanh(n_in[i] + (reset * h) @ n_of.t()) + z * h
            seen.append(h)
        found = torch.stack(seen)
        outputs.append(found.flip(0) if d else found)
        last.append(h)
    return torch.cat(outputs, -1), torch.stack(last)


def recurrent(kind: str, gates: Sequence[int]) -> Op:
    """LSTM, GRU and RNN by torch's kernels; `gates`: ONNX's gate order in torch's."""

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
        p: Tensor | None = None,
        *,
        hidden_size: int,
        direction: str = "forward",
        layout: int = 0,
        linear_before_reset: int = 0,
        activations: Any = None,
        activation_alpha: Any = None,
        activation_beta: Any = None,
        clip: float | None = None,
        input_forget: int = 0,
    ) -> tuple[Tensor, ...]:
        usual = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}[kind]
        chosen = tuple(str(a).lower() for a in activations or ())
        if (
            p is not None
            or clip is not None
            or input_forget
            or (chosen and chosen != usual * (len(chosen) // len(usual)))
        ):
            raise Unsupported("peepholes, clip, input_forget or other activations")
        x = x.transpose(0, 1) if layout else x
        if lengths is not None and any(n != x.shape[0] for n in ints(lengths) or []):
            raise Unsupported("sequences of several lengths in a batch")
        directions = w.shape[0]
        weights = _by_direction(w, r, b, gates, hidden_size)
        zero = x.new_zeros(directions, x.shape[1], hidden_size)
        states = [zero if s is None else (s.transpose(0, 1) if layout else s).contiguous() for s in (h, c)]
        x = x.flip(0) if direction == "reverse" else x
        arguments = (b is not None, 1, 0.0, False, directions == 2, False)
        if kind == "GRU" and not linear_before_reset:
            y, *last = _gru(x, w, r, b, states[0])
        elif kind == "LSTM":
            y, *last = torch.lstm(x, states, weights, *arguments)
        else:
            y, *last = (torch.gru if kind == "GRU" else torch.rnn_tanh)(x, states[0], weights, *arguments)
        y = y.flip(0) if direction == "reverse" else y
        y = y.reshape(x.shape[0], x.shape[1], directions, hidden_size).transpose(1, 2)
        if layout:
            return y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last)
        return y, *last

    return run
