"""Measured costs for a job: from the file that `--costs` names, and from the clock of this machine where it is the target."""

from __future__ import annotations

import time
from collections.abc import Mapping

import onnx_ir as ir

from edgeopt.errors import UsageError
from edgeopt.hardware.target import host
from edgeopt.numbers.grid import choose
from edgeopt.passes.qdq import fold_weights, insert_qdq
from edgeopt.ptq.grids import quantization_params, untie
from edgeopt.ptq.place import place, refusal
from edgeopt.quantization.prepare import Job
from edgeopt.runtime import costs
from edgeopt.runtime.costs import Costs
from edgeopt.runtime.probe import Probe


def costed(job: Job, model: ir.Model, probes: Mapping[str, Probe], known: Costs | None) -> Costs | None:
    """`known`, or what the job's file holds, with what this machine can measure of the nodes of `model` that are missing there;
    None where there is nothing to go by.

    Raises:
        DataError: the file is no file of costs. UsageError: it cannot be written, or is not there and cannot be made.
    """
    path = job.options.costs
    if known is None and path is not None:
        known = costs.load(path)
    nodes = [n for n in model.graph if refusal(n, probes) is None]
    missing = [n for n in nodes if known is None or known.of(n, probes) is None]
    if not missing or not (_here(job) and (known is None or known.host == costs.here())):
        if known is None and path is not None:
            raise UsageError(
                f"--costs {path}: no such file, and here nothing can be measured for {job.target.name}: make it on a machine that is one"
            )
        if missing and known is not None:
            job.note(f"costs: {len(missing)} of {len(nodes)} nodes are not in the file: by the target's table")
        return known
    start = time.perf_counter()
    new = _measured(job, model, probes, nodes)
    known = new if known is None else costs.joined(known, new)
    job.seconds["costs"] = job.seconds.get("costs", 0.0) + time.perf_counter() - start
    job.note(f"costs: {len(nodes)} nodes timed in floats and in integers")
    if path is not None:
        try:
            costs.save(known, path)
        except OSError as e:
            raise UsageError(f"--costs {path}: cannot be written ({e})") from e
    return known


def _here(job: Job) -> bool:
    """Whether this machine's clock counts: it is the very target, not one that runs its files."""
    return job.options.measure and job.target.name == host()


def _measured(job: Job, model: ir.Model, probes: Mapping[str, Probe], nodes: list[ir.Node]) -> Costs:
    """Of a form of `model` with every node in integers; its grids are those of one sample, which decides no time."""
    every = frozenset(str(n.name) for n in nodes)
    plan = place(model, job.target, probes, exclude=job.exclude - every, include=every)
    grids = {v: choose(probes[s].lo, probes[s].hi, job.target.activation_type) for v, s in plan.grids.items()}
    untied = untie(model, plan)
    integer = fold_weights(insert_qdq(untied, plan, quantization_params(untied, plan, grids, job.target)))
    return costs.measured(model, integer, nodes, plan.clamps, job.held[0][1], probes)
