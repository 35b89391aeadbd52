"""Quantization-aware training: fine-tune a static result through its Q/DQ nodes with the float model as teacher."""

from __future__ import annotations

from dataclasses import replace

from edgeopt.data import readable
from edgeopt.errors import ModelError
from edgeopt.options.distill import Distill
from edgeopt.quantization.candidates import Draft
from edgeopt.quantization.prepare import Task

MODE = "QAT"


def trained(task: Task, draft: Draft) -> Draft:
    """`draft` with weights, biases and quantization step sizes trained on the samples that are not held out.

    Raises:
        ModelError: `draft` is not a static result.
    """
    if not draft.static:
        raise ModelError(f"--qat trains a static result, and this is {draft.mode}: try --mode static")
    from edgeopt.train.distill import distill

    feeds, problems = readable([*task.start.samples, *task.rest])
    for reason in problems.values():
        task.note(f"skipped: {reason}")
    options = Distill(
        teacher=task.start.model,
        quantized=True,
        labels=False,
        temperature=1.0,
        batch_size=16,
        target=task.target,
        minutes=task.options.qat_minutes,
        epochs=task.options.qat_epochs,
        listener=task.listener,
    )
    found = distill(draft.model, [feed for _, feed in feeds], options)
    return Draft(MODE, replace(draft.state, model=found.model), draft.recipe)
