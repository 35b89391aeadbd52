"""Training after quantization: the static result of a job, trained on through its Q/DQ against its own float model."""

from __future__ import annotations

from dataclasses import replace

from edgeopt.data import readable
from edgeopt.errors import ModelError
from edgeopt.options.distill import Distill
from edgeopt.quantization.prepare import Job
from edgeopt.quantization.static import Made

MODE = "QAT"


def trained(job: Job, made: Made) -> Made:
    """`made` with weights, biases and steps trained on the samples that are not held out.

    Raises:
        ModelError: `made` is no static result.
    """
    if made.plan is None:
        raise ModelError(f"--qat trains a static result, and this is {made.mode}: try --mode static")
    from edgeopt.train.distill import distill

    feeds, problems = readable([*job.calibration, *job.rest])
    for reason in problems.values():
        job.note(f"skipped: {reason}")
    options = Distill(
        teacher=job.model,
        quantized=True,
        labels=False,
        temperature=1.0,
        learning_rate=2e-5,
        batch_size=16,
        target=job.target,
        minutes=job.options.qat_minutes,
        epochs=job.options.qat_epochs,
        listener=replace(job.listener, note=job.note),
    )
    found = distill(made.model, [feed for _, feed in feeds], options)
    return replace(made, mode=MODE, model=found.model)
