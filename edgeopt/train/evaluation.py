"""The held-out metric of a student, measured in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.hardware.host import cores
from edgeopt.runtime.session import open_session
from edgeopt.train import batches as data_of
from edgeopt.train import losses, teachers
from edgeopt.train.batches import Examples
from edgeopt.train.job import Job
from edgeopt.train.network.module import OnnxModule
from edgeopt.train.teachers import answers, widened

PARITY = 1e-3  # largest relative difference from ONNX Runtime that is accepted
HALF_PARITY = 0.02  # for a float16 student, which is trained in float32
_OWN = 2.0
QUANTIZED_PARITY = 0.05  # a value between two integers may be rounded to either


def scores(job: Job) -> tuple[float | None, Callable[[nn.Module], float]]:
    """(the teacher's accuracy, the score function of a student): accuracy if there are labels, otherwise minus the loss
    against the teacher's outputs, on the held-out samples and in ONNX Runtime.
    """
    labels = [b.labels for b in data_of.batches(job.held, job.size) if b.labels is not None]
    theirs: dict[str, list[np.ndarray]] = {}
    taught = None
    if job.ranks.first and job.options.kind != "self":
        theirs = answers(job.panel(cores()), job.held, job.size)
    if labels and theirs:
        first = job.pairs[0]
        taught = _right([first.theirs(torch.from_numpy(y)) for y in theirs[first.teacher]], labels)

    def wide(y: np.ndarray) -> Tensor:
        return widened(torch.from_numpy(y))

    def score(module: nn.Module) -> float:
        assert isinstance(module, OnnxModule)
        ours = answers(open_session(job.written(module), threads=cores()), job.held, job.size)
        if labels:
            return accuracy(job, ours, job.held)
        values = [
            float(losses.LOSSES[p.loss](p.ours(wide(y)), p.theirs(wide(t)), 1.0, None))
            for p in job.pairs
            for y, t in zip(ours[p.student], theirs[p.teacher], strict=True)
        ]
        return -sum(values) / len(values)

    return taught, score


def accuracy(job: Job, ours: Mapping[str, Sequence[np.ndarray]], examples: Examples) -> float:
    """The share of `examples` that the student tells right by its answers `ours`."""
    labels = [b.labels for b in data_of.batches(examples, job.size) if b.labels is not None]
    return _right([torch.from_numpy(y) for y in ours[job.pairs[0].student]], labels)


def _right(answers: list[Tensor], labels: list[Tensor]) -> float:
    return float((torch.cat([y.argmax(-1) for y in answers]) == torch.cat(labels)).double().mean())


def _apart(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference relative to the largest magnitude of its output; NaN if there is one."""
    worst = 0.0
    for name, y in theirs.items():
        if np.issubdtype(y.dtype, np.floating):
            size = float(np.abs(y).max()) or 1.0
            worst = float(np.maximum(worst, np.abs(ours[name] - y).max() / size))
    return worst


def parity_of(job: Job) -> float:
    """The largest difference between torch and ONNX Runtime for a held-out batch, relative to the largest magnitude of
    the output.

    Raises:
        ModelError: above the limit: `PARITY`, `HALF_PARITY` or `QUANTIZED_PARITY`; of a quantized student, twice what
          ONNX Runtime with and without its optimizations differs by, if that is more.
    """
    batch = next(data_of.batches(job.held, job.size))
    wanted = teachers.outputs(open_session(job.student), batch)
    with torch.no_grad():
        ours = job.module.eval()({k: v.to(job.options.device) for k, v in batch.feed.items()})
    worst = _apart({name: ours[name].cpu().numpy() for name in wanted}, wanted)
    limit = QUANTIZED_PARITY if job.options.quantized else HALF_PARITY if job.module.half else PARITY
    if job.options.quantized and worst > limit:
        # in a deep network one value rounded to the other side moves all after it
        limit = max(limit, _OWN * _apart(teachers.outputs(open_session(job.student, level="none"), batch), wanted))
    if not worst <= limit:
        raise ModelError(
            f"torch and ONNX Runtime differ by {worst:.1e} on this student (the limit is {limit:g}): it cannot be"
            " trained faithfully"
        )
    return worst
