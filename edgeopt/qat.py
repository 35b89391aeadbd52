"""Training after quantization: the static result of a job, trained on through its Q/DQ against its own float model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.data import readable
from edgeopt.errors import ModelError
from edgeopt.prepare import Job
from edgeopt.ptq.quantize import within_pairs
from edgeopt.statics import Made

MODE = "QAT"
_PRODUCTS = ("Conv", "Gemm", "MatMul")


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
    choices: dict[str, Any] = {"minutes": job.options.qat_minutes, "epochs": job.options.qat_epochs}
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
    model = _guarded(found.model) if job.target.saturates else found.model
    return replace(made, mode=MODE, model=model)


def _guarded(model: ir.Model) -> ir.Model:
    """A clone whose weights keep to the pairs that do not saturate."""
    copy = model.clone()
    for node in copy.graph:
        value = node.inputs[1] if node.op_type in _PRODUCTS else None
        dequantize = value.producer() if value is not None else None
        weight = dequantize.inputs[0] if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
        if dequantize is None or weight is None or weight.const_value is None:
            continue
        q, axis = weight.const_value.numpy(), dequantize.attributes.get_int("axis", 1)
        if q.dtype != np.int8 or (node.op_type == "Conv" and _depthwise(node, q)):
            continue
        weight.const_value = ir.tensor(within_pairs(q, node.op_type, axis % q.ndim), name=weight.name)
    return copy


def _depthwise(node: ir.Node, q: np.ndarray) -> bool:
    return bool(node.attributes.get_int("group", 1) > 1 and q.shape[1] == 1)
