"""Training after quantization: the static result of a job, trained on through its Q/DQ against its own float model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeopt.data import readable
from edgeopt.errors import ModelError
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
    choices: dict[str, Any] = {
        "target": job.target.name,
        "minutes": job.options.qat_minutes,
        "epochs": job.options.qat_epochs,
    }
    found = distill(
        made.model,
        [feed for _, feed in feeds],
        teacher=job.model,
        quantized=True,
        labels=False,
        temperature=1.0,
        learning_rate=2e-5,
        batch_size=16,
        listener=replace(job.listener, note=job.note),
        **choices,
    )
    return replace(made, mode=MODE, model=found.model)
