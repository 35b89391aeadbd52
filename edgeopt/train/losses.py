"""Distillation losses between student and teacher values of one output, averaged over the batch; classes are on the
last axis.

p = softmax(z / T) over the class axis; T^2 keeps the gradient's size when T grows (Hinton et al. 2015,
arXiv:1503.02531). DKD: Zhao et al. 2022, arXiv:2203.08679. DIST: Huang et al. 2022, arXiv:2205.10536. Similarity: Fang
et al. 2021, SEED, arXiv:2101.04731, with the batch as the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import UsageError

NO_LABEL = -1
Loss = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
_ALIKE = 0.05


def _rows(x: Tensor) -> Tensor:
    """[batch, ..., classes] as [positions, classes]."""
    return x.reshape(-1, x.shape[-1])


def kd(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """T^2 KL(p_t || p_s), averaged over all positions."""
    log_s = F.log_softmax(_rows(student) / temperature, -1)
    log_t = F.log_softmax(_rows(teacher) / temperature, -1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def probabilities(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """`kd` for outputs that are already probabilities, at any temperature without the factor T^2."""
    log_s, log_t = (_rows(x).clamp_min(1e-8).log() / temperature for x in (student, teacher))
    return kd(log_s, log_t, 1.0)


def dist(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """2 (1 - correlation of rows) + 2 (1 - correlation of columns) of the probabilities."""
    p, q = (F.softmax(_rows(z) / temperature, -1) for z in (student, teacher))
    return 2 * _apart(p, q) + 2 * _apart(p.t(), q.t())


def _apart(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


def mse(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Mean squared error relative to the teacher's mean square, so that its scale does not depend on the output's."""
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def cosine(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """1 - cosine over the last axis, for embeddings."""
    return (1 - F.cosine_similarity(_rows(student), _rows(teacher), dim=1)).mean()


def similarity(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """KL between in-batch similarity distributions, softmax(cosine / .05) over the others; the sizes of the embeddings
    may differ.
    """
    s, t = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    others = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    rows = [(x @ x.t())[others].reshape(len(x), -1) / _ALIKE for x in (s, t)]
    return kd(rows[0], rows[1], 1.0) if len(s) > 1 else student.sum() * 0  # undefined for a batch of one


def bce(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of outputs that are already sigmoids, minus the teacher's entropy."""
    s, t = student.clamp(1e-6, 1 - 1e-6), teacher.clamp(1e-6, 1 - 1e-6)
    return F.binary_cross_entropy(s, t) - F.binary_cross_entropy(t, t)


def dkd(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """T^2 (TCKD + NCKD / 2): target class against the rest, and the distribution among the rest."""
    if labels is None:
        raise UsageError("--loss dkd needs labels: a folder for each class, or an entry 'label' in every .npz")
    target = F.one_hot(labels, student.shape[1]).bool()
    p, q = (F.softmax(z / temperature, 1) for z in (student, teacher))
    sides = [torch.stack([x[target], 1 - x[target]], 1).clamp_min(1e-8).log() for x in (p, q)]
    tckd = F.kl_div(sides[0], sides[1], reduction="batchmean", log_target=True)
    rest = [F.log_softmax((z / temperature)[~target].reshape(len(z), -1), 1) for z in (student, teacher)]
    nckd = F.kl_div(rest[0], rest[1], reduction="batchmean", log_target=True)
    return temperature**2 * (tckd + nckd / 2)


LOSSES: dict[str, Loss] = {
    "kd": kd,
    "dkd": dkd,
    "dist": dist,
    "mse": mse,
    "cosine": cosine,
    "bce": bce,
    "probabilities": probabilities,
    "similarity": similarity,
}
RELATIVE = frozenset({"similarity"})  # student and teacher may differ in size
CLASSES = frozenset({"kd", "dkd", "dist", "probabilities"})  # the output has class scores, for which labels can be used


def supervised(loss: str, student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with labels [batch] of an output [batch, classes] in the form that `loss` expects, the mean over
    the batch, to which a sample without a label adds 0. `smoothing`: share of the label that all classes get (Szegedy
    et al. 2016, arXiv:1512.00567).
    """
    z = student.clamp_min(1e-8).log() if loss == "probabilities" else student
    total = F.cross_entropy(z, labels, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="sum")
    return total / max(1, len(labels))


@dataclass(frozen=True)
class Objective:
    """alpha x distillation loss + (1 - alpha) x cross-entropy with the labels, if this output has any."""

    loss: str = "kd"
    temperature: float = 2.0
    alpha: float = 0.9
    labelled: bool = True
    smoothing: float = 0.0

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, trust: float = 1.0) -> Tensor:
        """The value for one output; `trust`: in the teacher, which multiplies alpha."""
        if not self.labelled:  # labels belong to the first output
            loss = "kd" if self.loss == "dkd" else self.loss
            return trust * LOSSES[loss](student, teacher, self.temperature, None)
        distilled = LOSSES[self.loss](student, teacher, self.temperature, labels)
        if labels is None:
            return trust * distilled
        alpha = trust * self.alpha
        return alpha * distilled + (1 - alpha) * supervised(self.loss, student, labels, self.smoothing)


_MANY, _STANDS_OUT = 64, 0.1  # classes, of which one stands out where a network was trained to tell them apart


def guess(teacher: list[Tensor], told: bool = False, labelled: bool = False) -> tuple[str, str]:
    """(a loss that fits the values of an output [batch, ...] over some batches: probabilities, sigmoids, logits or an
    embedding; why it does). `told`: the last axis is known to be that of classes; `labelled`: there are labels of so
    many classes, so that rows in which none stands out are scores.
    """
    rows = [_rows(t).float() for t in teacher]
    classes = teacher[0].ndim == 2 and rows[0].shape[-1] > 1
    if all(x.min() >= 0 and x.max() <= 1 for x in rows):
        if all(torch.allclose(x.sum(-1), torch.ones(len(x)), atol=1e-3) for x in rows):
            return "probabilities", "each row is positive and has the sum 1"
        return "bce", "all values are between 0 and 1, and their sum is not 1"
    if told:
        return "kd", "the axis of its classes was named"
    unit = all(torch.allclose(x.norm(dim=-1), torch.ones(len(x)), atol=1e-3) for x in rows)
    if classes and (unit or all(x.min() >= 0 for x in rows)):
        return "cosine", f"an embedding: {'each row has length 1' if unit else 'no value is negative'}"
    if classes and not labelled and rows[0].shape[-1] >= _MANY:
        largest = float(torch.cat([x.softmax(-1).amax(-1) for x in rows]).mean())
        if largest < _STANDS_OUT:
            return (
                "cosine",
                f"an embedding: as scores, the best of {rows[0].shape[-1]} has {largest:.1%} on the average",
            )
    return ("kd", "rows of class scores") if classes else ("mse", "no row of classes, no embedding")
