"""Auxiliary modules used only in training: hints and classifiers on intermediate values.

Hint (Romero et al. 2015, FitNets, arXiv:1412.6550), unit vectors over the channels:

    mean |P f_s / |P f_s| - f_t / |f_t||^2        P: linear if the channel counts differ; the finer grid is pooled

Heads (Zhang et al. 2019, Be Your Own Teacher, arXiv:1905.08094): each intermediate classifier learns from the labels
and from the network's own output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.errors import UsageError
from edgeopt.train import losses
from edgeopt.train.pairs import Pair

_IMAGE = 4  # rank of [batch, channels, height, width]


def _channels_last(f: Tensor, first: bool) -> Tensor:
    """`f` with its channels last; `first`: whether a value of rank 3 has them on axis 1, as behind a convolution."""
    return f.movedim(1, -1) if f.ndim >= _IMAGE or (first and f.ndim > 2) else f


def _shared(f: Tensor, first: bool) -> torch.Size:
    """The sizes that values to compare have in common: all but that of the channels, of a picture that of the batch."""
    return f.shape[:1] if f.ndim == _IMAGE else _channels_last(f, first).shape[:-1]


class Hints(nn.Module):
    """Distances between intermediate values of student and teacher."""

    def __init__(
        self,
        names: Mapping[str, str],
        ours: Mapping[str, Tensor],
        theirs: Mapping[str, Tensor],
        first: tuple[Set[str], Set[str]] = (frozenset(), frozenset()),
    ) -> None:
        """`names`: the teacher's value for each of the student's; `ours`, `theirs`: those values for a batch; `first`:
        those of each that have their channels first.

        Raises:
            UsageError: values of different rank or length.
        """
        super().__init__()
        self.names, self.first = dict(names), first
        self.projections = nn.ModuleList()
        for name, other in names.items():
            s, t = ours[name], theirs[other]
            numbers = s.is_floating_point() and t.is_floating_point() and s.ndim == t.ndim > 1
            sides = name in first[0], other in first[1]
            if not numbers or _shared(s, sides[0]) != _shared(t, sides[1]):
                raise UsageError(
                    f"--hint {name}={other}: {list(s.shape)} and {list(t.shape)} cannot be compared (pictures may"
                    " differ in size and channels, others in the last axis)"
                )
            wide, goal = (_channels_last(f, side).shape[-1] for f, side in zip((s, t), sides, strict=True))
            self.projections.append(nn.Identity() if wide == goal else nn.Linear(wide, goal, bias=False))

    def forward(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """The mean distance over the hints."""
        distances = []
        for projection, (name, other) in zip(self.projections, self.names.items(), strict=True):
            s, t = ours[name], theirs[other]
            if s.ndim == _IMAGE:
                size = [min(a, b) for a, b in zip(s.shape[2:], t.shape[2:], strict=True)]
                s, t = (F.adaptive_avg_pool2d(f, size) for f in (s, t))
            s = projection(_channels_last(s, name in self.first[0]))
            t = _channels_last(t, other in self.first[1])
            distances.append((F.normalize(s, dim=-1) - F.normalize(t, dim=-1)).square().sum(-1).mean())
        return torch.stack(distances).mean()


class Heads(nn.Module):
    """Linear classifiers on intermediate values averaged over positions."""

    def __init__(self, values: Mapping[str, Tensor], classes: int, first: Set[str] = frozenset()) -> None:
        """`values`: the intermediate values for a batch; `classes`: number of classes of the output; `first`: the
        values that have their channels first.

        Raises:
            UsageError: a value without channels.
        """
        super().__init__()
        self.names, self.first = list(values), first
        for name, value in values.items():
            if value.ndim < 2 or not value.is_floating_point():
                raise UsageError(f"--heads {name}: {list(value.shape)} has no channels to learn from")
        self.linear = nn.ModuleList(
            nn.Linear(_channels_last(v, name in first).shape[-1], classes) for name, v in values.items()
        )

    def forward(
        self,
        inner: Mapping[str, Tensor],
        output: Tensor,
        labels: Tensor | None,
        temperature: float,
        alpha: float,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Mean loss of the heads: `alpha` of the distillation loss against the network's output, 1 - `alpha` of
        cross-entropy with the labels.
        """
        values = []
        for name, linear in zip(self.names, self.linear, strict=True):
            f = _channels_last(inner[name], name in self.first)
            logits = linear(f.flatten(1, -2).mean(1) if f.ndim > 2 else f)
            taught = losses.kd(logits, output.detach(), temperature)
            told = 0.0 if labels is None else losses.supervised("kd", logits, labels, smoothing)
            values.append(taught if labels is None else alpha * taught + (1 - alpha) * told)
        return torch.stack(values).mean()


def check_heads(pairs: Sequence[Pair], output: Tensor) -> None:
    """Refuse heads if the model is not a classifier.

    Raises:
        UsageError: the first output is not [batch, classes] of class scores.
    """
    if output.ndim != 2 or pairs[0].loss not in losses.CLASSES:
        raise UsageError(
            f"--heads: output {pairs[0].student!r} {list(output.shape)} is no row of class scores, which inner"
            " classifiers could learn"
        )
