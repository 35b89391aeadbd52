"""The models that each mode makes of a job; `auto` and the checks do not know how."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.errors import UsageError
from edgeopt.graph.select import select
from edgeopt.passes.dynamic import candidates as dynamic_nodes
from edgeopt.passes.dynamic import dynamic
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.fp16 import fp16
from edgeopt.passes.weights import weight_only
from edgeopt.ptq.grids import dynamic_params
from edgeopt.quantization.prepare import Job
from edgeopt.quantization.static import Made
from edgeopt.runtime.probe import probe

_PEAK_SAMPLES = 4
_INT4_OPSET = 21
_NOTHING = {
    "static": "no node pays in integers on this target",
    "dynamic": "no MatMul or Gemm has constant weights",
    "weights": "no weight is large enough",
}


def dynamic_int8(job: Job) -> Iterator[Made]:
    """Dynamic int8 of every matrix product with constant weights (LSTMs when `include` names them)."""
    lstm = {str(n.name) for n in job.model.graph.all_nodes() if n.op_type == "LSTM"} & job.include
    nodes = [
        n
        for n in dynamic_nodes(job.model, lstm=bool(lstm))
        if n.name not in job.exclude and (n.op_type != "LSTM" or n.name in lstm)
    ]
    if not nodes:
        return
    model = dynamic(job.model, *dynamic_params(nodes, job.target))
    yield Made("dynamic", quantize_embeddings(model, job.exclude))


def half(job: Job) -> Iterator[Made]:
    """fp16, with nodes beyond its range, by constants or by what the held-out samples show, left in float32."""
    keep = select([job.source, job.model], job.options.keep) | job.exclude
    peaks: dict[str, float] = {}
    for _, feed in job.held[:_PEAK_SAMPLES]:
        for name, p in probe(job.model, feed).items():
            peak = max(abs(p.lo), abs(p.hi))
            peaks[name] = max(peaks.get(name, 0.0), 0.0 if np.isnan(peak) or np.isinf(peak) else peak)
    yield Made("fp16", fp16(graph.typed(job.model), keep=keep, io_keep=job.options.io_types == "keep", peaks=peaks))


def weights(job: Job) -> Iterator[Made]:
    """Weight-only integers; 4 bits raise the opset to 21."""
    bits = job.options.bits
    model = graph.raise_opset(job.model, _INT4_OPSET) if bits == 4 else job.model
    result = quantize_embeddings(weight_only(model, bits, job.exclude), job.exclude)
    if bits == 4 and not any(v.dtype == ir.DataType.INT4 for v in result.graph.initializers.values()):
        job.note("--bits 4: no matrix product has rows in whole blocks of 32; its weights have 8 bits")
    if any(v.dtype in (ir.DataType.INT8, ir.DataType.INT4) for v in result.graph.initializers.values()):
        yield Made("weights" if bits == 8 else "weights (4 bits)", result)


def of_mode(job: Job) -> Made:
    """The one candidate of a mode that is neither static nor auto.

    Raises:
        UsageError: the mode has nothing to do in this model.
    """
    makers = {"dynamic": dynamic_int8, "fp16": half, "weights": weights}
    mode = job.options.mode
    made = next(makers[mode](job), None)
    if made is None:
        raise UsageError(nothing_to_do(mode))
    return made


def nothing_to_do(mode: str) -> str:
    """That `mode` has nothing to do in a model, and what to do."""
    return f"--mode {mode}: {_NOTHING[mode]}; use --mode auto, or name nodes with --include"
